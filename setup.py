"""What pyproject.toml cannot say: in a wheel the package `analysis` is its `__init__.py` alone.

That module hands over to `simdino.analysis`, which is the whole folder under its long name.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildOneOfAnalysis(build_py):
    """Leaves the other modules of the folder out of the package of the short name."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if package != "analysis" or module[1] == "__init__"]


setup(cmdclass={"build_py": BuildOneOfAnalysis})

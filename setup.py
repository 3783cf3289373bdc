"""What pyproject.toml cannot say: in a wheel `analysis` is the folder's `__init__.py` alone.

It hands over to `simdino.analysis`, which is the whole folder under its long name.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class OneModule(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [(p, m, f) for p, m, f in found if p != "analysis" or m == "__init__"]


setup(cmdclass={"build_py": OneModule})

"""SimDINO, SimDINOv2 and their DINO baselines, whose runs are recorded; `simdino.analysis` reads what they recorded.

The package `simdino.analysis` has a second, short name, `analysis`, for the notebooks of this project. Its folder lies
beside this one in a checkout and inside this one when installed from a wheel; both names are one set of modules.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

_INSIDE = Path(__file__).parent / "analysis"
_BESIDE = Path(__file__).parents[1] / "analysis" / "__init__.py"


class _Names(MetaPathFinder, Loader):
    """Finds `simdino.analysis` in a checkout, and answers `analysis.x` with `simdino.analysis.x`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "simdino.analysis" and not _INSIDE.is_dir():
            return spec_from_file_location(name, _BESIDE, submodule_search_locations=[str(_BESIDE.parent)])
        ours = name.startswith("analysis.") and sys.modules.get("analysis") is sys.modules.get("simdino.analysis")
        return ModuleSpec(name, _Names()) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"simdino.{spec.name}")
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # which the import system has replaced by that of the short name


sys.meta_path.insert(0, _Names())

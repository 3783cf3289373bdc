"""Results about finished runs, kept in their directories, so that a notebook that is run again has them at once."""

import functools
from collections.abc import Callable
from pathlib import Path

from simdino.runs import Run, code_hash
from simdino.whole_files import read_json, write_json


@functools.cache
def analysis_source() -> str:
    """Hash the code of the package: results are those of one version of it, and a changed one makes them anew."""
    return code_hash(sorted(Path(__file__).parents[1].rglob("*.py")))


def kept(measure: Callable[..., dict]) -> Callable[..., dict]:
    """Make a function `measure(run, **options)` keep what it returns, numbers and lists by name, in `<run>/results`.

    Called again on a finished run, it reads them there; of an archived run it reads them in the archive, which keeps
    what `archiving.RESULTS` lists. A directory that cannot be written to, as somebody else's, keeps nothing.

    Args:
        measure: of a run and options by keyword, which are part of the kept file's name.
    """

    @functools.wraps(measure)
    def of(run: Run, **options: object) -> dict:
        name = result_name(measure, options)
        if run.archived:
            return run.result(name)
        path = run.path / "results" / f"{name}.json"
        if run.done and path.is_file():
            try:
                found = read_json(path)
                if found.get("source") == analysis_source():
                    return found["values"]
            except (ValueError, KeyError):
                pass  # damaged: it is made anew
        values = measure(run, **options)
        if run.done:
            try:
                path.parent.mkdir(exist_ok=True)
                write_json(path, {"source": analysis_source(), "values": values})
            except OSError:
                pass
        return values

    return of


def result_name(measure: Callable[..., dict], options: dict[str, object]) -> str:
    """Name a kept result by its function and the options.

    >>> result_name(result_name, {"first": True})
    'result_name-first=True'
    """
    return measure.__name__ + "".join(f"-{k}={v}" for k, v in options.items())

"""Results about finished runs, kept in their directories, so that a notebook that is run again has them at once."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from simdino.runs import Run, read_json, write_json

# Results are those of one version of the package: a changed one makes them anew.
ANALYSIS_SOURCE = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(Path(__file__).parents[1].rglob("*.py")))).hexdigest()[:16]


def kept(measure: Callable[..., dict]) -> Callable[..., dict]:
    """`measure(run, **options)` -> numbers and lists by name, read from `<run>/results` if it is there from before.

    Only of a run that is done. A directory that cannot be written to, as somebody else's, keeps nothing.
    """

    @functools.wraps(measure)
    def of(run: Run, **options: object) -> dict:
        path = run.path / "results" / f"{measure.__name__}{''.join(f'-{k}={v}' for k, v in options.items())}.json"
        if run.done and path.is_file():
            try:
                found = read_json(path)
                if found["source"] == ANALYSIS_SOURCE:
                    return found["values"]
            except (ValueError, KeyError):
                pass  # damaged: it is made anew
        values = measure(run, **options)
        if run.done:
            try:
                path.parent.mkdir(exist_ok=True)
                write_json(path, {"source": ANALYSIS_SOURCE, "values": values})
            except OSError:
                pass
        return values

    return of

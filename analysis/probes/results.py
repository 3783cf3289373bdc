"""What probes say of backbones: results, each a number with its interval, and a table of them as text."""

from typing import NamedTuple

import pandas as pd


class Result(NamedTuple):
    """One measure of one backbone on one set of images."""

    data: str
    backbone: str
    task: str
    measure: str
    value: float
    low: float | None = None  # of its 95 % confidence interval over images or sequences
    high: float | None = None
    sd: float | None = None  # over random draws
    n: int | None = None  # images or sequences that were tested
    note: str = ""
    detail: bool = False  # left out of the table, as the IoU of each class


def results_table(results: pd.DataFrame) -> str:
    """The results as text: a line for each set and measure, and a column for each backbone.

    A cell is value [low, high], or value ± sd over draws. Several results of one set, measure and backbone, as of
    several seeds, are their mean ± their standard deviation (n = how many).

    Args:
        results: rows with the columns of `Result`, as `tasks.probe_backbones` returns them.

    >>> results_table(pd.DataFrame([Result("set", "mine", "knn", "k-NN", 0.5, 0.4, 0.6)])).split()
    ['mine', 'data', 'measure', 'set', 'k-NN', '0.500', '[0.400,', '0.600]']
    """
    shown = results[~results["detail"].astype(bool)]
    if shown.empty:
        return "nothing was measured: none of the data are here"
    cells = {key: _cell(rows) for key, rows in shown.groupby(["data", "measure", "backbone"], sort=False)}
    wide = pd.Series(cells).unstack(fill_value="-", sort=False)
    return wide.rename_axis(index=["data", "measure"], columns=None).to_string()


def _cell(rows: pd.DataFrame) -> str:
    """The text for the results of one set, measure and backbone."""
    first = rows.iloc[0]
    if len(rows) > 1:
        return f"{rows['value'].mean():.3f} ± {rows['value'].std():.3f} (n = {len(rows)})"
    if pd.notna(first["sd"]):
        return f"{first['value']:.3f} ± {first['sd']:.3f}"
    return f"{first['value']:.3f}" + (f" [{first['low']:.3f}, {first['high']:.3f}]" if pd.notna(first["low"]) else "")

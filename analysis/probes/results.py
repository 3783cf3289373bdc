"""What is said of a backbone on data: rows of numbers, and a table of them for people."""

from typing import NamedTuple

import pandas as pd


class Result(NamedTuple):
    """One measure of one backbone on one set; low and high bound its 95% confidence interval over n images."""

    data: str
    backbone: str
    task: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None  # over random draws
    n: int | None = None  # images, or sequences, of the test set
    note: str = ""
    detail: bool = False  # in the JSON, and not in the table for people


def results_table(results: pd.DataFrame) -> str:
    """The results as a text for people, with a row for each measure and a column for each backbone.

    value [interval over images], value ± sd over draws, or of several rows of one name (seeds) mean ± sd (n = rows).
    """
    shown = results[~results["detail"].astype(bool)]
    if shown.empty:
        return "nothing was measured: none of the data are here"
    cells = {key: _cell(rows) for key, rows in shown.groupby(["data", "measure", "backbone"], sort=False)}
    wide = pd.Series(cells).unstack(fill_value="-", sort=False)
    return wide.rename_axis(index=["data", "measure"], columns=None).to_string()


def _cell(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    if len(rows) > 1:
        return f"{rows['value'].mean():.3f} ± {rows['value'].std():.3f} (n = {len(rows)})"
    if pd.notna(first["sd"]):
        return f"{first['value']:.3f} ± {first['sd']:.3f}"
    return f"{first['value']:.3f}" + (f" [{first['low']:.3f}, {first['high']:.3f}]" if pd.notna(first["low"]) else "")

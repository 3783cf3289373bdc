"""The published claims of all notebooks in one picture."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

VERDICT_COLORS = {"holds": "#0072B2", "fails": "#D55E00", "undecided": "#BBBBBB"}
IDENTITY = "#56B4E9"


def plot_board(records: list[dict], ax: Axes | None = None) -> Axes:
    """Plot one row for each notebook and one square for each of its claims.

    What holds is blue, what fails orange, what is undecided gray; an identity that holds, true by construction, is
    light blue. Claims that hold stand on the left.

    Args:
        records: what `claims.publish` wrote, one record for each notebook, with the notebook's title added.
    """
    ax = ax or plt.gca()
    width = max(len(record["claims"]) for record in records)
    for y, record in enumerate(records):
        claims = sorted(record["claims"], key=lambda c: (list(VERDICT_COLORS).index(c["verdict"]), _color(c)))
        x = range(-width, len(claims) - width)
        ax.scatter(x, [y] * len(claims), s=90, marker="s", c=[_color(c) for c in claims], linewidths=0)
        ax.text(0.2, y, record["title"], va="center", fontsize=9)
    for label, color in (VERDICT_COLORS | {"identities": IDENTITY}).items():
        ax.scatter([], [], s=60, marker="s", color=color, label=label, linewidths=0)
    held = [c["verdict"] == "holds" for record in records for c in record["claims"] if c["source"] != "identity"]
    ax.set(xlim=(-width - 0.7, width * 1.3), ylim=(len(records) - 0.4, -0.6))
    ax.set_title(f"{sum(held)} of {len(held)} claims hold", loc="left")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=4)
    ax.set_axis_off()
    return ax


def _color(claim: dict) -> str:
    identity = claim["source"] == "identity" and claim["verdict"] == "holds"
    return IDENTITY if identity else VERDICT_COLORS[claim["verdict"]]

"""All published claims at a glance."""

import matplotlib.pyplot as plt
import numpy as np

HOLDS, FAILS, OBSERVED = "#0072B2", "#D55E00", "#56B4E9"


def plot_board(records, ax=None):
    """A row a notebook, a square a claim: dark a theorem and light an observation that hold, orange what fails.

    records: as `claims.publish` writes them, each with the title of its notebook besides.
    """
    ax = ax or plt.gca()
    width = max(len(record["claims"]) for record in records)
    for y, record in enumerate(records):
        ordered = sorted(record["claims"], key=lambda c: (not c["holds"], c["kind"] != "theorem"))
        colors = [(HOLDS if c["kind"] == "theorem" else OBSERVED) if c["holds"] else FAILS for c in ordered]
        ax.scatter(np.arange(len(colors)) - width, [y] * len(colors), s=90, marker="s", c=colors, linewidths=0)
        ax.text(0.2, y, record["title"], va="center", fontsize=9)
    counts = {"theorems hold": HOLDS, "observations hold": OBSERVED, "fail": FAILS}
    for label, color in counts.items():
        ax.scatter([], [], s=60, marker="s", color=color, label=label, linewidths=0)
    held = sum(c["holds"] for record in records for c in record["claims"])
    total = sum(len(record["claims"]) for record in records)
    ax.set(xlim=(-width - 0.7, width * 1.3), ylim=(len(records) - 0.4, -0.6))
    ax.set_title(f"{held} of {total} claims hold", loc="left")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3)
    ax.set_axis_off()
    return ax

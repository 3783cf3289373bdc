"""Plots of the studies: of published and own runs, of a pretrained network, in the style of `analysis.plots`."""

import matplotlib.pyplot as plt
import numpy as np

from analysis.plots import COLORS, THEORY, plot_level, use_style  # noqa: F401  a notebook takes the style from here, too

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#D55E00", "#009E73", "#B00020", "0.45"


def plot_log_loss(table, ax=None):
    """The official code's loss by step, from `logs.explain`; dashed what total collapse and what the optimum cost."""
    ax = ax or plt.gca()
    ax.plot(table["step"], table["loss"], ".", color=BLUE)
    plot_level(-1 - table["collapsed"].iloc[0], "total collapse", ax, x=0.98).texts[-1].set_ha("right")
    plot_level(-1 - table["ceiling"].iloc[0], "optimum: aligned views, ceiling", ax, x=0.98).texts[-1].set_ha("right")
    ax.set(xlabel="epoch", ylabel="loss, −cos − γR")
    return ax


def plot_log_expansion(table, ax=None):
    """The expansion term by step; dashed ceiling and isotropic value, thinner if c were the logged cosine."""
    ax = ax or plt.gca()
    for name, color in (("ceiling", "0.25"), ("isotropic", ORANGE)):
        for column, says, width in ((name, name, 1.6), (f"{name}_at_cosine", f"{name}, c as logged", 0.8)):
            ax.plot(table["step"], table[column], **THEORY | {"color": color}, linewidth=width, label=says)
    ax.plot(table["step"], table["expansion"], ".", color=BLUE, label="logged")
    ax.set(xlabel="epoch", ylabel="expansion term γR")
    ax.legend(loc="lower right", fontsize=8)
    return ax


def plot_log_cosines(table, ax=None):
    """The logged cosine of different views as dots; dashed what student and teacher of one view have at least, and if
    features are isotropic."""
    ax = ax or plt.gca()
    ax.fill_between(table["step"], table["cosine_needed"], 1, color="0.93", linewidth=0)
    says = {"cosine_isotropic": (ORANGE, "one view, if isotropic"), "cosine_needed": ("0.25", "one view, at least")}
    for name, (color, label) in says.items():
        ax.plot(table["step"], table[name], **THEORY | {"color": color}, linewidth=1.6, label=label)
    ax.plot(table["step"], table["cosine"], ".", color=BLUE, label="logged: different views")
    ax.set(xlabel="epoch", ylabel="cosine of student and teacher", ylim=(None, 1.005))
    ax.legend(loc="lower right", fontsize=8)
    return ax


def plot_log_dimension(table, ax=None, *, d):
    """Dimensions that explain the expansion term: of a flat subspace, and the effective rank of a power law."""
    ax = ax or plt.gca()
    ax.fill_between(table["step"], table["dimension"], d, color=BLUE, alpha=0.08, linewidth=0)
    ax.plot(table["step"], table["power_law_rank"], "^", color=GREEN, markersize=4, label="effective rank, λⱼ ∝ j⁻ᵃ")
    ax.plot(table["step"], table["dimension"], ".", color=BLUE, label="flat subspace of k dimensions")
    plot_level(d, f"d = {d}: isotropic", ax)
    ax.set(xlabel="epoch", ylabel="effective dimension", ylim=(0, 1.1 * d))
    ax.legend(loc="lower right")
    return ax


def plot_reported(table, ax=None):
    """Runs of `logs.reported` from total collapse (0) to isotropy (1): bars what is possible, dots what was logged."""
    ax = ax or plt.gca()
    reach = (table["ceiling"] - table["collapsed"]) / (table["isotropic"] - table["collapsed"])
    died = table["outcome"].str.startswith("collapsed").to_numpy()
    color = np.where(died, RED, BLUE)
    y = np.arange(len(table))[::-1]
    ax.hlines(y, 0, reach, color="0.85", linewidth=7, zorder=1)
    ax.scatter(table["spread"], y, color=color, s=36, zorder=3)
    for height, (_, run), c in zip(y, table.iterrows(), color, strict=True):
        logged = f"{run['expansion']:.4g}" if np.isfinite(run["expansion"]) else "not said"
        cells = [f"{run['collapsed']:.4f}", f"{run['isotropic']:.3f}", f"{run['ceiling']:.3f}", logged]
        cells += [f"{run['collapse_number']:.3g}", run["outcome"]]
        for x, text in zip(_COLUMNS, cells, strict=True):
            ax.text(x, height, text, fontsize=9, va="center", color=c if x == _COLUMNS[-1] else "black")
    for x, text in zip(_COLUMNS, ["collapsed", "isotropic", "ceiling", "logged γR", "χ", "what was said"], strict=True):
        ax.text(x, len(table) - 0.35, text, fontsize=9, color="0.35")
    for x, label in ((0, "total collapse"), (1, "isotropic")):
        ax.axvline(x, **THEORY, linewidth=1, ymax=0.93)
        ax.text(x, len(table) - 0.35, label, fontsize=9, color="0.35", ha="center")
    ax.set_yticks(y, [f"{r['where']}    {r['ranks']} × {r['images']}" for _, r in table.iterrows()])
    ax.set(xlim=(-0.08, _COLUMNS[-1] + 0.85), ylim=(-0.6, len(table)))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_xlabel("γR between total collapse (0) and independent random directions (1)", loc="left")
    ax.grid(axis="y", visible=False)
    ax.spines["bottom"].set_bounds(-0.08, _COLUMNS[0] - 0.08)
    return ax


_COLUMNS = (1.36, 1.6, 1.82, 2.02, 2.28, 2.44)


NETWORKS = {"pretrained": BLUE, "untrained": GREY}


def plot_layers(values, ax=None, *, errors=None):
    """A positive quantity {network: (layer,)} by depth, zeros left out, ± 2 standard errors if given the same way."""
    ax = ax or plt.gca()
    for i, (name, value) in enumerate(values.items()):
        color = NETWORKS.get(name, f"C{i}")
        bars, value = None if errors is None else 2 * errors[name], value.where(value > 0)
        ax.errorbar(value["layer"], value, bars, fmt="o-", color=color, label=name, linewidth=1, elinewidth=1.5)
    _depth(ax, max(len(value["layer"]) for value in values.values()))
    return ax


def plot_heads(values, ax=None):
    """A quantity {network: (layer, head)} of attention by depth: a dot a head."""
    ax = ax or plt.gca()
    for i, (name, value) in enumerate(values.items()):
        for head in value["head"]:
            x = value["layer"] + 0.12 * (i - (len(values) - 1) / 2)  # side by side
            ax.plot(x, value.sel(head=head), "o", color=NETWORKS.get(name, f"C{i}"), markersize=3.5, alpha=0.7)
    _depth(ax, max(len(value["layer"]) for value in values.values()))
    return ax


def plot_token_shares(share, ax=None):
    """Shares (layer, part) of the patch tokens' energy by depth, stacked to 1."""
    ax = ax or plt.gca()
    colors = dict(zip(share["part"].values, ("0.8", "#E69F00", "#56B4E9", BLUE), strict=True))
    ax.stackplot(share["layer"], share.T, colors=colors.values(), edgecolor="white", linewidth=0.7)
    middle = share.isel(layer=len(share["layer"]) // 2)
    for part, top in zip(colors, middle.cumsum("part").values, strict=True):
        height = top - float(middle.sel(part=part)) / 2
        ax.text(middle["layer"], height, part, ha="center", va="center", color="white" if part == "rest" else "black")
    _depth(ax, len(share["layer"]))
    ax.set(ylim=(0, 1), xlim=(0, len(share["layer"]) - 1), ylabel="share of E‖z‖²")
    return ax


def plot_layer_spectra(eigenvalues, white_noise, ax=None, *, floor=1e-6):
    """Spectra (layer, eigen) of some layers, each summing to 1, the deeper the darker; dashed white noise, same n."""
    ax = ax or plt.gca()
    cmap, count = plt.get_cmap("Blues"), len(eigenvalues["layer"])
    for i, layer in enumerate(eigenvalues["layer"].values):
        lam = eigenvalues.sel(layer=layer)
        color = cmap(0.35 + 0.6 * i / max(count - 1, 1))
        ax.plot(lam["eigen"], lam.where(lam > floor), "-", color=color, label=f"layer {layer}", linewidth=1.4)
    ax.plot(range(1, len(white_noise) + 1), white_noise, **THEORY, label="white noise, same n")
    ax.set(xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="share of the variance")
    ax.legend(fontsize=8)
    return ax


def plot_depth(tables, *, note=None):
    """A figure of `layers.layers` of some networks, {name: table}; spectra and shares are the first one's."""
    fig, axes = plt.subplots(2, 4, figsize=(16, 7.5))
    name, first = next(iter(tables.items()))
    attrs, image = first.attrs, {k: table.sel(token="image") for k, table in tables.items()}
    shown = np.linspace(1, len(first["layer"]) - 2, 4).round()
    plot_layer_spectra(
        image[name]["eigenvalues_centred"].sel(layer=shown), first["white_noise"].dropna("eigen"), axes[0, 0]
    ).set_title(f"class token, centred spectrum: {name}")
    quantities = {
        "effective_rank_centred": (axes[0, 1], "class token, effective rank of centred", "exp H(λ)"),
        "mean_collapse": (axes[0, 2], "class token, share of the mean", "‖E z‖² / E‖z‖²"),
        "knn": (axes[0, 3], "class token, k-NN accuracy", "accuracy"),
        "rank_within": (axes[1, 1], "effective rank of an image's patches", "exp H(λ)"),
    }
    for quantity, (ax, title, label) in quantities.items():
        errors = {k: table[f"{quantity}_se"] for k, table in image.items()}
        plot_layers({k: table[quantity] for k, table in image.items()}, ax, errors=errors)
        ax.set(title=title, ylabel=label)
    for ax, value in ((axes[0, 1], attrs["rank_noise"]), (axes[1, 1], attrs["within_noise"])):
        plot_level(value, "white noise", ax, below=True)
        ax.set(yscale="log", ylim=(1, 2 * value))
    plot_token_shares(first["share"], axes[1, 0]).set_title(f"energy of the patch tokens: {name}")
    for ax, quantity, value, label in (
        (axes[1, 2], "entropy", attrs["entropy"], "nats"),
        (axes[1, 3], "distance", attrs["distance"], "patches"),
    ):
        plot_heads({k: table[f"attention_{quantity}"] for k, table in tables.items()}, ax)
        plot_level(value, "", ax)
        ax.set(title=f"{quantity} of attention by head (dashed: uniform)", ylabel=label, ylim=(0, 1.1 * value))
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables), title=note)
    return fig


def _depth(ax, count):
    """The axis of layers: 0 the embedding, then blocks, then the final norm."""
    ticks = list(range(0, count - 2, 2))  # the last but one would touch
    ax.set_xticks([*ticks, count - 1], [*map(str, ticks), "norm"])
    ax.set_xlabel("layer: 0 embedding, then blocks")


SCOPES = {"within": ("o", BLUE), "all": ("s", ORANGE), "between": ("D", GREY)}


def plot_rank_correlations(table, ax=None, *, statistic="spearman"):
    """`prediction.rank_correlations` with intervals, a row a measure, best on top; right of 0: as its paper expects."""
    ax = ax or plt.gca()
    table = table[table["statistic"] == statistic]
    by = table[table["scope"] == "within"].assign(says=lambda t: t["value"] * t["expected"]).sort_values("says")
    order = {measure: height for height, measure in enumerate(by["measure"])}
    for i, (scope, (marker, color)) in enumerate(SCOPES.items()):
        part = table[table["scope"] == scope]
        y = part["measure"].map(order) + 0.22 * (1 - i)
        value, ends = part["value"] * part["expected"], part[["low", "high"]].mul(part["expected"], axis=0)
        ax.hlines(y, ends.min(axis=1), ends.max(axis=1), color=color, linewidth=1.3, alpha=0.7)
        label = f"{scope} methods" if scope != "all" else "all runs"
        ax.plot(value, y, marker, color=color, linestyle="none", label=f"{label}, n = {part['runs'].max()}")
    ax.axvline(0, **THEORY, linewidth=1)
    signs = dict(zip(by["measure"], by["expected"], strict=True))
    ax.set_yticks(list(order.values()), [name + " (low)" * (signs[name] < 0) for name in order])
    name = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ"}[statistic]
    ax.set(xlim=(-1.03, 1.03), ylim=(-0.6, len(order) - 0.4), xlabel=f"{name} with accuracy, in the expected direction")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.1, columnspacing=1)
    return ax


def plot_against_accuracy(table, measure, ax=None, *, target="knn"):
    """An accuracy against a measure, a dot a run, in the colours of the methods."""
    ax = ax or plt.gca()
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        ax.plot(part[measure], part[target], "o", color=COLORS.get(method, f"C{i}"), alpha=0.8, label=method)
    ax.set(xlabel=measure, ylabel="k-NN accuracy" if target == "knn" else target)
    return ax


SETS = {"features": BLUE, "head": BLUE, "backbone": GREEN}


def plot_dossier(dossier):
    """A figure of a `dossier.Dossier`: of features four panels, of a run its curves besides."""
    if dossier.curves is None:
        fig, axes = plt.subplots(2, 2, figsize=(12, 8))
        _plot_sizes(dossier.sizes, axes[1, 1])
        spectrum, relative, cosines = axes.flat[:3]
    else:
        fig, axes = plt.subplots(2, 4, figsize=(17, 8))
        _plot_rate(dossier.log, dossier.curves, axes[0, 0])
        _plot_curves(dossier.curves, axes[0, 1:])
        _plot_gradients(dossier.log, axes[1, 0])
        spectrum, relative, cosines = axes[1, 1:]
    _plot_set_spectra(dossier.spectra, spectrum)
    _plot_relative(dossier.relative, relative)
    _plot_cosines(dossier.cosines, cosines)
    fig.suptitle(dossier.name, x=0.01, ha="left", fontsize=10)
    return fig


def _plot_rate(log, curves, ax):
    """The logged rate of batches; dashed what isotropic features would have, the ceiling and total collapse."""
    ax.plot(log["step"], log["rate"], ".", color=BLUE, markersize=3)
    low = curves["rate_collapsed"].item()
    for value, label in ((log["rate_ceiling"].iloc[-1], "ceiling"), (log["rate_isotropic"].iloc[-1], "isotropic")):
        plot_level(value, label, ax, x=0.7)
    plot_level(low, "total collapse", ax, x=0.7)
    ax.set(title="coding rate of a batch, head", xlabel="training step", ylabel="R  [nats]", ylim=(0, None))


def _plot_curves(curves, axes):
    """Effective rank, alignment and k-NN accuracy at the recorded steps."""
    rank, alignment, knn = axes
    for name in ("head", "backbone"):
        at = curves.sel(layer=name)
        rank.plot(at["step"], at["effective_rank"], ".-", color=SETS[name], label=name, linewidth=1)
        alignment.plot(at["step"], at["alignment"], ".-", color=SETS[name], label=name, linewidth=1)
    accuracy = curves["knn"].sel(layer="backbone")
    knn.plot(accuracy["step"], accuracy, ".-", color=SETS["backbone"], linewidth=1)
    plot_level(curves["knn_pixels"].item(), "raw pixels", knn, x=0.6)
    plot_level(accuracy[0].item(), "untrained network", knn, x=0.6, below=True)
    rank.set(title="effective rank", ylabel="exp H(λ)")
    alignment.set(title="alignment of two views (0: invariant)", ylabel="½ E‖z − z′‖²")
    knn.set(title="k-NN accuracy, backbone", ylabel="accuracy")
    rank.legend()
    for ax in axes:
        ax.set_xscale("symlog", linthresh=1, linscale=0.5)
        ax.set(xlim=(-0.2, 1.15 * float(curves["step"].max())), xlabel="training step")


def _plot_gradients(log, ax):
    """Norms of the gradients of SimDINO's two terms at the features; of other methods, that of the parameters."""
    both = {"gradient_alignment": ("alignment", ORANGE), "gradient_rate": ("γ · rate", BLUE)}
    shown = both if "gradient_rate" in log else {"gradient_norm": ("all parameters", BLUE)}
    for name, (label, color) in shown.items():
        ax.plot(log["step"], log[name], ".", color=color, markersize=3, label=label)
    where = "at the head's features" if "gradient_rate" in log else "before clipping"
    ax.set(title=f"gradient norms {where}", xlabel="training step", ylabel="norm", ylim=(0, None))
    ax.legend()


def _plot_set_spectra(spectra, ax):
    """Eigenvalues of each set by index; dashed white noise of the same n and d."""
    for name, part in spectra.groupby("set", sort=False):
        color = SETS.get(name, BLUE)
        ax.plot(part["index"], part["white_noise"], **THEORY | {"color": color}, linewidth=1)
        seen = part[part["eigenvalue"] > 1e-7]
        ax.plot(seen["index"], seen["eigenvalue"], ".", color=color, label=name)
    title = "spectrum of unit rows (dashed: white noise)"
    ax.set(xscale="log", yscale="log", title=title, xlabel="index of the eigenvalue", ylabel="eigenvalue of Γ")
    ax.legend()


def _plot_relative(relative, ax):
    """Measures over what white noise of the same size has, ± 2 standard errors."""
    names = list(dict.fromkeys(relative["measure"]))[::-1]
    sets = list(dict.fromkeys(relative["set"]))
    for i, name in enumerate(sets):
        part = relative[relative["set"] == name]
        y = part["measure"].map(names.index) - 0.18 * (i - (len(sets) - 1) / 2)
        ax.hlines(y, part["low"], part["high"], color=SETS.get(name, BLUE), linewidth=2)
        ax.plot(part["value"], y, "o", color=SETS.get(name, BLUE), label=name)
    ax.axvline(1, **THEORY, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set(title="measures beside white noise's, ± 2 se", xlabel="measured / white noise", xlim=(0, None))
    ax.grid(axis="y", visible=False)


def _plot_cosines(cosines, ax):
    """Cosines of pairs of samples; dashed those of independent random directions."""
    styles = {"all": "-", "one class": "-", "different classes": ":"}
    for (name, pairs), part in cosines.groupby(["set", "pairs"], sort=False):
        label = name if pairs == "all" else f"{name}, {pairs}"
        ax.plot(part["cosine"], part["density"], styles[pairs], color=SETS.get(name, BLUE), label=label, linewidth=1.3)
    for name, part in cosines.drop_duplicates(["set", "cosine"]).groupby("set", sort=False):
        ax.plot(part["cosine"], part["white_noise"], **THEORY | {"color": SETS.get(name, BLUE)}, linewidth=0.8)
    seen = cosines[cosines[["density", "white_noise"]].max(axis=1) > 1e-2]["cosine"]
    ax.set(xlim=(max(seen.min() - 0.05, -1), min(seen.max() + 0.05, 1)), ylim=(0, None))
    ax.set(title="cosines of pairs (dashed: white noise)", xlabel="cosine of two samples", ylabel="density")
    ax.legend(fontsize=8)


def _plot_sizes(sizes, ax):
    """Effective rank of so many of the samples; dashed white noise: has it settled?"""
    for name, part in sizes.groupby("set", sort=False):
        ax.plot(part["n"], part["white_noise"], **THEORY, linewidth=1)
        ax.plot(part["n"], part["effective_rank"], "o-", color=SETS.get(name, BLUE), linewidth=1)
    title = "effective rank of fewer samples (dashed: white noise)"
    ax.set(xscale="log", ylim=(0, None), title=title, xlabel="samples n", ylabel="exp H(λ)")

"""The spectrum that the last layer of a run's head should have, given what it gets, beside the one that it has.

Of the network below only the inputs of the last layer are taken, and of the last layer itself nothing: the best one for
these inputs is found from a random start (`experiments.last_layer`), on half of the training images. Both are judged on
fresh views of held-out images, and on held-out images as they are evaluated, without augmentation.
"""

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from simdino.runs import Run

from .. import theory
from ..experiments.last_layer import (
    LastLayer,
    balancing_gamma,
    last_layer_features,
    last_layer_inputs,
    last_layer_optimum,
    last_layer_spectrum,
    last_layer_weight,
)
from ..experiments.linear_encoders import modes, view_covariances
from ..probes.heads import head_views, run_crops, run_student, view_features
from .kept_results import kept

DRAWS = 4  # augmented views of each image, all pairs of which are aligned: with one pair it is noise that is fitted
MOST_IMAGES = 4000  # that are fitted to: of 513 inputs, half as many with two views give a rank 5 % too high
RESIDUAL = 2e-3  # of the best last layer, at which its spectrum has come to rest
PLACES = 6  # behind the point, of what is kept


def loss_of_head(run: Run) -> dict[str, object]:
    """The options of `last_layer_optimum` that a run's loss is.

    Behind a stop-gradient the alignment's gradient is halved; if the rate is that of the mean of student and teacher,
    its gradient is halved as well, and the loss is the joint one.

    Args:
        run: of SimDINO or SimDINOv2.
    """
    objective, optim = run.config["objective"], run.config["optim"]
    stopped = optim["teacher"] != "student-with-gradient" and objective["rate_of"] == "student"
    return {
        "d": run.config["model"]["out"],
        "gamma": objective["gamma"],
        "eps": objective["eps"],
        "batch": optim["batch_size"] // optim["groups"],
        "stop_gradient": stopped,
    }


@kept
def last_layer_outcome(run: Run) -> dict[str, list[float] | float]:
    """The spectrum that the best last layer for a run's own inputs has, and the one that its own last layer has.

    Of the student, whose last layer the loss moves: `measured` of its own last layer, `predicted` of the best one for
    batches of the run's size (`experiments.last_layer`), `uncorrected` of the best one for a rate of all images at
    once; each largest first, on fresh views of held-out images (`views_…`) and on these without augmentation
    (`center_…`). `alignment_…` are E (1 - cos) of two held-out views. `gamma` is the γ at which the run's own last
    layer is nearest to rest on the views that are fitted to, `gamma_uncorrected` the same for a rate of all images.
    Where a student is trained on views with hidden patches, those that are fitted to have them, too.
    """
    views, network = head_views(run, draws=DRAWS, most=_seen(run, MOST_IMAGES)), run_student(run)
    hidden = run_crops(run) if run.config["model"]["mask_token"] else None
    fitted = last_layer_inputs(network.head.mlp, view_features(network, views.fitted, hidden=hidden))
    judged = [last_layer_inputs(network.head.mlp, view_features(network, x)) for x in views[1:]]
    loss = loss_of_head(run)
    weights = {
        "measured": last_layer_weight(network.head.mlp),
        "predicted": last_layer_optimum(fitted, **loss, tolerance=RESIDUAL).weight,
        "uncorrected": last_layer_optimum(fitted, **loss | {"batch": None}, tolerance=RESIDUAL).weight,
    }
    how = {"eps": loss["eps"], "stop_gradient": loss["stop_gradient"]}
    found: dict[str, list[float] | float] = {
        "gamma": balancing_gamma(weights["measured"], fitted, batch=loss["batch"], **how),
        "gamma_uncorrected": balancing_gamma(weights["measured"], fitted, **how),
    }
    for name, weight in weights.items():
        for part, h in zip(("views", "center"), judged, strict=True):
            found[f"{part}_{name}"] = _rounded(last_layer_spectrum(weight, h))
        found[f"alignment_{name}"] = round(head_alignment(weight, judged[0]), PLACES)
    return found


def _seen(run: Run, most: int) -> int:
    """At most as many images as a run has seen: one of a few steps is not worth more."""
    return min(most, run.config["optim"]["steps"] * run.config["optim"]["batch_size"])


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, PLACES).tolist()


def head_alignment(weight: np.ndarray, h: Tensor) -> float:
    """E (1 - cos) of two views under a last layer.

    >>> head_alignment(np.eye(2), torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]))
    1.0
    """
    z = last_layer_features(weight, h)
    return float(1 - (z[0] * z[1]).sum(-1).mean())


# --- The spectrum at the end, foretold early


def shrunken(h: Tensor, share: float) -> Tensor:
    """Inputs of which the variance within an image is a share of what it was, about the mean of its views.

    >>> shrunken(torch.tensor([[[1.0]], [[3.0]]]), 0.25).tolist()
    [[[1.5]], [[2.5]]]
    """
    mean = h.mean(0)
    return mean + share**0.5 * (h - mean)


def share_left(mu: np.ndarray, ratio: float, gamma: float, alpha: float, *, views: int) -> float:
    """The share κ of the variance within images at which water-filling has `ratio` of the alignment that it has now.

    Σ mᵢ(κ) pᵢ(m(κ)) = ratio · Σ μᵢ pᵢ(μ),   mᵢ(κ) = κμᵢ/(1 - (1 - κ)(1 - 1/v)μᵢ)

    with p from `theory.water_filling`, E‖z‖² = 1. m is what `shrunken` makes of μ: the variance of differences of v
    views falls to κ, and all variance to 1 - (1 - κ)(1 - 1/v)μᵢ of what it was.

    The powers spread as κ falls, into directions that differ more between views, so that κ is below the ratio.

    Args:
        mu: (d,) shares of the features' variance that differ between views now.
        ratio: of the alignment then to the alignment now; from 1 on, κ is 1.
        gamma: γ of the joint loss.
        alpha: α_b of the present spectrum.
        views: v.

    >>> round(share_left(np.full(4, 0.3), 0.5, 0.1, 10.0, views=2), 4)  # equal directions: μ falls to 0.15
    0.4595
    """

    def alignment(share: float) -> float:
        left = share * mu / (1 - (1 - share) * (1 - 1 / views) * mu)
        return float(left @ theory.water_filling(left, gamma, alpha, len(mu), norm=1))

    wanted = ratio * alignment(1.0)
    return 1.0 if ratio >= 1 else float(brentq(lambda share: alignment(share) - wanted, 1e-6, 1.0))


def trend_ratio(alignments: tuple[float, float], times: tuple[float, float, float]) -> float:
    """How much lower an alignment will be at the last time than at the second, if it falls as a power of time.

    (a₂/a₁)^(log(t₃/t₂)/log(t₂/t₁)), and 1 where it rises

    >>> trend_ratio((0.4, 0.2), (1.0, 2.0, 8.0))
    0.25
    """
    (before, now), (first, second, last) = alignments, times
    return min(1.0, float((now / before) ** (np.log(last / second) / np.log(second / first))))


@kept
def forecast_outcome(run: Run) -> dict[str, list]:
    """The spectrum at the end of a run, foretold from what its last layer gets at the steps where weights were kept.

    For each step: `step`; `current`, the spectrum at that step; `forecast`, that of the best last layer for the inputs
    of that step; `extrapolated`, the logarithms of `current` at this and the step before drawn on in the logarithm of
    the learning rate summed up; and `trend`, the forecast with the variance within images shrunk to the share `left` of
    it, where training is foretold to bring it. That share follows from the alignments of the forecasts at this and the
    step before, drawn on in the same way (`trend_ratio`), by water-filling (`share_left`). It is 1 where no trained
    step is before, and where the alignment rises. Of runs that have ended nothing is used, but that a look at one of
    them fixed how many images are fitted to (MOST_IMAGES). `end` is the spectrum that was to be foretold. The last step
    is the end itself, where `forecast` says how far the last layer has come. All are of the student, largest first, on
    fresh views of held-out images.
    """
    views = head_views(run, draws=DRAWS, most=_seen(run, MOST_IMAGES))
    loss = loss_of_head(run)
    gamma = theory.effective_gamma(loss["gamma"]) if loss["stop_gradient"] else loss["gamma"]
    rates = np.cumsum(run.metrics["lr"].to_numpy())
    end = run_student(run)
    at_end = last_layer_inputs(end.head.mlp, view_features(end, views.views))
    measured = last_layer_spectrum(last_layer_weight(end.head.mlp), at_end)
    found: dict[str, list] = {"end": _rounded(measured)}
    found |= {name: [] for name in ("step", "current", "forecast", "extrapolated", "trend", "left", "alignment")}
    best: LastLayer | None = None
    before: tuple[float, float, np.ndarray] | None = None  # time, alignment, and spectrum at the step before
    for step in run.weight_steps:
        network = run_student(run, step)
        h, judged = (
            last_layer_inputs(network.head.mlp, view_features(network, x)) for x in (views.fitted, views.views)
        )
        current = last_layer_spectrum(last_layer_weight(network.head.mlp), judged)
        best = last_layer_optimum(h, **loss, tolerance=RESIDUAL, start=best and best.weight)
        forecast, alignment = last_layer_spectrum(best.weight, judged), head_alignment(best.weight, judged)
        time, left, trend, extrapolated = rates[step - 1] if step else 0.0, 1.0, forecast, current
        if before is not None and before[0] > 0:
            first, was, spectrum = before
            alpha = theory.batch_alpha(forecast, loss["batch"], loss["d"] / loss["eps"] ** 2)
            ratio = trend_ratio((was, alignment), (first, time, rates[-1]))
            left = share_left(feature_modes(best.weight, judged), ratio, gamma, alpha, views=len(judged))
            if left < 1:
                shrunk = last_layer_optimum(shrunken(h, left), **loss, tolerance=RESIDUAL, start=best.weight)
                trend = last_layer_spectrum(shrunk.weight, shrunken(judged, left))
            power = np.log(rates[-1] / time) / np.log(time / first)
            extrapolated = current * (current.clip(1e-12) / spectrum.clip(1e-12)) ** power
            extrapolated = np.sort(extrapolated / extrapolated.sum())[::-1]
        before = time, alignment, current
        spectra = {"current": current, "forecast": forecast, "extrapolated": extrapolated, "trend": trend}
        for name, values in spectra.items():
            found[name].append(_rounded(values))
        for name, value in {"step": step, "left": left, "alignment": alignment}.items():
            found[name].append(round(value, PLACES))
    return found


def feature_modes(weight: np.ndarray, h: Tensor) -> np.ndarray:
    """The shares μ of the unit features' variance that differ between two views, ascending, under a last layer."""
    return modes(*view_covariances(torch.tensor(last_layer_features(weight, h))))

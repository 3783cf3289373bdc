"""The log of a run: a row of numbers for every step, which stay on the device until there are several to be read."""

import json
import math
from typing import TextIO

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from simdino.config import Config, SimDINO, SimDINOv2, derived_seed
from simdino.losses import coding_rate, patch_rates, simdino_loss
from simdino.ranks import gathered, mean_over_ranks
from simdino.step_inputs import Hidden

LOSS_TERMS = (
    "alignment",
    "rate",
    "patches",
    "gram",
    "patch_rate_within",
    "patch_rate_across",
    "entropy",
    "kl",
    "koleo",
)


def feature_monitors(z: Tensor) -> dict[str, Tensor]:
    """Measure the student's features, alike for every objective.

    Args:
        z: the head's unit features of the global views (g, n, d).

    Returns:
        `alignment`, E ½‖z₁ − z₂‖² of the first two views; `mean_norm2`, ‖E z‖² of a view; and `gram`, zᵀz/n or zzᵀ/n,
        whichever is smaller (g, r, r), whose eigenvalues `spectrum_monitors` reads.
    """
    n, d = z.shape[1:]
    return {
        "alignment": (z[0] - z[1]).square().sum(-1).mean() / 2,
        "mean_norm2": z.mean(1).square().sum(-1).mean(),
        "gram": (z @ z.mT if n < d else z.mT @ z) / n,
    }


def spectrum_monitors(grams: Tensor, d: int, eps: float) -> dict[str, Tensor]:
    """Measure the spectra of covariances, each mean over the views.

    Args:
        grams: what `feature_monitors` made of each step (steps, g, r, r).
        d: dimension of the features.
        eps: the paper's ε.

    Returns:
        `rate`, the coding rate in nats; `effective_rank`, exp H(λ/Σλ); and `largest_share`, λ₁/Σλ: (steps,) each.
    """
    values = torch.linalg.eigvalsh(grams.nan_to_num(0, 0, 0)).clamp(min=0)  # (steps, g, r); the loss tells of NaN
    shares = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    measured = {
        "rate": (values * (d / eps**2)).log1p().sum(-1) / 2,
        "effective_rank": torch.special.entr(shares).sum(-1).exp(),
        "largest_share": shares[..., -1],
    }
    return {name: value.mean(-1) for name, value in measured.items()}


def gradient_monitors(s: Tensor, t: Tensor, config: Config) -> dict[str, Tensor]:
    """Measure how hard SimDINO's two terms pull at the features of the global views.

    gradient_alignment = ‖g·∂alignment/∂s‖_F ≤ 2/√n,  gradient_rate = ‖g·γ·∂rate/∂s‖_F ≤ γ·½·√(αr/n)

    with α = d/ε² and r = min(n, d): norms of one view's gradient with the targets held fixed, root mean
    square over the g global views.

    Args:
        s: the student's outputs (v, n, d).
        t: the teacher's (g, n, d).
        config: the run's; of DINO there is nothing to measure, and the result is empty.
    """
    if not isinstance(config.objective, SimDINO):
        return {}
    o, g = config.objective, len(t)
    s = s.detach().requires_grad_()
    with torch.enable_grad():
        _, terms = simdino_loss(s, t.detach(), eps=o.eps, gamma=o.gamma, rate_of=o.rate_of)
        pulls = {name: torch.autograd.grad(terms[name], s, retain_graph=True)[0][:g] for name in ("alignment", "rate")}
    weights = {"alignment": 1.0, "rate": o.gamma}
    return {f"gradient_{name}": weights[name] * math.sqrt(g) * pull.norm() for name, pull in pulls.items()}


def rate_references(config: Config) -> dict[str, float]:
    """Compute what the logged rate is read against, for as many images as a group has.

    Args:
        config: the run's.

    Returns:
        `eps`, the paper's ε; `rate_isotropic`, the mean rate of random unit features, which is what batches of many
        more images can attain; `rate_ceiling`, the largest of one batch, R* = r/2·log(1 + d/(ε²r)) with
        r = min(n, d). Rates are in nats.
    """
    eps = config.objective.eps if isinstance(config.objective, SimDINO) else SimDINO.eps
    n, d = config.optim.batch_size // config.optim.groups, config.model.out
    draw = torch.randn(64, n, d, generator=torch.Generator().manual_seed(derived_seed("isotropic")))
    isotropic = coding_rate(F.normalize(draw, dim=-1), eps=eps).mean().item()
    r = min(n, d)
    return {"eps": eps, "rate_isotropic": isotropic, "rate_ceiling": r / 2 * math.log1p(d / eps**2 / r)}


class StepLog:
    """Rows that are kept on the device and, several at a time, checked and written: one wait for all of them.

    Args:
        config: the run's.
        file: where rows are written, one JSON object on each line.
        team: the ranks that share this one's group of images.
    """

    def __init__(self, config: Config, file: TextIO, team: "dist.ProcessGroup | None" = None):
        self.config, self.file, self.team = config, file, team
        self.references = rate_references(config)
        self.rows: list[tuple[dict[str, float | int], dict[str, Tensor]]] = []  # of the host, of the device

    def measure(self, loss: "GroupLoss", hidden: Hidden | None, *, costly: bool) -> dict[str, Tensor]:  # noqa: F821
        """Measure one group of images, without waiting.

        Args:
            loss: what `simdino.train.group_loss` returned.
            hidden: the hidden patches that it was given.
            costly: whether gradients and the rates of patches are measured, too.
        """
        terms = {f"loss_{name}" if name in LOSS_TERMS else name: term for name, term in loss.terms.items()}
        row = terms | {"loss": loss.loss} | feature_monitors(gathered(loss.features, self.team))
        if costly:
            s, t = (gathered(x.detach(), self.team) for x in (loss.outputs, loss.targets))
            row |= gradient_monitors(s, t, self.config)
            if isinstance(self.config.objective, SimDINOv2) and "loss_patch_rate_within" not in row:
                views, p = hidden.masks.shape
                options = {"eps": self.references["eps"], "crops": views, "most_patches": p, "group": self.team}
                rates = patch_rates(loss.patches.detach(), hidden.weights, **options)
                row |= {f"loss_patch_rate_{name}": rate for name, rate in rates._asdict().items()}
        return {name: value.detach() for name, value in row.items()}

    def add(self, host: dict[str, float | int], groups: list[dict[str, Tensor]], norm: Tensor) -> None:
        """Keep the row of a step: what the host knows, and the mean over this rank's groups of what was measured."""
        row = {name: torch.stack([group[name] for group in groups]).mean(0) for name in groups[0] if name != "gram"}
        row["gram"] = torch.cat([group["gram"] for group in groups])
        self.rows.append((host, row | {"gradient_norm": norm}))

    def flush(self) -> dict[str, float | int]:
        """Write the rows that are kept, and return the last; every rank calls this after the same steps.

        Raises:
            FloatingPointError: a number that is not finite; the rows before it are written.
        """
        rows = [row for _, row in self.rows]
        grams = torch.stack([row.pop("gram") for row in rows])  # (steps, groups·g, r, r)
        spectra = spectrum_monitors(grams, self.config.model.out, self.references["eps"])
        for i, row in enumerate(rows):
            row |= {name: value[i] for name, value in spectra.items()}
        digits = round(-math.log10(torch.finfo(rows[0]["loss"].dtype).eps))  # that a number has
        values = torch.stack([value for row in rows for value in row.values()]).double()
        values = iter(mean_over_ranks(values).tolist())
        for host, row in self.rows:
            measured = {name: next(values) for name in row}
            for name, value in measured.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is not finite at step {host['step']}")
            numbers = measured | self.references | {name: x for name, x in host.items() if name != "step"}
            written = {"step": host["step"]} | {name: float(f"{x:.{digits}g}") for name, x in numbers.items()}
            self.file.write(json.dumps(written) + "\n")
        self.file.flush()
        self.rows.clear()
        return written

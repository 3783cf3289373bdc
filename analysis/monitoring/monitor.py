"""The diagnostics inside other people's training code: a forward hook, a torchmetrics metric, a Lightning callback.

All three gather the same `Moments` and evaluate the same functions of them, so that they give the numbers of the bare
functions, in any batches and over any number of ranks. The hook needs torch alone, the others the extra `integrations`.

Each takes `measures`: names out of `MOMENT_MEASURES`, with classes also out of `CLASS_MEASURES`, or {name: function of
Moments}, for example {"rate": partial(coding_rate_of_spectrum, eps=0.5)}.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from ..measures.classes import cdnv, class_effective_rank, class_overlap, nc1, nc2
from ..measures.collapse import mean_collapse
from ..measures.covariance import covariance_energy, redundancy, variance_hinge
from ..measures.frames import tight_frame_distance
from ..measures.inputs import Array
from ..measures.moments import Moments
from ..measures.spectra import (
    anisotropy,
    condition_number,
    effective_rank,
    isoscore,
    participation_ratio,
    rankme,
    stable_rank,
)
from ..reporting.features import verdict

try:
    from torchmetrics import Metric
except ImportError:
    Metric = None
try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_warn
except ImportError:
    Callback, LightningModule, Trainer = None, Any, Any

Measures = Iterable[str] | Mapping[str, Callable[[Moments], Tensor]]
MOMENT_MEASURES: dict[str, Callable[[Moments], Tensor]] = {
    "effective_rank": effective_rank,
    "effective_rank_centered": partial(effective_rank, center=True),
    "rankme": rankme,
    "participation_ratio": participation_ratio,
    "participation_ratio_unbiased": partial(participation_ratio, unbiased=True),
    "stable_rank": stable_rank,
    "anisotropy": anisotropy,
    "isoscore": isoscore,
    "condition_number": condition_number,
    "tight_frame_distance": tight_frame_distance,
    "mean_collapse": mean_collapse,
    "redundancy": redundancy,
    "variance_hinge": variance_hinge,
    "covariance_energy": covariance_energy,
}


def _mean_overlap(moments: Moments) -> Tensor:
    return class_overlap(moments).mean


def _worst_rank(moments: Moments) -> Tensor:
    return class_effective_rank(moments, center=True).worst


CLASS_MEASURES: dict[str, Callable[[Moments], Tensor]] = {
    "nc1": nc1,
    "nc2": nc2,
    "cdnv": cdnv,
    "class_overlap": _mean_overlap,  # functions with a name, which other processes can be sent
    "rank_of_the_worst_class": _worst_rank,
}
# Rank, with and without the mean, and the mean.
DEFAULT = ("effective_rank", "effective_rank_centered", "mean_collapse")


class FeatureMonitor:
    """Diagnostics of whatever passes through a module, for any training code: a forward hook while the block is open.

    All forward passes count, in training and in evaluation mode, until `reset`, but for those that gradient
    checkpointing repeats in the backward pass. The values of the module stay as they
    are, no gradients are kept, and memory is O(d²·(1 + blocks)). `moments` are the `Moments` themselves:
    `reporting.features.verdict(monitor.moments)` judges them in a sentence, and with blocks=16 and unit rows
    `report(monitor.moments)` makes the whole table, with errors. In a distributed run call `all_reduce` once, on every
    rank, before any of these.

    Args:
        module: its output must be features (n, d), or `features` must make them of it.
        measures: names or functions, as at the top of this module.
        features: makes features of another output, such as lambda tokens: tokens[:, 0], or puts them on the unit
            sphere, such as torch.nn.functional.normalize.
        blocks: of the jackknife; 0 for none.
        precision: "fast" spares every forward pass the float64 product, and loses singular values below about 3·10⁻⁴ of
            the largest.

    Raises:
        ValueError: unknown measures; an output that is not (n, d), NaN or infinite features; `compute` before any
            forward pass.

    >>> model = nn.Linear(4, 4, bias=False)
    >>> model.weight.data = torch.eye(4)
    >>> with FeatureMonitor(model) as monitor:
    ...     outputs = [model(batch) for batch in torch.eye(4).split(3)]  # in place of a training loop
    >>> {name: round(value.item(), 6) for name, value in monitor.compute().items()}
    {'effective_rank': 4.0, 'effective_rank_centered': 3.0, 'mean_collapse': 0.25}
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        measures: Measures = DEFAULT,
        features: Callable[[Any], Tensor] | None = None,
        blocks: int = 0,
        precision: Literal["exact", "fast"] = "exact",
    ):
        self.module, self.measures, self.features = module, _chosen(measures), features
        self.options = {"blocks": blocks, "precision": precision}
        Moments(1, **self.options)  # complains now, and not in the first forward pass
        self.reset()

    def __enter__(self) -> "FeatureMonitor":
        self._hook = self.module.register_forward_hook(self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def compute(self) -> dict[str, Tensor]:
        """The measures of all features since the last reset."""
        if self.moments is None:
            raise ValueError(
                "the module has produced no features yet; one inside a compiled model is heard only if this monitor "
                "was opened before the model was compiled"
            )
        return _evaluated(self.measures, self.moments)

    def reset(self) -> None:
        """Forget the features so far."""
        self.moments: Moments | None = None

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Merge over all ranks of a process group, also if one of them has seen nothing; once, after the last pass."""
        parameter = next(self.module.parameters(), torch.empty(0))
        device = parameter.device if self.moments is None else self.moments.mean.device
        d = torch.tensor(0 if self.moments is None else self.moments.d, device=device)
        dist.all_reduce(d, dist.ReduceOp.MAX, group=group)
        if d.item():
            self.moments = self.moments or Moments(int(d), **self.options, device=device)
            self.moments.all_reduce(group)

    def _take(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:  # in a backward pass, which computes again what it has not kept
            return
        z = output if self.features is None else self.features(output)
        if not isinstance(z, Tensor) or z.ndim != 2:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"the output of {type(module).__name__} must be (n, d), got {got}: pick with features=")
        if self.moments is None:
            self.moments = Moments(z.shape[1], **self.options, device=z.device)
        self.moments.update(z)


class FeatureMetric(Metric or object):
    """The diagnostics as a torchmetrics metric: update(z), with classes update(z, labels), compute() -> {name: value}.

    The state is the moments of all rows, so batches and shards may have any sizes, none included, and the values are
    those of one pass over everything: exactly what "sum" or "mean" states cannot do for a spectrum. It is float64
    whatever `Metric.half` is told, and memory and traffic per rank are O(d²·(1 + classes + blocks)). In a
    `MetricCollection` metrics of one (d, classes, blocks) share their state. In Lightning, log_dict takes the
    dictionary that `compute` gives:

        metric = FeatureMetric(384, measures=["rankme", "participation_ratio_unbiased"])
        metric.update(model(images))
        self.log_dict(metric.compute())

    Args:
        d: dimension of the features.
        measures: names or functions, as at the top of this module.
        classes: their number, for measures such as `nc1`, as in `Moments`.
        blocks: for `jackknife`, as in `Moments`.
        **kwargs: those of `torchmetrics.Metric`.

    Raises:
        ImportError: without torchmetrics.
        ValueError: unknown measures; NaN or infinite features, or features that are not (n, d).
    """

    full_state_update = False
    is_differentiable = False
    moments: Float[Tensor, " state"]

    def __init__(self, d: int, *, measures: Measures = DEFAULT, classes: int = 0, blocks: int = 0, **kwargs: Any):
        if Metric is None:
            raise ImportError("FeatureMetric needs torchmetrics: pip install 'simdino[integrations]'")
        super().__init__(**kwargs)
        self.measures, self.shape = _chosen(measures), {"d": d, "classes": classes, "blocks": blocks}
        self.add_state("moments", _packed(Moments(**self.shape)), dist_reduce_fx=partial(_merged, self.shape))

    def update(self, z: Array, labels: Array | None = None) -> None:
        """Take in a batch of features (n, d), with labels (n,) if there are classes."""
        self.moments = _packed(_unpacked(self.shape, self.moments).update(z, labels))

    def compute(self) -> dict[str, Tensor]:
        """The measures of all features on all ranks."""
        return _evaluated(self.measures, _unpacked(self.shape, self.moments))


class FeatureCallback(Callback or object):
    """The diagnostics as a Lightning callback: logs them for the features that a layer gives in every validation epoch.

    It logs backbone/effective_rank and so on, and warns, by the judgement of `report` for a backbone, of features that
    have collapsed. Every forward pass of the layer during validation counts, but for the sanity check, and ranks are
    merged. Of several validation loaders each has its own numbers, with /dataloader_idx_0 and so on after the names, as
    Lightning's own logs have. Give it to the trainer:

        Trainer(callbacks=[FeatureCallback("backbone")])

    Args:
        layer: name of a submodule, as in `named_modules()`; "" is the output of the LightningModule itself, logged as
            features/... .
        measures: names or functions, as at the top of this module.
        features: as in `FeatureMonitor`.
        precision: as in `FeatureMonitor`.

    Raises:
        ImportError: without lightning.
        ValueError: unknown measures; a layer that does not exist, with the nearest one that does.
    """

    def __init__(
        self,
        layer: str = "",
        *,
        measures: Measures = DEFAULT,
        features: Callable[[Any], Tensor] | None = None,
        precision: Literal["exact", "fast"] = "exact",
    ):
        if Callback is None:
            raise ImportError("FeatureCallback needs lightning: pip install 'simdino[integrations]'")
        self.options = {"measures": _chosen(measures), "features": features, "precision": precision}
        self.layer = layer
        self.monitors: list[FeatureMonitor] = []  # one for each validation loader
        self.open: FeatureMonitor | None = None  # that of the loader whose turn it is

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the layer exists, before anything is trained."""
        layers = dict(pl_module.named_modules())
        if self.layer not in layers:
            close = difflib.get_close_matches(self.layer, layers, n=1, cutoff=0)[0]
            raise ValueError(f"layer must be a submodule, got {self.layer!r}; did you mean {close!r}?")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A monitor for each loader."""
        module = pl_module.get_submodule(self.layer)
        self.monitors = [FeatureMonitor(module, **self.options) for _ in range(max(len(trainer.num_val_batches), 1))]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Listen for the loader that the batch is of."""
        if self.open is not self.monitors[dataloader_idx]:
            self._close()
            self.open = self.monitors[dataloader_idx].__enter__()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening, merge the ranks and log."""
        self._close()
        if trainer.sanity_checking:
            return
        for index, monitor in enumerate(self.monitors):
            if trainer.world_size > 1:
                monitor.all_reduce()
            if not trainer.num_val_batches[index]:  # an empty loader beside others
                continue
            name, values = self.layer or "features", monitor.compute()
            of = f"/dataloader_idx_{index}" if len(self.monitors) > 1 else ""
            # Equal on all ranks: sync_dist changes nothing, and keeps Lightning from warning.
            logged = {f"{name}/{k}{of}": v for k, v in values.items()}
            pl_module.log_dict(logged, sync_dist=True, add_dataloader_idx=False)
            judgement, reason = verdict(monitor.moments, judged_as="backbone")
            if judgement.is_collapse:
                rank_zero_warn(f"{name}{of}: {judgement}. {reason}", category=UserWarning)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._close()

    def _close(self) -> None:
        if self.open is not None:
            self.open.__exit__()
        self.open = None


def _chosen(measures: Measures) -> dict[str, Callable[[Moments], Tensor]]:
    if isinstance(measures, Mapping):
        return dict(measures)
    names, known = [measures] if isinstance(measures, str) else list(measures), MOMENT_MEASURES | CLASS_MEASURES
    for name in names:
        if name not in known:
            raise ValueError(f"measures must be among {', '.join(known)}, or a dict of functions, got {name!r}")
    return {name: known[name] for name in names}


def _evaluated(measures: dict[str, Callable[[Moments], Tensor]], moments: Moments) -> dict[str, Tensor]:
    return {name: torch.as_tensor(measure(moments), dtype=torch.float64) for name, measure in measures.items()}


def _packed(moments: Moments) -> Float[Tensor, " state"]:
    """All numbers of Moments in one vector: torchmetrics reduces each state by itself, and these need one another."""
    return torch.cat([t.reshape(-1).to(moments.mean) for t in moments.state_dict().values()])


def _unpacked(shape: dict[str, int], packed: Float[Tensor, " state"]) -> Moments:
    moments = Moments(**shape, device=packed.device)
    state = moments.state_dict()
    parts = packed.split([t.numel() for t in state.values()])
    return moments.load_state_dict({k: part.view(t.shape) for part, (k, t) in zip(parts, state.items(), strict=True)})


def _merged(shape: dict[str, int], packed: Float[Tensor, "ranks state"]) -> Float[Tensor, " state"]:
    return _packed(reduce(Moments.merge, [_unpacked(shape, p) for p in packed]))

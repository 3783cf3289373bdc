"""What collapsed runs do if their collapse number χ is raised: trained again to their end, and then on at several χ."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from simdino.augment import make_views, multi_crop
from simdino.config import Config, derived_seed, override
from simdino.data import load
from simdino.losses import simdino_loss
from simdino.optim import parameter_groups, schedules
from simdino.runs import Run
from simdino.step_inputs import step_inputs
from simdino.vit import Network

from .. import theory
from ..experiments.growth import train_and_watch
from .kept_results import kept

LARGEST_CHI = 0.1  # of a run that is taken for collapsed
RAISED_CHI = np.geomspace(0.06, 1.2, 6)  # from below the smallest share that a spread here has to above the largest
MEASURED_AT = (0, 20, 30)  # steps after χ is changed


@kept
def growth_outcome(run: Run, *, watched: int) -> dict[str, list]:
    """The spread of a collapsed run, and its `experiments.growth.kernel_share`, after χ is changed at its end.

    The run is trained again, from its own weights, batches and views, since a finished one keeps no optimizer. Then γ
    is changed and it goes on for 30 steps, for each of six χ anew.

    Args:
        run: finished, on disk.
        watched: training images that are measured on; with 500 the share has an error of 6 %.

    Returns:
        columns chi, step, spread, speed and share, with rows for each χ at steps 0, 20 and 30; empty but for runs of
        SimDINO behind a stop-gradient with χ < 0.1, which collapse.
    """
    columns: dict[str, list] = {"chi": [], "step": [], "spread": [], "speed": [], "share": []}
    objective, d = run.config["objective"], run.config["model"]["out"]
    if run.config["optim"]["teacher"] != "student" or set(objective) != {"eps", "gamma", "rate_of"}:
        return columns
    eps = objective["eps"]
    if theory.collapse_number(d, eps, objective["gamma"]) > LARGEST_CHI:
        return columns
    config = run_config(run)
    images = load(config.data.name, root=config.data.root, size=config.data.size).train
    generator = torch.Generator().manual_seed(0)
    chosen = images[torch.randperm(len(images), generator=generator)[:watched]]
    views = multi_crop(chosen, config.crops, generator)[0]
    collapsed = trained_again(config, images)
    steps = range(config.optim.steps, config.optim.steps + MEASURED_AT[-1])
    for chi in RAISED_CHI:
        network, optimizer = copy.deepcopy(collapsed)
        loss = stop_gradient_loss(eps, float(chi / theory.collapse_number(d, eps, 1.0)))
        how = {"watched": views, "at": MEASURED_AT}
        found = train_and_watch(_output(network), loss, run_views(config, images, steps), optimizer, **how)
        for step, measured in found.items():
            row = {"chi": float(chi), "step": step} | measured._asdict()
            for name, value in row.items():
                columns[name].append(value)
    return columns


def _output(network: Network) -> Callable[[Tensor], Tensor]:
    return lambda x: network(x)[0]


def run_config(run: Run) -> Config:
    """The configuration of a run of SimDINO, from what is recorded of it."""
    parts = {part: values for part, values in run.config.items() if isinstance(values, dict)}
    values = {
        f"{part}.{name}": tuple(value) if isinstance(value, list) else value
        for part, own in parts.items()
        for name, value in own.items()
    }
    return override(Config(run.config["recipe"], run.config["seed"]), values)


def trained_again(config: Config, images: Tensor) -> tuple[Network, torch.optim.Optimizer]:
    """The network of a run of SimDINO with a stop-gradient and constant weight decay at its end, and its optimizer.

    The steps are those of the run: its initial weights, batches, views and learning rates, in single precision.

    Args:
        images: (N, c, h, w) all training images.
    """
    o = config.optim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("weights", config.seed))
        network = Network(config.model, size=config.crops.global_size, channels=images.shape[1])
    optimizer = torch.optim.AdamW(parameter_groups(network, o), lr=o.lr, weight_decay=o.weight_decay, fused=True)
    loss = stop_gradient_loss(config.objective.eps, config.objective.gamma)
    for step, views in enumerate(run_views(config, images, range(o.steps))):
        for group in optimizer.param_groups:
            group["lr"] = schedules(o, step).lr * group["factor"]
        z = network(views.flatten(0, 1))[0].unflatten(0, (2, -1))
        optimizer.zero_grad()
        loss(z).backward()
        optimizer.step()
    return network, optimizer


def stop_gradient_loss(eps: float, gamma: float) -> Callable[[Tensor], Tensor]:
    """SimDINO's loss of features (2, n, d) whose targets are the features themselves, without a gradient."""
    return lambda z: simdino_loss(z, z.detach(), eps=eps, gamma=gamma)[0]


def run_views(config: Config, images: Tensor, steps: range) -> Iterator[Tensor]:
    """The two views (2, n, c, s, s) of the batch of each of these steps of a run, beyond its end as it would go on."""
    for step in steps:
        (drawn,) = step_inputs(config, images.shape, step, device="cpu")
        yield make_views(images[drawn.images], config.crops, drawn.views)[0]

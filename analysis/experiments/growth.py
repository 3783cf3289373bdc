"""The growth of a network's spread next to total collapse: what two gradients say of it (B14), and what it does.

The spread of unit features is s = 1 - ‖E z‖², their alignment A = E (1 - ⟨z, z'⟩) over the two views of an image. Both
are functions of the parameters that an optimizer holds. Nothing here knows the predictions of `theory`.
"""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer  # AdamW is an Adam

Views = Float[Tensor, "2 n *input"]  # two views of each of n images


class KernelShare(NamedTuple):
    """What the growth of the spread depends on at one state of a network and its optimizer."""

    share: float  # μ_K = ⟨∇s, P∇A⟩/⟨∇s, P∇s⟩, what of the spread's growth the alignment takes back
    speed: float  # ⟨∇s, P∇s⟩/(2s), per step
    spread: float  # s


def step_scales(optimizer: Optimizer) -> dict[Tensor, float | Tensor]:
    """How far the next step moves each parameter, per unit of a gradient that stays: P, the learning rate included.

    lr for SGD,   lr/(√v̂ + ε) for Adam and AdamW, with their own ε

    Weight decay is no part of it.

    Raises:
        ValueError: an Adam that has not made a step yet, or another optimizer, SGD with momentum included.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> list(step_scales(SGD([weight], lr=0.5)).values())
    [0.5]
    """
    scales: dict[Tensor, float | Tensor] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if isinstance(optimizer, SGD) and not group["momentum"]:
                scales[p] = group["lr"]
            elif isinstance(optimizer, Adam) and not group["amsgrad"]:
                state = optimizer.state[p]
                if not state:
                    raise ValueError("Adam knows how far it will move a parameter only after its first step: make one")
                corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                scales[p] = group["lr"] / (corrected.sqrt() + group["eps"])
            else:
                raise ValueError(f"this is for SGD without momentum, Adam and AdamW, not for {optimizer}")
    return scales


def kernel_share(network: Callable[[Tensor], Tensor], views: Views, optimizer: Optimizer) -> KernelShare:
    """The share μ_K and the speed with which a collapsed network's spread grows, from two backward passes.

    μ_K = ⟨∇s, P∇A⟩/⟨∇s, P∇s⟩,   speed = ⟨∇s, P∇s⟩/(2s)

    `theory.spread_growth` says what growth they foretell.

    Args:
        network: from inputs (m, ...) to unit features (m, d).
        views: (2, n, ...) two views of each of n images, as many as can be had: in a batch, the noise of ∇s is a part
            of ⟨∇s, P∇s⟩.
        optimizer: one that `step_scales` knows, which holds the network's parameters.

    >>> angle = torch.nn.Parameter(torch.tensor(0.5))  # features at ± angle, whose two views are at + angle and -
    >>> turned = lambda x: torch.stack([angle.cos().expand(len(x)), angle.sin() * x[:, 0]], dim=1)
    >>> views = torch.tensor([[[1.0], [-1.0]], [[-1.0], [1.0]]])
    >>> round(kernel_share(turned, views, SGD([angle], lr=0.1)).share, 4)  # s = sin², A = 2 sin²
    2.0
    """
    z = _features(network, views)
    spread, alignment = _spread(z), (z[0] - z[1]).square().sum(-1).mean() / 2
    of_spread, of_alignment, scales = (*_gradients([spread, alignment], optimizer), step_scales(optimizer).values())
    growth, cost = (_inner(of_spread, scales, other) for other in (of_spread, of_alignment))
    return KernelShare(cost / growth, growth / (2 * spread.item()), spread.item())


def first_order_growth(
    network: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], views: Views, optimizer: Optimizer
) -> float:
    """The growth of log s in the next step to first order, whatever the loss and however far from collapse.

    -⟨∇s, P∇L⟩/s

    Args:
        network, views, optimizer: as in `kernel_share`.
        loss: of the features (2, n, d) of both views; what carries no gradient in it is detached there.

    >>> angle = torch.nn.Parameter(torch.tensor(0.5))
    >>> turned = lambda x: torch.stack([angle.cos().expand(len(x)), angle.sin() * x[:, 0]], dim=1)
    >>> views, loss = torch.tensor([[[1.0], [-1.0]]] * 2), lambda z: z[..., 0].mean()  # cos falls: the spread grows
    >>> round(first_order_growth(turned, loss, views, SGD([angle], lr=0.1)), 4)  # 0.1 · 2 cos(½)
    0.1755
    """
    z = _features(network, views)
    spread = _spread(z)
    of_spread, of_loss = _gradients([spread, loss(z)], optimizer)
    return -_inner(of_spread, step_scales(optimizer).values(), of_loss) / spread.item()


def train_and_watch(
    network: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
    batches: Iterable[Views],
    optimizer: Optimizer,
    *,
    watched: Views,
    at: Collection[int],
) -> dict[int, KernelShare]:
    """Train a network in place, a step for each batch, and measure its `kernel_share` on the way.

    Args:
        network, loss, optimizer: as in `first_order_growth`.
        batches: the views (2, n, ...) of each step.
        watched: views of the images that are measured on, always the same.
        at: the numbers of steps after which it is measured; 0 is before the first.

    Returns:
        the measurements by the number of steps.
    """
    found = {0: kernel_share(network, watched, optimizer)} if 0 in at else {}
    for step, views in enumerate(batches, 1):
        optimizer.zero_grad()
        loss(_features(network, views)).backward()
        optimizer.step()
        if step in at:
            found[step] = kernel_share(network, watched, optimizer)
    return found


def _features(network: Callable[[Tensor], Tensor], views: Tensor) -> Float[Tensor, "2 n d"]:
    return network(views.flatten(0, 1)).unflatten(0, (2, -1))


def _spread(z: Float[Tensor, "2 n d"]) -> Tensor:
    """1 - ‖E z‖² of unit features, as their variance: what rounding leaves of it in single precision is exact."""
    z = z.double()
    return (z - z.mean((0, 1))).square().sum(-1).mean()


def _gradients(values: list[Tensor], optimizer: Optimizer) -> list[tuple[Tensor, ...]]:
    """The gradients of numbers in all parameters of the optimizer, in its order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    how = {"retain_graph": True, "materialize_grads": True, "allow_unused": True}
    return [torch.autograd.grad(value, parameters, **how) for value in values]


def _inner(a: Iterable[Tensor], scales: Iterable[float | Tensor], b: Iterable[Tensor]) -> float:
    """⟨a, P b⟩."""
    return sum((x * scale * y).sum().item() for x, scale, y in zip(a, scales, b, strict=True))

"""The last layer of a trained network: the linear layer that is best for its inputs, found by optimization.

Let h be what the last linear layer of a network gets, with a constant 1 where it has a bias, and z = Wh/‖Wh‖ its unit
features. Whatever is below, W alone can be optimized. Nothing here knows the predictions of `theory`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq, minimize
from torch import Tensor
from torch.nn.functional import pad

from .linear_encoders import modes, view_covariances

CUTOFF = 1e-11  # of the largest variance of h: float32 leaves noise of about 1e-14


class LastLayer(NamedTuple):
    """The best last layer for some inputs."""

    weight: Float[np.ndarray, "d m"]  # W, of which the scale means nothing
    spectrum: Float[np.ndarray, " d"]  # the eigenvalues of Γ of the unit features on these inputs, largest first
    residual: float | np.floating  # the gradient's norm over that of its rate's part before the projection


def last_layer_optimum(
    h: Float[Tensor, "v n m"],
    *,
    d: int,
    gamma: int | float,
    eps: int | float,
    batch: int | None = None,
    stop_gradient: bool = False,
    tolerance: int | float = 1e-7,
    start: Float[np.ndarray, "d m"] | None = None,
    seed: int = 0,
) -> LastLayer:
    """The last layer W that minimizes the loss of unit features z = Wh/‖Wh‖, by L-BFGS.

    J(W) = E (1 - cos(z, z')) - γ R(Γ),   Γ = E zzᵀ

    over pairs z, z' of views of an image. Behind a stop-gradient, with the teacher equal to the student, the gradient
    of the alignment is halved, which is the same as a doubled γ. In batches of b images it is not R whose mean is
    maximized but

    R_b = ½ [log det(I + αΓ/(1 + δ)) + b·log(1 + δ) - bδ/(1 + δ)],   δ = (1/b) Σ αλᵢ/(1 + αλᵢ/(1 + δ))

    the expected rate of b features of the spectrum λ. Its derivative in δ is 0, so that its gradient is that of R at
    α_b = α/(1 + δ), and δ always is the one of the present spectrum. Inputs are whitened first, in float64; the search
    has the precision of h.

    Args:
        h: (v, n, m) the inputs of the layer, v ≥ 2 views of each of n images; where it has a bias, one of them is 1.
        d: the dimension of the features.
        gamma: γ, the weight of the rate.
        eps: ε of the rate.
        batch: b, the images of a batch; None is the rate of all features at once.
        stop_gradient: halve the alignment's gradient.
        tolerance: the residual at which the search ends.
        start: where the search begins, such as the best layer for similar inputs; None is at random. It ends at the
            same spectrum, sooner or later.
        seed: of a random start.

    Source: Couillet and Debbah 2011, theorem 6.14, for R_b.

    >>> h = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)  # two images, whose views are equal
    >>> last_layer_optimum(h, d=2, gamma=0.1, eps=0.5).spectrum.round(6).tolist()
    [0.5, 0.5]
    """
    x, white = whitened(h)
    x = x.astype(np.float64 if h.dtype == torch.float64 else np.float32)
    share, alpha, shape, residual = 0.5 if stop_gradient else 1.0, d / eps**2, (d, len(white)), math.inf

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal residual
        (alignment, pull), (rate, push, free) = _terms(flat.reshape(shape), x, alpha, batch)
        gradient = share * pull - gamma * push
        residual = np.linalg.norm(gradient) / (gamma * np.linalg.norm(free))
        return float(share * alignment - gamma * rate), gradient.ravel().astype(np.float64)

    def enough(_: np.ndarray) -> None:
        if residual < tolerance:
            raise StopIteration

    if start is None:
        first = np.random.default_rng(seed).standard_normal(shape) / math.sqrt(shape[1])
    else:
        first = start @ np.linalg.pinv(white)
        first /= np.linalg.norm(first) / math.sqrt(d)
    options = {"maxiter": 3000, "maxfun": 6000, "ftol": 0, "gtol": 0, "maxcor": 30}
    found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", callback=enough, options=options)
    weight = found.x.reshape(shape) @ white
    return LastLayer(weight, last_layer_spectrum(weight, h), residual)


def balancing_gamma(
    weight: Float[np.ndarray, "d m"],
    h: Float[Tensor, "v n m"],
    *,
    eps: int | float,
    batch: int | None = None,
    stop_gradient: bool = False,
) -> float:
    """The γ at which a last layer is nearest to rest: where the rate's gradient balances the alignment's best.

    γ = ⟨∇A, ∇R⟩ / ‖∇R‖²,   gradients in W, in whitened inputs

    Of `last_layer_optimum` it is the γ that it was given; of a layer at rest under another loss, the γ of ours that
    this loss amounts to.

    Args:
        weight: (d, m) the last layer W.
        h: (v, n, m) its inputs, as in `last_layer_optimum`, as are eps, batch and stop_gradient.

    >>> h = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    >>> weight = np.array([[1.0, 0.9], [0.0, 0.2]])  # turned on to one direction or away from it, the views balance
    >>> balancing_gamma(weight, h, eps=1.0) > 0
    True
    """
    x, white = whitened(h)
    (_, pull), (_, push, _) = _terms(weight @ np.linalg.pinv(white), x, len(weight) / eps**2, batch)
    return float((0.5 if stop_gradient else 1.0) * np.vdot(pull, push) / np.vdot(push, push))


class _Alignment(NamedTuple):
    value: float | np.floating
    gradient: np.ndarray  # (d, k)


class _Expansion(NamedTuple):
    value: float | np.floating
    gradient: np.ndarray  # (d, k)
    free: np.ndarray  # (d, k) the gradient as it is before the projection on the spheres


def _terms(w: np.ndarray, x: np.ndarray, alpha: float, batch: int | None) -> tuple[_Alignment, _Expansion]:
    """Alignment and rate of the unit features of inputs (v, n, k), and their gradients in W (d, k)."""
    v, n, k = x.shape
    rows = x.reshape(v * n, k)
    z = rows @ w.T.astype(rows.dtype)
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    z /= norms
    views = z.reshape(v, n, -1)
    total = views.sum(0)
    alignment = 1 - ((total**2).sum() / n - v) / (v * (v - 1))
    others = (total - views).reshape(v * n, -1) * (2 / (v * (v - 1) * n))
    rate, inverse = _rate(z.T @ z / (v * n), alpha, batch)
    free = z @ (inverse / (v * n)).astype(z.dtype)

    def in_w(gradient: np.ndarray) -> np.ndarray:
        return (gradient / norms).T @ rows

    def tangent(gradient: np.ndarray) -> np.ndarray:
        return gradient - (gradient * z).sum(1, keepdims=True) * z

    pull, push = in_w(tangent(-others)), in_w(tangent(free))
    return _Alignment(alignment, pull), _Expansion(rate, push, in_w(free))


@torch.no_grad()
def last_layer_inputs(encoder: torch.nn.Module, views: Float[Tensor, "v n m"]) -> Float[Tensor, "v n h"]:
    """What the last linear layer of an encoder gets of some views; a bias is one more input, which is always 1.

    Args:
        encoder: a `Linear`, or a `Sequential` that ends with one.
        views: (v, n, m) what the encoder gets.

    >>> last_layer_inputs(torch.nn.Linear(2, 3), torch.zeros(1, 1, 2)).tolist()
    [[[0.0, 0.0, 1.0]]]
    """
    *below, last = encoder if isinstance(encoder, torch.nn.Sequential) else [encoder]
    x = torch.nn.Sequential(*below)(views)
    return x if last.bias is None else pad(x, (0, 1), value=1.0)


def last_layer_weight(encoder: torch.nn.Module) -> Float[np.ndarray, "d h"]:
    """The matrix W of the last linear layer of an encoder, with its bias as the last column, in float64.

    >>> last_layer_weight(torch.nn.Linear(2, 3)).shape
    (3, 3)
    """
    last = encoder[-1] if isinstance(encoder, torch.nn.Sequential) else encoder
    columns = [last.weight] if last.bias is None else [last.weight, last.bias[:, None]]
    return torch.cat(columns, dim=1).detach().double().cpu().numpy()


def last_layer_modes(encoder: torch.nn.Module, views: Float[Tensor, "2 n m"]) -> Float[np.ndarray, " h"]:
    """The generalized eigenvalues μ of the features that the last linear layer of an encoder gets, ascending.

    Given its input the last layer is a linear encoder, so that `theory.water_filling` of these μ is where it rests,
    whatever is below it, if its features are held to the unit sphere in the mean. Those that are one by one have
    `last_layer_optimum`.

    Args:
        encoder: a `Linear`, or a `Sequential` that ends with one.
        views: (2, n, m) what the encoder gets, two views of each of n images.

    >>> views = torch.tensor([[[1.0, 1.0], [-1.0, 1.0]], [[1.0, 1.0], [-1.0, 1.0]]])  # equal views
    >>> last_layer_modes(torch.nn.Linear(2, 1, bias=False), views).round(6).tolist()
    [0.0, 0.0]
    """
    return modes(*view_covariances(last_layer_inputs(encoder, views)))


def whitened(h: Float[Tensor, "v n m"]) -> tuple[Float[np.ndarray, "v n k"], Float[np.ndarray, "k m"]]:
    """Inputs with E xxᵀ = I in the k ≤ m directions in which they vary, in float64, and the matrix that made them.

    >>> x, white = whitened(torch.tensor([[[2.0, 0.0]], [[-2.0, 0.0]]]))  # in one direction, with the variance 4
    >>> abs(x).tolist(), abs(white).tolist()
    ([[[1.0]], [[1.0]]], [[0.5, 0.0]])
    """
    rows = h.detach().double().cpu().flatten(0, 1).numpy()
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    kept = values > CUTOFF * values[-1]
    white = (vectors[:, kept] / np.sqrt(values[kept])).T
    return (rows @ white.T).reshape(*h.shape[:2], -1), white


def last_layer_features(weight: Float[np.ndarray, "d m"], h: Float[Tensor, "v n m"]) -> Float[np.ndarray, "v n d"]:
    """The unit features Wh/‖Wh‖ of a last layer, in float64.

    >>> last_layer_features(np.diag([3.0, 4.0]), torch.ones(1, 1, 2)).tolist()
    [[[0.6, 0.8]]]
    """
    z = h.detach().double().cpu().numpy() @ weight.T
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def last_layer_spectrum(weight: Float[np.ndarray, "d m"], h: Float[Tensor, "v n m"]) -> Float[np.ndarray, " d"]:
    """The eigenvalues of Γ = E zzᵀ of the unit features of a last layer, largest first.

    >>> last_layer_spectrum(np.diag([3.0, 4.0]), torch.ones(1, 1, 2)).round(6).tolist()
    [1.0, 0.0]
    """
    z = last_layer_features(weight, h).reshape(-1, len(weight))
    return np.linalg.eigvalsh(z.T @ z / len(z))[::-1].clip(min=0)  # Γ ≥ 0: what is below is rounding


def _rate(
    covariance: Float[np.ndarray, "d d"], alpha: int | float, batch: int | None
) -> tuple[float, Float[np.ndarray, "d d"]]:
    """R or R_b of a covariance Γ, and twice its derivative: α_b (I + α_bΓ)⁻¹."""
    values, vectors = np.linalg.eigh(covariance)
    values = values.clip(min=0)
    delta, more = 0.0, 0.0
    if batch is not None:
        a = alpha * values
        delta = brentq(lambda x: x - (a / (1 + a / (1 + x))).sum() / batch, 0, a.sum() / batch, xtol=1e-14)
        more = batch * (math.log1p(delta) - delta / (1 + delta))
    own = alpha / (1 + delta)
    return float(np.log1p(own * values).sum() + more) / 2, (vectors * (own / (1 + own * values))) @ vectors.T

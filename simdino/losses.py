"""The objectives as pure functions that return (loss, named parts); the rate is the diagnostic, too."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Parts = dict[str, Tensor]


class _CodingRate(torch.autograd.Function):
    """½ logdet(I + c·zᵀz) with the Gram matrix of the smaller side, a checked Cholesky and its own backward.

    The backward, grad = c·z(I + c·zᵀz)⁻¹, needs one inverse of the factor that the forward has made;
    differentiating through the factorisation costs two to three times as much.
    """

    @staticmethod
    def forward(ctx, z: Tensor, c: float) -> Tensor:
        a = _shifted_gram(z, c)
        factor, info = torch.linalg.cholesky_ex(a)
        if not info.any():
            rate = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            inverse = torch.cholesky_inverse(factor) if ctx.needs_input_grad[0] else None
        elif not a.isfinite().all():
            raise ValueError("coding_rate: z has NaN or infinite values")
        else:  # rounding has made I + c·G indefinite: its spectrum in float64, where G ≥ 0 can be enforced
            values, vectors = torch.linalg.eigh(_shifted_gram(z.double(), c))
            values = values.clamp(min=1)
            rate = (values.log().sum(-1) / 2).to(z.dtype)
            inverse = (vectors / values.unsqueeze(-2) @ vectors.mT).to(z.dtype)
        ctx.c = c
        ctx.save_for_backward(z, inverse)
        return rate

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        z, inverse = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            if torch.is_grad_enabled():  # a second derivative is wanted: the inverse must depend on z
                inverse = torch.linalg.inv(_shifted_gram(z, ctx.c))
            return grad[..., None, None] * ctx.c * (inverse @ z if z.shape[-2] < z.shape[-1] else z @ inverse), None


def _shifted_gram(z: Tensor, c: float) -> Tensor:
    gram = z @ z.mT if z.shape[-2] < z.shape[-1] else z.mT @ z
    return torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device) + c * gram  # (min(n, d), min(n, d))


def coding_rate(z: Float[Tensor, "*b n d"], *, eps: float) -> Float[Tensor, "*b"]:
    """Coding rate of n features: nats to code them up to a distortion ε.

    R = ½ logdet(I + α·zᵀz/n),  α = d/ε².

    z: `(n, d)`, or a batch of such; neither centred nor normalised here. eps: the paper's ε, which the formula
    squares (the official code's `eps` is already ε²). Range on the unit sphere: from ½·log(1 + α), all features
    equal, to r/2·log(1 + α/r), r = min(n, d): orthonormal rows or a tight frame. Higher is healthier.
    Computed in float32 at least, whatever the autocast: half-precision Gram matrices turn indefinite on collapsed
    features. (float32 itself loses digits only where ε² < 10⁻³; float64 input is computed in float64.)
    NaN or infinite features are a ValueError.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 1; Wu et al. 2025 (SimDINO, arXiv 2502.10385).
    """
    n, d = z.shape[-2:]
    with torch.autocast(z.device.type, enabled=False):
        return _CodingRate.apply(z if z.dtype == torch.float64 else z.float(), d / (n * eps**2))


def simdino_loss(
    student: Float[Tensor, "v n d"],
    teacher: Float[Tensor, "g n d"],
    *,
    eps: float,
    gamma: float,
    rate_of: Literal["student", "mean"] = "student",
) -> tuple[Float[Tensor, ""], Parts]:
    """SimDINO: alignment − γ·coding rate, of unit features of v views, the first g of which the teacher saw.

    L = mean over i ≠ j of E ½‖sᵢ − tⱼ‖² − γ · mean over global views of R(s).

    student `(v, n, d)`, teacher `(g, n, d)`, g ≤ v: rows on the unit sphere, so that ½‖s − t‖² = 1 − cos.
    rate_of: whose rate, the student's or that of the mean of both (the official `expa_type` 0 and 1).
    Parts: alignment in [0, 2], 0 is invariance; rate in nats, see `coding_rate`. Lower loss is better.

    Source: Wu et al. 2025 (arXiv 2502.10385).
    """
    v, g = len(student), len(teacher)
    distance = (student[:, None] - teacher[None]).square().sum(-1).mean(-1) / 2  # (v, g)
    alignment = (distance * (1 - torch.eye(v, g, device=student.device))).sum() / (g * (v - 1))
    z = student[:g] if rate_of == "student" else (student[:g] + teacher) / 2  # (g, n, d)
    rate = coding_rate(z, eps=eps).mean()
    return alignment - gamma * rate, {"alignment": alignment, "rate": rate}


def dino_loss(
    student: Float[Tensor, "v n k"],
    teacher: Float[Tensor, "g n k"],
    *,
    center: Float[Tensor, " k"],
    student_temp: float,
    teacher_temp: float,
    center_momentum: float,
) -> tuple[Float[Tensor, ""], Parts]:
    """DINO: cross-entropy of the student's prototype scores under the centred, sharpened teacher's.

    L = mean over i ≠ j of E H(q_j, p_i),  q = softmax((t − c)/τ_t),  p = softmax(s/τ_s).

    student `(v, n, K)`, teacher `(g, n, K)` raw scores, center `(K,)`. Parts: the cross-entropy's split
    H(q, p) = entropy + kl in nats (entropy 0: one prototype wins; log K: uniform collapse), and `center`, the
    centre for the next step, m·c + (1 − m)·mean t, with m = center_momentum (1: no centring). Lower is better.

    Source: Caron et al. 2021 (arXiv 2104.14294) algorithm 1.
    """
    v, g = len(student), len(teacher)
    q = F.softmax((teacher - center) / teacher_temp, dim=-1)  # (g, n, K)
    log_p = F.log_softmax(student / student_temp, dim=-1)  # (v, n, K)
    cross = -torch.einsum("gnk,vnk->vg", q, log_p) / student.shape[1]  # (v, g)
    loss = (cross * (1 - torch.eye(v, g, device=student.device))).sum() / (g * (v - 1))
    entropy = torch.special.entr(q).sum(-1).mean()
    batch_center = teacher.detach().mean((0, 1))
    return loss, {"entropy": entropy, "kl": loss - entropy, "center": torch.lerp(batch_center, center, center_momentum)}


def official_scaling(d: int, n: int, eps: float, *, world_size: int = 1, gathered: bool = False) -> tuple[float, float]:
    """The (ε, γ) with which `simdino_loss` equals the official code's loss plus 1.

    ε² = N·eps,  or eps when gathered;  γ = (d + N·n)/(d·N·n).

    d: feature dimension, n: images a rank, eps: the official code's, already squared, N = world_size.
    gathered (its `reduce_cov`): the rate is taken of all N·n features together. Left at its default, each rank
    takes the rate of its own n features but still divides by N: the precision in force is N·eps.

    Source: MCRLoss in the official code, both versions.
    """
    return math.sqrt(eps if gathered else world_size * eps), (d + world_size * n) / (d * world_size * n)

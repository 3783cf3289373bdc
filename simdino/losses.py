"""The objectives as pure functions that return (loss, named parts); the rate is the diagnostic, too."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

Parts = dict[str, Tensor]


def _full_precision(loss: Callable) -> Callable:
    """Compute a loss outside autocast, of tensors of float32 at least."""
    bind = inspect.signature(loss).bind

    @functools.wraps(loss)
    def run(*args, **kwargs):
        inputs = bind(*args, **kwargs).arguments
        inputs = {k: x.float() if isinstance(x, Tensor) and x.dtype != torch.float64 else x for k, x in inputs.items()}
        with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
            return loss(**inputs)

    return run


class _SumOverRanks(torch.autograd.Function):
    """Sums over all processes, of the values and of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _SumOverRanks.apply(grad)


def _sum_over_ranks(x: Tensor) -> Tensor:
    return _SumOverRanks.apply(x) if dist.is_available() and dist.is_initialized() else x


def gather_rows(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*gathered"]:
    """The rows of all processes, rank after rank, so that a loss sees the whole batch; alone, z itself.

    z: `(n, d)`, views `(v, n, d)`, or one number a row `(n,)`. With each tensor that a loss takes gathered, N
    processes have the loss of one process with all rows, however uneven their n, and its gradient, too: the mean over
    N of DistributedDataParallel cancels the sum in the backward here. (The rate is then the official code's with
    `reduce_cov=1`.)
    A collective call: every process must make it, if only with n = 0.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return z
    if z.ndim == 1:
        return gather_rows(z[:, None])[:, 0]
    n, rank = z.shape[-2], dist.get_rank()
    counts = _sum_over_ranks(n * F.one_hot(torch.tensor(rank, device=z.device), dist.get_world_size())).tolist()
    return _sum_over_ranks(F.pad(z, (0, 0, sum(counts[:rank]), sum(counts[rank + 1 :]))))


class _CodingRate(torch.autograd.Function):
    """½ logdet(I + c·zᵀz) with the Gram matrix of the smaller side, a checked Cholesky and its own backward.

    The backward, grad = c·z(I + c·zᵀz)⁻¹, needs one inverse of the factor that the forward has made;
    differentiating through the factorization costs two to three times as much.
    """

    @staticmethod
    def forward(ctx, z: Tensor, alpha: float) -> Tensor:
        c = alpha / z.shape[-2]
        a = _shifted_gram(z, c)
        factor, info = torch.linalg.cholesky_ex(a)
        rate = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if ((info == 0) & rate.isfinite()).all():
            inverse = torch.cholesky_inverse(factor) if ctx.needs_input_grad[0] else None
        elif not a.isfinite().all():
            raise ValueError("coding_rate: z has NaN or infinite values, or some whose squares are")
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


def _checked(z: Tensor | np.ndarray, eps: float) -> Tensor:
    z = torch.as_tensor(z)
    if z.ndim < 2 or z.numel() == 0:
        raise ValueError(f"coding_rate: z must have shape (n, d) and not be empty, got {tuple(z.shape)}")
    if not eps > 0:
        raise ValueError(f"coding_rate: eps must be positive, got {eps}")
    return z if z.dtype == torch.float64 else z.float()


def coding_rate(z: Real[Tensor | np.ndarray, "*b n d"], *, eps: float) -> Float[Tensor, "*b"]:
    """Coding rate of n features: nats to code them up to a distortion ε.

    R = ½ logdet(I + α·zᵀz/n),  α = d/ε².

    z: `(n, d)`, or a batch of such; neither centered nor normalized here. eps: the paper's ε, which the formula
    squares (the official code's `eps` is already ε²). Range on the unit sphere: from ½·log(1 + α), all features
    equal, to r/2·log(1 + α/r), r = min(n, d): orthonormal rows or a tight frame. Higher is healthier.
    Computed in float32 at least, whatever the autocast: half-precision Gram matrices turn indefinite on collapsed
    features. (float32 itself loses digits only where ε² < 10⁻³, or as TF32 if that is switched on; float64 input is
    computed in float64.) ValueError: NaN or infinite features, no features, eps ≤ 0.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 1; Wu et al. 2025 (SimDINO, arXiv 2502.10385).
    """
    z = _checked(z, eps)
    with torch.autocast(z.device.type, enabled=False):
        return _CodingRate.apply(z, z.shape[-1] / eps**2)


def _check_views(student: Tensor, teacher: Tensor, rate_of: str = "student") -> None:
    if rate_of not in ("student", "mean"):
        raise ValueError(f"rate_of must be 'student' or 'mean', not {rate_of!r}")
    v, g = len(student), len(teacher)
    if not (1 <= g <= v and v >= 2 and student.shape[1:] == teacher.shape[1:]):
        shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise ValueError(f"two student views at least, the first of them the teacher's, of the same images: {shapes}")


@_full_precision
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
    _check_views(student, teacher, rate_of)
    v, g = len(student), len(teacher)
    distance = (student[:, None] - teacher[None]).square().sum(-1).mean(-1) / 2  # (v, g)
    alignment = (distance * (1 - torch.eye(v, g, device=student.device))).sum() / (g * (v - 1))
    z = student[:g] if rate_of == "student" else (student[:g] + teacher) / 2  # (g, n, d)
    rate = coding_rate(z, eps=eps).mean()
    return alignment - gamma * rate, {"alignment": alignment, "rate": rate}


@_full_precision
def simdinov2_loss(
    student: Float[Tensor, "v n d"],
    teacher: Float[Tensor, "g n d"],
    student_patches: Float[Tensor, "m p"],
    teacher_patches: Float[Tensor, "m p"],
    patch_weights: Float[Tensor, " m"],
    *,
    eps: float,
    gamma: float,
    rate_of: Literal["student", "mean"] = "student",
    patch_weight: float = 1.0,
    patch_gamma: float = 0.0,
) -> tuple[Float[Tensor, ""], Parts]:
    """SimDINOv2: `simdino_loss`, plus the alignment of masked patches, minus (on request) the rates of patches.

    L = L_SimDINO + patch_weight · Σ_m w_m ½‖s_m − t_m‖² − patch_gamma · (R_within + R_across).

    patches: the unit tokens of the m masked patches of all global crops, crop after crop; the student saw the mask.
    patch_weights: 1/(masked patches of the crop)/(g·n, all global crops), so that each masked crop counts alike. As
    half of the crops are masked in the official recipe, its −Σ w·cos = patches − Σ w has the best value −½, not −1.

    With patch_gamma 0, constant tokens are a global optimum. R_within, the mean rate of a masked crop's tokens, is
    lowest if tokens depend on the image only; R_across, the rate of the crops' unit mean tokens, if these agree: both
    at their bounds exclude either. (One rate of all tokens can be at its bound with all tokens of an image equal.)
    Parts: besides simdino's, patches and the two rates, nats.

    Source: Wu et al. 2025 (arXiv 2502.10385); the rates of patches are this package's, against their collapse.
    """
    loss, parts = simdino_loss(student, teacher, eps=eps, gamma=gamma, rate_of=rate_of)
    patches = (patch_weights * (student_patches - teacher_patches).square().sum(-1)).sum() / 2
    z = student_patches if patch_gamma else student_patches.detach()
    within, across = _patch_rates(z, patch_weights * teacher.shape[:2].numel(), eps)
    loss = loss + patch_weight * patches - patch_gamma * (within + across)
    return loss, parts | {"patches": patches, "patch_rate_within": within, "patch_rate_across": across}


def _patch_rates(z: Tensor, weights: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(R_within, R_across) of packed tokens (m, d), given 1/(masked patches of the crop) each."""
    if not len(z):
        return z.sum(), z.sum()
    crop = (weights.cumsum(0, dtype=torch.float64) - weights / 2).long()  # (m,): a crop's weights sum to 1
    count = crop.bincount()  # (c,)
    if not torch.allclose(weights * count[crop], torch.ones_like(weights), rtol=1e-3):
        raise ValueError("patch_weights must be 1/(masked patches of the crop)/(global crops), crop after crop")
    size = int(count.max())
    slot = torch.arange(len(z), device=z.device) - (count.cumsum(0) - count)[crop]
    crops = z.new_zeros(len(count), size, z.shape[-1])
    # The rows of zeros add nothing to a Gram matrix; the factor makes up for `size` rows where there are `count`.
    crops[crop, slot] = z * (size / count[crop]).to(z.dtype).sqrt()[:, None]  # (c, size, d)
    return coding_rate(crops, eps=eps).mean(), coding_rate(F.normalize(crops.sum(1), dim=-1), eps=eps)


@_full_precision
def dino_loss(
    student: Float[Tensor, "v n k"],
    teacher: Float[Tensor, "g n k"],
    *,
    center: Float[Tensor, " k"],
    student_temp: float,
    teacher_temp: float,
    center_momentum: float,
    centering: Literal["ema", "sinkhorn"] = "ema",
) -> tuple[Float[Tensor, ""], Parts]:
    """DINO: cross-entropy of the student's prototype scores under the centered, sharpened teacher's.

    L = mean over i ≠ j of E H(q_j, p_i),  q = softmax((t − c)/τ_t) or `sinkhorn_knopp(t)`,  p = softmax(s/τ_s).

    student `(v, n, K)`, teacher `(g, n, K)` raw scores, center `(K,)`. Parts: the cross-entropy's split
    H(q, p) = entropy + kl in nats (entropy 0: one prototype wins; log K: uniform collapse), and `center`, the
    center for the next step, m·c + (1 − m)·mean t, with m = center_momentum (1: no centering); the mean is over the
    rows of all processes, and Sinkhorn-Knopp leaves the center alone. Lower is better.

    Source: Caron et al. 2021 (arXiv 2104.14294) algorithm 1; Oquab et al. 2023 (DINOv2, arXiv 2304.07193).
    """
    _check_views(student, teacher)
    v, g = len(student), len(teacher)
    options = {"teacher_temp": teacher_temp, "center_momentum": center_momentum, "centering": centering}
    q, center = _targets(teacher.flatten(0, 1), center, **options)
    q = q.unflatten(0, teacher.shape[:2])  # (g, n, K)
    log_p = F.log_softmax(student / student_temp, dim=-1)  # (v, n, K)
    cross = -torch.einsum("gnk,vnk->vg", q, log_p) / student.shape[1]  # (v, g)
    loss = (cross * (1 - torch.eye(v, g, device=student.device))).sum() / (g * (v - 1))
    entropy = torch.special.entr(q).sum(-1).mean()
    return loss, {"entropy": entropy, "kl": loss - entropy, "center": center}


def _targets(
    scores: Tensor, center: Tensor, *, teacher_temp: float, center_momentum: float, centering: str
) -> tuple[Tensor, Tensor]:
    """The teacher's probabilities of its scores (n, K), and the center for the next step."""
    if centering == "sinkhorn":
        return sinkhorn_knopp(scores, temp=teacher_temp).to(scores.dtype), center
    if centering != "ema":
        raise ValueError(f"centering must be 'ema' or 'sinkhorn', not {centering!r}")
    center, rows = center.to(scores.dtype), _sum_over_ranks(scores.new_tensor(len(scores)))
    mean = _sum_over_ranks(scores.detach().sum(0)) / rows
    q = F.softmax((scores - center) / teacher_temp, dim=-1)
    return q, torch.where(rows > 0, torch.lerp(mean, center, center_momentum), center)


@torch.no_grad()
def sinkhorn_knopp(scores: Float[Tensor, "n k"], *, temp: float, iterations: int = 3) -> Float[Tensor, "n k"]:
    """Assignment of samples to prototypes, near softmax(scores/τ), that uses all prototypes alike.

    Q = exp(scores/τ), then in turns: every prototype's column to sum 1, every sample's row to sum 1.

    scores `(n, K)`; the columns are summed over the samples of all processes. Rows sum to 1, columns to n/K in the
    limit of many iterations. In float32, as in the official code, but of logarithms: finite for all finite scores
    (the official exp overflows at scores/τ = 89). A constant to the gradient.

    Source: Cuturi 2013 (arXiv 1306.0895); Caron et al. 2020 (SwAV, arXiv 2006.09882); DINOv2.
    """
    log_q = scores.float() / temp
    for _ in range(iterations):
        log_q = log_q - gather_rows(log_q.logsumexp(0, keepdim=True)).logsumexp(0)
        log_q = log_q.log_softmax(1)
    return log_q.exp()


@_full_precision
def koleo_loss(z: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b"]:
    """KoLeo: minus the mean log distance of the unit features to their nearest neighbors, an entropy estimate.

    L = −1/n Σᵢ log(min_{j≠i} ‖ẑᵢ − ẑⱼ‖),  ẑ = z/‖z‖.

    z: `(n, d)`, n ≥ 2, or a batch of such; normalized here. Range from −log 2, two opposite features, upwards; equal
    features give a large but finite value, as the official code adds 1e-8 to each difference and to the distance.
    Lower is more spread. Taken of the features of one process, as in the official code.

    Source: Sablayrolles et al. 2019 (arXiv 1806.03198) eq. 2; weight 0.1 in DINOv2.
    """
    if z.shape[-2] < 2:
        raise ValueError("koleo_loss: z must have two rows at least, to have neighbors")
    z = F.normalize(z, dim=-1, eps=1e-8)
    with torch.no_grad():
        cosines = z @ z.mT
        cosines.diagonal(dim1=-2, dim2=-1).fill_(-math.inf)
        nearest = cosines.argmax(-1, keepdim=True)  # (*b, n, 1)
    distance = F.pairwise_distance(z, z.take_along_dim(nearest, dim=-2), eps=1e-8)
    return -(distance + 1e-8).log().mean(-1)


@_full_precision
def dinov2_loss(
    student: Float[Tensor, "v n k"],
    teacher: Float[Tensor, "g n k"],
    student_patches: Float[Tensor, "m p"],
    teacher_patches: Float[Tensor, "m p"],
    patch_weights: Float[Tensor, " m"],
    features: Float[Tensor, "g n d"],
    *,
    center: Float[Tensor, " k"],
    patch_center: Float[Tensor, " p"],
    student_temp: float,
    teacher_temp: float,
    center_momentum: float,
    centering: Literal["ema", "sinkhorn"] = "sinkhorn",
    patch_weight: float = 1.0,
    koleo_weight: float = 0.1,
) -> tuple[Float[Tensor, ""], Parts]:
    """DINOv2: `dino_loss`, plus iBOT on the masked patches, plus KoLeo of each global crop's features.

    L = L_DINO + patch_weight · Σ_m w_m H(q_m, p_m) + koleo_weight · Σ_g KoLeo(z_g).

    patches: prototype scores of the masked patches of all global crops, centered as the class tokens' are, with a
    center of their own; patch_weights as in `simdinov2_loss`. features: the student's class tokens of the global
    crops as its backbone gives them. Parts: besides dino's, patches (nats), koleo (summed over the crops) and
    patch_center. Lower is better. (The official log shows patches and koleo halved.)

    Source: Oquab et al. 2023 (arXiv 2304.07193); Zhou et al. 2022 (iBOT, arXiv 2111.07832).
    """
    options = {"teacher_temp": teacher_temp, "center_momentum": center_momentum, "centering": centering}
    loss, parts = dino_loss(student, teacher, center=center, student_temp=student_temp, **options)
    q, patch_center = _targets(teacher_patches, patch_center, **options)
    log_p = F.log_softmax(student_patches / student_temp, dim=-1)  # (m, p)
    patches = -(patch_weights * (q * log_p).sum(-1)).sum()
    koleo = koleo_loss(features).sum()
    loss = loss + patch_weight * patches + koleo_weight * koleo
    return loss, parts | {"patches": patches, "koleo": koleo, "patch_center": patch_center}


def official_scaling(d: int, n: int, eps: float, *, world_size: int = 1, gathered: bool = False) -> tuple[float, float]:
    """The (ε, γ) with which `simdino_loss` equals the official code's loss plus 1.

    ε² = N·eps,  or eps when gathered;  γ = (d + N·n)/(d·N·n).

    d: feature dimension, n: images a rank, eps: the official code's, already squared, N = world_size.
    gathered (its `reduce_cov`): the rate is taken of all N·n features together. Left at its default, each rank
    takes the rate of its own n features but still divides by N: the precision in force is N·eps.

    Source: MCRLoss in the official code, both versions.
    """
    return math.sqrt(eps if gathered else world_size * eps), (d + world_size * n) / (d * world_size * n)

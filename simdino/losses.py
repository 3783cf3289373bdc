"""The objectives as pure functions that return (loss, named parts); their coding rate is the diagnostics' as well."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

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
    """Gather the rows of all processes, rank after rank, so that a loss sees the whole batch.

    With every tensor that a loss takes gathered, N processes have the loss of one process with all rows, however
    uneven their parts, and its gradient: the mean over N of DistributedDataParallel cancels the sum in the backward
    here. The rate is then that of the official code with `reduce_cov=1`. This is a collective call: every process must
    make it, if only with n = 0.

    Args:
        z: features (n, d), views (v, n, d), or one number for each row (n,).

    Returns:
        The same with the rows of all processes; z itself where there is one process.

    >>> z = torch.eye(3)
    >>> gather_rows(z) is z
    True
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
    """Compute the coding rate of features: the nats that it takes to code them up to a distortion ε.

    R = ½ logdet(I + α·zᵀz/n),  α = d/ε²

    On the unit sphere it lies between ½·log(1 + α), where all features are equal, and r/2·log(1 + α/r) with
    r = min(n, d), for orthonormal rows or a tight frame; higher is healthier. Features are neither centered nor
    normalized here. It is computed in float32 at least, whatever the autocast, as half-precision Gram matrices turn
    indefinite on collapsed features. float32 itself loses digits only where ε² < 10⁻³, or as TF32 if that is switched
    on; float64 input is computed in float64.

    Args:
        z: features (n, d), or a batch of such.
        eps: the paper's ε, which the formula squares; the official code's `eps` is already ε².

    Raises:
        ValueError: NaN or infinite features, no features, or ε ≤ 0.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 1; Wu et al. 2025 (SimDINO, arXiv 2502.10385).

    >>> coding_rate(torch.eye(4), eps=0.5)  # its maximum, 4/2·log(1 + 4)
    tensor(3.2189)
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
    """Compute SimDINO's loss of unit features: the alignment of views, minus γ times the coding rate.

    L = mean over i ≠ j of E ½‖sᵢ − tⱼ‖² − γ · mean over global views of R(s)

    Lower is better. On the unit sphere ½‖s − t‖² = 1 − cos, so that the alignment is in [0, 2]; 0 is invariance.

    Args:
        student: unit features of all views (v, n, d), the global ones first.
        teacher: unit features of the g ≤ v global views (g, n, d).
        eps: the paper's ε.
        gamma: weight of the rate.
        rate_of: whose rate, the student's or that of the mean of both (the official `expa_type` 0 and 1).

    Returns:
        The loss, and its parts: alignment, and rate in nats.

    Raises:
        ValueError: views that do not fit, or what `coding_rate` refuses.

    Source: Wu et al. 2025 (arXiv 2502.10385).

    >>> z = torch.eye(4).expand(2, 4, 4)  # two equal views, four orthonormal features
    >>> simdino_loss(z, z, eps=0.5, gamma=0.1)
    (tensor(-0.3219), {'alignment': tensor(0.), 'rate': tensor(3.2189)})
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
    """Compute SimDINOv2's loss: SimDINO's, plus the alignment of masked patches, minus (on request) rates of patches.

    L = L_SimDINO + patch_weight · Σ_m w_m ½‖s_m − t_m‖² − patch_gamma · (R_within + R_across)

    With patch_gamma 0, constant tokens are a global optimum. R_within, the mean rate of a masked crop's tokens, is
    lowest if tokens depend on the image only; R_across, the rate of the crops' unit mean tokens, is lowest if these
    agree: both at their bounds exclude either. (One rate of all tokens can be at its bound with all tokens of an image
    equal.) As half of the crops are masked in the official recipe, its −Σ w·cos = patches − Σ w has the best value −½,
    not −1. Lower is better.

    Args:
        student: see `simdino_loss`, as of teacher, eps, gamma and rate_of.
        student_patches: unit tokens (m, p) of the m masked patches of all global crops, crop after crop; the student
            saw the mask.
        teacher_patches: the same of the teacher, which saw the patches (m, p).
        patch_weights: 1/(masked patches of the crop)/(g·n, all global crops) of each token (m,), so that each masked
            crop counts alike.
        patch_weight: of the patches' alignment.
        patch_gamma: of the patches' rates.

    Returns:
        The loss, and its parts: those of `simdino_loss`, patches, patch_rate_within and patch_rate_across (nats).

    Raises:
        ValueError: views or weights that do not fit, or what `coding_rate` refuses.

    Source: Wu et al. 2025 (arXiv 2502.10385); the rates of patches are this package's, against their collapse.

    >>> z, patches, weights = torch.eye(4).expand(2, 4, 4), torch.eye(4)[:2], torch.full((2,), 1 / 2 / 8)
    >>> loss, parts = simdinov2_loss(z, z, patches, -patches, weights, eps=0.5, gamma=0.1)
    >>> parts["patches"]  # one crop of eight is masked, and each of its tokens has ½‖s − t‖² = 2
    tensor(0.2500)
    """
    loss, parts = simdino_loss(student, teacher, eps=eps, gamma=gamma, rate_of=rate_of)
    patches = (patch_weights * (student_patches - teacher_patches).square().sum(-1)).sum() / 2
    z = student_patches if patch_gamma else student_patches.detach()
    within, across = _patch_rates(z, patch_weights * teacher.shape[:2].numel(), eps)
    loss = loss + patch_weight * patches - patch_gamma * (within + across)
    return loss, parts | {"patches": patches, "patch_rate_within": within, "patch_rate_across": across}


def _patch_rates(z: Tensor, weights: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """R_within and R_across of packed tokens (m, d), given the weight 1/(masked patches of the crop) of each."""
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
    """Compute DINO's loss: the cross-entropy of the student's scores under the teacher's, centered and sharpened.

    L = mean over i ≠ j of E H(q_j, p_i),  q = softmax((t − c)/τ_t) or `sinkhorn_knopp(t)`,  p = softmax(s/τ_s)

    Lower is better. The loss is entropy + kl: an entropy of 0 means that one prototype wins, log K is uniform
    collapse. Sinkhorn-Knopp leaves the center alone.

    Args:
        student: raw scores of the prototypes for all views (v, n, K), the global ones first.
        teacher: those of the g global views (g, n, K).
        center: what is taken off the teacher's scores (K,).
        student_temp: τ_s.
        teacher_temp: τ_t.
        center_momentum: m, how much of the center stays; 1 is no centering.
        centering: "ema", by the center; or "sinkhorn".

    Returns:
        The loss, and its parts: entropy and kl in nats, and `center` for the next step, m·c + (1 − m)·mean t, where
        the mean is over the rows of all processes.

    Raises:
        ValueError: views that do not fit, or an unknown centering.

    Source: Caron et al. 2021 (arXiv 2104.14294) algorithm 1; Oquab et al. 2023 (DINOv2, arXiv 2304.07193).

    >>> options = {"student_temp": 0.1, "teacher_temp": 0.1, "center_momentum": 0.9}
    >>> scores = torch.zeros(2, 3, 4)  # uniform collapse: log 4
    >>> dino_loss(scores, scores, center=torch.zeros(4), **options)[0]
    tensor(1.3863)
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
    """Turn the teacher's scores (n, K) into probabilities, and move the center."""
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
    """Assign samples to prototypes, near softmax(scores/τ), so that all prototypes are used alike.

    Q = exp(scores/τ), then in turns: every prototype's column to sum 1, every sample's row to sum 1

    Rows sum to 1, and columns to n/K in the limit of many iterations. It is computed in float32, as in the official
    code, but of logarithms: finite for all finite scores, where the official exp overflows at scores/τ = 89. The
    result is a constant to the gradient.

    Args:
        scores: (n, K); the columns are summed over the samples of all processes.
        temp: τ.
        iterations: how many turns.

    Source: Cuturi 2013 (arXiv 1306.0895); Caron et al. 2020 (SwAV, arXiv 2006.09882); DINOv2.

    >>> sinkhorn_knopp(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), temp=0.1)  # both samples prefer the first prototype
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    log_q = scores.float() / temp
    for _ in range(iterations):
        log_q = log_q - gather_rows(log_q.logsumexp(0, keepdim=True)).logsumexp(0)
        log_q = log_q.log_softmax(1)
    return log_q.exp()


@_full_precision
def koleo_loss(z: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b"]:
    """Compute KoLeo: minus the mean log distance of unit features to their nearest neighbors, an entropy estimate.

    L = −1/n Σᵢ log(min_{j≠i} ‖ẑᵢ − ẑⱼ‖),  ẑ = z/‖z‖

    It ranges from −log 2, two opposite features, upwards, and lower is more spread. Equal features give a large but
    finite value, as the official code adds 1e-8 to each difference and to the distance. It is taken of the features
    of one process, as in the official code.

    Args:
        z: features (n, d) with n ≥ 2, or a batch of such; normalized here.

    Raises:
        ValueError: fewer than two rows.

    Source: Sablayrolles et al. 2019 (arXiv 1806.03198) eq. 2; weight 0.1 in DINOv2.

    >>> koleo_loss(torch.eye(3))  # all distances are √2
    tensor(-0.3466)
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
    """Compute DINOv2's loss: DINO's, plus iBOT on the masked patches, plus KoLeo of each global crop's features.

    L = L_DINO + patch_weight · Σ_m w_m H(q_m, p_m) + koleo_weight · Σ_g KoLeo(z_g)

    Lower is better. (The official log shows patches and koleo halved.)

    Args:
        student: see `dino_loss`, as of teacher, center, both temperatures, center_momentum and centering.
        student_patches: scores of the prototypes (m, p) for the masked patches of all global crops.
        teacher_patches: the same of the teacher (m, p), centered as the class tokens' are.
        patch_weights: as in `simdinov2_loss` (m,).
        features: the student's class tokens of the global crops as its backbone gives them (g, n, d).
        patch_center: the patches' own center (p,).
        patch_weight: of the patches' cross-entropy.
        koleo_weight: of KoLeo.

    Returns:
        The loss, and its parts: those of `dino_loss`, patches (nats), koleo (summed over the crops), patch_center.

    Raises:
        ValueError: views that do not fit, an unknown centering, or a single image.

    Source: Oquab et al. 2023 (arXiv 2304.07193); Zhou et al. 2022 (iBOT, arXiv 2111.07832).

    >>> scores, patches = torch.zeros(2, 3, 4), torch.zeros(2, 4)  # uniform collapse: log 4 of crops and of patches
    >>> centers = {"center": torch.zeros(4), "patch_center": torch.zeros(4)}
    >>> options = centers | {"student_temp": 0.1, "teacher_temp": 0.1, "center_momentum": 0.9, "koleo_weight": 0.0}
    >>> dinov2_loss(scores, scores, patches, patches, torch.full((2,), 0.5), torch.eye(3).expand(2, 3, 3), **options)[0]
    tensor(2.7726)
    """
    options = {"teacher_temp": teacher_temp, "center_momentum": center_momentum, "centering": centering}
    loss, parts = dino_loss(student, teacher, center=center, student_temp=student_temp, **options)
    q, patch_center = _targets(teacher_patches, patch_center, **options)
    log_p = F.log_softmax(student_patches / student_temp, dim=-1)  # (m, p)
    patches = -(patch_weights * (q * log_p).sum(-1)).sum()
    koleo = koleo_loss(features).sum()
    loss = loss + patch_weight * patches + koleo_weight * koleo
    return loss, parts | {"patches": patches, "koleo": koleo, "patch_center": patch_center}


class Scaling(NamedTuple):
    """What `simdino_loss` calls ε and γ."""

    eps: float
    gamma: float


def official_scaling(d: int, n: int, eps: float, *, world_size: int = 1, gathered: bool = False) -> Scaling:
    """Translate the official code's settings into the ε and γ with which `simdino_loss` equals its loss plus 1.

    ε² = N·eps, or eps when gathered;  γ = (d + N·n)/(d·N·n)

    Left at its default, each rank of the official code takes the rate of its own n features but still divides by N:
    the precision in force is N·eps.

    Args:
        d: dimension of the features.
        n: images on one rank.
        eps: the official code's, already squared.
        world_size: N, the number of ranks.
        gathered: whether the rate is taken of all N·n features together (its `reduce_cov`).

    Source: MCRLoss in the official code, both versions.

    >>> eps, gamma = official_scaling(256, 64, 0.05, world_size=8)
    >>> round(eps**2, 3), round(gamma, 5)
    (0.4, 0.00586)
    """
    return Scaling(math.sqrt(eps if gathered else world_size * eps), (d + world_size * n) / (d * world_size * n))

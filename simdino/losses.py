"""The objectives as pure functions that return (loss, named parts); their coding rate is the diagnostics' as well."""

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from jaxtyping import Real as RealArray
from torch import Tensor

Parts = dict[str, Tensor]


def _full_precision(loss: Callable) -> Callable:
    """Compute a loss outside autocast, of tensors of float32 at least."""

    def upcast(x):
        return x.float() if isinstance(x, Tensor) and x.dtype != torch.float64 else x

    @functools.wraps(loss)
    def run(*args, **kwargs):
        args, kwargs = [upcast(x) for x in args], {name: upcast(x) for name, x in kwargs.items()}
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return run


# What a number must be, by its name: words for the refusal, its least and its largest value, and of which kind it is.
_POSITIVE = ("be positive, between 1e-30 and 1e+18", 1e-30, 1e18, Real)  # squares and inverses are numbers, too
_RESOLUTION = ("be positive, between 1e-30 and 1e+6", 1e-30, 1e6, Real)  # of a larger ε rates tell nothing apart
_WEIGHT = ("not be negative, nor above 1e+18", 0, 1e18, Real)  # of all other names
_EXPONENT = ("not be negative, nor above 1000", 0, 1000, Real)
_SHARE = ("lie in [0, 1]", 0, 1, Real)
_COUNT = ("be a positive integer", 1, 10**18, Integral)
_REPEATS = ("be a positive integer, at most 1e+6", 1, 10**6, Integral)  # each of which takes its time
_KINDS = {
    **dict.fromkeys(["eps", "t"], _RESOLUTION),
    **dict.fromkeys(["temp", "delta", "beta", "bandwidth", "l2"], _POSITIVE),
    **dict.fromkeys(["share", "center_momentum", "discard"], _SHARE),
    **dict.fromkeys(["power", "s"], _EXPONENT),
    "order": ("not be negative", 0, math.inf, Real),
    "floor": _WEIGHT,
    **dict.fromkeys(["n", "d", "k", "rank", "top", "chunk", "shots", "batch", "pixels", "images"], _COUNT),
    **dict.fromkeys(["neighbors", "context", "crops", "world_size", "targets", "classes"], _COUNT),
    **dict.fromkeys(["directions", "permutations", "draws", "steps", "epochs", "iterations"], _REPEATS),
}


def check_numbers(**numbers: object) -> None:
    """Refuse a number that is out of its range or of another type, by its name.

    A tensor is not looked at, as that would wait for a GPU.

    Raises:
        ValueError: one of them is out of its range, NaN, or no number.

    >>> check_numbers(eps=0.5, k=20, share=1)
    >>> check_numbers(eps=float("nan"))
    Traceback (most recent call last):
    ValueError: eps must be positive, between 1e-30 and 1e+6, got nan
    """
    for name, x in numbers.items():
        if isinstance(x, Tensor):
            continue
        words, least, largest, kind = _KINDS.get(name, _POSITIVE if name.endswith("temp") else _WEIGHT)
        endless = isinstance(x, Integral) and x > 10**18  # no tensor takes it
        if not isinstance(x, kind) or isinstance(x, bool) or endless or not least <= x <= largest:
            raise ValueError(f"{name} must {words}, got {x}")


def _summed(x: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """Sum over the processes of a group, without gradient; None is this process alone."""
    if group is None:
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _everyone() -> "dist.ProcessGroup | None":
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def _shifted_gram(z: Tensor, c: float, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """I + c·zᵀz of all rows of the group, or I + c·zzᵀ where that is smaller and the rows are all here."""
    gram = z @ z.mT if group is None and z.shape[-2] < z.shape[-1] else z.mT @ z
    gram = _summed(gram, group).mul_(c)
    gram.diagonal(dim1=-2, dim2=-1).add_(1)
    return gram


def _logdet(a: Tensor) -> tuple[Tensor, Tensor]:
    """½ logdet of symmetric matrices, and their Cholesky factors: NaN where there is none, without waiting to know."""
    factor, info = torch.linalg.cholesky_ex(a)
    factor = factor + torch.where(info == 0, 0.0, math.nan)[..., None, None]
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1), factor


class _CodingRate(torch.autograd.Function):
    """½ logdet(I + c·zᵀz) with the Gram matrix of the smaller side, and its own backward.

    The backward, grad = c·z(I + c·zᵀz)⁻¹, needs one inverse of the factor that the forward has made;
    differentiating through the factorization costs two to three times as much. Where the rows lie on several ranks,
    it is multiplied by their number, which the mean of DistributedDataParallel divides by.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, c: float, group: "dist.ProcessGroup | None") -> tuple[Tensor, Tensor]:
        rate, factor = _logdet(_shifted_gram(z, c, group))
        if factor.is_cpu:
            return rate, torch.cholesky_inverse(factor)
        # cholesky_inverse would wait for the device, to see whether it has failed
        eye = torch.eye(factor.shape[-1], dtype=z.dtype, device=z.device)
        root = torch.linalg.solve_triangular(factor, eye, upper=False)
        return rate, root.mT @ root

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        z, ctx.c, ctx.group = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(z, output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        z, inverse = ctx.saved_tensors
        wide = inverse.shape[-1] != z.shape[-1]
        scale = ctx.c if ctx.group is None else ctx.c * dist.get_world_size(ctx.group)
        with torch.autocast(z.device.type, enabled=False):
            if torch.is_grad_enabled():  # a second derivative is wanted: the inverse must depend on z
                if ctx.group is not None:
                    raise NotImplementedError("a rate over several ranks has no second derivative")
                inverse = torch.linalg.inv_ex(_shifted_gram(z, ctx.c)).inverse
            weight = (scale * grad)[..., None, None] * inverse
            return weight @ z if wide else z @ weight, None, None


class _DualCodingRate(_CodingRate):
    """`_CodingRate` with its forward derivative, c·⟨z(I + c·zᵀz)⁻¹, ż⟩, which `torch.compile` does not take."""

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _CodingRate.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], output[1])

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        if ctx.group is not None:
            raise NotImplementedError("a rate over several ranks has no forward derivative")
        z, inverse = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            pulled = inverse @ z if inverse.shape[-1] != z.shape[-1] else z @ inverse
            return ctx.c * (pulled * tangent).sum((-2, -1)), None


def _rate(z: Tensor, *, eps: float, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Compute `coding_rate` of the rows of all ranks of a group, with neither checks nor waiting: a failure is NaN.

    The ranks have equally many rows. Each gets the rate of all of them and, of its own rows, the gradient times the
    number of ranks: DistributedDataParallel's mean is then the gradient of one process with all rows. What the ranks
    exchange is zᵀz alone.
    """
    if z.ndim < 2 or z.numel() == 0:
        raise ValueError(f"coding_rate: z must have shape (n, d) and not be empty, got {tuple(z.shape)}")
    n, d = z.shape[-2:]
    c = d / eps**2 / (n if group is None else n * dist.get_world_size(group))
    if z.requires_grad and torch.is_grad_enabled():
        function = _CodingRate if torch.compiler.is_compiling() else _DualCodingRate
        return function.apply(z, c, group)[0]
    return _logdet(_shifted_gram(z, c, group))[0]


def _can_look(x: Tensor) -> bool:
    """Whether what a tensor holds may decide what is computed: not while it is compiled, nor under vmap."""
    if torch.compiler.is_compiling():
        return False
    try:
        return bool((x == x).any()) or True
    except RuntimeError:
        return False


def coding_rate(z: RealArray[Tensor | np.ndarray, "*b n d"], *, eps: float) -> Float[Tensor, "*b"]:
    """Compute the coding rate of features: the nats that it takes to code them up to a distortion ε.

    R = ½ logdet(I + α·zᵀz/n),  α = d/ε²

    On the unit sphere it lies between ½·log(1 + α), where all features are equal, and r/2·log(1 + α/r) with
    r = min(n, d), for orthonormal rows or a tight frame; higher is healthier. Features are neither centered nor
    normalized here. It is computed in float32 at least, whatever the autocast, as half-precision Gram matrices turn
    indefinite on collapsed features. float32 itself loses digits only where ε² < 10⁻³, or as TF32 if that is switched
    on; float64 input is computed in float64. The losses take the same rate without its checks, for which a GPU would
    have to be waited for; `torch.vmap` and `torch.compile` leave them out, too, and what they would refuse is then NaN.

    Args:
        z: features (n, d), or a batch of such.
        eps: the paper's ε, which the formula squares; the official code's `eps` is already ε².

    Raises:
        ValueError: NaN or infinite features, no features, or an ε that is not positive and finite.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 1; Wu et al. 2025 (SimDINO, arXiv 2502.10385).

    >>> coding_rate(torch.eye(4), eps=0.5)  # its maximum, 4/2·log(1 + 4)
    tensor(3.2189)
    """
    check_numbers(eps=eps)
    if not isinstance(z, Tensor):  # arrays of any byte order, type and layout; frames and lists
        z = np.asarray(z)
        if z.dtype.kind not in "biuf":
            raise ValueError(f"coding_rate: z must be numeric and real, got {z.dtype}")
        double = z.dtype.kind == "f" and z.dtype.itemsize >= 8
        z = torch.from_numpy(np.ascontiguousarray(z, np.float64 if double else np.float32))
    z = z if z.dtype == torch.float64 else z.float()
    with torch.autocast(z.device.type, enabled=False):
        rate = _rate(z, eps=eps)
        if not _can_look(rate) or rate.isfinite().all():
            return rate
        c = z.shape[-1] / eps**2 / z.shape[-2]
        if not _shifted_gram(z, c).isfinite().all():
            raise ValueError("coding_rate: z has NaN or infinite values, or some whose squares are")
        # Rounding has made I + c·G indefinite: its spectrum in float64, where G ≥ 0 can be enforced.
        values = torch.linalg.eigvalsh(_shifted_gram(z.double(), c)).clamp(min=1)
        return (values.log().sum(-1) / 2).to(z.dtype)


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
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Float[Tensor, ""], Parts]:
    """Compute SimDINO's loss of unit features: the alignment of views, minus γ times the coding rate.

    L = mean over i ≠ j of E ½‖sᵢ − tⱼ‖² − γ · mean over global views of R(s)

    Lower is better. On the unit sphere ½‖s − t‖² = 1 − cos, so that the alignment is in [0, 2]; 0 is invariance. No
    loss here looks at the numbers in a tensor, for which a GPU would have to be waited for: features that are NaN or
    infinite, and a rate that rounding has made indefinite, give a loss and a gradient of NaN.

    On several ranks each takes its own rows, as many as the others. The alignment is theirs and the rate that of all
    rows, for which the ranks exchange zᵀz alone, (g, d, d); with DistributedDataParallel's mean over the ranks the
    gradient is that of one process with all rows, and so is the mean of the losses.

    Args:
        student: unit features of all views (v, n, d), the global ones first.
        teacher: unit features of the g ≤ v global views (g, n, d).
        eps: the paper's ε.
        gamma: weight of the rate.
        rate_of: whose rate, the student's or that of the mean of both (the official `expa_type` 0 and 1).
        group: the ranks that have the rows of one batch; None is this process alone, whatever others there are.

    Returns:
        The loss, and its parts: alignment, and rate in nats.

    Raises:
        ValueError: views that do not fit or are of no image; ε or γ not finite, ε not positive, or γ negative.

    Source: Wu et al. 2025 (arXiv 2502.10385).

    >>> z = torch.eye(4).expand(2, 4, 4)  # two equal views, four orthonormal features
    >>> simdino_loss(z, z, eps=0.5, gamma=0.1)
    (tensor(-0.3219), {'alignment': tensor(0.), 'rate': tensor(3.2189)})
    """
    _check_views(student, teacher, rate_of)
    check_numbers(eps=eps, gamma=gamma)
    v, g = len(student), len(teacher)
    distance = (student[:, None] - teacher[None]).square().sum(-1).mean(-1) / 2  # (v, g)
    alignment = (distance * (1 - torch.eye(v, g, device=student.device))).sum() / (g * (v - 1))
    z = student[:g] if rate_of == "student" else (student[:g] + teacher) / 2  # (g, n, d)
    rate = _rate(z, eps=eps, group=group).mean()
    return alignment - gamma * rate, {"alignment": alignment, "rate": rate}


@_full_precision
def simdinov2_loss(
    student: Float[Tensor, "v n d"],
    teacher: Float[Tensor, "g n d"],
    student_patches: Float[Tensor, "m p"],
    teacher_patches: Float[Tensor, "m p"],
    patch_weights: Float[Tensor, " m"],
    anchor_patches: Float[Tensor, "m q"] | None = None,
    *,
    eps: float,
    gamma: float,
    rate_of: Literal["student", "mean"] = "student",
    patch_weight: float = 1.0,
    patch_gamma: float = 0.0,
    gram_weight: float = 0.0,
    most_patches: int | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Float[Tensor, ""], Parts]:
    """Compute SimDINOv2's loss: SimDINO's, plus the alignment of masked patches, and on request what keeps these apart.

    L = L_SimDINO + patch_weight · Σ_m w_m ½‖s_m − t_m‖² − patch_gamma · (R_within + R_across) + gram_weight · L_gram

    With patch_gamma and gram_weight 0, constant tokens are a global optimum. `patch_rates` says what the two rates are
    and which collapse each excludes, `gram_distance` what L_gram is; they are computed only if their weight is
    positive. As half of the crops are masked in the
    official recipe, its −Σ w·cos = patches − Σ w has the best value −½, not −1. Lower is better.

    Args:
        student: see `simdino_loss`, as of teacher, eps, gamma, rate_of and group.
        student_patches: unit tokens (m, p) of the m masked patches of all global crops, crop after crop; the student
            saw the mask.
        teacher_patches: the same of the teacher, which saw the patches (m, p).
        patch_weights: 1/(masked patches of the crop)/(g·n, all global crops) of each token (m,), so that each masked
            crop counts alike. Tokens of weight 0, after all others, are padding.
        anchor_patches: unit tokens of the same patches in a network that stays as it is and saw them (m, p): what
            `gram_distance` is from. Needed if gram_weight is positive.
        patch_weight: of the patches' alignment.
        patch_gamma: of the patches' rates.
        gram_weight: of L_gram.
        most_patches: see `patch_rates`.

    Returns:
        The loss, and its parts: those of `simdino_loss`, patches and, if its weight is positive, gram, and
        patch_rate_within and patch_rate_across (nats).

    Raises:
        ValueError: views that do not fit, an ε that is not positive, a weight that is negative, or any not finite; a
            gram_weight without anchor_patches.

    Source: Wu et al. 2025 (arXiv 2502.10385); the rates of patches are this package's, against their collapse.

    >>> z, patches, weights = torch.eye(4).expand(2, 4, 4), torch.eye(4)[:2], torch.full((2,), 1 / 2 / 8)
    >>> loss, parts = simdinov2_loss(z, z, patches, -patches, weights, eps=0.5, gamma=0.1)
    >>> parts["patches"]  # one crop of eight is masked, and each of its tokens has ½‖s − t‖² = 2
    tensor(0.2500)
    """
    check_numbers(patch_weight=patch_weight, patch_gamma=patch_gamma, gram_weight=gram_weight)
    loss, parts = simdino_loss(student, teacher, eps=eps, gamma=gamma, rate_of=rate_of, group=group)
    patches = (patch_weights * (student_patches - teacher_patches).square().sum(-1)).sum() / 2
    loss, parts = loss + patch_weight * patches, parts | {"patches": patches}
    crops = teacher.shape[:2].numel()
    if gram_weight:
        if anchor_patches is None:
            raise ValueError("a positive gram_weight needs anchor_patches: similarities to be near to")
        gram = gram_distance(student_patches, anchor_patches, patch_weights, crops=crops)
        loss, parts = loss + gram_weight * gram, parts | {"gram": gram}
    if not patch_gamma:
        return loss, parts
    options = {"crops": crops, "most_patches": most_patches, "group": group}
    within, across = patch_rates(student_patches, patch_weights, eps=eps, **options)
    return loss - patch_gamma * (within + across), parts | {"patch_rate_within": within, "patch_rate_across": across}


def _crop_of(weights: Tensor, crops: int) -> Tensor:
    """Number the masked crops, and say of which each token is, from weights that sum to 1 in each crop (m,)."""
    return (weights.cumsum(0, dtype=torch.float64) - weights / 2).long().clamp(max=crops - 1)


@_full_precision
def gram_distance(
    z: Float[Tensor, "m p"], anchor: Float[Tensor, "m q"], weights: Float[Tensor, " m"], *, crops: int
) -> Float[Tensor, ""]:
    """Compute how far the similarities of a crop's tokens are from those of an anchor's, of any dimension.

    L = 1/C Σ_c ‖Z_c Z_cᵀ − A_c A_cᵀ‖²_F / P_c²

    over the masked crops c with P_c masked patches each, of C crops in all. It is 0 where all cosines within a crop
    are the anchor's, whatever the rotation of each crop's tokens, and lower is nearer. Constant tokens, whose cosines
    are all 1, have 1 − 1/P in a crop whose anchor is orthonormal. DINOv3 takes it of all of the backbone's tokens, and
    of an anchor that is an earlier state of the teacher, renewed now and then.

    Args:
        z: unit tokens of the masked patches (m, p), crop after crop, and after them perhaps padding.
        anchor: unit tokens of the same patches (m, q), a constant.
        weights: as in `patch_rates` (m,).
        crops: C, how many there are, masked or not.

    Source: Siméoni et al. 2025 (DINOv3, arXiv 2508.10104) eq. 2.

    >>> constant, weights = torch.eye(4)[[0, 0]], torch.full((2,), 1 / 2)  # one crop of two masked patches
    >>> gram_distance(constant, torch.eye(4)[:2], weights, crops=1)
    tensor(0.5000)
    """
    crop = _crop_of(weights * crops, crops)
    pairs = (crop[:, None] == crop) * weights[:, None] * weights * crops  # 1/P_c²/C within a crop, (m, m)
    return (pairs * (z @ z.mT - anchor @ anchor.mT).square()).sum()


class PatchRates(NamedTuple):
    """The coding rates of masked patches, in nats."""

    within: Float[Tensor, ""]
    across: Float[Tensor, ""]


@_full_precision
def patch_rates(
    z: Float[Tensor, "m p"],
    weights: Float[Tensor, " m"],
    *,
    eps: float,
    crops: int,
    most_patches: int | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> PatchRates:
    """Compute two coding rates of masked patches: R_within, of a crop's tokens, and R_across, of the crops' means.

    R_within is the mean over the masked crops of the rate of a crop's tokens, and lowest if tokens depend on the image
    only. R_across is the rate of the crops' unit mean tokens, and lowest if these agree. Both at their bounds exclude
    either collapse, while one rate of all tokens can be at its bound with all tokens of an image equal. Both are 0
    where nothing is masked.

    No shape depends on the numbers in a tensor: tokens are laid out as (crops, most_patches, p), where rows of zeros
    add nothing to a Gram matrix. Weights that do not fit give rates of NaN.

    Args:
        z: unit tokens of the masked patches (m, p), crop after crop, and after them perhaps padding.
        weights: 1/(masked patches of the crop)/crops of each (m,), and 0 of padding.
        eps: the paper's ε.
        crops: how many there are, masked or not.
        most_patches: a bound on the masked patches of one crop. It decides about memory alone: without it there
            would have to be place for all m in each crop.
        group: the ranks that have the crops of one batch, equally many each. R_across is then of all crops, and the
            mean over the ranks of R_within is that of all crops.

    Raises:
        ValueError: an ε that is not positive and finite.

    >>> tokens, weights = torch.eye(4), torch.full((4,), 1 / 2 / 2)  # two crops with two masked patches each
    >>> patch_rates(tokens, weights, eps=0.5, crops=2)  # at their bounds, log(1 + 16/2) both
    PatchRates(within=tensor(2.1972), across=tensor(2.1972))
    """
    check_numbers(eps=eps, crops=crops)
    m, size = len(z), max(most_patches or len(z), 1)
    weights = weights * crops  # those of a crop sum to 1
    real = weights > 0
    crop = _crop_of(weights, crops)  # (m,)
    count = torch.zeros(crops, dtype=torch.long, device=z.device).index_add(0, crop, real.long())  # (crops,)
    slot = torch.arange(m, device=z.device) - (count.cumsum(0) - count)[crop]  # (m,): place of a token in its crop
    fits = (((weights * count[crop] - 1).abs() < 1e-3) & (slot < size) | ~real).all()
    place = crop * size + slot.clamp(0, size - 1)
    # Each crop is filled up with zeros to `size` rows; the factor makes up for their share in the rate's mean.
    tokens = z.new_zeros(crops * size, z.shape[-1]).index_add(0, place, z * (weights * size).sqrt()[:, None])
    tokens = tokens.unflatten(0, (crops, size))  # (crops, size, p)
    masked = (count > 0).sum().to(z.dtype)  # crops
    ranks = 1 if group is None else dist.get_world_size(group)
    share = (ranks * crops / _summed(masked, group)).nan_to_num(posinf=0.0)  # of all crops to masked ones
    share = torch.where(fits, share, math.nan)
    within = share * _rate(tokens, eps=eps).mean()
    means = F.normalize(tokens.sum(1), dim=-1) * share.sqrt()  # (crops, p)
    return PatchRates(within, _rate(means, eps=eps, group=group))


@_full_precision
def dino_loss(
    student: Float[Tensor, "v n k"],
    teacher: Float[Tensor, "g n k"],
    *,
    center: Float[Tensor, " k"],
    student_temp: float | Float[Tensor, ""],
    teacher_temp: float | Float[Tensor, ""],
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
        student_temp: τ_s, a number or a tensor of one, which is not checked.
        teacher_temp: τ_t, the same.
        center_momentum: m, how much of the center stays; 1 is no centering.
        centering: "ema", by the center; or "sinkhorn".

    Returns:
        The loss, and its parts: entropy and kl in nats, and `center` for the next step, m·c + (1 − m)·mean t, where
        the mean is over the rows of all processes. Besides, without gradient, what tells collapses apart, of the
        global views and the rows of this process: student_entropy, E H(p), and student_mean_entropy, H(E p), in nats;
        teacher_mean_entropy, H(E q); center_distance, |E t − c|; and score_spread, √E‖t − E t‖². The ratio of the last
        two falls below 1 in healthy training, and rises far above it where a late center chases the outputs.

    Raises:
        ValueError: views that do not fit, an unknown centering, a temperature that is not positive and finite, or a
            momentum outside [0, 1].

    Source: Caron et al. 2021 (arXiv 2104.14294) algorithm 1; Oquab et al. 2023 (DINOv2, arXiv 2304.07193).

    >>> options = {"student_temp": 0.1, "teacher_temp": 0.1, "center_momentum": 0.9}
    >>> scores = torch.zeros(2, 3, 4)  # uniform collapse: log 4
    >>> dino_loss(scores, scores, center=torch.zeros(4), **options)[0]
    tensor(1.3863)
    """
    _check_views(student, teacher)
    check_numbers(student_temp=student_temp)
    v, g = len(student), len(teacher)
    options = {"teacher_temp": teacher_temp, "center_momentum": center_momentum, "centering": centering}
    before = center
    q, center = _targets(teacher.flatten(0, 1), center, **options)
    q = q.unflatten(0, teacher.shape[:2])  # (g, n, K)
    log_p = F.log_softmax(student / student_temp, dim=-1)  # (v, n, K)
    cross = -torch.einsum("gnk,vnk->vg", q, log_p) / student.shape[1]  # (v, g)
    loss = (cross * (1 - torch.eye(v, g, device=student.device))).sum() / (g * (v - 1))
    entropy = _entropy(q).mean()
    seen = _score_monitors(log_p[:g].detach(), q, teacher.detach(), before)
    return loss, {"entropy": entropy, "kl": loss - entropy, "center": center} | seen


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def _score_monitors(log_p: Tensor, q: Tensor, teacher: Tensor, center: Tensor) -> Parts:
    """What `dino_loss` says of its scores, each mean over the global views (g, n, K)."""
    p, mean = log_p.exp(), teacher.mean(1)
    return {
        "student_entropy": _entropy(p).mean(),
        "student_mean_entropy": _entropy(p.mean(1)).mean(),
        "teacher_mean_entropy": _entropy(q.mean(1)).mean(),
        "center_distance": (mean - center).norm(dim=-1).mean(),
        "score_spread": (teacher - mean[:, None]).square().sum(-1).mean(1).sqrt().mean(),
    }


def _targets(
    scores: Tensor,
    center: Tensor,
    *,
    teacher_temp: float | Tensor,
    center_momentum: float,
    centering: str,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Turn the teacher's scores (n, K) into probabilities, and move the center; rows of weight 0 are padding."""
    check_numbers(teacher_temp=teacher_temp, center_momentum=center_momentum)
    real = None if weights is None else weights > 0  # (n,)
    if centering == "sinkhorn":
        return sinkhorn_knopp(scores, temp=teacher_temp, real=real).to(scores.dtype), center
    if centering != "ema":
        raise ValueError(f"centering must be 'ema' or 'sinkhorn', not {centering!r}")
    center, of = center.to(scores.dtype), scores.new_ones(len(scores)) if real is None else real.to(scores.dtype)
    total = _summed(torch.cat([of @ scores.detach(), of.sum()[None]]), _everyone())  # of scores, and how many
    mean, rows = total[:-1] / total[-1], total[-1]
    q = F.softmax((scores - center) / teacher_temp, dim=-1)
    return q, torch.where(rows > 0, torch.lerp(mean, center, center_momentum), center)


@torch.no_grad()
def sinkhorn_knopp(
    scores: Float[Tensor, "n k"],
    *,
    temp: float | Float[Tensor, ""],
    iterations: int = 3,
    real: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, "n k"]:
    """Assign samples to prototypes, near softmax(scores/τ), so that all prototypes are used alike.

    Q = exp(scores/τ), then in turns: every prototype's column to sum 1, every sample's row to sum 1

    Rows sum to 1, and columns to n/K in the limit of many iterations. It is computed in float32, as in the official
    code, but of logarithms: finite for all finite scores, where the official exp overflows at scores/τ = 89. The
    result is a constant to the gradient.

    Args:
        scores: (n, K); the columns are summed over the samples of all processes.
        temp: τ.
        iterations: how many turns.
        real: which rows are samples (n,); the others are padding, which no column counts. None: all.

    Raises:
        ValueError: a temperature that is not positive and finite.

    Source: Cuturi 2013 (arXiv 1306.0895); Caron et al. 2020 (SwAV, arXiv 2006.09882); DINOv2.

    >>> sinkhorn_knopp(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), temp=0.1)  # both samples prefer the first prototype
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    check_numbers(temp=temp, iterations=iterations)
    log_q, everyone = scores.detach().float() / temp, _everyone()
    for _ in range(iterations):
        samples = log_q if real is None else log_q.masked_fill(~real[:, None], -math.inf)
        columns = samples.logsumexp(0, keepdim=True)  # (1, K)
        if everyone is not None:
            rank, world = dist.get_rank(), dist.get_world_size()
            columns = _summed(F.pad(columns, (0, 0, rank, world - 1 - rank)), everyone)  # (world, K)
        log_q = log_q - columns.logsumexp(0).clamp(min=torch.finfo(log_q.dtype).min)  # finite without a sample, too
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
    student_temp: float | Float[Tensor, ""],
    teacher_temp: float | Float[Tensor, ""],
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
        patch_weights: as in `simdinov2_loss` (m,); tokens of weight 0 are no samples of Sinkhorn-Knopp or the center.
        features: the student's class tokens of the global crops as its backbone gives them (g, n, d).
        patch_center: the patches' own center (p,).
        patch_weight: of the patches' cross-entropy.
        koleo_weight: of KoLeo.

    Returns:
        The loss, and its parts: those of `dino_loss`, patches (nats), koleo (summed over the crops), patch_center.

    Raises:
        ValueError: a single image, a weight that is negative or not finite, or what `dino_loss` refuses.

    Source: Oquab et al. 2023 (arXiv 2304.07193); Zhou et al. 2022 (iBOT, arXiv 2111.07832).

    >>> scores, patches = torch.zeros(2, 3, 4), torch.zeros(2, 4)  # uniform collapse: log 4 of crops and of patches
    >>> centers = {"center": torch.zeros(4), "patch_center": torch.zeros(4)}
    >>> options = centers | {"student_temp": 0.1, "teacher_temp": 0.1, "center_momentum": 0.9, "koleo_weight": 0.0}
    >>> dinov2_loss(scores, scores, patches, patches, torch.full((2,), 0.5), torch.eye(3).expand(2, 3, 3), **options)[0]
    tensor(2.7726)
    """
    check_numbers(patch_weight=patch_weight, koleo_weight=koleo_weight)
    options = {"teacher_temp": teacher_temp, "center_momentum": center_momentum, "centering": centering}
    loss, parts = dino_loss(student, teacher, center=center, student_temp=student_temp, **options)
    q, patch_center = _targets(teacher_patches, patch_center, weights=patch_weights, **options)
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

    Raises:
        ValueError: a number that is not positive and finite.

    Source: MCRLoss in the official code, both versions.

    >>> eps, gamma = official_scaling(256, 64, 0.05, world_size=8)
    >>> round(eps**2, 3), round(gamma, 5)
    (0.4, 0.00586)
    """
    check_numbers(d=d, n=n, eps=eps, world_size=world_size)
    return Scaling(math.sqrt(eps if gathered else world_size * eps), (d + world_size * n) / (d * world_size * n))


class Rescaled(NamedTuple):
    """What trains groups of another size like the groups of before."""

    eps: float
    gamma: float
    lr: float


def rescaled(eps: float, gamma: float, lr: float, *, d: int, rows: tuple[int, int], batch: tuple[int, int]) -> Rescaled:
    """Rescale a run's ε, γ and learning rate to groups with other numbers of rows, and to other batches.

    ε′² = ε² + (d/n − d/n′)/(1 + s),  with s the positive root of ε² = 1/s − (d/n)/(1 + s);  γ′ = γ;  lr′ = lr·√(B′/B)

    The rate of n rows has in expectation the gradient of the whole law's at a larger ε. For isotropic unit features,
    s is the signal-to-noise ratio of a direction at that larger one, 1/ε_eff²; ε′ gives n′ rows the same one, so that
    both the pull of the rate and its balance with the alignment, and with them γ, stay. Few rows may pull less than
    many at any ε. How rows lie on ranks does not matter, as a group's rate is of all its rows. The root of the batch
    is the rule for Adam; ε, γ and rate of the official code are in `official_scaling`.

    Args:
        eps: the paper's ε.
        gamma: weight of the rate.
        lr: learning rate, of Adam or AdamW.
        d: dimension of the features.
        rows: (n, n′), rows of the group whose rate is taken, before and after: images, over all ranks of the group.
        batch: (B, B′), images in each step, over all groups and ranks.

    Raises:
        ValueError: an ε, a row or a batch that is not positive; fewer rows than can give the rate's pull at any ε.

    Source: Couillet and Debbah 2011, theorem 6.14 (the deterministic equivalent of a log-determinant), for white
    features; Malladi et al. 2022 (arXiv 2205.10287) for the root.

    >>> [round(x, 4) for x in rescaled(0.5, 0.01, 4e-3, d=64, rows=(64, 128), batch=(64, 256))]
    [0.6672, 0.01, 0.008]
    """
    check_numbers(eps=eps, gamma=gamma, lr=lr)
    if min(d, *rows, *batch) < 1:
        raise ValueError(f"d, rows and batch must be positive, got {d}, {rows} and {batch}")
    before, after = (d / n for n in rows)
    b = 1 - before - eps**2
    s = (b + math.sqrt(b**2 + 4 * eps**2)) / (2 * eps**2)
    squared = eps**2 + (before - after) / (1 + s)
    if squared <= 0:
        raise ValueError(f"{rows[1]} rows of {d} dimensions pull less than {rows[0]} did at ε = {eps}, whatever theirs")
    return Rescaled(math.sqrt(squared), gamma, lr * math.sqrt(batch[1] / batch[0]))

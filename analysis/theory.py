"""Closed forms, one function per proposition: what should happen, in float64, computed without any of our own measures.

Throughout, n unit-norm features of dimension d are the rows of Z, Γ = ZᵀZ/n is their uncentered covariance with the
eigenvalues λ, α = d/ε² with the paper's ε (`eps`), r = min(n, d), R(Γ) = ½ logdet(I + αΓ) is the coding rate in nats,
and γ (`gamma`) is its weight in the loss. For linear encoders μ (`mu`) are the shares of the variance of the input's
modes that differ between two views of an image, and α is the argument itself.

The first line of every docstring names its proposition; `PROPOSITIONS` lists them. Every function raises ValueError for
n and d that are not positive integers and for an ε that is not positive and finite.
"""

import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Number = int | float | np.integer | np.floating
Count = Number  # a whole one, of either type
Values = Number | ArrayLike  # one number, or an array, a list, a column or a tensor of them

PROPOSITIONS = {
    "A1": "the coding rate on the sphere is at most (r/2) log(1 + α/r)",
    "A2": "its maximizers form a manifold of known dimension",
    "A3": "every critical point that is not optimal has an ascent direction",
    "A4": "ε changes the conditioning of the optimum, not the optimum",
    "A5": "the gradient of the rate is bounded, and three rules for γ follow",
    "B1": "with unlimited capacity the minimum of the loss is -γ times the largest mean rate of its batches",
    "B2": "mini-batches single out equiangular tight frames and designs",
    "B3": "a linear encoder fills its spectrum like water, and collapses at a threshold",
    "B4": "a stop-gradient teacher doubles γ, whatever its momentum",
    "B5": "modes grow one after another, in a time known in closed form",
    "B6": "total collapse is stable iff γα²/(1+α) < c·μ_min",
    "B7": "the optimum of mini-batch training is the uniform law, whose rate is the isotropic one",
    "B8": "a finite batch acts as a larger ε",
    "B9": "batches tell tight frames apart by the sum of c⁴ alone, in leading order",
    "B10": "the modes of a linear encoder open one after another as γ grows, and B6 is the first of these transitions",
    "B11": "with several crops the stability of total collapse is decided by the mean over the pairs of crops",
    "B12": "of more classes than dimensions the frequent ones own a dimension each, and the others share the rest",
    "B14": "next to total collapse two gradients foretell the growth of any network under any optimizer",
    "C1": "the cross-entropy of DINO is blind to collapse",
    "C2": "patch-collapsed networks are global optima of SimDINOv2, unless the patches have a rate of their own",
    "C3": "optima of the neighboring losses",
    "C4": "a Gram anchor makes constant patches cost what the anchor's patches differ",
    "C5": "the rate is what noisy labels say about a random linear probe",
    "C6": "a direction leaves DINO's uniform collapse iff its consistency exceeds τ_t/τ_s",
    "C7": "the mean outruns a center that lags behind the student; a teacher slower than the center hides the lag",
    "C8": "with a slow teacher all directions grow alike, whatever their variance",
    "D1": "the rate of n isotropic samples follows Marchenko-Pastur",
    "D2": "the rate of (student + teacher)/2 is that of unit vectors at a larger ε",
    "D4": "a Gaussian's spectrum settles the fourth order of its cosines",
    "E1": "whose rate it is decides whether a stop-gradient doubles γ, for every network",
    "E2": "the trace of the Hessian is one number on the whole optimal set, shared equally by projective 2-designs",
}


def _counts(**values: Number) -> None:
    for name, value in values.items():
        if not isinstance(value, numbers.Real) or not 1 <= value <= 1e18 or value != int(value):
            raise ValueError(f"{name} must be a positive integer, got {value}")


def _positive(**values: Values) -> None:
    for name, value in values.items():
        if not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _momenta(**values: Number) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")


def _alpha(d: Number, eps: Values) -> Number | np.ndarray:
    _counts(d=d)
    _positive(eps=eps)
    return d / eps**2


def rate_maximum(n: Count, d: Count, eps: Number, *, center: bool = False) -> float:
    """A1: the largest coding rate that n unit vectors in d dimensions can have, in nats.

    R* = (r/2) log(1 + α/r),   r = min(n, d)

    Orthonormal rows (n ≤ d) and unit-norm tight frames (n ≥ d) attain it. A centered covariance has rank
    r = min(n-1, d) at most; for n ≤ d+1 the regular simplex attains that bound. For larger n attaining it takes a tight
    frame of mean zero, and none exists for odd n if d = 1 (signs ±1 cannot sum to zero) or d = n-2 (the complement of
    the frame among the zero-sum vectors would have d = 1): there the bound is strict.

    Proof: R is a symmetric and strictly concave function of the eigenvalues of Γ. At most r of them are nonzero and
    they sum to 1, so R is largest where r eigenvalues equal 1/r.

    Args:
        center: bound the rate of the centered covariance.

    Source: Yu et al. 2020 (arXiv 2006.08558) for the rate; Benedetto and Fickus 2003 for unit-norm tight frames.

    >>> round(rate_maximum(8, 2, 1.0), 4)  # α = 2 and r = 2: log 2
    0.6931
    """
    alpha = _alpha(d, eps)
    _counts(n=n)
    rank = min(n - 1, d) if center else min(n, d)
    return 0.5 * rank * math.log1p(alpha / rank) if rank else 0.0


def rate_collapsed(d: Count, eps: Number) -> float:
    """A1: the coding rate of totally collapsed unit features, in nats, the smallest that unit features can have.

    ½ log(1 + α)

    Proof: all features equal to u make Γ = uuᵀ, whose one nonzero eigenvalue is 1. R is concave in the spectrum, so
    that it is smallest at a vertex of the simplex of spectra.

    >>> round(rate_collapsed(3, 1.0), 4)  # α = 3: ½ log 4
    0.6931
    """
    return 0.5 * math.log1p(_alpha(d, eps))


def optimal_set_dimension(n: Count, d: Count, *, modulo_rotations: bool = False) -> Count:
    """A2: the dimension of the set of maximizers of R, which is the nullity of the Hessian at a generic one.

    nd - n(n+1)/2                    for n ≤ d
    n(d-1) - (d(d+1)/2 - 1)          for n > d

    For n ≤ d the maximizers are the Stiefel manifold, one single orbit of the rotations. For n > d there are n(d-1)
    free parameters and d(d+1)/2 - 1 equations Γ = I/d; modulo rotations (n-d-1)(d-1) dimensions are left.

    Proof: at the optimum R'' = -½ k² ‖dΓ‖² with k = α/(1+α/d), so the nullity is that of the map V -> dΓ, which is onto
    the symmetric traceless matrices unless the frame splits into mutually orthogonal parts.

    Args:
        modulo_rotations: count configurations that differ by a rotation as one.

    >>> optimal_set_dimension(3, 2)  # three unit vectors at 120° can be turned, and nothing else: 3 · 1 - 2
    1
    """
    _counts(n=n, d=d)
    if n <= d:
        return 0 if modulo_rotations else n * d - n * (n + 1) // 2
    return (n - d - 1) * (d - 1) if modulo_rotations else n * (d - 1) - (d * (d + 1) // 2 - 1)


class SaddleCurvature(NamedTuple):
    """The positive eigenvalue of the Hessian at a saddle, and how often it occurs."""

    curvature: float  # in nats
    multiplicity: int


def saddle_curvature(n1: Count, d1: Count, n2: Count, d2: Count, eps: Number) -> SaddleCurvature:
    """A3: the positive Hessian eigenvalue of R, and its multiplicity, at a saddle of two orthogonal tight frames.

    κ = (α/n) (1/(1+αλ₂) - 1/(1+αλ₁)),   multiplicity (n₁ - d₁) d₂,   λₖ = nₖ/(n dₖ)

    Group k has nₖ points, which are a tight frame of a subspace of dimension dₖ, and the first is the denser one,
    λ₁ > λ₂. No other eigenvalue is positive.

    Proof: take Σ aᵢzᵢ = 0 in group 1 and move zᵢ by aᵢe with e in subspace 2. Γ does not move to first order, so only
    the term of the gradient is left: mass leaves eigenvalue λ₁ for λ₂. Moves inside the span of group 1 pair with those
    of group 2 into -(α²/n) (√λ₂ x + √λ₁ y)²/((1+αλ₁)(1+αλ₂)) ≤ 0.

    Raises:
        ValueError: for a group of fewer points than dimensions, or if the first group is not the denser one.

    >>> curvature, multiplicity = saddle_curvature(2, 1, 1, 1, math.sqrt(2))  # α = 1: ⅓ (1/(1+⅓) - 1/(1+⅔)), 1 · 1
    >>> round(curvature, 6), multiplicity
    (0.05, 1)
    """
    _counts(n1=n1, d1=d1, n2=n2, d2=d2)
    if n1 < d1 or n2 < d2 or n1 * d2 <= n2 * d1:
        raise ValueError("a saddle needs n1 >= d1, n2 >= d2 and the larger density n1/d1 > n2/d2 in the first group")
    n, alpha = n1 + n2, _alpha(d1 + d2, eps)
    low, high = n2 / (n * d2), n1 / (n * d1)
    curvature = alpha**2 * (high - low) / (n * (1 + alpha * low) * (1 + alpha * high))
    return SaddleCurvature(curvature, (n1 - d1) * d2)


def spectral_curvature(n: Count, d: Count, eps: Number) -> float:
    """A4: the curvature -d²R/dt² at the optimum when its r nonzero eigenvalues move by tv with ‖v‖ = 1 and Σv = 0.

    ½ (α/(1 + α/r))²

    For α -> 0 it is α²/2, that of the frame potential: R ≈ (α/2) tr Γ - (α²/4) ‖Γ‖². For α -> ∞ it is r²/2, that of the
    log-volume: R ≈ ½ Σ log λᵢ + (r/2) log α. There is one optimum, and ε sets its conditioning.

    Proof: differentiate ½ Σ log(1 + αλᵢ) twice at λᵢ = 1/r.

    >>> spectral_curvature(4, 2, 1.0)  # α = r = 2: ½ (2/2)²
    0.5
    """
    rank = min(n, d)
    return 0.5 * (_alpha(d, eps) / (1 + _alpha(d, eps) / rank)) ** 2


def hessian_trace(n: Count, d: Count, eps: Number) -> float:
    """E2: the trace of the Riemannian Hessian of R, in nats, which is the same at all of its maximizers.

    -n(n-1) (α/(n+α))²               for n ≤ d
    -((d-1)/n) (α/(1+α/d))²          for n ≥ d

    For n ≤ d there are n(n-1)/2 nonzero eigenvalues, all equal to -2 (α/(n+α))². For n > d there are d(d+1)/2 - 1 of
    them in general, all equal iff the frame is a projective 2-design.

    Proof: R'' = -½k²‖dΓ‖² with k = α/(1+α/d). The adjoint of V -> dΓ sends S to (2/n) (zᵢᵀS - (zᵢᵀSzᵢ) zᵢᵀ), whose
    squared norm summed over an orthonormal basis of traceless symmetric S is 2(d-1)/n.

    >>> hessian_trace(2, 2, 1.0)  # α = 2: -2 · 1 · (2/4)²
    -0.5
    """
    alpha = _alpha(d, eps)
    _counts(n=n)
    if n <= d:
        return -n * (n - 1) * (alpha / (n + alpha)) ** 2
    return -(d - 1) / n * (alpha / (1 + alpha / d)) ** 2


def gradient_bound(n: Count, d: Count, eps: Number) -> float:
    """A5: the largest Frobenius norm of ∇_Z R over all matrices Z of shape (n, d), unit-norm rows or not.

    ½ sqrt(αr/n)

    Proof: ∇R = (α/n) Z (I + αΓ)⁻¹ has the singular values sqrt(α/n) x/(1+x²) with x = σ sqrt(α/n), at most ½ sqrt(α/n)
    each. They are equal to that iff all r singular values of Z satisfy σ² = n/α, which unit vectors do only if α = r.

    >>> round(gradient_bound(4, 4, 1.0), 4)  # α = r = n = 4: ½ sqrt(4)
    1.0
    """
    alpha = _alpha(d, eps)
    _counts(n=n)
    return 0.5 * math.sqrt(alpha * min(n, d) / n)


def rate_gradient(spectrum: ArrayLike, n: Count, eps: Number) -> float:
    """A5: the Frobenius norm of ∇_Z R of n features, from the eigenvalues of Γ.

    (α/√n) sqrt(Σ λ/(1+αλ)²)

    At the optimum of A1 it is α/(√n (1 + α/r)), which for α ≫ r is far below `gradient_bound`, by 2 sqrt(r/α).

    Proof: ∇R = (α/n) Z (I + αΓ)⁻¹ and ZᵀZ = nΓ.

    Args:
        spectrum: (d,) all eigenvalues of Γ, zeros included.

    >>> round(rate_gradient([0.25] * 4, 4, 1.0), 4)  # α = 4: (4/2) sqrt(4 · ¼/4), the bound, as α = r
    1.0
    """
    spectrum = np.asarray(spectrum, dtype=float)
    alpha = _alpha(len(spectrum), eps)
    _counts(n=n)
    return alpha / math.sqrt(n) * math.sqrt((spectrum / (1 + alpha * spectrum) ** 2).sum())


def alignment_gradient(alignment: Values, n: Count) -> np.floating | Float[np.ndarray, "*batch"]:
    """A5: the Frobenius norm of the gradient of the alignment A = mean ½‖zᵢ - tᵢ‖² of n features and their targets.

    sqrt(2A/n)

    On the sphere A is at most 2, and the norm at most 2/√n.

    Proof: the rows of the gradient are (zᵢ - tᵢ)/n.

    Args:
        alignment: one value of A, or an array of them.

    >>> float(alignment_gradient(2, 4))  # opposite targets: 2/√4
    1.0
    """
    _counts(n=n)
    return np.sqrt(2 * np.asarray(alignment, dtype=float) / n)


def gamma_rules(n: Count, d: Count, eps: Number) -> dict[str, float]:
    """A5: three rules for the weight γ of the expansion term, by name.

    balanced   ε/sqrt(dr)
    bounded    ε sqrt(n/(dr))
    official   (d+n)/(dn)

    With "balanced" the bound on γ‖∇R‖ is the largest gradient of the alignment, 2/√n, up to the factor 4. "bounded" is
    the paper's scale, where γ‖∇R‖ is of order one: at most ½, so that twice the weight keeps it below 1. "official" is
    the heuristic of the official code.

    >>> gamma_rules(4, 4, 2.0)  # 2/√16, 2 √(4/16) and 8/16
    {'balanced': 0.5, 'bounded': 1.0, 'official': 0.5}
    """
    _alpha(d, eps)
    _counts(n=n)
    balanced = eps / math.sqrt(d * min(n, d))
    return {"balanced": balanced, "bounded": balanced * math.sqrt(n), "official": (d + n) / (d * n)}


def loss_minimum(n: Count, d: Count, eps: Number, gamma: Number, *, b: Count | None = None) -> float:
    """B1: the smallest value of the loss for an encoder of unlimited capacity.

    -γR*(n) for all n images in one batch,   -γ · `attainable_rate` for batches of b of them

    It is reached with no cost of alignment: in one batch at any optimal configuration of A1 (`rate_maximum`), in small
    batches only where B7 says.

    Proof: the two terms are bounded separately, and both bounds hold at once when all views of image i map to uᵢ.

    Args:
        n: images.
        b: images of a batch, 2 at least; None takes all of them.

    >>> round(loss_minimum(8, 2, 1.0, 0.1), 4)  # -0.1 log 2
    -0.0693
    >>> loss_minimum(10**6, 2, 1.0, 0.1, b=8) > loss_minimum(8, 2, 1.0, 0.1)  # batches reach less
    True
    """
    return -gamma * (rate_maximum(n, d, eps) if b is None else attainable_rate(n, d, eps, b=b))


def attainable_rate(n: Count, d: Count, eps: Number, *, b: Count) -> float:
    """B7: the largest mean coding rate that batches of b ≥ 2 of n images can have, in nats.

    R_iso(b) + (b(b-1)/(4n)) log((1+δ)²/(1+2δ)),   δ = (1/b) Σ s/(1 + s/(1+δ)) over d terms,   s = α/d

    For n ≫ b that is `rate_isotropic` of b: the uniform law on the sphere is the only optimum, as a measure on lines
    (the rate cannot tell z from -z). R* of `rate_maximum` is the limit n = b, all images in one batch. In between the
    gap closes as b/n. The correction is of first order in b/n, and good to a tenth of itself for n ≥ 2b.

    Proof: let ρ be a law of features, J(ρ) = E R of b independent ones. Given b-2 of them and A = I + (α/b)Σzzᵀ, the
    part of R that depends on both others is ½ log(1-κ²) = -½ Σₖ κ²ᵏ/k, with κ ∝ z₁ᵀA⁻¹z₂ scaled to |κ| < 1. Every κ²ᵏ
    is a positive definite kernel, so that J is concave along mixtures, and strictly so for even perturbations, which
    even polynomials tell apart. Averaging over rotations leaves the uniform law. For n points J counts batches that
    take a point twice, each of the b(b-1)/2 pairs with the probability 1/n; batches of distinct points do not pay
    for these what a second copy lacks, ½ log(1+δ)² - ½ log(1+2δ), and J itself is at most R_iso.

    Args:
        n: images, b at least.
        b: images of a batch.

    Raises:
        ValueError: for b = 1, which has no pairs, and for b > n.

    >>> round(attainable_rate(8, 2, 1.0, b=8), 4)  # one batch: R* = log 2
    0.6931
    >>> round(attainable_rate(10**9, 2, 1.0, b=8) / rate_isotropic(8, 2, 1.0), 6)
    1.0
    """
    _counts(n=n, b=b)
    if not 2 <= b <= n:
        raise ValueError(f"a batch needs 2 <= b <= n images, got b={b} of n={n}")
    highest = rate_maximum(b, d, eps)
    if b == n:
        return highest
    delta = _counted_twice(np.full(int(d), _alpha(d, eps) / d), b)
    correction = b * (b - 1) / (4 * n) * (2 * math.log1p(delta) - math.log1p(2 * delta))
    return min(highest, rate_isotropic(b, d, eps) + correction)


class ImbalancedOptimum(NamedTuple):
    """The optimal spectrum of features that are constant on classes, and which classes own a dimension."""

    spectrum: Float[np.ndarray, " d"]  # descending
    owners: np.ndarray  # (K,) True where a class is orthogonal to all others


def imbalanced_optimum(shares: ArrayLike, d: Count) -> ImbalancedOptimum:
    """B12: the spectrum that maximizes the rate of unit features that are constant on K classes with unequal shares π.

    Sorted, class k owns a dimension, with the eigenvalue πₖ, iff πₖ ≥ Σ_{j≥k} πⱼ/(d - k + 1); the other classes are a
    tight frame of the dimensions that are left, whose eigenvalues are all equal

    For K ≤ d all classes are orthogonal, whatever their shares. The optimum does not depend on ε. Nothing keeps two of
    the classes that share off one line: of four equal ones in a plane, two orthogonal pairs are as good as lines at
    45°. If a single dimension is left for them, all of them are on it.

    Proof: Γ = Σ πₖuₖuₖᵀ has every spectrum that majorizes π, and no other (Schur and Horn). R is Schur-concave, so that
    the least of them in that order is the optimum; it is this one.

    Args:
        shares: (K,) π, positive numbers that sum to 1, in any order.

    Raises:
        ValueError: for shares that are not positive or do not sum to 1.

    Source: Viswanath and Anantharam 1999, for the oversized users of code-division multiple access.

    >>> spectrum, owners = imbalanced_optimum([0.25, 0.5, 0.25], 2)  # ½ ≥ 1/2; then ¼ < (¼ + ¼)/1
    >>> spectrum.tolist(), owners.tolist()
    ([0.5, 0.5], [False, True, False])
    """
    _counts(d=d)
    pi = np.asarray(shares, dtype=float)
    if pi.ndim != 1 or not np.all(pi > 0) or not np.isclose(pi.sum(), 1):
        raise ValueError(f"shares must be a vector of positive numbers that sum to 1, got {shares}")
    order = np.argsort(-pi, kind="stable")
    left = np.cumsum(pi[order][::-1])[::-1]  # of each class and all smaller ones
    owned = 0
    while owned < min(len(pi), d) and pi[order[owned]] >= (1 - 1e-12) * left[owned] / (d - owned):
        owned += 1
    owners, spectrum = np.zeros(len(pi), dtype=bool), np.zeros(d)
    owners[order[:owned]] = True
    spectrum[:owned] = pi[order[:owned]]
    if owned < len(pi):
        spectrum[owned:] = left[owned] / (d - owned)
    return ImbalancedOptimum(spectrum, owners)


def pair_rate(c: Values, d: Count, eps: Number) -> np.floating | Float[np.ndarray, "*batch"]:
    """B2: the coding rate of a batch of two unit vectors, in nats, from their cosine.

    ½ log((1 + α/2)² - (α/2)² c²)

    It is concave and decreasing in c².

    Proof: Γ has the eigenvalues (1 ± c)/2.

    Args:
        c: the cosine, or an array of cosines.

    >>> round(float(pair_rate(0, 2, 1.0)), 4)  # α = 2: ½ log 4
    0.6931
    """
    half = _alpha(d, eps) / 2
    return 0.5 * np.log((1 + half) ** 2 - (half * np.asarray(c, dtype=float)) ** 2)


def pair_rate_maximum(n: Count, d: Count, eps: Number) -> float:
    """B2: the largest possible mean of `pair_rate` over all pairs of n unit vectors, in nats.

    `pair_rate` at c² = (n-d)/(d(n-1)), and at c = 0 for n ≤ d

    It is attained iff the points are an equiangular tight frame, and a strict upper bound where there is none.

    Proof: Jensen's inequality in c², then Welch's bound for the mean of c².

    >>> round(pair_rate_maximum(3, 2, 1.0), 4)  # three lines at 60°: ½ log(4 - ¼)
    0.6609
    """
    return float(pair_rate(welch_coherence(n, d), d, eps))


def triple_rate(c12: Number, c23: Number, c31: Number, d: Count, eps: Number) -> float:
    """B2: the coding rate of a batch of three unit vectors, in nats, from their cosines.

    (3/2) log(1 + α/3) + ½ log(1 - s² (c₁₂² + c₂₃² + c₃₁²) + 2s³ c₁₂c₂₃c₃₁),   s = α/(α+3)

    The triple product c₁₂c₂₃c₃₁ (the Bargmann invariant) does not change when a vector changes its sign, and no frame
    potential fixes it: three lines at 60° in a plane and three vectors with all c = ½ have the same |c|, but not the
    same rate.

    Proof: I + (α/3) ZZᵀ = (1 + α/3)(I + sO), where the off-diagonal O holds the cosines.

    >>> round(triple_rate(0, 0, 0, 3, 1.0), 4)  # α = 3: (3/2) log 2
    1.0397
    >>> triple_rate(0.5, 0.5, 0.5, 3, 1.0) > triple_rate(0.5, 0.5, -0.5, 3, 1.0)
    True
    """
    alpha = _alpha(d, eps)
    s = alpha / (alpha + 3)
    squares, product = c12**2 + c23**2 + c31**2, c12 * c23 * c31
    return 1.5 * math.log1p(alpha / 3) + 0.5 * math.log1p(2 * s**3 * product - s**2 * squares)


def leave_one_out_rate(n: Count, d: Count, eps: Number) -> float:
    """B2: the coding rate of a unit-norm tight frame of n ≥ d points without one of them, in nats.

    ((d-1)/2) log(1 + αn/(d(n-1))) + ½ log(1 + α(n-d)/(d(n-1)))

    It is the same for all tight frames and all of their points (one erasure, in the language of frames). So batches of
    n-1 points do not tell tight frames apart; those of n-2 points are the largest that do.

    Proof: the covariance of the rest is (nI/d - zᵢzᵢᵀ)/(n-1), whose spectrum does not depend on zᵢ.

    Raises:
        ValueError: for n < 2 or n < d.

    >>> round(leave_one_out_rate(3, 3, math.sqrt(1.5)), 4)  # of three orthonormal rows two are left: α = 2, log 2
    0.6931
    """
    alpha = _alpha(d, eps)
    _counts(n=n)
    if n < max(2, d):
        raise ValueError(f"a tight frame that loses a point needs n >= max(2, d) of them, got n={n}, d={d}")
    rest, hit = n / (d * (n - 1)), (n - d) / (d * (n - 1))
    return 0.5 * (d - 1) * math.log1p(alpha * rest) + 0.5 * math.log1p(alpha * hit)


def batch_rate_slope(n: Count, d: Count, b: Count, eps: Number) -> float:
    """B9: the slope of the mean rate of batches of b points in F = Σ_{i≠j} c_ij⁴, over unit-norm tight frames.

    mean R = const - [s⁴/8 (p₂ - 2p₃ + p₄) - s⁵/2 (n/d - 2)(p₃ - 2p₄ + p₅)] F + O(s⁶)
    p₂ - 2p₃ + p₄ = b(b-1)(n-b)(n-b-1) / (n(n-1)(n-2)(n-3)),   s = α/(α+b)

    p_v = b(b-1)…(b-v+1)/(n(n-1)…(n-v+1)) is how often v points are in one batch. So with a weak coupling s the optimum
    of batches of any b from 2 to n-2 are the tight frames of the smallest F, projective 2-designs where there are any,
    and b = n-1 and n are blind. For α ≪ b pairs pull hardest, as s falls with b; for α ≫ b middle batches do.

    Proof: ½ logdet(I+sO) = ½ Σ (-1)^{k+1} sᵏ tr Oᵏ/k sums closed walks over distinct neighbors. On a tight frame, where
    the Gram matrix obeys G² = (n/d) G, all walks of up to three steps are constant. Of four steps, walks that visit 2,
    3 and 4 points sum to F, const - 2F and const + F; of five, walks over 3, 4 and 5 points to 5f, const - 10f and
    const + 5f with f = (n/d - 2)F.

    Raises:
        ValueError: for n < 4, n < d or b > n.

    >>> batch_rate_slope(4, 2, 2, math.sqrt(1 / 3))  # α = 6 and s = ¾: -(3⁴/4⁴)/8 · 2 · 2/24; n = 2d has no s⁵
    -0.006591796875
    """
    alpha = _alpha(d, eps)
    _counts(n=n, b=b)
    if n < max(4, d) or b > n:
        raise ValueError(f"this needs n >= max(4, d) points in batches of b <= n, got n={n}, d={d} and b={b}")
    s = alpha / (alpha + b)
    p = [math.perm(b, v) / math.perm(n, v) if v <= n else 0.0 for v in range(6)]
    return -(s**4) / 8 * (p[2] - 2 * p[3] + p[4]) + s**5 / 2 * (n / d - 2) * (p[3] - 2 * p[4] + p[5])


def even_potential_weights(
    b: Count, d: Count, eps: Number, orders: Sequence[Count] | np.ndarray
) -> Float[np.ndarray, " orders"]:
    """B2: the weights of the even frame potentials in the two-body part of the mean rate of batches of b points.

    mean R = (b/2) log(1 + α/b) - Σₖ wₖ mean c²ᵏ + (three bodies and more)
    wₖ = (b(b-1)/2) s²ᵏ/(2k),   s = α/(α+b)

    s falls with b, and the high orders with it: large batches see less of them. The series is exact for b = 2. For
    b ≥ 3 cyclic products enter, s³ c_ij c_jk c_ki first, which no frame potential fixes (`triple_rate`). On tight
    frames batches of n-1 points see nothing new (`leave_one_out_rate`): only b ≤ n-2 changes the optimum.

    Proof: expand ½ logdet(I + sO), O the off-diagonal Gram matrix, over pairs: ½ log(1 - s²c²).

    Args:
        orders: the numbers k, half the exponents of the cosines.

    >>> even_potential_weights(2, 2, 1.0, [1, 2]).tolist()  # s = 2/(2+2): ¼/2 and (1/16)/4
    [0.125, 0.015625]
    """
    s, k = _alpha(d, eps) / (_alpha(d, eps) + b), np.asarray(orders)
    _counts(b=b)
    return b * (b - 1) / 2 * s ** (2 * k) / (2 * k)


def welch_coherence(n: Count, d: Count) -> float:
    """B2: the smallest possible largest |cosine| of n unit vectors, by Welch.

    sqrt((n-d)/(d(n-1))),   0 for n ≤ d

    It is attained iff the vectors are equiangular and tight, which in real space needs n ≤ d(d+1)/2.

    Proof: ‖Γ‖² ≥ 1/d bounds the mean of c² from below, hence the maximum.

    Source: Welch 1974.

    >>> welch_coherence(3, 2)  # three lines at 60°: sqrt(1/(2 · 2))
    0.5
    """
    _counts(n=n, d=d)
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


def orthoplex_coherence(n: Count, d: Count) -> float:
    """B2: the orthoplex bound on the largest |cosine| of more than d(d+1)/2 unit vectors.

    1/√d

    Proof: z -> zzᵀ - I/d puts n points on a sphere of dimension d(d+1)/2 - 1. More than that + 1 of them cannot all
    have negative inner products c² - 1/d (Rankin).

    Raises:
        ValueError: for n ≤ d(d+1)/2, where the bound does not hold.

    Source: Conway, Hardin and Sloane 1996.

    >>> orthoplex_coherence(12, 4)  # three mutually unbiased bases of ℝ⁴: 1/√4
    0.5
    """
    _counts(n=n, d=d)
    if n <= d * (d + 1) / 2:
        raise ValueError(f"the orthoplex bound needs n > d(d+1)/2 = {d * (d + 1) // 2}, got n={n}")
    return 1 / math.sqrt(d)


def frame_potential_minimum(n: Count, d: Count, order: int | np.integer = 2) -> float:
    """C3: a lower bound of the frame potential of even order p, the mean of c_ij^p over all pairs, self pairs included.

    max(1/n, Π_{j<p/2} (2j+1)/(d+2j))

    1/n are the self pairs. The product is the value of the uniform measure, which is attained iff the points are a
    projective p-design. For p = 2 the bound is 1/min(n, d), attained by the optima of A1.
    `measures.frames.frame_potential_bound` is the same without self pairs.

    Proof: even potentials are positive definite (Sidelnikov).

    Args:
        order: p, the exponent of the cosines.

    Raises:
        ValueError: for an odd order.

    >>> frame_potential_minimum(12, 2, order=4)  # 1/2 · 3/4
    0.375
    """
    _counts(n=n, d=d, order=order)
    if order % 2:
        raise ValueError(f"order, the exponent of the cosines, must be even, got {order}")
    return max(1 / n, math.prod((2 * j + 1) / (d + 2 * j) for j in range(order // 2)))


def water_level(mu: ArrayLike, gamma: Number, alpha: Number, d: int | np.integer, *, norm: Number) -> float:
    """B3: the multiplier ν with which the powers of `water_filling` sum to `norm`.

    Σᵢ [γ/(2(μᵢ + ν)) - 1/α]₊ = norm

    ν is negative where the free total, that of ν = 0, is below `norm`.

    Proof: the total is continuous and decreasing in ν, from the level where the first mode alone has it all to the one
    where no mode is left, so that there is one root in between.

    Args:
        mu: (m,) the shares of the modes, in any order; the d smallest count.
        norm: E‖z‖², the total power.

    >>> round(water_level([0.5, 0.5], 1, 1, 2, norm=1), 6)  # half of the power each: 1/(2(½ + ν)) - 1 = ½
    -0.166667
    """
    from scipy.optimize import brentq

    _positive(norm=norm)
    mu = _modes(mu, gamma, alpha, d)
    low, high = gamma / (2 * (norm + 1 / alpha)) - mu[0], gamma * alpha / 2 - mu[0]
    if len(mu) == 1:
        return low
    excess = lambda nu: np.maximum(gamma / (2 * (mu + nu)) - 1 / alpha, 0).sum() - norm  # noqa: E731
    return low if excess(low) <= 0 else brentq(excess, low, high, xtol=1e-15 * (1 + abs(low)), rtol=1e-15)


def _modes(mu: ArrayLike, gamma: Number, alpha: Number, d: int | np.integer) -> Float[np.ndarray, " k"]:
    """The d smallest shares, ascending, once all arguments are known to make sense."""
    _counts(d=d)
    _positive(gamma=gamma, alpha=alpha)
    mu = np.asarray(mu, dtype=float)
    if mu.ndim != 1 or not len(mu) or not np.all(np.isfinite(mu)) or mu.min() < 0:
        raise ValueError("mu must be a non-empty vector of finite, non-negative generalized eigenvalues")
    return np.sort(mu)[:d]


def water_filling(
    mu: ArrayLike, gamma: Number, alpha: Number, d: int | np.integer, *, norm: Number | None = None
) -> Float[np.ndarray, " m"]:
    """B3: the optimal powers of the modes of a linear encoder, which fill its spectrum like water.

    pᵢ = [γ/(2(μᵢ + ν)) - 1/α]₊ for the d smallest μᵢ, else 0

    Without a constraint on the norm ν = 0, and a mode is dead exactly when μᵢ ≥ γα/2 (`collapse_threshold`).

    Features that are free functions on finitely many views are linear in the one-hot code of the view. Then μ are the
    eigenvalues of the normalized Laplacian of the augmentation graph (`experiments.linear_encoders.graph_problem`). The
    constant function has μ = 0, so the uncentered rate spends its largest share on the mean: with norm=1 the mean
    collapses to ‖E z‖² = p₀ ≥ 1/d.

    Proof: in the basis of the modes the loss is Σ μᵢpᵢ - (γ/2) log(1 + αpᵢ), which is convex in p ≥ 0. Set its
    derivative to -ν.

    Args:
        mu: (m,) generalized eigenvalues of (Σ_a, Σ), the shares of a mode's variance that differ between views.
        alpha: α of the rate; for an encoder trained on batches not much larger than d, that of `settled_alpha`.
        d: the dimension of the features, which is the largest number of modes with power.
        norm: the value at which E‖z‖² is held (1 for unit features), with ν from `water_level`; None leaves it free.

    Returns:
        the powers in the order of `mu`; inf for μ = 0 in the free problem.

    >>> water_filling([0.5, 0.125, 2.0], 1, 1, 3).tolist()  # 1/(2μ) - 1, where that is positive
    [0.0, 3.0, 0.0]
    """
    kept = _modes(mu, gamma, alpha, d)
    nu = 0.0 if norm is None else water_level(mu, gamma, alpha, d, norm=norm)
    powers = np.zeros(len(mu))
    with np.errstate(divide="ignore"):
        powers[np.argsort(mu, kind="stable")[:d]] = np.maximum(gamma / (2 * (kept + nu)) - 1 / alpha, 0)
    return powers


def collapse_threshold(gamma: Number, alpha: Number) -> Number:
    """B3: the share μ at and above which a mode of a linear encoder is dead in the free problem.

    γα/2

    Under a constraint on the norm subtract ν, the `water_level`.

    >>> collapse_threshold(1, 1)
    0.5
    """
    _positive(gamma=gamma, alpha=alpha)
    return gamma * alpha / 2


def batch_alpha(spectrum: ArrayLike, b: Count, alpha: Number) -> float:
    """B8: the α_b at which the coding rate has the gradient that batches of b features have on average at α.

    α_b = α/(1 + δ),   δ = (1/b) Σ αλᵢ/(1 + αλᵢ/(1 + δ))

    So a batch acts as a larger ε² → ε²(1 + δ), five times as large for a flat spectrum, b = d and ε² = 0.05. Close to
    total collapse δ is about 1/b, and all that changes is the factor 1 - 1/b of `collapse_number`.

    Proof: `sampled_rate` is stationary in δ, so that its derivative in λᵢ is the one at fixed δ, ½ α_b/(1 + α_bλᵢ).

    Args:
        spectrum: (k,) the eigenvalues λ of the population's Γ, or the powers of a linear encoder; zeros may be left
            out.
        b: features of a batch.
        alpha: α of the rate.

    >>> round(batch_alpha([0.5, 0.5], 1, 2), 6)  # δ = 2/(1 + 1/(1 + δ)): δ = √2
    0.828427
    """
    _counts(b=b)
    _positive(alpha=alpha)
    return alpha / (1 + _counted_twice(alpha * np.asarray(spectrum, dtype=float), b))


def _counted_twice(a: Float[np.ndarray, " k"], b: Count) -> float:
    """δ = (1/b) Σ aᵢ/(1 + aᵢ/(1 + δ)) for a = αλ: what a batch of b sees of itself; 0 for features that vanish."""
    from scipy.optimize import brentq

    return brentq(lambda x: x - (a / (1 + a / (1 + x))).sum() / b, 0, a.sum() / b) if a.any() else 0.0


def settled_alpha(
    mu: ArrayLike, gamma: Number, alpha: Number, d: int | np.integer, *, b: Count, norm: Number | None = None
) -> float:
    """B8: the α_b at which a linear encoder comes to rest that is trained on batches of b.

    α_b of `batch_alpha` for the powers of `water_filling` at α_b

    B3, its threshold, B4 and B10 hold for batches with it in place of α. For b ≫ d it is α.

    Proof: the stationarity of B3 with B8's gradient. Powers grow with α_b, and `batch_alpha` falls with them, so that
    there is one solution.

    Args:
        mu, gamma, d, norm: as in `water_filling`; μ > 0 in the free problem, where other powers have no limit.
        alpha: α of the rate.
        b: features of a batch.

    >>> a = settled_alpha([0.5, 0.125], 1, 10, 2, b=4)
    >>> abs(a - batch_alpha(water_filling([0.5, 0.125], 1, a, 2), 4, 10)) < 1e-9
    True
    """
    from scipy.optimize import brentq

    excess = lambda a: batch_alpha(water_filling(mu, gamma, a, d, norm=norm), b, alpha) - a  # noqa: E731
    return brentq(excess, alpha * 1e-9, alpha, xtol=1e-14 * alpha) if excess(alpha) < 0 else float(alpha)


def opening_gammas(mu: ArrayLike, alpha: Number, d: int | np.integer) -> Float[np.ndarray, " k"]:
    """B10: the γ above which the second, third, ... mode of a linear encoder has power, with E‖z‖² = 1.

    Σ_{i≤k} [γ/(γα - 2(μ_{k+1} - μᵢ)) - 1/α] = 1,   μ ascending

    For k = 1 and μ₁ = 0, the mean, this is B6 with c = 2: χ = γα²/(1+α) = 2μ₂. So total collapse is the first rung of
    one ladder of dimensional collapses. A stop-gradient halves these γ (`effective_gamma`).

    Proof: mode k+1 is about to open where γ/(2(μ_{k+1} + ν)) = 1/α, and then the first k modes of `water_filling` have
    the whole power. Their total at this ν falls with γ, so that there is one root.

    Args:
        mu: (m,) the shares of the modes, in any order; the d smallest count.
        alpha: α of the rate; for batches that of B8 at the powers where the mode opens.

    Returns:
        (min(m, d) - 1,) ascending; 0 for a mode as good as the first.

    >>> round(opening_gammas([0, 0.5], 1, 2).item(), 6)  # χ = γ/2 = 2 · 0.5
    2.0
    """
    from scipy.optimize import brentq

    mu, rungs = _modes(mu, 1.0, alpha, d), []
    for k in range(1, len(mu)):
        gaps = 2 * (mu[k] - mu[:k])
        missing = lambda x, gaps=gaps: (gaps / (x - gaps)).sum() - alpha  # noqa: E731  # x = γα
        low, high = gaps[0] * (1 + 0.5 / alpha), 2 * gaps[0] * (1 + k / alpha)
        root = brentq(missing, low, high, xtol=1e-15 * high) if gaps[0] > 0 else 0.0
        rungs.append(root / alpha)
    return np.array(rungs)


def effective_gamma(gamma: Number, *, rate_of: str = "student") -> Number:
    """E1: the γ at which the joint loss, both views with gradients, has the critical points of self-distillation at γ.

    2γ if the rate is the student's, γ itself if it is that of (student + teacher)/2

    The rate of the mean is the default of the official code (`expa_type=1`): there a stop-gradient changes nothing but
    the speed. This holds for every network and batch without local crops, which only the student sees. The threshold of
    B3, B5, and B6 (with c = 2γ/effective γ) follow.

    Proof: where teacher = student, ½‖sᵢ - tⱼ‖² + ½‖sⱼ - tᵢ‖² passes half of its joint gradient on, as each view is a
    target once. So does the rate of the mean, as ∂(s+t)/2 = ½∂s, while the student's rate passes all. Hence
    ∇L(γ) = ½∇J(effective γ): one flow at two speeds, and one path of an optimizer that no factor moves (Adam).

    Args:
        rate_of: "student" or "mean", whose rate the expansion term takes.

    Raises:
        ValueError: for any other `rate_of`.

    >>> effective_gamma(0.1), effective_gamma(0.1, rate_of="mean")
    (0.2, 0.1)
    """
    if rate_of not in ("student", "mean"):
        raise ValueError(f"rate_of must be 'student' or 'mean', not {rate_of!r}")
    return gamma * (2 if rate_of == "student" else 1)


def distillation_fixed_point(
    mu: ArrayLike,
    gamma: Number,
    alpha: Number,
    d: int | np.integer,
    *,
    norm: Number | None = None,
    rate_of: str = "student",
) -> Float[np.ndarray, " m"]:
    """B4: the powers at which self-distillation of a linear encoder with a stop-gradient teacher comes to rest.

    `water_filling` at `effective_gamma`

    The momentum of the teacher does not enter.

    Proof: with teacher = student the gradient of the alignment in W is WΣ_a, half of that of the joint loss, so that
    the fixed point is WΣ_a = γα(I + αWΣWᵀ)⁻¹WΣ.

    Args:
        mu, d, norm: as in `water_filling`.
        rate_of: as in `effective_gamma`.

    >>> distillation_fixed_point([0.5, 0.125, 2.0], 0.5, 1, 3).tolist()  # the water-filling of γ = 1
    [0.0, 3.0, 0.0]
    """
    return water_filling(mu, effective_gamma(gamma, rate_of=rate_of), alpha, d, norm=norm)


def mode_velocity(p: Number, mu: Number, gamma: Number, alpha: Number, *, stop_gradient: bool = True) -> Number:
    """B5: the velocity of the power p of one mode of a linear encoder under gradient flow.

    dp/dt = 2p (γα/(1+αp) - cμ),   c = 1 with a stop-gradient teacher, else 2

    Modes that share an output direction compete for it, and follow another law.

    Proof: with whitened inputs, Σ = I, the columns of W in the eigenbasis of Σ_a follow
    dwᵢ/dt = γα(I+αWWᵀ)⁻¹wᵢ - cμᵢwᵢ. If they are orthogonal they stay so, the inverse is 1/(1+αpᵢ) on wᵢ, and
    pᵢ = ‖wᵢ‖².

    >>> mode_velocity(1, 0.25, 1, 1)  # 2 (½ - ¼)
    0.5
    """
    return 2 * p * (gamma * alpha / (1 + alpha * p) - (1 if stop_gradient else 2) * mu)


def mode_time(
    start: Number, end: Number, mu: Number, gamma: Number, alpha: Number, *, stop_gradient: bool = True
) -> float:
    """B5: the time in which a mode goes from power `start` to power `end`, exactly.

    t = ½ [log p / A - (1/A + α/B) log|A - Bp|] from start to end,   A = γα - cμ,   B = cμα

    A/B is the power at which the mode rests, and both ends must lie on one side of it. A small mode grows by a factor e
    in the time 1/(2A). The smaller μ, the larger A: the modes escape one after another.

    Proof: partial fractions of dp/`mode_velocity`, with its c.

    Raises:
        ValueError: for arguments that are not positive, and for a start and an end on two sides of the rest power.

    >>> round(mode_time(1e-9, 1e-8, 0.5, 1, 1), 4)  # A = ½: log 10
    2.3026
    """
    _positive(start=start, end=end, mu=mu, gamma=gamma, alpha=alpha)
    c = 1 if stop_gradient else 2
    a, b = gamma * alpha - c * mu, c * mu * alpha
    if (a - b * start) * (a - b * end) <= 0:
        raise ValueError(f"start and end must be on the same side of the rest power {a / b}")
    return 0.5 * (math.log(end / start) / a - (1 / a + alpha / b) * math.log((a - b * end) / (a - b * start)))


def gram_velocity(
    gram: ArrayLike, mu: ArrayLike, gamma: Number, alpha: Number, *, stop_gradient: bool = True
) -> Float[np.ndarray, "m m"]:
    """B5: the velocity of G = WᵀW of a linear encoder with white inputs under gradient flow, whatever its columns are.

    dG/dt = 2γα G(I+αG)⁻¹ - c(MG + GM),   M = diag(μ),   c = 1 with a stop-gradient teacher, else 2

    Its diagonal holds the powers of the modes. A diagonal G stays one, and each power then follows `mode_velocity`. To
    integrate it take d ≥ m: a rank below m is kept by the law, but not by its rounding.

    Proof: dW/dt = γα(I+αWWᵀ)⁻¹W - cWM, and Wᵀ(I+αWWᵀ)⁻¹W = G(I+αG)⁻¹.

    Args:
        gram: (m, m) G, in the basis of the modes.
        mu: (m,) the shares μ of the modes.

    >>> gram_velocity([[1]], [0.25], 1, 1).tolist()  # 2 · ½ - ½, the velocity of one mode
    [[0.5]]
    """
    g, mu = np.asarray(gram, dtype=float), np.asarray(mu, dtype=float)
    expansion = np.linalg.solve(np.eye(len(g)) + alpha * g, g)  # = G(I+αG)⁻¹, symmetric as G is
    return 2 * gamma * alpha * expansion - (1 if stop_gradient else 2) * (mu[:, None] + mu) * g


def start_powers(w: ArrayLike, mu: ArrayLike) -> Float[np.ndarray, " m"]:
    """B5: the powers that the modes of an encoder effectively start with, for `mode_time`, if columns share directions.

    pᵢ(0) = Rᵢᵢ²,   W = QR with the columns in the order of ascending μ

    Orthogonal columns have pᵢ(0) = ‖wᵢ‖². Else a mode that has reached its rest power keeps the columns of larger μ
    from growing along its own direction, and of each only the part is left that is orthogonal to all before it. This is
    no exact law, as `gram_velocity` is: it takes the modes to appear one well after another. From a start of 1e-6 it
    gives the times of five modes in five dimensions, 0.1 ≤ μ ≤ 0.42 and γα = 1, to 0.3 % on average without a teacher,
    where ‖wᵢ‖² misses by 10 %; with a stop-gradient, where the modes crowd, to 3 % instead of 8 %.

    Proof (a sketch): along the direction of a mode at rest with μ₁, column i grows at the rate c(μ₁ - μᵢ) < 0.

    Args:
        w: (d, m) the encoder at the start, for white inputs in the basis of the modes.
        mu: (m,) the shares μ of the modes.

    Returns:
        (m,) the powers in the order of `mu`; zero for modes beyond the d smallest μ.

    >>> start_powers([[1, 2], [0, 3]], [0.1, 0.2]).round(6).tolist()  # the second column without its part (2, 0)
    [1.0, 9.0]
    """
    w, order = np.asarray(w, dtype=float), np.argsort(mu, kind="stable")
    diagonal = np.diagonal(np.linalg.qr(w[:, order], mode="r"))
    powers = np.zeros(len(order))
    powers[order[: len(diagonal)]] = diagonal**2
    return powers


def collapse_number(d: Count, eps: Number, gamma: Number) -> Number:
    """B6: the collapse number χ, which decides whether total collapse is linearly stable.

    χ = γα²/(1+α),   stable iff χ < c·μ_min

    μ_min is the smallest share of variance that differs between views. c = 1 with a stop-gradient teacher, and 2
    without; it is 2 with one as well if the rate is that of (student + teacher)/2, whose gradient is halved as that of
    the alignment is (E1). Larger is safer: with χ ≥ c total collapse is unstable whatever the views.

    Proof: a spread of variance s around u changes R by ½ log((1+α(1-s))/(1+α)) + ½ αs ≈ ½ s α²/(1+α), and costs the
    alignment μs, whose gradient the stop-gradient halves. A batch of n sees its own variance only: χ(1 - 1/n). For more
    than two crops see `crops_collapse_threshold`, for the collapse of some dimensions `opening_gammas`.

    Raises:
        ValueError: for a γ that is negative or not finite.

    >>> collapse_number(4, 1.0, 0.5)  # α = 4: ½ · 16/5
    1.6
    """
    alpha = _alpha(d, eps)
    if not (np.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and not negative, got {gamma}")
    return gamma * alpha**2 / (1 + alpha)


def crops_collapse_threshold(
    mu: Values, mu_local: Values, *, global_crops: Count = 2, local_crops: Count = 0
) -> np.floating | Float[np.ndarray, "*batch"]:
    """B11: the collapse number below which total collapse is stable, for several crops of an image.

    [(g-1)μ + l·μ_l]/(g + l - 1),   μ_l = σ_l² - ρ

    It takes the place of μ in B6, and c multiplies it. σ_l² is the variance of local crops along a direction, ρ their
    covariance with global ones, both over the variance of the global crops. Ten local crops beside two global ones put
    10/11 of the weight on μ_l. It is at most 1, as μ is, if local crops vary no more than global ones and do not vary
    against them; only then is χ ≥ c safe for all views.

    Proof: each of g + l student crops meets each teacher crop but itself, g(g+l-1) pairs. A pair (v, t) pulls the
    student along w with E w_v(w_v - w_t), as in `collapse_number`, and the rate is of global crops alone.

    Args:
        mu: the share of a direction's variance that differs between two global crops, or an array of shares.
        mu_local: μ_l, the same of a local crop beside a global one; crops of both kinds have one mean.
        global_crops: g, 2 at least unless there are local crops.
        local_crops: l, 0 allowed.

    Raises:
        ValueError: for crops that make no pair.

    >>> float(crops_collapse_threshold(0.5, 0.25, global_crops=2, local_crops=4))  # (0.5 + 4 · 0.25)/5
    0.3
    """
    _counts(global_crops=global_crops)
    pairs = global_crops + local_crops - 1
    if local_crops < 0 or pairs < 1:
        raise ValueError(f"no pair in {global_crops} global and {local_crops} local crops")
    return ((global_crops - 1) * np.asarray(mu) + local_crops * np.asarray(mu_local)) / pairs


def collapse_spread(rate: Values, d: Count, eps: Number) -> np.floating | Float[np.ndarray, "*batch"]:
    """B6: the variance s of unit features around their mean, read off a rate that is close to `rate_collapsed`.

    s = 2 (R - ½ log(1 + α)) (1+α)/α²

    Proof: R ≈ ½ log(1 + α) + ½ s α²/(1+α) to first order in s ≪ 1/α, as in `collapse_number`.

    Args:
        rate: a coding rate in nats, or an array of them.

    >>> round(float(collapse_spread(rate_collapsed(4, 1.0) + 0.016, 4, 1.0)), 6)  # 0.032 · 5/16
    0.01
    """
    alpha = _alpha(d, eps)
    return 2 * (np.asarray(rate, dtype=float) - rate_collapsed(d, eps)) * (1 + alpha) / alpha**2


def spread_growth(
    speed: Values, share: Values, chi: Values, n: Count, *, stop_gradient: bool = True
) -> np.floating | Float[np.ndarray, "*batch"]:
    """B14: the growth of the logarithm of the spread next to total collapse, per step of any optimizer.

    Δ log s = speed · (χ(1 - 1/n) - c·share),   c = 1 with a stop-gradient teacher, else 2
    speed = ⟨∇s, P∇s⟩/(2s),   share = ⟨∇s, P∇A⟩/⟨∇s, P∇s⟩

    s = 1 - ‖E z‖² is the spread and A the alignment with gradients in both views, as functions of the network's
    parameters. A step of the optimizer is -P times the gradient of the loss. In the long run the directions with the
    smallest share μ take over, and B6 is left; the share of a collapsed network's first steps is larger.

    Proof: γ∇R = ½ χ(1 - 1/n) ∇s as in `collapse_number`, and a stop-gradient passes half of ∇A on. To first order in
    the step and in αs, Δs = ⟨∇s, P(γ∇R - (c/2)∇A)⟩.

    Args:
        speed, share: as `experiments.growth.kernel_share` measures them, numbers or arrays.
        chi: χ of `collapse_number`, a number or an array.
        n: features in a batch.

    >>> round(float(spread_growth(2, 0.25, 0.5, 2, stop_gradient=False)), 6)  # 2 (½ · ½ - 2 · ¼)
    -0.5
    """
    _counts(n=n)
    c = 1 if stop_gradient else 2
    return np.asarray(speed, dtype=float) * (np.asarray(chi) * (1 - 1 / n) - c * np.asarray(share))


class CrossEntropyParts(NamedTuple):
    """The two parts of a cross-entropy, in nats; they sum to it."""

    entropy: float  # H(q) of the teacher
    divergence: float  # KL(q‖p)


def cross_entropy_parts(teacher: ArrayLike, student: ArrayLike) -> CrossEntropyParts:
    """C1: the entropy of the teacher and the divergence of the student from it, which sum to the cross-entropy of DINO.

    mean H(q) + mean KL(q‖p)

    Both vanish for p = q one-hot, whether the rows are all equal (total collapse) or all different (spread): the
    infimum 0 cannot tell them apart.

    Args:
        teacher: (n, K) rows of probabilities q.
        student: (n, K) rows of probabilities p.

    >>> round(cross_entropy_parts(np.eye(2), np.full((2, 2), 0.5)).divergence, 4)  # log 2
    0.6931
    >>> sum(cross_entropy_parts(np.eye(2), np.eye(2))) == sum(cross_entropy_parts([[1, 0]] * 2, [[1, 0]] * 2)) == 0
    True
    """
    q, p = np.asarray(teacher, dtype=float), np.asarray(student, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(q > 0, q * np.log(q), 0).sum(-1).mean()
        divergence = np.where(q > 0, q * np.log(q / p), 0).sum(-1).mean()
    return CrossEntropyParts(float(entropy), float(divergence))


def patch_loss_minimum(
    n: Count,
    d: Count,
    eps: Number,
    gamma: Number,
    *,
    patch_gamma: Number = 0.0,
    masked: Sequence[Count] | np.ndarray = (),
) -> float:
    """C2: the smallest value of the loss of SimDINOv2 for an encoder of unlimited capacity.

    -γR*(n) - γ_p (mean_c R*(m_c) + R*(C)),   R* of `rate_maximum`

    With γ_p = 0 it is `loss_minimum`, which is reached with any tokens that teacher and student agree on, constant ones
    included. With γ_p > 0 constant tokens, whose two rates are `rate_collapsed`, cost what these rates lack, and are no
    optimum.

    Proof: every term is bounded separately, and all bounds hold at once: tokens of a crop are orthonormal, and as their
    mean is not zero, the set of each crop can be turned so that the means of the crops form a tight frame, too.

    Args:
        n: images in a view.
        patch_gamma: γ_p, the weight of the rates of the patches.
        masked: (C,) the numbers m_c ≤ d of masked patches of those crops that have any.

    >>> round(patch_loss_minimum(8, 2, 1.0, 0.1, patch_gamma=0.1, masked=[2, 2]), 4)  # three rates of log 2
    -0.2079
    """
    if not len(masked):
        return loss_minimum(n, d, eps, gamma)
    within = np.mean([rate_maximum(m, d, eps) for m in masked])
    return loss_minimum(n, d, eps, gamma) - patch_gamma * float(within + rate_maximum(len(masked), d, eps))


def constant_patches_cost(anchor: ArrayLike) -> float:
    """C4: what constant patches cost in Gram anchoring, for each unit of its weight.

    1/P² Σᵢⱼ (1 − Gᵢⱼ)²,   G the anchor's cosines of a view's P patches

    It is 1 − 1/P for an orthonormal anchor and 0 for an anchor of constant patches, so that the anchor has to be of a
    network that has not collapsed: the teacher of the same step keeps nothing apart. With weight w > 0 the global
    optima of the loss of SimDINOv2 (C2) that are left are those whose patches have the anchor's cosines in every view,
    `patch_loss_minimum` stays the minimum, and constant patches are above it by w times this. What is cut off is the
    collapse within an image alone: patches that are the same in every image, but differ as the anchor's do, cost as
    little as the anchor itself where its cosines do not depend on the image.

    Proof: constant unit patches have the cosines 1. All terms vanish at once at the anchor's cosines: they fix a view's
    patches up to a rotation, which alignment, with the teacher equal to the student, and the rate do not see.

    Args:
        anchor: (P, P) cosines of the anchor's patches.

    Source: Siméoni et al. 2025 (DINOv3, arXiv 2508.10104) for the term.

    >>> constant_patches_cost(np.eye(4)), constant_patches_cost(np.ones((4, 4)))  # 1 − 1/4
    (0.75, 0.0)
    """
    return float(np.square(1 - np.asarray(anchor, dtype=float)).mean())


def probe_information(spectrum: ArrayLike, *, d: Count, eps: Number) -> float:
    """C5: the nats that n noisy labels give about a random linear probe: the coding rate of the features.

    I(w; y) = ½ logdet(I + (τ²/σ²) ZZᵀ) = R,   y = Zw + noise,  w ~ N(0, τ²I),  noise ~ N(0, σ²I),  τ²/σ² = d/(nε²)

    The rate is the information of labels whose ridge, σ²/τ², is nε²/d: more ε is more noise. It does not know the task,
    and so speaks of the mean over random ones.

    Proof: y ~ N(0, σ²I + τ²ZZᵀ), and given w it is N(Zw, σ²I); the difference of the entropies is the logdet.

    Args:
        spectrum: (k,) eigenvalues of Γ = ZᵀZ/n, k ≤ d; zeros may be left out.
        d: the dimension of the features, for α.

    Source: Lindley 1956; Chaloner and Verdinelli 1995 (Bayesian D-optimality) for the same logdet of a design.

    >>> round(probe_information([0.5, 0.5], d=2, eps=1.0), 4)  # α = 2: log 2
    0.6931
    """
    return float(np.log1p(_alpha(d, eps) * np.asarray(spectrum, dtype=float)).sum() / 2)


def probe_error(spectrum: ArrayLike, *, d: Count, eps: Number) -> float:
    """C5: the mean error of the best ridge probe at its own samples, over random probes, times n/σ².

    n/σ² E ‖Zŵ − Zw‖²/n = Σ αλᵢ/(1 + αλᵢ) = 2 dR/d log α

    for labels and probes as in `probe_information` and ŵ the ridge regression with ridge nε²/d, which no estimate
    beats. It is the number of directions that the labels can settle: a larger rate costs a larger error, since it has
    more to learn.

    Proof: the posterior's covariance of w is σ²(ZᵀZ + (nε²/d)I)⁻¹, and the error is its trace with Γ.

    Args:
        spectrum: (k,) eigenvalues of Γ; zeros may be left out.
        d: the dimension of the features, for α.

    Source: Guo, Shamai and Verdú 2005 (dI/dsnr = ½ mmse).

    >>> probe_error([0.5, 0.5], d=2, eps=1.0)  # two directions, αλ = 1 in each
    1.0
    """
    a = _alpha(d, eps) * np.asarray(spectrum, dtype=float)
    return float((a / (1 + a)).sum())


def probe_variance_bound(d: Count, eps: Number) -> float:
    """C5: the least that the largest variance of a probe's prediction can be, over unit inputs, times n/σ².

    max_x n/σ² Var(x·w | y) = 1/(λ_min + 1/α) ≥ d/(1 + d/α)

    for labels and probes as in `probe_information`. Equality holds iff Γ is tight: the optima of the rate are the
    designs whose worst-case prediction is best (D- and G-optimality agree, Kiefer and Wolfowitz 1960).

    Proof: the posterior's covariance is (σ²/n)(Γ + I/α)⁻¹, whose largest eigenvalue belongs to the smallest one of Γ,
    which is 1/d at most, as d of them sum to 1, and is 1/d for no other spectrum.

    >>> probe_variance_bound(2, 1.0)  # α = 2: 2/(1 + 1)
    1.0
    """
    return d / (1 + d / _alpha(d, eps))


def nuclear_norm_maximum(n: Count, d: Count) -> float:
    """C3: the largest nuclear norm of n unit vectors, which MMCR maximizes.

    sqrt(n·min(n, d))

    The optima of A1 attain it.

    Proof: Cauchy-Schwarz, as the squares of the min(n, d) singular values sum to n.

    >>> nuclear_norm_maximum(8, 2)
    4.0
    """
    _counts(n=n, d=d)
    return math.sqrt(n * min(n, d))


def uniformity_minimum(n: Count, d: Count, *, t: Number = 2.0) -> float:
    """C3: the smallest uniformity loss, log mean_{i≠j} exp(-t‖zᵢ - zⱼ‖²), of n unit vectors, where it is known.

    -2tn/(n-1) for 2 ≤ n ≤ d+1

    This is the simplex (by Jensen's inequality). The other known ones are universally optimal: the cross-polytope for
    n = 2d, and the icosahedron for n = 12 and d = 3.

    Returns:
        the minimum, in nats; nan where it is not known.

    Source: Cohn and Kumar 2007 (arXiv math/0607446).

    >>> uniformity_minimum(2, 5)  # opposite points, at the squared distance 4
    -8.0
    """
    _counts(n=n, d=d)
    if 2 <= n <= d + 1:
        return -2 * t * n / (n - 1)
    if n == 2 * d:
        return math.log((math.exp(-4 * t) + (n - 2) * math.exp(-2 * t)) / (n - 1))
    near, far = (math.exp(-2 * t * (1 - c / math.sqrt(5))) for c in (1, -1))
    return math.log((5 * near + 5 * far + math.exp(-4 * t)) / 11) if (n, d) == (12, 3) else math.nan


def koleo_minimum(n: Count, d: Count) -> float:
    """C3: the smallest KoLeo loss, -mean log min_{j≠i} ‖zᵢ - zⱼ‖, of n unit vectors, where it is known.

    -½ log(2n/(n-1)) for 2 ≤ n ≤ d+1, the simplex

    Returns:
        the minimum, in nats; nan where it is not known.

    >>> round(koleo_minimum(2, 5), 4)  # opposite points, at the distance 2: -log 2
    -0.6931
    """
    _counts(n=n, d=d)
    return -0.5 * math.log(2 * n / (n - 1)) if 2 <= n <= d + 1 else math.nan


def vicreg_minimum(n: Count, d: Count, *, variance: Number = 25.0) -> float:
    """C3: the smallest energy of VICReg (`experiments.energies.vicreg_energy`) of n ≥ d+1 unit vectors.

    variance · [1 - √(n/((n-1)d) + 1e-4)]₊

    Tight frames of mean zero attain it; `rate_maximum` says for which n there are none.

    Proof: the variances sum to at most n/(n-1), and √ is concave.

    Args:
        variance: the weight of the variance term.

    Returns:
        the minimum; nan for n ≤ d, where it is not known.

    >>> round(vicreg_minimum(4, 3, variance=1), 3)  # the tetrahedron: 1 - √(4/9 + 1e-4)
    0.333
    """
    _counts(n=n, d=d)
    return variance * max(0.0, 1 - math.sqrt(n / ((n - 1) * d) + 1e-4)) if n > d else math.nan


def wmse_minimum(n: Count, d: Count) -> float:
    """C3: the smallest energy of W-MSE (`experiments.energies.wmse_energy`) of n ≥ d+1 unit vectors.

    2d

    Proof: tr C⁻¹ ≥ d²/tr C and tr C ≤ 1, with equality for tight frames of mean zero.

    Returns:
        the minimum; nan for n ≤ d, as so few vectors cannot be whitened.

    >>> wmse_minimum(9, 4)
    8.0
    """
    _counts(n=n, d=d)
    return 2.0 * d if n > d else math.nan


def infonce_minimum(n: Count, d: Count, *, temp: Number = 0.1) -> float:
    """C3: the smallest InfoNCE energy (`experiments.energies.infonce_energy`) of n unit vectors, where it is known.

    -n/((n-1)τ) for 2 ≤ n ≤ d+1, the simplex

    Args:
        temp: τ.

    Returns:
        the minimum, in nats; nan where it is not known.

    >>> infonce_minimum(2, 5, temp=0.5)  # opposite points: (-1 - 1)/0.5
    -4.0
    """
    _counts(n=n, d=d)
    return -n / ((n - 1) * temp) if 2 <= n <= d + 1 else math.nan


def sharpened_consistency(rho: Values, *, student_temp: Number, teacher_temp: Number) -> Values:
    """C6: the number above 1 of which a direction of small scores grows under DINO's loss.

    χ = ρ τ_s/τ_t,   grows iff χ > 1

    ρ is the direction's consistency: the covariance of its scores in two views of an image over their variance. The
    learning rate, the number of prototypes, the variance and the teacher's momentum change the speed alone.

    Proof: at χ = 1 the rows of `direction_map` sum to 1, so that (1, 1) is an eigenvector of eigenvalue 1. It is
    positive and so are the entries, for η < τ_s: by Perron and Frobenius no eigenvalue is larger, and the largest rises
    with ρ.

    Args:
        rho: ρ, one or an array of them; the mean over the images has ρ = 1.
        student_temp: τ_s.
        teacher_temp: τ_t.

    >>> float(sharpened_consistency(0.5, student_temp=0.1, teacher_temp=0.04))
    1.25
    """
    _positive(student_temp=student_temp, teacher_temp=teacher_temp)
    return (np.asarray(rho, dtype=float) * (student_temp / teacher_temp))[()]


def direction_map(
    eta: Number, rho: Number, *, student_temp: Number, teacher_temp: Number, teacher_momentum: Number
) -> Float[np.ndarray, "2 2"]:
    """C6: one step of gradient descent near DINO's uniform collapse, of a direction in (student, teacher).

    s ← (1 − η/τ_s) s + (ηρ/τ_t) t,   then t ← λ t + (1 − λ) s,   η = lr·σ²/(Kτ_s)

    Scores are linear in features whose direction has the variance σ² and the consistency ρ. Around equal scores
    p ≈ (1 + s/τ_s)/K and q ≈ (1 + t/τ_t)/K, so that the gradient in a student's score is (s/τ_s − t/τ_t)/(Kτ_s). Its
    covariance with the feature of the view is σ² of s, and ρσ² of t, which saw the other view. The center does not
    enter, as directions here have mean zero.

    Args:
        eta: η; the student alone is stable below 2τ_s.
        rho: ρ.
        student_temp: τ_s.
        teacher_temp: τ_t.
        teacher_momentum: λ; 0 is a teacher that equals the student.

    >>> options = {"student_temp": 0.1, "teacher_temp": 0.04, "teacher_momentum": 0.0}
    >>> direction_map(0.01, 0.8, **options).round(6).tolist()  # 1 − 0.1 and 0.2, of which the teacher is a copy
    [[0.9, 0.2], [0.9, 0.2]]
    """
    _positive(eta=eta, student_temp=student_temp, teacher_temp=teacher_temp)
    _momenta(teacher_momentum=teacher_momentum)
    student = np.array([1 - eta / student_temp, eta * rho / teacher_temp])
    return np.array([student, (1 - teacher_momentum) * student + [0, teacher_momentum]])


def mean_map(
    eta: Number,
    *,
    student_temp: Number,
    teacher_temp: Number,
    teacher_momentum: Number,
    center_momentum: Number | None,
) -> Float[np.ndarray, "3 3"]:
    """C7: one step of gradient descent near DINO's uniform collapse, of the mean in (student, teacher, center).

    s ← (1 − η/τ_s) s + (η/τ_t)(t − c),   c ← m c + (1 − m) t,   then t ← λ t + (1 − λ) s

    It is `direction_map` of the one direction that all images share, ρ = 1, less the center. The center takes the
    teacher's mean after the loss has used it, as DINO's code does. Sinkhorn's balance takes, to first order, the mean
    of the very scores that it balances, so that the mean has no target and there is no lag.

    Args:
        eta: η, with the mean square of the direction for σ².
        student_temp: τ_s.
        teacher_temp: τ_t.
        teacher_momentum: λ.
        center_momentum: m; 1 is no centering, None is Sinkhorn's balance.

    >>> options = {"student_temp": 0.1, "teacher_temp": 0.04, "teacher_momentum": 0.0, "center_momentum": 1.0}
    >>> float(abs(np.linalg.eigvals(mean_map(0.01, **options))).max().round(6))  # 1 + η(1/τ_t − 1/τ_s): it grows
    1.15
    """
    temps = {"student_temp": student_temp, "teacher_temp": teacher_temp}
    step = np.zeros((3, 3))
    if center_momentum is None:
        step[:2, :2] = direction_map(eta, 0.0, teacher_momentum=teacher_momentum, **temps)
        return step
    _momenta(center_momentum=center_momentum)
    step[:2, :2] = direction_map(eta, 1.0, teacher_momentum=teacher_momentum, **temps)
    step[:2, 2] = -eta / teacher_temp * np.array([1, 1 - teacher_momentum])
    step[2, 1:] = 1 - center_momentum, center_momentum
    return step


def critical_step(
    *, student_temp: Number, teacher_temp: Number, teacher_momentum: Number, center_momentum: Number | None
) -> float:
    """C7: the smallest η at which the mean turns unstable, from the exact map; 0 without a center.

    spectral radius of `mean_map`(η) > 1 from η on

    With a teacher that equals the student it is (1 − m)/(1/τ_t − m/τ_s) where τ_t < τ_s: the determinant of the map of
    (student, center), m(1 − η/τ_s) + η/τ_t, reaches 1 there. The two eigenvalues that leave the circle are complex: the
    mean swings about its center, ever wider. As λ → 1 it tends to the student's own limit, 2τ_s;
    with Sinkhorn's balance it is that with any teacher.

    Args:
        student_temp: τ_s.
        teacher_temp: τ_t.
        teacher_momentum: λ.
        center_momentum: m; None is Sinkhorn's balance.

    >>> options = {"student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.5}
    >>> round(critical_step(teacher_momentum=0.0, **options), 6)  # 0.5/(25 − 5)
    0.025
    """
    from scipy.optimize import brentq

    options = {"student_temp": student_temp, "teacher_temp": teacher_temp}
    options |= {"teacher_momentum": teacher_momentum, "center_momentum": center_momentum}

    def excess(log_eta: float) -> float:
        return float(np.abs(np.linalg.eigvals(mean_map(math.exp(log_eta), **options))).max() - 1 - 1e-12)

    grid = np.linspace(math.log(2e-6 * student_temp), math.log(100 * student_temp), 500)
    first = next((i for i, x in enumerate(grid) if excess(x) > 0), None)
    if first is None:
        return math.inf
    return math.exp(brentq(excess, grid[first - 1], grid[first], xtol=1e-12)) if first else 0.0


def hidden_lag(teacher_momentum: Number, center_momentum: Number) -> float:
    """C7: the share that must be below τ_t/τ_s for the mean to be stable at every learning rate, in continuous time.

    ε₁/(ε₁ + ε₂) ≤ τ_t/τ_s,   ε₁ = 1 − λ, ε₂ = 1 − m

    That is, a teacher slower than the center by the factor τ_s/τ_t − 1 hides the center's lag. With a faster teacher
    the mean is stable at small learning rates alone. It holds for ε₁, ε₂ ≪ 1; `critical_step` is exact.

    Proof: with A = η/τ_s and r = τ_t/τ_s the growth g of the mean solves (g + A)(g + ε₁)(g + ε₂) = (Aε₁/r) g. By Routh
    and Hurwitz it is stable iff A²(S − ε₁/r) + A S(S − ε₁/r) + S ε₁ε₂ > 0 with S = ε₁ + ε₂, which holds at every A iff
    S ≥ ε₁/r. The pair that turns unstable is complex; asking for real roots alone would give the weaker
    ε₁/(√ε₁ + √ε₂)² < r.

    Args:
        teacher_momentum: λ.
        center_momentum: m.

    Raises:
        ValueError: a momentum outside [0, 1]; both 1, where nothing moves.

    >>> round(hidden_lag(0.996, 0.9), 4)  # 0.004/0.104, of which τ_t/τ_s = 0.4 is ten times as much
    0.0385
    """
    _momenta(teacher_momentum=teacher_momentum, center_momentum=center_momentum)
    fast, slow = 1 - teacher_momentum, 1 - center_momentum
    _positive(rates=fast + slow)
    return float(fast / (fast + slow))


def direction_growth(
    eta: Values, rho: Values, *, student_temp: Number, teacher_temp: Number, teacher_momentum: Number
) -> np.floating | Float[np.ndarray, "*batch"]:
    """C8: the growth g of a direction's log scores in each step, in continuous time.

    g = [√((A + ε₁)² + 4Aε₁(χ − 1)) − A − ε₁]/2,   A = η/τ_s,   ε₁ = 1 − λ,   χ = ρ τ_s/τ_t

    The student's rate A and the teacher's ε₁ enter alike, and the slower sets the pace. With a fast teacher, A ≪ ε₁,
    g is η(ρ/τ_t − 1/τ_s), in proportion to the variance in η. With a slow one, A ≫ ε₁, it is ε₁(χ − 1), which the
    variance does not enter: a slow teacher whitens the race of the directions.

    Proof: a teacher that follows a student which grows by g is ε₁/(g + ε₁) of it, so that
    g = η[(ρ/τ_t) ε₁/(g + ε₁) − 1/τ_s], a quadratic equation. `direction_map` has it as its limit for small A, ε₁; with
    the teacher equal to the student, λ = 0, that map grows by the fast teacher's g, and this form does not apply.

    Args:
        eta: η, one or an array, below τ_s.
        rho: ρ, one or an array of that shape.
        student_temp: τ_s.
        teacher_temp: τ_t.
        teacher_momentum: λ < 1.

    >>> options = {"student_temp": 0.1, "teacher_temp": 0.05, "teacher_momentum": 0.9}
    >>> float(direction_growth(0.01, 1.0, **options).round(6))  # A = ε₁ = 0.1, χ = 2: (√0.08 − 0.2)/2
    0.041421
    """
    _positive(eta=eta)
    _momenta(teacher_momentum=teacher_momentum)
    chi = sharpened_consistency(rho, student_temp=student_temp, teacher_temp=teacher_temp)
    a, fast = np.asarray(eta, dtype=float) / student_temp, 1 - teacher_momentum
    return ((np.sqrt((a + fast) ** 2 + 4 * a * fast * (chi - 1)) - a - fast) / 2)[()]


def rate_isotropic(n: Count, d: Count, eps: Number) -> float:
    """D1: the mean coding rate of n independent uniform unit vectors, in nats.

    (d/2) [β log(1+s-F/4) + log(1+sβ-F/4) - F/(4s)]
    β = n/d,   s = α/n,   F = (√(1+s(1+√β)²) - √(1+s(1-√β)²))²

    This is the Shannon transform of the law of Marchenko and Pastur, asymptotic in n and d: it is within 0.5 % from
    d = 64 on, for n < d too. It is below `rate_maximum` (by Jensen's inequality): the rate of a sample is biased low.

    It is what training on batches of n can attain (B7, `attainable_rate`).

    Source: Tulino and Verdú 2004, Random matrix theory and wireless communications, eq. 1.14.

    >>> round(rate_isotropic(10**6, 4, 1.0), 4)  # a million features are as good as a tight frame: 2 log 2
    1.3863
    """
    s, beta = _alpha(d, eps) / n, n / d
    _counts(n=n)
    f = (math.sqrt(1 + s * (1 + math.sqrt(beta)) ** 2) - math.sqrt(1 + s * (1 - math.sqrt(beta)) ** 2)) ** 2
    return d / 2 * (beta * math.log(1 + s - f / 4) + math.log(1 + s * beta - f / 4) - f / (4 * s))


def isotropic_gradient(n: Count, d: Count, eps: Number) -> float:
    """D1: the Frobenius norm of ∇_Z R at n independent uniform unit vectors, to 1 % from d = 64 on.

    ‖∇R‖² = (2α/n) d²R/d(log α)²

    Proof: the sum in `rate_gradient` is a second derivative of the rate in log α. It is taken of `rate_isotropic`, by
    central differences.

    >>> round(isotropic_gradient(10**4, 4, 1.0), 3)  # close to that of a tight frame, 4/(100 · 2)
    0.02
    """
    h = 1e-2
    low, middle, high = (rate_isotropic(n, d, eps * math.exp(t / 2)) for t in (h, 0, -h))
    return math.sqrt(2 * _alpha(d, eps) / n * (low - 2 * middle + high)) / h


def eps_of_mean(eps: Number, cosine: Values) -> Number | Float[np.ndarray, "*batch"]:
    """D2: the ε at which unit vectors have the rate of the means (s + t)/2 of pairs of unit vectors with cosine c.

    ε sqrt(2/(1+c)),   -1 < c ≤ 1

    With it the closed forms hold for the mean, `rate_maximum(n, d, eps_of_mean(eps, c))` and so on. If the cosines
    differ, c is their mean. Then the maximum is a bound, and so is `rate_isotropic`, for directions that are isotropic
    and independent of the cosines.

    Proof: (sᵢ + tᵢ)/2 = sqrt(wᵢ) uᵢ with wᵢ = (1+cᵢ)/2 and ‖uᵢ‖ = 1, so that equal wᵢ scale α. Else trΓ is the mean of
    w, which is all that A1 uses; and E R is concave in w and symmetric, so that it is largest where the wᵢ are equal.

    Args:
        cosine: c, or an array of cosines.

    Raises:
        ValueError: for a cosine outside of (-1, 1].

    >>> float(eps_of_mean(0.5, -0.5))  # 0.5 sqrt(2/0.5)
    1.0
    """
    _positive(eps=eps)
    c = np.asarray(cosine, dtype=float)
    if not np.all((c > -1) & (c <= 1)):
        raise ValueError(f"cosine must lie in (-1, 1], got {cosine}")
    return eps * np.sqrt(2 / (1 + c))[()]


def mean_cosine_bound(rate: Values, n: Count, d: Count, eps: Number) -> Number | Float[np.ndarray, "*batch"]:
    """D2: the smallest mean cosine of pairs of unit vectors whose means (s + t)/2 can have this coding rate.

    2(r/α)(exp(2R/r) - 1) - 1,   r = min(n, d)

    Above 1 no unit vectors have that rate.

    Proof: solve R = `rate_maximum` at `eps_of_mean` for c.

    Args:
        rate: R in nats, or an array of rates.

    >>> round(float(mean_cosine_bound(math.log(2), 8, 2, 1.0)), 6)  # R* = log 2 needs s = t
    1.0
    """
    _counts(n=n)
    r = min(n, d)
    return 2 * r / _alpha(d, eps) * np.expm1(2 * np.asarray(rate, dtype=float) / r)[()] - 1


def white_noise_spectrum(n: Count, d: Count) -> Float[np.ndarray, " r"]:
    """D1: the spectrum that n independent isotropic unit vectors in d dimensions have on average.

    λᵢ = xᵢ/r,   xᵢ the quantile at (i − ½)/r of the Marchenko–Pastur law of ratio y = r/max(n, d)
    density √((x₊ − x)(x − x₋))/(2πyx),   x± = (1 ± √y)²

    Any function of a spectrum has its finite-sample reference at this one. Two of them have closed forms: the effective
    rank r·exp(−y/2), and the participation ratio 1/(1/n + 1/d). Asymptotic in d: within 1 % from d = 16 on.

    Returns:
        (r,) the r = min(n, d) eigenvalues, descending, with the sum 1.

    Source: Marchenko and Pastur 1967; the entropy in finite d, Page 1993.

    >>> lam = white_noise_spectrum(100, 100)
    >>> round(float(1 / (lam**2).sum()))  # participation ratio: 1/(1/100 + 1/100)
    50
    """
    _counts(n=n, d=d)
    r, y = min(n, d), min(n, d) / max(n, d)
    angle = (np.arange(100_000) + 0.5) * math.pi / 100_000
    x = 1 + y - 2 * math.sqrt(y) * np.cos(angle)  # from x₋ to x₊; in the angle, the density is smooth
    mass = np.cumsum(np.sin(angle) ** 2 / x)
    quantiles = np.interp((np.arange(r) + 0.5) / r, mass / mass[-1], x)[::-1]
    return quantiles / quantiles.sum()


def sampled_rate(spectrum: ArrayLike, n: Count, *, d: Count, eps: Number) -> float:
    """D1: the expected coding rate of n independent features whose population has this spectrum, in nats.

    ½ [Σ log(1 + αλᵢ/(1 + δ)) + n·log(1 + δ) − nδ/(1 + δ)],   δ = (1/n) Σ αλᵢ/(1 + αλᵢ/(1 + δ))

    It is always below the population's ½ Σ log(1 + αλᵢ). A flat spectrum gives `rate_isotropic`. Asymptotic in d: it is
    1 % above the mean of Gaussian features at n = d = 16, and 2 % above that of real unit features at n = d = 64.

    Args:
        spectrum: (k,) eigenvalues of the population's Γ, k ≤ d; zeros may be left out.
        d: the dimension of the features, for α.

    Source: Couillet and Debbah 2011, theorem 6.14 (the deterministic equivalent of a log-determinant).

    >>> round(sampled_rate([0.25] * 4, 10**6, d=4, eps=1.0), 4)  # a million features show their population: 2 log 2
    1.3863
    """
    a = _alpha(d, eps) * np.asarray(spectrum, dtype=np.float64)
    delta = _counted_twice(a, n)
    return float(np.log1p(a / (1 + delta)).sum() + n * math.log1p(delta) - n * delta / (1 + delta)) / 2


def gaussian_fourth_order(spectrum: ArrayLike) -> float:
    """D4: the mean fourth power of the inner product of two independent Gaussian features with this spectrum.

    E⟨x, y⟩⁴ = 3[(trΓ²)² + 2 trΓ⁴]

    It is what the second order says of the fourth, and any excess of real features is of higher order: groups of
    images. Features of unit norm have slightly less, 3/(d(d+2)) instead of 3(d+2)/d³ where they are isotropic.

    Proof: given x the product is normal with the variance xᵀΓx, so that E⟨x, y⟩⁴ = 3 E(xᵀΓx)², and xᵀΓx has the mean
    trΓ² and the variance 2 trΓ⁴.

    Args:
        spectrum: (k,) eigenvalues of Γ; zeros may be left out.

    >>> gaussian_fourth_order([1.0])  # (E g⁴)² of a standard normal g
    9.0
    """
    lam = np.asarray(spectrum, dtype=float)
    return float(3 * ((lam**2).sum() ** 2 + 2 * (lam**4).sum()))

"""Closed forms, one function per proposition: what should happen, in float64, computed without any of our own measures.

Notation: n unit-norm features of dimension d, Γ = ZᵀZ/n, α = d/ε² with the paper's ε, R(Γ) = ½ logdet(I + αΓ) in nats.
The first line of every docstring names its proposition; `PROPOSITIONS` lists them.
"""

import math

import numpy as np

PROPOSITIONS = {
    "A1": "the coding rate on the sphere is at most (r/2) log(1 + α/r)",
    "A2": "its maximizers form a manifold of known dimension",
    "A3": "every critical point that is not optimal has an ascent direction",
    "A4": "ε changes the conditioning of the optimum, not the optimum",
    "A5": "the gradient of the rate is bounded, and three rules for γ follow",
    "B1": "with unlimited capacity the minimum of the loss is -γR*",
    "B2": "mini-batches single out equiangular tight frames and designs",
    "B3": "a linear encoder fills its spectrum like water, and collapses at a threshold",
    "B4": "a stop-gradient teacher doubles γ, whatever its momentum",
    "B5": "modes grow one after another, in a time known in closed form",
    "B6": "total collapse is stable iff γα²/(1+α) < c·μ_min",
    "C1": "the cross-entropy of DINO is blind to collapse",
    "C2": "patch-collapsed networks are global optima of SimDINOv2, unless the patches have a rate of their own",
    "C3": "optima of the neighboring losses",
    "D1": "the rate of n isotropic samples follows Marchenko-Pastur",
    "D2": "the rate of (student + teacher)/2 is that of unit vectors at a larger ε",
    "E1": "whose rate it is decides whether a stop-gradient doubles γ, for every network",
    "E2": "the trace of the Hessian is one number on the whole optimal set, shared equally by projective 2-designs",
}


def _counts(**values):
    for name, value in values.items():
        if value != int(value) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value}")


def _positive(**values):
    for name, value in values.items():
        if not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _alpha(d, eps):
    _counts(d=d)
    _positive(eps=eps)
    return d / eps**2


def rate_maximum(n, d, eps, *, center=False):
    """A1: the largest coding rate of n unit vectors in d dimensions, R* = (r/2) log(1 + α/r), r = min(n, d), in nats.

    Proof: R is a symmetric strictly concave function of the eigenvalues of Γ, of which at most r are nonzero and whose
    sum is 1, so equal eigenvalues 1/r win. Attained by orthonormal rows (n ≤ d) and unit-norm tight frames (n ≥ d).
    center=True bounds the centered covariance: r = min(n-1, d), attained by the regular simplex for n ≤ d+1. Beyond,
    the bound needs a tight frame of mean zero, of which none exists for odd n if d = 1 (±1 cannot sum to zero) or
    d = n-2 (its complement among the zero-sum vectors would have d = 1): there the bound is strict.
    """
    alpha = _alpha(d, eps)
    _counts(n=n)
    rank = min(n - 1, d) if center else min(n, d)
    return 0.5 * rank * math.log1p(alpha / rank) if rank else 0.0


def rate_collapsed(d, eps):
    """A1: the coding rate of totally collapsed unit features, ½ log(1 + α), the smallest value on the sphere, in nats.

    Proof: Γ = uuᵀ has the single eigenvalue 1; R is concave in the spectrum, so it is smallest at a vertex.
    """
    return 0.5 * math.log1p(_alpha(d, eps))


def optimal_set_dimension(n, d, *, modulo_rotations=False):
    """A2: the dimension of the set of maximizers of R, which is the nullity of the Hessian at a generic one.

    n ≤ d: the Stiefel manifold, nd - n(n+1)/2, one single orbit of the rotations.
    n > d: n(d-1) free parameters minus the d(d+1)/2 - 1 equations Γ = I/d; modulo rotations (n-d-1)(d-1).
    Proof: at the optimum R'' = -½ k² ‖dΓ‖² with k = α/(1+α/d), so the nullity is that of the map V -> dΓ, which
    is onto the symmetric traceless matrices unless the frame splits into mutually orthogonal parts.
    """
    _counts(n=n, d=d)
    if n <= d:
        return 0 if modulo_rotations else n * d - n * (n + 1) // 2
    return (n - d - 1) * (d - 1) if modulo_rotations else n * (d - 1) - (d * (d + 1) // 2 - 1)


def saddle_curvature(n1, d1, n2, d2, eps):
    """A3: the positive Hessian eigenvalue of R, and its multiplicity, at a saddle of two orthogonal tight frames.

    n_k points are a tight frame of a d_k-dimensional subspace, with density λ_k = n_k/(n d_k) and λ1 > λ2:
    κ = (α/n)(1/(1+αλ2) - 1/(1+αλ1)), multiplicity (n1 - d1) d2, and no other eigenvalue is positive.
    Proof: take Σ a_i z_i = 0 in group 1 and move z_i by a_i e with e in subspace 2. Γ does not move to first order, so
    only the gradient's term is left: mass leaves eigenvalue λ1 for λ2. Moves inside the span of group 1 pair
    with those of group 2 into -(α²/n)(√λ2 x + √λ1 y)²/((1+αλ1)(1+αλ2)) ≤ 0.
    """
    _counts(n1=n1, d1=d1, n2=n2, d2=d2)
    if n1 < d1 or n2 < d2 or n1 * d2 <= n2 * d1:
        raise ValueError("a saddle needs n1 >= d1, n2 >= d2 and the larger density n1/d1 > n2/d2 in the first group")
    n, alpha = n1 + n2, _alpha(d1 + d2, eps)
    low, high = n2 / (n * d2), n1 / (n * d1)
    return alpha**2 * (high - low) / (n * (1 + alpha * low) * (1 + alpha * high)), (n1 - d1) * d2


def spectral_curvature(n, d, eps):
    """A4: -d²R/dt² at the optimum when its r nonzero eigenvalues move by t v with ‖v‖ = 1 and Σv = 0: ½(α/(1+α/r))².

    Proof: differentiate ½ Σ log(1 + αλ_i) twice at λ_i = 1/r. It is α²/2 for α -> 0 (the frame potential:
    R ≈ (α/2) tr Γ - (α²/4) ‖Γ‖²) and r²/2 for α -> ∞ (the log-volume ½ Σ log λ_i): one optimum, two conditionings.
    """
    rank = min(n, d)
    return 0.5 * (_alpha(d, eps) / (1 + _alpha(d, eps) / rank)) ** 2


def hessian_trace(n, d, eps):
    """E2: the trace of the Riemannian Hessian of R at any maximizer, in nats; the same for all of them.

    n ≤ d: n(n-1)/2 eigenvalues, all equal to -2 (α/(n+α))². n ≥ d: the trace is -(d-1)/n (α/(1+α/d))², shared
    equally by d(d+1)/2 - 1 eigenvalues iff the frame is a projective 2-design.
    Proof: R'' = -½k²‖dΓ‖²; the adjoint of V -> dΓ sends S to (2/n) (z_iᵀS - (z_iᵀSz_i) z_iᵀ), whose squared norm summed
    over an orthonormal basis of traceless symmetric S is 2(d-1)/n.
    """
    alpha = _alpha(d, eps)
    _counts(n=n)
    if n <= d:
        return -n * (n - 1) * (alpha / (n + alpha)) ** 2
    return -(d - 1) / n * (alpha / (1 + alpha / d)) ** 2


def gradient_bound(n, d, eps):
    """A5: the largest Frobenius norm of ∇_Z R over all (n, d) matrices Z, ½ sqrt(α r / n), r = min(n, d).

    Proof: ∇R = (α/n) Z (I + αΓ)⁻¹ has singular values sqrt(α/n) x/(1+x²) with x = σ sqrt(α/n), at most ½ sqrt(α/n)
    each; equality iff all r singular values of Z satisfy σ² = n/α, which unit vectors do only if α = r.
    """
    alpha = _alpha(d, eps)
    _counts(n=n)
    return 0.5 * math.sqrt(alpha * min(n, d) / n)


def rate_gradient(spectrum, n, eps):
    """A5: the Frobenius norm of ∇_Z R from the d eigenvalues λ of Γ, (α/√n) sqrt(Σ λ/(1+αλ)²).

    At A1's optimum it is α/(√n (1 + α/r)): for α ≫ r far below `gradient_bound`, by 2 sqrt(r/α).
    Proof: ∇R = (α/n) Z (I + αΓ)⁻¹ and ZᵀZ = nΓ.
    """
    spectrum = np.asarray(spectrum, dtype=float)
    alpha = _alpha(len(spectrum), eps)
    _counts(n=n)
    return alpha / math.sqrt(n) * math.sqrt((spectrum / (1 + alpha * spectrum) ** 2).sum())


def alignment_gradient(alignment, n):
    """A5: the Frobenius norm of the gradient of A = mean ½‖z_i - t_i‖² of n features and their targets, sqrt(2A/n).

    At most 2/√n on the sphere, where A ≤ 2. Proof: the rows of the gradient are (z_i - t_i)/n.
    """
    _counts(n=n)
    return np.sqrt(2 * np.asarray(alignment, dtype=float) / n)


def gamma_rules(n, d, eps):
    """A5: three weights of the expansion term as a dict: "balanced", "bounded" (both up to a factor) and "official".

    balanced ε/sqrt(d r): the bound on ‖∇R‖ equals the alignment's 2/√n up to the factor 4.
    bounded ε sqrt(n/(d r)): the paper's scale, γ‖∇R‖ of order one: at most ½, so that twice as much is at most 1.
    official (d+n)/(dn): the code's heuristic.
    """
    _alpha(d, eps)
    _counts(n=n)
    balanced = eps / math.sqrt(d * min(n, d))
    return {"balanced": balanced, "bounded": balanced * math.sqrt(n), "official": (d + n) / (d * n)}


def loss_minimum(n, d, eps, gamma):
    """B1: the smallest value of the loss with unlimited capacity, -γR*: zero alignment cost and any optimal set of A1.

    Proof: the two terms are bounded separately and both bounds hold at once when all views of image i map to u_i.
    """
    return -gamma * rate_maximum(n, d, eps)


def pair_rate(c, d, eps):
    """B2: the rate of a batch of two unit vectors with cosine c, ½ log((1+α/2)² - (α/2)² c²), in nats.

    Proof: Γ has the eigenvalues (1 ± c)/2. It is concave and decreasing in c².
    """
    half = _alpha(d, eps) / 2
    return 0.5 * np.log((1 + half) ** 2 - (half * np.asarray(c, dtype=float)) ** 2)


def pair_rate_maximum(n, d, eps):
    """B2: upper bound of the mean rate over all pairs of n points, attained iff they are an equiangular tight frame.

    The value is `pair_rate` at c² = (n-d)/(d(n-1)) (0 for n ≤ d). Proof: Jensen in c², then Welch for the mean of c².
    """
    return float(pair_rate(welch_coherence(n, d), d, eps))


def even_potential_weights(b, d, eps, orders):
    """B2: weights w_k of the even frame potentials in the two-body part of the mean rate of batches of b points.

    mean R = (b/2) log(1+α/b) - Σ_k w_k mean c^{2k} + (three-body and more), w_k = b(b-1)/2 · s^{2k}/(2k), s = α/(α+b).
    Proof: expand ½ logdet(I + sO), O the off-diagonal Gram, over pairs: ½ log(1 - s²c²). s falls with b, and the high
    orders with it. Exact for b = 2. For b ≥ 3 cyclic products enter, s³ c_ij c_jk c_ki first, which no frame potential
    fixes: three lines at 60° in a plane and three vectors with all c = ½ share every |c| but not R. On tight frames
    the batches of n-1 see nothing new (Γ loses one z_i z_iᵀ/n, whatever z_i is): only b ≤ n-2 changes the optimum.
    """
    s, k = _alpha(d, eps) / (_alpha(d, eps) + b), np.asarray(orders)
    _counts(b=b)
    return b * (b - 1) / 2 * s ** (2 * k) / (2 * k)


def welch_coherence(n, d):
    """B2: the smallest possible largest |cosine| of n unit vectors, by Welch: sqrt((n-d)/(d(n-1))), 0 for n ≤ d.

    Proof: ‖Γ‖² ≥ 1/d bounds the mean of c² from below, hence the maximum. Equality iff equiangular and tight, which
    in real space needs n ≤ d(d+1)/2.
    """
    _counts(n=n, d=d)
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


def orthoplex_coherence(n, d):
    """B2: the orthoplex bound on the largest |cosine|, 1/√d, valid for n > d(d+1)/2 (ValueError otherwise).

    Proof: z -> zzᵀ - I/d puts n points on a sphere of dimension d(d+1)/2 - 1; more than that + 1 of them cannot all
    have negative inner products c² - 1/d (Rankin).
    """
    _counts(n=n, d=d)
    if n <= d * (d + 1) / 2:
        raise ValueError(f"the orthoplex bound needs n > d(d+1)/2 = {d * (d + 1) // 2}, got n={n}")
    return 1 / math.sqrt(d)


def frame_potential_minimum(n, d, order=2):
    """C3: lower bound of the frame potential mean_{ij} c_ij^p of even order p, self pairs included.

    max over the bounds 1/n (self pairs), Π_{j<p/2} (2j+1)/(d+2j) (uniform measure; equality iff a projective p-design).
    For p = 2 it is 1/min(n, d), attained by A1's optima. `frames.frame_potential_bound` is the same without self pairs.
    Proof: even potentials are positive definite (Sidelnikov).
    """
    _counts(n=n, d=d, order=order)
    if order % 2:
        raise ValueError(f"order, the exponent of the cosines, must be even, got {order}")
    return max(1 / n, math.prod((2 * j + 1) / (d + 2 * j) for j in range(order // 2)))


def water_level(mu, gamma, alpha, d, *, norm):
    """B3: the multiplier ν that makes the powers of `water_filling` sum to `norm`.

    The total is continuous and decreasing in ν, from the level where the first mode alone has it all to the one
    where no mode is left: a bracketed root. ν < 0 where the free total is below `norm`.
    """
    from scipy.optimize import brentq

    _positive(norm=norm)
    mu = _modes(mu, gamma, alpha, d)
    low, high = gamma / (2 * (norm + 1 / alpha)) - mu[0], gamma * alpha / 2 - mu[0]
    if len(mu) == 1:
        return low
    excess = lambda nu: np.maximum(gamma / (2 * (mu + nu)) - 1 / alpha, 0).sum() - norm  # noqa: E731
    return low if excess(low) <= 0 else brentq(excess, low, high, xtol=1e-15 * (1 + abs(low)), rtol=1e-15)


def _modes(mu, gamma, alpha, d):
    _counts(d=d)
    _positive(gamma=gamma, alpha=alpha)
    mu = np.asarray(mu, dtype=float)
    if mu.ndim != 1 or not len(mu) or not np.all(np.isfinite(mu)) or mu.min() < 0:
        raise ValueError("mu must be a non-empty vector of finite, non-negative generalized eigenvalues")
    return np.sort(mu)[:d]


def water_filling(mu, gamma, alpha, d, *, norm=None):
    """B3: optimal powers of a linear encoder's modes, p_i = [γ/(2(μ_i + ν)) - 1/α]₊ for the d smallest μ_i, else 0.

    mu (m,): generalized eigenvalues of (Σ_a, Σ), the share of a mode's variance that differs between views; the answer
    is in the same order. norm=None: ν = 0, and a mode is dead exactly when μ_i ≥ γα/2 (`collapse_threshold`); μ_i = 0
    gets inf. norm=1: E‖z‖² = 1, ν from `water_level`.
    Proof: in the modes' basis the loss is Σ μ_i p_i - (γ/2) log(1 + αp_i), convex in p ≥ 0; set its derivative to -ν.
    Features that are free functions on finitely many views are linear in the one-hot code of the view: then μ are the
    eigenvalues of the normalized Laplacian of the augmentation graph (`linear.graph_problem`). The constant has μ = 0,
    so the uncentered rate spends its largest share on the mean: with norm=1, ‖E z‖² = p_0 ≥ 1/d, the mean collapse.
    """
    kept = _modes(mu, gamma, alpha, d)
    nu = 0.0 if norm is None else water_level(mu, gamma, alpha, d, norm=norm)
    powers = np.zeros(len(mu))
    with np.errstate(divide="ignore"):
        powers[np.argsort(mu, kind="stable")[:d]] = np.maximum(gamma / (2 * (kept + nu)) - 1 / alpha, 0)
    return powers


def collapse_threshold(gamma, alpha):
    """B3: the μ at and above which a mode is dead in the free problem, γα/2 (subtract ν under a norm constraint)."""
    _positive(gamma=gamma, alpha=alpha)
    return gamma * alpha / 2


def effective_gamma(gamma, *, rate_of="student"):
    """E1: the γ at which the joint loss, both views with gradients, has the critical points of self-distillation at γ.

    2γ if the rate is the student's; γ itself if it is that of (student + teacher)/2, the default of the official code
    (`expa_type=1`): there a stop-gradient changes nothing but the speed. For every network and batch without local
    crops (views that only the student sees). B3's threshold, B5 and B6 (c = 2γ/effective γ) follow.
    Proof: where teacher = student, ½‖s_i - t_j‖² + ½‖s_j - t_i‖² passes half of its joint gradient on, each view being
    a target once; so does the rate of the mean, as ∂(s+t)/2 = ½∂s, while the student's rate passes all. Hence
    ∇L(γ) = ½∇J(effective γ): one flow at two speeds, and one path of an optimizer that no factor moves (Adam).
    """
    if rate_of not in ("student", "mean"):
        raise ValueError(f"rate_of must be 'student' or 'mean', not {rate_of!r}")
    return gamma * (2 if rate_of == "student" else 1)


def distillation_fixed_point(mu, gamma, alpha, d, *, norm=None, rate_of="student"):
    """B4: the powers where self-distillation with a stop-gradient teacher rests: `water_filling` at `effective_gamma`.

    Proof: with teacher = student the alignment's gradient in W is WΣ_a, half of that of the joint loss, so the fixed
    point is WΣ_a = γα(I+αΓ)⁻¹WΣ. The momentum of the teacher does not enter.
    """
    return water_filling(mu, effective_gamma(gamma, rate_of=rate_of), alpha, d, norm=norm)


def mode_velocity(p, mu, gamma, alpha, *, stop_gradient=True):
    """B5: dp/dt = 2p (γα/(1+αp) - cμ) of one mode under gradient flow; c = 1 with stop-gradient, else 2.

    Proof: with whitened inputs, Σ = I, the columns of W in the eigenbasis of Σ_a follow
    dw_i/dt = γα(I+αWWᵀ)⁻¹w_i - cμ_i w_i. If orthogonal they stay so, the inverse is 1/(1+αp_i) on w_i, and
    p_i = ‖w_i‖². Otherwise modes that share an output direction compete for it.
    """
    return 2 * p * (gamma * alpha / (1 + alpha * p) - (1 if stop_gradient else 2) * mu)


def mode_time(start, end, mu, gamma, alpha, *, stop_gradient=True):
    """B5: the time that a mode takes from power `start` to `end` (both on one side of the rest power), exactly.

    t = ½ [log p / A - (1/A + α/B) log|A - Bp|] between the two, A = γα - cμ, B = cμα; rest power A/B; e-folding 1/(2A).
    Proof: partial fractions of dp/`mode_velocity`. Smaller μ, larger A: the modes escape one after another.
    """
    _positive(start=start, end=end, mu=mu, gamma=gamma, alpha=alpha)
    c = 1 if stop_gradient else 2
    a, b = gamma * alpha - c * mu, c * mu * alpha
    if (a - b * start) * (a - b * end) <= 0:
        raise ValueError(f"start and end must be on the same side of the rest power {a / b}")
    return 0.5 * (math.log(end / start) / a - (1 / a + alpha / b) * math.log((a - b * end) / (a - b * start)))


def collapse_number(d, eps, gamma):
    """B6: the collapse number χ = γα²/(1+α); total collapse is linearly stable iff χ < c·μ_min.

    μ_min is the smallest share of variance that differs between views. c = 1 with a stop-gradient teacher, 2 without;
    and 2 with one if the rate is taken of (student + teacher)/2, whose gradient is halved as the alignment's is (E1).
    Proof: a spread of variance s around u changes R by ½ log((1+α(1-s))/(1+α)) + ½ αs ≈ ½ s α²/(1+α) and costs the
    alignment μs, whose gradient the stop-gradient halves. A batch of n sees its own variance only: χ(1 - 1/n).
    """
    alpha = _alpha(d, eps)
    if not (np.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and not negative, got {gamma}")
    return gamma * alpha**2 / (1 + alpha)


def reported_runs():
    """B6: runs of the official code, {label: (χ, whether it collapsed)}: ranks × images a rank, issue of its tracker.

    All with d = 256, eps = 0.05, which is ε²/ranks as the covariance is not gathered, and the code's γ.
    """
    reported = {
        "1 × 24 (#12)": (1, 24, False),
        "2 × 256 (#48)": (2, 256, False),
        "8 × 64 (README)": (8, 64, False),
        "8 × 128 (v2)": (8, 128, False),
        "16 × 64, collapsed (#29)": (16, 64, True),
        "32 × 78, collapsed (#20)": (32, 78, True),
    }
    return {
        label: (collapse_number(256, math.sqrt(0.05 * ranks), gamma_rules(ranks * n, 256, 1.0)["official"]), died)
        for label, (ranks, n, died) in reported.items()
    }


def collapse_spread(rate, d, eps):
    """B6: the variance s of unit features around their mean that a rate next to `rate_collapsed` tells of.

    Proof: R ≈ R_collapsed + ½ s α²/(1+α) to first order in s ≪ 1/α, as in `collapse_number`.
    """
    alpha = _alpha(d, eps)
    return 2 * (np.asarray(rate, dtype=float) - rate_collapsed(d, eps)) * (1 + alpha) / alpha**2


def cross_entropy_parts(teacher, student):
    """C1: the pair H(q), KL(q‖p) of mean entropy and divergence in nats, which sum to the cross-entropy of DINO.

    teacher q, student p: (n, K) rows of probabilities. Both parts vanish for p = q one-hot, whether the rows are all
    equal (total collapse) or all different (spread): the infimum 0 cannot tell them apart.
    """
    q, p = np.asarray(teacher, dtype=float), np.asarray(student, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(q > 0, q * np.log(q), 0).sum(-1).mean()
        divergence = np.where(q > 0, q * np.log(q / p), 0).sum(-1).mean()
    return float(entropy), float(divergence)


def patch_loss_minimum(n, d, eps, gamma, *, patch_gamma=0.0, masked=()):
    """C2: the smallest value of SimDINOv2's loss, -γR*(n) - patch_gamma (mean_c R*(m_c) + R*(C)), R* of `rate_maximum`.

    n images a view; masked: the numbers m_c ≤ d of masked patches of the C crops that have any. With patch_gamma = 0 it
    is `loss_minimum`, reached with any tokens that teacher and student agree on, constant ones included. With
    patch_gamma > 0 constant tokens, whose two rates are `rate_collapsed`, cost what these lack, and are no optimum.
    Proof: every term is bounded separately, and all bounds hold at once: tokens of a crop are orthonormal, and as their
    mean is not zero, each crop's set can be turned so that the means of the crops form a tight frame, too.
    """
    if not len(masked):
        return loss_minimum(n, d, eps, gamma)
    within = np.mean([rate_maximum(m, d, eps) for m in masked])
    return loss_minimum(n, d, eps, gamma) - patch_gamma * float(within + rate_maximum(len(masked), d, eps))


def nuclear_norm_maximum(n, d):
    """C3: the largest nuclear norm of n unit vectors (MMCR), sqrt(n·min(n, d)), at A1's optima (Cauchy-Schwarz)."""
    _counts(n=n, d=d)
    return math.sqrt(n * min(n, d))


def uniformity_minimum(n, d, *, t=2.0):
    """C3: the smallest log mean_{i≠j} exp(-t‖z_i - z_j‖²) where it is known, else nan.

    n ≤ d+1: -2tn/(n-1), the simplex (Jensen). n = 2d: the cross-polytope, n = 12 in d = 3: the icosahedron, which are
    universally optimal (Cohn and Kumar 2007).
    """
    _counts(n=n, d=d)
    if 2 <= n <= d + 1:
        return -2 * t * n / (n - 1)
    if n == 2 * d:
        return math.log((math.exp(-4 * t) + (n - 2) * math.exp(-2 * t)) / (n - 1))
    near, far = (math.exp(-2 * t * (1 - c / math.sqrt(5))) for c in (1, -1))
    return math.log((5 * near + 5 * far + math.exp(-4 * t)) / 11) if (n, d) == (12, 3) else math.nan


def koleo_minimum(n, d):
    """C3: the smallest -mean log min_{j≠i} ‖z_i - z_j‖, -½ log(2n/(n-1)) for 2 ≤ n ≤ d+1 (simplex); else nan."""
    _counts(n=n, d=d)
    return -0.5 * math.log(2 * n / (n - 1)) if 2 <= n <= d + 1 else math.nan


def vicreg_minimum(n, d, *, variance=25.0):
    """C3: the smallest VICReg energy of n ≥ d+1 unit vectors, variance · (1 - √(n/((n-1)d) + 1e-4)); else nan.

    Proof: the variances sum to at most n/(n-1) and √ is concave. Attained by tight frames of mean zero (`rate_maximum`
    says for which n there are none).
    """
    _counts(n=n, d=d)
    return variance * max(0.0, 1 - math.sqrt(n / ((n - 1) * d) + 1e-4)) if n > d else math.nan


def wmse_minimum(n, d):
    """C3: the smallest `energies.wmse_energy` of n ≥ d+1 unit vectors, 2d; nan for fewer, which cannot be whitened.

    Proof: tr C⁻¹ ≥ d²/tr C and tr C ≤ 1, with equality for tight frames of mean zero.
    """
    _counts(n=n, d=d)
    return 2.0 * d if n > d else math.nan


def infonce_minimum(n, d, *, temp=0.1):
    """C3: the smallest mean_i log mean_{j≠i} exp((⟨z_i, z_j⟩-1)/τ): -n/((n-1)τ) for 2 ≤ n ≤ d+1 (simplex); else nan."""
    _counts(n=n, d=d)
    return -n / ((n - 1) * temp) if 2 <= n <= d + 1 else math.nan


def rate_isotropic(n, d, eps):
    """D1: the mean rate of n independent uniform unit vectors, in nats: the Shannon transform of Marchenko and Pastur.

    (d/2)[β log(1+s-F/4) + log(1+sβ-F/4) - F/(4s)], β = n/d, s = α/n, F = (√(1+s(1+√β)²) - √(1+s(1-√β)²))².
    Asymptotic in n and d, within 0.5 % from d = 64 on, n < d too. It is below `rate_maximum` (Jensen): the rate of a
    sample is biased low. Source: Tulino and Verdú 2004, Random matrix theory and wireless communications.
    """
    s, beta = _alpha(d, eps) / n, n / d
    _counts(n=n)
    f = (math.sqrt(1 + s * (1 + math.sqrt(beta)) ** 2) - math.sqrt(1 + s * (1 - math.sqrt(beta)) ** 2)) ** 2
    return d / 2 * (beta * math.log(1 + s - f / 4) + math.log(1 + s * beta - f / 4) - f / (4 * s))


def isotropic_gradient(n, d, eps):
    """D1: the Frobenius norm of ∇_Z R at n independent uniform unit vectors, to 1 % from d = 64 on.

    Proof: the sum in `rate_gradient` is a second derivative of the rate in log α, ‖∇R‖² = (2α/n) d²R/d(log α)², which
    is taken of `rate_isotropic` by central differences.
    """
    h = 1e-2
    low, middle, high = (rate_isotropic(n, d, eps * math.exp(t / 2)) for t in (h, 0, -h))
    return math.sqrt(2 * _alpha(d, eps) / n * (low - 2 * middle + high)) / h


def eps_of_mean(eps, cosine):
    """D2: the ε at which unit vectors have the rate of (s + t)/2 with cosine c of s_i and t_i: ε sqrt(2/(1+c)), c > -1.

    With it the closed forms hold for the mean, `rate_maximum(n, d, eps_of_mean(eps, c))` and so on. If the cosines
    differ, c is their mean; then the maximum is a bound, and so is `rate_isotropic`, for directions that are isotropic
    and independent of the cosines.
    Proof: (s_i + t_i)/2 = sqrt(w_i) u_i, w_i = (1+c_i)/2 and ‖u_i‖ = 1, so that equal w_i scale α. Else trΓ is the mean
    of w, all that A1 uses; and E R is concave in w and symmetric, so largest where the w_i are equal.
    """
    _positive(eps=eps)
    c = np.asarray(cosine, dtype=float)
    if not np.all((c > -1) & (c <= 1)):
        raise ValueError(f"cosine must lie in (-1, 1], got {cosine}")
    return eps * np.sqrt(2 / (1 + c))[()]


def mean_cosine_bound(rate, n, d, eps):
    """D2: the smallest mean cosine of s_i and t_i with which (s + t)/2 can have a rate: 2(r/α)(exp(2R/r) - 1) - 1.

    Proof: solve R = `rate_maximum` at `eps_of_mean` for c. Above 1 no unit vectors have that rate; r = min(n, d).
    """
    _counts(n=n)
    r = min(n, d)
    return 2 * r / _alpha(d, eps) * np.expm1(2 * np.asarray(rate, dtype=float) / r)[()] - 1


def white_noise_spectrum(n, d):
    """Spectrum that n independent isotropic unit vectors in d dimensions have on average: r = min(n, d) quantiles.

    λ = x/r, x the quantiles at (i − ½)/r of the Marchenko–Pastur law of ratio y = r/max(n, d): density
    √((x₊ − x)(x − x₋))/(2πyx), x± = (1 ± √y)². Descending, Σλ = 1.

    Any function of a spectrum has its finite-sample reference at it; two of them in closed form: effective rank
    r·exp(−y/2), participation ratio 1/(1/n + 1/d). Asymptotic in d: within 1 % from d = 16 on.

    Source: Marchenko & Pastur 1967; the entropy in finite d, Page 1993.
    """
    if n < 1 or d < 1:
        raise ValueError(f"white_noise_spectrum needs n >= 1 and d >= 1, got n={n}, d={d}")
    r, y = min(n, d), min(n, d) / max(n, d)
    angle = (np.arange(100_000) + 0.5) * math.pi / 100_000
    x = 1 + y - 2 * math.sqrt(y) * np.cos(angle)  # from x₋ to x₊; in the angle, the density is smooth
    mass = np.cumsum(np.sin(angle) ** 2 / x)
    quantiles = np.interp((np.arange(r) + 0.5) / r, mass / mass[-1], x)[::-1]
    return quantiles / quantiles.sum()


def sampled_rate(spectrum, n, *, d, eps):
    """Expected coding rate of n independent features in d dimensions whose population has this spectrum (d,), in nats.

    ½[Σ log(1 + αλᵢ/(1 + δ)) + n·log(1 + δ) − nδ/(1 + δ)],  δ = (1/n) Σ αλᵢ/(1 + αλᵢ/(1 + δ)),  α = d/ε².

    Always below the population's ½ Σ log(1 + αλᵢ). A flat spectrum gives `rate_isotropic`. Asymptotic in d:
    1 % above the mean of Gaussian features at d = 16, 2 % above that of real unit features at n = d = 64.

    Source: Couillet & Debbah 2011, theorem 6.14 (the deterministic equivalent of a log-determinant).
    """
    from scipy.optimize import brentq

    a = _alpha(d, eps) * np.asarray(spectrum, dtype=np.float64)
    delta = brentq(lambda x: x - (a / (1 + a / (1 + x))).sum() / n, 0, a.sum() / n)
    return float(np.log1p(a / (1 + delta)).sum() + n * math.log1p(delta) - n * delta / (1 + delta)) / 2

"""A small world of DINO's loss: scores that are linear in white features.

Temperatures, momenta and the center mean what they mean in `simdino.losses.dino_loss`. Nothing here knows the
predictions of `theory`.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import softmax


def linear_scores(
    variances: Float[np.ndarray, " d"],
    rho: Float[np.ndarray, " d"],
    *,
    rate: float,
    student_temp: float,
    teacher_temp: float,
    teacher_momentum: float,
    center_momentum: float,
    prototypes: int = 8,
    steps: int = 100,
    size: float = 1e-7,
    seed: int = 0,
) -> Float[np.ndarray, "t d+1"]:
    """Descend DINO's loss of two views by the full gradient, with scores that are linear in features, from tiny scores.

    s = Wx,   x = (1, √v·(√ρ·shared + √(1−ρ)·own))

    The first direction is the mean, which all images share. The others are white and uncorrelated in the sample, of the
    variance v and the consistency ρ.

    Args:
        variances: (d,) v of each direction.
        rho: (d,) ρ of each.
        rate: the learning rate.
        student_temp: τ_s.
        teacher_temp: τ_t.
        teacher_momentum: λ; 0 is a teacher that equals the student.
        center_momentum: m.
        prototypes: K.
        steps: of the descent.
        size: of the initial weights.
        seed: of features and weights.

    Returns:
        (steps + 1, d + 1) the norm of the student's scores of each direction, the mean first, for unit features.
    """
    rng, d = np.random.default_rng(seed), len(variances)
    n = 4 * (3 * d + 1)
    parts = np.linalg.qr(np.column_stack([np.ones(n), rng.standard_normal((n, 3 * d))]))[0][:, 1:] * n**0.5
    shared, own = parts[:, :d], (parts[:, d : 2 * d], parts[:, 2 * d :])
    root, scale = np.sqrt(rho), np.sqrt(variances)
    views = [np.column_stack([np.ones(n), scale * (root * shared + np.sqrt(1 - rho) * e)]) for e in own]
    student = rng.standard_normal((prototypes, d + 1)) * size
    student -= student.mean(0)
    teacher, center, sizes = student.copy(), np.zeros(prototypes), [np.linalg.norm(student, axis=0)]
    for _ in range(steps):
        scores = [x @ teacher.T for x in views]
        gradient = np.zeros_like(student)
        for x, t in zip(views, scores[::-1], strict=True):
            q = softmax((t - center) / teacher_temp, axis=1)
            p = softmax(x @ student.T / student_temp, axis=1)
            gradient += (p - q).T @ x / (2 * n * student_temp)
        center = center_momentum * center + (1 - center_momentum) * np.mean(scores, axis=(0, 1))
        student = student - rate * gradient
        teacher = teacher_momentum * teacher + (1 - teacher_momentum) * student
        sizes.append(np.linalg.norm(student, axis=0))
    return np.array(sizes)

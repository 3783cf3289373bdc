"""What to look at next, in sentences, from the judgements of a report and the numbers of a run."""

import math
from collections.abc import Mapping

from .judgement import Judgement

ADVICE = {
    Judgement.MEAN_COLLAPSE: (
        "most of the energy is one common direction. If a loss sees these features, give its expansion more weight "
        "(`simdino preflight` says how much; notebook 08). If they are a residual stream, read them after the final "
        "norm (notebook 15)."
    ),
    Judgement.DIMENSIONAL_COLLAPSE: (
        "a few directions carry most of the energy. Look at the spectrum beside white noise: a power law is what "
        "natural images give, a cliff is an expansion too weak for the augmentation (notebook 06)."
    ),
    Judgement.CLASS_COLLAPSE: (
        "within a class the features agree up to ε, so that only the label is left. Probe another task before you call "
        "it good."
    ),
    Judgement.VIEW_PROBLEM: (
        "augmentation moves the features more than content does: milder crops and colors, or more steps."
    ),
    Judgement.TOO_FEW_SAMPLES: "there are fewer samples than dimensions, and no rank above their number can be seen.",
}
NOTHING = "Nothing stands out. Repeat it with other seeds: the spread between them is the error that counts."


def next_steps(
    judged: Mapping[str, tuple[Judgement, int, int]], facts: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """What to look at next: a sentence for each set of features that is not healthy, for few samples, and for a run.

    Args:
        judged: of each set of features its judgement, number of samples n and dimension d.
        facts: of a run: knn, knn_untrained and knn_pixels (accuracies on `images` images, NaN without classes),
            spread and spread_halfway (where the rate of batches is between total collapse, 0, and isotropy, 1, at the
            end and halfway), alignment ½E‖z − z′‖² of the head; pull, if it is SimDINO: the norm of the expansion's
            gradient over the alignment's, at the features; and patches, only for objectives with patches: of the patch
            energy that is not common to all, the share that neither position nor image explains (`token_shares`).

    >>> next_steps({"features": (Judgement.HEALTHY, 1000, 10)})[0][:22]
    'Nothing stands out. Re'
    """
    found = [f"{name}: {ADVICE[judgement]}" for name, (judgement, _, _) in judged.items() if judgement in ADVICE]
    n, d = min(((n, d) for _, n, d in judged.values()), key=lambda size: size[0] / size[1])
    if n < 10 * d:
        found.append(
            f"n/d is {n / d:.2g}: ranks and rates read low. Read white noise of the same size beside them, "
            f"or take {10 * d} samples (notebook 04)."
        )
    found += _of_run(facts) if facts else []
    return tuple(found or [NOTHING])


def _of_run(facts: Mapping[str, float]) -> list[str]:
    found, knn, spread = [], facts["knn"], facts["spread"]
    error = 2 * math.sqrt(max(knn * (1 - knn), 0.01) / facts["images"])
    for name, says in (("untrained", "the untrained network"), ("pixels", "raw pixels")):
        if knn <= facts[f"knn_{name}"] + error:
            found.append(
                f"k-NN accuracy {knn:.3f} is not above that of {says}, {facts[f'knn_{name}']:.3f}, by two standard "
                f"errors ({error:.3f}). Look whether the loss fell; then at learning rate, augmentation and steps."
            )
    if spread - facts["spread_halfway"] > 0.05:
        found.append(
            f"The rate was still rising, from {facts['spread_halfway']:.0%} of the way from collapse to isotropy half "
            f"way through to {spread:.0%}: train longer, or compare runs at equal steps only."
        )
    if facts["alignment"] > 0.5:
        found.append(
            f"Two views of an image end {facts['alignment']:.2f} apart (½E‖z − z′‖², 1: unrelated): milder "
            "augmentation, less weight on the expansion, or more steps."
        )
    if facts.get("patches", 1.0) < 0.05:
        found.append(
            f"Place and image aside, only {facts['patches']:.1%} of what varies tells patches apart: a patch collapse, "
            "which the loss allows. `patch_gamma` gives the patches a rate of their own."
        )
    pull = facts.get("pull", 1.0)
    if pull > 3 or pull < 1 / 3:
        strong, weak = ("expansion", "alignment") if pull > 1 else ("alignment", "expansion")
        times = max(pull, 1 / max(pull, 1e-9))
        much = f"{times:.2g}" if times < 1000 else "over 1000"
        found.append(f"At the end the {strong} pulls {much} times as hard as the {weak}: look at γ.")
    return found

"""Classes with unequal shares, two examples of one class as two views: the alignment asks for class means only."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def class_pairs(
    x: Float[Tensor, "n m"], labels: Int[Tensor, " n"], counts: Sequence[int], *, times: int = 1, seed: int = 0
) -> Float[Tensor, "2 k m"]:
    """Thin the classes to these numbers of examples, and pair each example that is left with random ones of its class.

    Args:
        x: (n, m) examples.
        labels: (n,) their classes, 0, 1, ...
        counts: how many examples of each class are left, drawn at random.
        times: how many partners each has, which may be itself.
        seed: of the draws.

    Returns:
        (2, times·Σcounts, m): the first of each pair are all examples that are left, class after class, `times` over.

    Raises:
        ValueError: a class that has fewer examples than are to be left.

    >>> x, labels = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1])
    >>> (class_pairs(x, labels, [2, 1]) >= 10).int()[..., 0].tolist()  # pairs of one class
    [[0, 0, 1], [0, 0, 1]]
    """
    generator = torch.Generator().manual_seed(seed)
    firsts, partners = [], []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero()[:, 0]
        if count > len(members):
            raise ValueError(f"class {label} has {len(members)} examples, and {count} are to be left")
        left = members[torch.randperm(len(members), generator=generator)[:count]]
        firsts.append(left)
        partners.append(left[torch.randint(count, (times, count), generator=generator)])
    return torch.stack([x[torch.cat(firsts).repeat(times)], x[torch.cat(partners, dim=1).flatten()]])

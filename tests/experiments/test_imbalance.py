"""Pairs of one class, of classes that were thinned."""

import pytest
import torch

from analysis.experiments.imbalance import class_pairs


def test_pairs_are_of_one_class_and_classes_have_their_counts():
    labels = torch.arange(60) % 3
    x = torch.stack([labels.float(), torch.arange(60.0)], dim=1)  # an example is its class and its number
    views = class_pairs(x, labels, [20, 5, 1], times=50, seed=1)
    assert views.shape == (2, 50 * 26, 2)
    assert torch.equal(views[0, :, 0], views[1, :, 0])
    first, partner = views[..., 1].unflatten(1, (50, 26))
    assert (first == first[0]).all()
    assert len(first[0].unique()) == 26
    for start, count in ((0, 20), (20, 5), (25, 1)):  # every pair of a class occurs
        pairs = torch.stack([first[:, start : start + count], partner[:, start : start + count]], -1).flatten(0, 1)
        assert set(partner[:, start : start + count].flatten().tolist()) == set(
            first[0, start : start + count].tolist()
        )
        assert len(pairs.unique(dim=0)) > 0.7 * count**2
    with pytest.raises(ValueError, match="class 2 has 20 examples, and 21"):
        class_pairs(x, labels, [1, 1, 21])

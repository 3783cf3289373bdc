"""Roots and decompositions whose gradients stay finite: those of autograd elsewhere, and the right ones there."""

import pytest
import torch

from analysis.measures.gradients import matrix_root, square_root, thin_svd
from tests.configurations import gaussian, rotation


def test_root_has_its_derivative_and_none_at_zero():
    x = torch.tensor([-1.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    assert square_root(x).tolist() == [0, 0, 3]
    assert torch.autograd.grad(square_root(x).sum(), x)[0].tolist() == pytest.approx([0, 0, 1 / 6])


def projected(z, rank, other):
    """A function of the span of the leading right singular vectors, and of that of the left ones."""
    u, s, vh = thin_svd(z)
    u, v = u[:, :rank], vh[:rank].mT
    return (
        (v @ v.mT @ other).square().sum() + (u.mT @ gaussian(len(z), 2, seed=3)).square().sum() + s[:rank].log().sum()
    )


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (4, 4)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_spans_have_the_gradient_of_finite_differences(shape, rank):
    z, other = gaussian(*shape), gaussian(shape[1], 3, seed=1)
    assert torch.autograd.gradcheck(lambda z: projected(z, rank, other), z.requires_grad_())


def test_spans_of_equal_singular_values_have_it_too():
    """Two directions of σ = 3, kept, and two of σ = 1, left out."""
    sigma = torch.tensor([3.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    z = rotation(4) * sigma @ rotation(4, seed=6)
    other = gaussian(4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda z: projected(z, 2, other), z.requires_grad_())


@pytest.mark.parametrize("lam", [[1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 1.0, 0.5], [9.0, 4.0, 2.0, 1.0]])
def test_matrix_root_squares_to_its_matrix_and_has_its_derivative(lam):
    a = rotation(4) * torch.tensor(lam, dtype=torch.float64) @ rotation(4).mT
    assert torch.allclose(matrix_root(a) @ matrix_root(a), a, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: matrix_root((x + x.mT) / 2), a.requires_grad_())


def test_matrix_root_of_a_singular_matrix_has_a_finite_gradient():
    a = torch.diag(torch.tensor([4.0, 0.0])).requires_grad_()
    assert torch.autograd.grad(matrix_root(a).sum(), a)[0].isfinite().all()

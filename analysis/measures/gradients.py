"""Roots and decompositions whose gradient is finite where PyTorch's is not: at zero, and at equal singular values.

Optima of losses are such places: all distances equal, all singular values equal, a distance of zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_GAP = 1e-9  # of squared singular values, as a share of the largest: what is closer counts as equal


def square_root(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """√x, and 0 where x ≤ 0, with the gradient 0 there.

    >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> torch.autograd.grad(square_root(x).sum(), x)[0]
    tensor([0.0000, 0.2500])
    """
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


class _ThinSVD(torch.autograd.Function):
    """The gradient leaves out rotations among vectors of equal singular values."""

    @staticmethod
    def forward(ctx, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(z, full_matrices=False)
        ctx.save_for_backward(u, s, vh)
        return u, s, vh

    @staticmethod
    @once_differentiable
    def backward(ctx, gu: Tensor, gs: Tensor, gvh: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        squares = s.square()
        gaps = squares - squares[:, None]  # (r, r)
        apart = gaps.abs() > _GAP * squares[0]
        inverse = torch.where(apart, 1 / torch.where(apart, gaps, 1.0), 0.0)
        large = s > _GAP**0.5 * s[0]
        over = torch.where(large, 1 / torch.where(large, s, 1.0), 0.0)
        left, right = u.mT @ gu, vh @ gvh.mT
        inner = (left - left.mT) * inverse * s + s[:, None] * (right - right.mT) * inverse + gs.diag()
        outer_left = (gu - u @ left) * over @ vh
        return u @ inner @ vh + outer_left + u * over @ (gvh - right.mT @ vh)


def thin_svd(z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, " r"], Float[Tensor, "r d"]]:
    """U, σ and Vᵀ of z, for functions of the spans of singular vectors, whichever basis of a span they are given.

    The gradient of such a function is exact, also where singular values within a span are equal.

    Args:
        z: (n, d); r = min(n, d).

    >>> z = torch.eye(3, requires_grad=True)
    >>> u, _, _ = thin_svd(z)
    >>> torch.autograd.grad((u @ u.mT).sum(), z)[0].abs().max().item()  # all of space, whatever z
    0.0
    """
    return _ThinSVD.apply(z)


class _MatrixRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        lam, vectors = torch.linalg.eigh(a)
        s = lam.clamp(min=0).sqrt()
        ctx.save_for_backward(s, vectors)
        return (vectors * s) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        s, vectors = ctx.saved_tensors
        sums = s + s[:, None]
        inverse = torch.where(sums > 0, 1 / torch.where(sums > 0, sums, 1.0), 0.0)
        return vectors @ (vectors.mT @ grad @ vectors * inverse) @ vectors.mT


def matrix_root(a: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The root A^½ of a symmetric matrix without negative eigenvalues; its derivative X solves A^½X + XA^½ = Ȧ.

    >>> matrix_root(torch.diag(torch.tensor([4.0, 9.0])))
    tensor([[2., 0.],
            [0., 3.]])
    """
    return _MatrixRoot.apply(a)

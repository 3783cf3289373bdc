"""The losses under the transforms of PyTorch: per-sample gradients, forward derivatives, compilation."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from simdino.losses import coding_rate, dino_loss, dinov2_loss, koleo_loss, patch_rates, simdino_loss, simdinov2_loss
from tests.configurations import gaussian, sphere

VIEWS, TEACHER = sphere(3, 5, 4), sphere(2, 5, 4, seed=1)
PATCHES, WEIGHTS = sphere(4, 3, seed=2), torch.full((4,), 1 / 2 / 10, dtype=torch.float64)  # of 2 crops of 10
SCORES, TEACHER_SCORES = gaussian(3, 5, 7, seed=3), gaussian(2, 5, 7, seed=4)
DINO = {"center": torch.zeros(7, dtype=torch.float64), "student_temp": 0.1, "teacher_temp": 0.07}
DINO |= {"center_momentum": 0.9}
DINOV2 = DINO | {"patch_center": torch.zeros(3, dtype=torch.float64)}
RATE = {"eps": 0.5, "gamma": 0.3}


def dinov2(patches, features):
    return dinov2_loss(TEACHER_SCORES, TEACHER_SCORES, patches, PATCHES, WEIGHTS, features, **DINOV2)[0]


LOSSES = {
    "coding rate, n > d": (partial(coding_rate, eps=0.5), sphere(6, 4)),
    "coding rate, n < d": (partial(coding_rate, eps=0.5), sphere(3, 5)),
    "simdino": (lambda s: simdino_loss(s, TEACHER, **RATE)[0], VIEWS),
    "simdino, rate of the mean": (lambda s: simdino_loss(s, TEACHER, rate_of="mean", **RATE)[0], VIEWS),
    "simdinov2": (
        lambda p: simdinov2_loss(TEACHER, TEACHER, p, PATCHES.flip(0), WEIGHTS, patch_gamma=0.2, **RATE)[0],
        PATCHES,
    ),
    "patch rates": (lambda p: sum(patch_rates(p, WEIGHTS, eps=0.5, crops=10)), PATCHES),
    "dino": (lambda s: dino_loss(s, TEACHER_SCORES, **DINO)[0], SCORES),
    "dino, Sinkhorn": (lambda s: dino_loss(s, TEACHER_SCORES, centering="sinkhorn", **DINO)[0], SCORES),
    "koleo": (koleo_loss, gaussian(5, 4)),
    "dinov2, patches": (lambda p: dinov2(p, VIEWS[:2]), gaussian(4, 3)),
    "dinov2, features": (lambda f: dinov2(PATCHES, f), gaussian(2, 5, 4)),
}
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def derivatives(f, x, v):
    """The gradient, and the Hessian times v, by autograd."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(x), x, create_graph=True)
    (second,) = torch.autograd.grad((first * v).sum(), x)
    return first.detach(), second


@pytest.mark.parametrize("name", LOSSES)
def test_transforms_agree_with_autograd(name):
    f, x = LOSSES[name]
    v, both = gaussian(*x.shape, seed=9), torch.stack([x, x.flip(0)])
    first, second = derivatives(f, x, v)
    close(grad(f)(x), first)
    close(vmap(f)(both), torch.stack([f(x), f(x.flip(0))]))
    close(vmap(grad(f))(both)[0], first)  # one gradient for each sample
    close(jvp(f, (x,), (v,))[1], (first * v).sum())
    close(vmap(lambda x: jvp(f, (x,), (v,))[1])(both)[0], (first * v).sum())
    close(jvp(grad(f), (x,), (v,))[1], second)  # forward over reverse: sharpness, influence
    close(grad(lambda x: (grad(f)(x) * v).sum())(x), second)
    for start in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level():
            close(forward_ad.unpack_dual(f(forward_ad.make_dual(start, v))).tangent.detach(), (first * v).sum())


@pytest.mark.parametrize("name", ["coding rate, n > d", "simdino", "simdinov2"])
def test_compiled_as_one_graph_they_have_the_same_gradient(name, bare, monkeypatch):
    f, x = LOSSES[name]
    f = partial(bare.coding_rate, **f.keywords) if isinstance(f, partial) else f
    for loss in ("simdino_loss", "simdinov2_loss"):
        monkeypatch.setitem(globals(), loss, getattr(bare, loss))
    compiled, at = torch.compile(f, backend="aot_eager", fullgraph=True), x.clone().requires_grad_()
    close(torch.autograd.grad(compiled(at), at)[0], derivatives(f, x, x)[0])


def test_under_vmap_a_failure_is_nan_and_elsewhere_an_error():
    z = torch.stack([sphere(6, 4), torch.full((6, 4), torch.nan, dtype=torch.float64)])
    assert vmap(partial(coding_rate, eps=0.5))(z).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="NaN"):
        coding_rate(z, eps=0.5)


def test_sinkhorn_is_a_constant_in_forward_derivatives_too():
    def loss(teacher):
        return dino_loss(SCORES, teacher, centering="sinkhorn", **DINO)[0]

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(TEACHER_SCORES, torch.ones_like(TEACHER_SCORES))
        assert forward_ad.unpack_dual(loss(dual)).tangent is None

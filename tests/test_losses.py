"""Claims: the rate equals its definition, survives half precision and rounding, and has the right derivatives;
the losses equal the official code's recorded numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simdino.losses import coding_rate, dino_loss, official_scaling, simdino_loss

ORACLE = Path(__file__).parents[1].parent / "shared" / "oracle" / "oracle.json"


def oracle(section: str) -> dict:
    if not ORACLE.is_file():
        pytest.skip("the numbers recorded from the official code are not on this machine")
    return json.loads(ORACLE.read_text())[section]


def naive_rate(z: torch.Tensor, eps: float) -> torch.Tensor:
    n, d = z.shape
    return torch.logdet(torch.eye(d, dtype=z.dtype) + d / (n * eps**2) * z.T @ z) / 2


@pytest.mark.parametrize(("n", "d"), [(1, 5), (5, 1), (7, 16), (16, 16), (40, 16)])
def test_rate_is_its_definition_on_either_side(n, d):
    z = torch.randn(n, d, dtype=torch.float64)
    for eps in (0.01, 0.5, 3.0):
        torch.testing.assert_close(coding_rate(z, eps=eps), naive_rate(z, eps), rtol=1e-10, atol=1e-12)


def test_rate_squares_eps():
    """One unit vector in d dimensions: R = ½ log(1 + d/ε²)."""
    z = F.normalize(torch.randn(1, 12, dtype=torch.float64), dim=-1)
    assert coding_rate(z, eps=0.2).item() == pytest.approx(0.5 * math.log(1 + 12 / 0.04), rel=1e-12)


def test_rate_of_orthonormal_rows_and_of_a_collapsed_batch():
    """Orthonormal: r/2·log(1 + α/r); all equal: ½·log(1 + α)."""
    alpha = 16 / 0.5**2
    assert coding_rate(torch.eye(16), eps=0.5).item() == pytest.approx(8 * math.log1p(alpha / 16), rel=1e-6)
    same = F.normalize(torch.randn(1, 16), dim=-1).expand(40, 16)
    assert coding_rate(same, eps=0.5).item() == pytest.approx(0.5 * math.log1p(alpha), rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 7), (2, 9, 5)])
def test_rate_derivatives(shape):
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, eps=0.3), z)
    assert torch.autograd.gradgradcheck(lambda z: coding_rate(z, eps=0.3), z)


@pytest.mark.parametrize("eps2", [0.05, 0.005])
def test_rate_of_collapsed_features_under_autocast(eps2):
    """Where the official code gives NaN: right for the features as they are, rounded to bfloat16."""
    z = F.normalize(torch.randn(1, 256) + 1e-3 * torch.randn(64, 256), dim=-1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        rate = coding_rate(z, eps=math.sqrt(eps2))
    assert rate.dtype == torch.float32
    assert rate.item() == pytest.approx(naive_rate(z.double(), math.sqrt(eps2)).item(), rel=1e-3)


def test_rate_falls_back_to_the_spectrum_when_rounding_breaks_the_factorisation():
    z = F.normalize(torch.randn(1, 64) + 1e-6 * torch.randn(200, 64), dim=-1)
    eps, c = 1e-6, 64 / 200 * 1e12
    assert torch.linalg.cholesky_ex(torch.eye(64) + c * z.T @ z)[1] > 0, "this input no longer exercises the fallback"
    leaf = z.clone().requires_grad_()
    rate = coding_rate(leaf, eps=eps)
    exact = torch.linalg.eigvalsh(z.double().T @ z.double()).clamp(min=0).mul(c).log1p().sum() / 2
    assert rate.item() == pytest.approx(exact.item(), rel=1e-3)
    rate.backward()
    assert leaf.grad.isfinite().all()


def test_rate_refuses_nan():
    z = torch.randn(8, 4)
    z[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        coding_rate(z, eps=0.5)


def views(seed: int, ncrops: int, n: int, d: int, normalized: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    s, t = rng.standard_normal((ncrops, n, d)), rng.standard_normal((2, n, d))
    if normalized:
        s, t = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (s, t))
    return torch.tensor(s), torch.tensor(t)


def test_simdino_equals_the_official_loss_in_every_recorded_case():
    """Official loss = -coeff·comp − expa; ours at `official_scaling` is that plus 1, for coeff 1."""
    section = oracle("mcr")
    rows = [dict(zip(section["v2_columns"], row, strict=True)) for row in section["v2"]]
    rows = [r for r in rows if r["normalized"] and r["coeff"] == 1]
    assert len(rows) > 30
    for r in rows:
        dtype, tolerance = (torch.float64, 1e-9) if r["float_bits"] == 64 else (torch.float32, 1e-5)
        s, t = (x.to(dtype) for x in views(r["seed"], r["ncrops"], r["n"], r["d"], True))
        s.requires_grad_()
        eps, gamma = official_scaling(r["d"], r["n"], r["eps"])
        rate_of = "mean" if r["expa_type"] else "student"
        loss, parts = simdino_loss(s, t, eps=eps, gamma=gamma, rate_of=rate_of)
        assert loss.item() - 1 == pytest.approx(r["loss"], rel=tolerance, abs=tolerance), r
        assert 1 - parts["alignment"].item() == pytest.approx(r["comp"], rel=tolerance, abs=tolerance)
        assert gamma * parts["rate"].item() == pytest.approx(r["expa"], rel=tolerance, abs=tolerance)
        loss.backward()
        g, unit = s.grad, s.detach()
        tangent = g - (g * unit).sum(-1, keepdim=True) * unit  # the distance and the dot product differ radially
        assert tangent.norm().item() == pytest.approx(r["grad_tangent_fro"], rel=10 * tolerance)


def test_rate_is_right_where_half_precision_breaks_the_official_one():
    section = oracle("mcr_half")
    for r in (dict(zip(section["columns"], row, strict=True)) for row in section["rows"]):
        if r["dtype"] not in ("f64", "f32"):
            continue
        rng = np.random.default_rng(77)
        u, x = rng.standard_normal((1, 1, r["d"])), rng.standard_normal((4, r["n"], r["d"]))
        unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)  # noqa: E731
        z = torch.tensor(unit(x) if r["kind"] == "random" else unit(unit(u) + 1e-3 * x))[:2]
        eps, gamma = official_scaling(r["d"], r["n"], r["eps"])
        if r["dtype"] == "f64":
            assert gamma * coding_rate(z, eps=eps).mean().item() == pytest.approx(r["expa"], rel=1e-7)
            half = gamma * coding_rate(z.to(torch.bfloat16), eps=eps).mean().item()
            assert math.isfinite(half)


def test_official_scaling_of_local_covariances():
    """Eight ranks that do not gather work at eight times the precision that was asked for."""
    assert official_scaling(256, 64, 0.05, world_size=8)[0] == pytest.approx(math.sqrt(0.4))
    assert official_scaling(256, 64, 0.05, world_size=8, gathered=True)[0] == pytest.approx(math.sqrt(0.05))
    assert official_scaling(256, 64, 0.05, world_size=8)[1] == pytest.approx((256 + 512) / (256 * 512))


def test_dino_equals_the_official_loss_over_three_calls():
    section = oracle("dino_v1")
    temps, center, rng = section["teacher_temp_schedule_tt0.07"], None, None
    for r in (dict(zip(section["columns"], row, strict=True)) for row in section["rows"]):
        if r["call"] == 0:
            rng, center = np.random.default_rng(r["seed"]), torch.zeros(r["K"], dtype=torch.float64)
        s = torch.tensor(rng.standard_normal((r["ncrops"], r["n"], r["K"])), requires_grad=True)
        t = torch.tensor(rng.standard_normal((2, r["n"], r["K"])))
        temp = 0.04 if r["tt"] == 0.04 else temps[r["call"]]
        loss, parts = dino_loss(s, t, center=center, student_temp=0.1, teacher_temp=temp, center_momentum=0.9)
        loss.backward()
        center = parts["center"]
        assert loss.item() == pytest.approx(r["loss"], rel=1e-9)
        assert s.grad.norm().item() == pytest.approx(r["grad_fro"], rel=1e-9)
        assert center.norm().item() == pytest.approx(r["center_norm"], rel=1e-9)


def test_dino_is_blind_to_collapse():
    """C1: a constant one-hot output and a spread one both reach the infimum 0; entropy and kl split the loss."""
    center, options = torch.zeros(8), {"student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9}
    one, spread = torch.zeros(2, 8, 8), torch.eye(8).expand(2, 8, 8)
    one[..., 0] = 1
    for scores in (one, spread):
        loss, parts = dino_loss(100 * scores, 100 * scores, center=center, **options)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert (parts["entropy"] + parts["kl"]).item() == pytest.approx(loss.item(), abs=1e-6)

"""Claims: the rate equals its definition, survives half precision and rounding, and has the right derivatives;
SimDINO and DINO equal loops over their definitions, and the official code's recorded numbers.

docs/parity.md says what equals what: a parity test compares as many recorded rows as its line there says, and holds
them to ten times the deviation that the line gives.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from simdino import losses
from simdino.losses import (
    _check_views,
    check_numbers,
    coding_rate,
    dino_loss,
    dinov2_loss,
    official_scaling,
    rescaled,
    simdino_loss,
    simdinov2_loss,
)

ORACLE = Path(__file__).parents[1] / "data" / "oracle.json"


def oracle(section: str | None = None) -> dict:
    recorded = json.loads(ORACLE.read_text())
    return recorded[section] if section else recorded


PARITY = (Path(__file__).parents[2] / "docs/parity.md").read_text()
# case: (our function, rows, deviation)
CASES = {
    case: (ours, int(rows), float(deviation))
    for case, ours, *_, rows, deviation in re.findall(
        r"^\| `(.*?)` \| (.*?) \| .* \| (\d+) \| (\S+) \|$", PARITY, re.MULTILINE
    )
}


def assert_parity(case: str, deviations: list[float]) -> None:
    _, rows, measured = CASES[case]
    assert 10 * measured <= (1e-9 if "float64" in case else 1e-5)
    assert len(deviations) == rows
    assert max(deviations) <= 10 * measured


def deviation(ours, theirs) -> float:
    """Largest |ours − theirs| / max(1, |theirs|) of two lists of numbers."""
    pairs = zip(np.ravel(ours), np.ravel(theirs), strict=True)
    return max(abs(a - b) / max(1, abs(b)) for a, b in pairs)


def rows_of(section: dict, rows: str = "rows", columns: str = "columns") -> list[dict]:
    return [dict(zip(section[columns], row, strict=True)) for row in section[rows]]


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


def test_rate_falls_back_to_the_spectrum_when_rounding_breaks_the_factorization():
    z = F.normalize(torch.randn(1, 64) + 1e-6 * torch.randn(200, 64), dim=-1)
    eps, c = 1e-6, 64 / 200 * 1e12
    assert torch.linalg.cholesky_ex(torch.eye(64) + c * z.T @ z)[1] > 0, "this input no longer exercises the fallback"
    leaf = z.clone().requires_grad_()
    rate = coding_rate(leaf, eps=eps)
    exact = torch.linalg.eigvalsh(z.double().T @ z.double()).clamp(min=0).mul(c).log1p().sum() / 2
    assert rate.item() == pytest.approx(exact.item(), rel=1e-3)
    rate.backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("shape", [(8, 4), (1, 4), (8, 1)])
def test_rate_refuses_what_is_not_finite(shape, bad):
    z = torch.randn(shape)
    z[0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        coding_rate(z, eps=0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_or_indefinite_flows_to_loss_and_gradient(bad):
    """A loss does not look at tensors: a loop that checks now and then must find what went wrong between its checks."""
    z = F.normalize(torch.randn(2, 8, 4), dim=-1)
    broken = z.clone()
    broken[0, 0, 0] = bad
    same = torch.ones(2, 64, 32) / math.sqrt(32)
    for student, eps in ((broken, 0.5), (same, 1e-7)):  # the second: rounding makes the matrix indefinite
        student = student.clone().requires_grad_()
        loss, parts = simdino_loss(student, student.detach(), eps=eps, gamma=0.1)
        loss.backward()
        assert loss.isnan()
        assert parts["rate"].isnan()
        assert student.grad[0].isnan().all()
        assert simdino_loss(student.detach(), student.detach(), eps=eps, gamma=0.1)[0].isnan()  # without gradient, too
    assert coding_rate(same, eps=1e-7).isfinite().all()


@pytest.mark.parametrize("eps", [0.0, -0.5, math.nan, math.inf])
def test_rate_refuses_an_eps_that_is_not_positive(eps):
    with pytest.raises(ValueError, match="eps must be positive"):
        coding_rate(torch.randn(8, 4), eps=eps)


def test_rate_takes_arrays_and_integers():
    z = np.arange(12).reshape(4, 3)
    assert coding_rate(z, eps=0.5) == coding_rate(torch.tensor(z, dtype=torch.float32), eps=0.5)


@pytest.mark.parametrize(("v", "g"), [(1, 1), (2, 3), (2, 0)])
def test_losses_refuse_views_that_do_not_fit(v, g):
    """One view has nothing to be aligned with; a teacher of none or of more views is no target."""
    student, teacher = torch.randn(v, 4, 6), torch.randn(g, 4, 6)
    with pytest.raises(ValueError, match="two student views"):
        simdino_loss(student, teacher, eps=0.5, gamma=0.1)
    with pytest.raises(ValueError, match="two student views"):
        dino_loss(student, teacher, center=torch.zeros(6), student_temp=1.0, teacher_temp=1.0, center_momentum=0.9)


S, T = torch.zeros(2, 4, 6), torch.zeros(2, 4, 6)
NUMBERS = {"student_temp": 0.1, "teacher_temp": 0.1, "center_momentum": 0.9}
PATCHES, CENTERS = (torch.zeros(3, 6), torch.zeros(3, 6), torch.zeros(3)), {"center": torch.zeros(6)}
LOSSES = {  # loss: (its arguments, numbers that it takes, other options)
    simdino_loss: ((S, T), {"eps": 0.5, "gamma": 0.1}, {}),
    simdinov2_loss: (
        (S, T, *PATCHES, torch.zeros(3, 6)),
        {"eps": 0.5, "gamma": 0.1, "patch_weight": 1.0, "patch_gamma": 0.1, "gram_weight": 0.1},
        {},
    ),
    dino_loss: ((S, T), NUMBERS, CENTERS),
    dinov2_loss: (
        (S, T, *PATCHES, torch.randn(2, 4, 5)),
        NUMBERS | {"patch_weight": 1.0, "koleo_weight": 0.1},
        CENTERS | {"patch_center": torch.zeros(6)},
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_refuse_numbers_out_of_range_by_name(loss):
    inputs, numbers, options = LOSSES[loss]
    loss(*inputs, **numbers, **options)
    for name in numbers:
        bad = {math.nan, math.inf, -0.1} | ({0.0} if name == "eps" or "temp" in name else set())
        for value in bad | ({1.1} if name == "center_momentum" else set()):
            with pytest.raises(ValueError, match=rf"^{name} must .*, got {value}$"):
                loss(*inputs, **numbers | {name: value}, **options)
        if "temp" not in name and name != "eps":
            loss(*inputs, **numbers | {name: 0.0}, **options)


@pytest.mark.parametrize("centering", ["ema", "sinkhorn"])
def test_temperatures_may_be_tensors(centering):
    """So that a CUDA graph, which replays numbers as they were, can be given others."""
    s, t, p, options = torch.randn(3, 4, 6), torch.randn(2, 4, 6), torch.randn(5, 6), {"centering": centering}
    options |= {"center": torch.zeros(6), "patch_center": torch.zeros(6), "center_momentum": 0.9}
    temps = {"student_temp": 0.1, "teacher_temp": 0.04}
    found = [
        dinov2_loss(s, t, p, p, torch.full((5,), 0.1), t, **options, **of)
        for of in (temps, {name: torch.tensor(temp) for name, temp in temps.items()})
    ]
    torch.testing.assert_close(found[1], found[0])


class Waiting(TorchDispatchMode):
    """Refuse what would wait for a GPU: reading a number, shapes that depend on numbers, copies from the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for word in ("_local_scalar_dense", "nonzero", "aten.equal", "lift_fresh", "bincount", "masked_select"):
            assert word not in str(function), function
        return function(*args, **(kwargs or {}))


def compiled_case(loss) -> tuple[tuple, dict]:
    unit = lambda *shape: F.normalize(torch.randn(shape), dim=-1)  # noqa: E731
    s, t, w = unit(3, 4, 6).requires_grad_(), unit(2, 4, 6), torch.tensor([1 / 16, 1 / 16, 1 / 8, 0, 0])
    sp, tp, centers = unit(5, 6).requires_grad_(), unit(5, 6), {"center": unit(6), "patch_center": unit(6)}
    temps = {"student_temp": 0.1, "teacher_temp": torch.tensor(0.04), "center_momentum": 0.9}
    return {
        simdino_loss: ((s, t), {"eps": 0.5, "gamma": 0.1}),
        simdinov2_loss: (
            (s, t, sp, tp, w, tp),
            {"eps": 0.5, "gamma": 0.1, "patch_gamma": 0.1, "gram_weight": 0.1, "most_patches": 4},
        ),
        dino_loss: ((s, t), {"center": centers["center"]} | temps),
        dinov2_loss: ((s, t, sp, tp, w, t), centers | temps),
    }[loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("variant", [0, 1])
def test_losses_compile_without_a_graph_break(bare, loss, variant):
    inputs, options = compiled_case(loss)
    options |= (
        {"rate_of": ("student", "mean")[variant]} if "eps" in options else {"centering": ("ema", "sinkhorn")[variant]}
    )
    leaves, loss = [x for x in inputs if x.requires_grad], getattr(bare, loss.__name__)
    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value, parts = function(*inputs, **options)
        found.append([value.detach(), parts, torch.autograd.grad(value, leaves)])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_waits(loss):
    inputs, options = compiled_case(loss)
    for variant in ("student", "mean") if "eps" in options else ("ema", "sinkhorn"):
        options |= {"rate_of" if "eps" in options else "centering": variant}
        with Waiting():
            loss(*inputs, **options)[0].backward()
    with Waiting(), pytest.raises(AssertionError, match="local_scalar"):
        coding_rate(inputs[0], eps=0.5)  # a diagnostic may


def test_transforms_of_the_rate():
    """torch.func: gradients of each of several sets of features, forward derivatives, Hessians in reverse mode."""
    z = torch.randn(3, 6, 4, dtype=torch.float64)
    rate = lambda z: losses._rate(z, eps=0.5)  # noqa: E731
    total = lambda z: rate(z).sum()  # noqa: E731
    expected = torch.autograd.grad(total(z.requires_grad_()), z)[0]
    z = z.detach()
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(rate))(z), expected)
    torch.testing.assert_close(torch.func.grad(lambda z: torch.func.vmap(rate)(z).sum())(z), expected)
    torch.testing.assert_close(torch.func.jvp(total, (z,), (z,))[1], (expected * z).sum())
    twice = torch.func.jacrev(torch.func.jacrev(rate))(z[0])
    torch.testing.assert_close(twice, torch.autograd.functional.hessian(rate, z[0]))


def views(r: dict, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A recorded case's student (ncrops, rows, d) and teacher (2, rows, d)."""
    rng = np.random.default_rng(r["seed"])
    s, t = (torch.tensor(rng.standard_normal((v, rows, r["d"]))) for v in (r["ncrops"], 2))
    return (F.normalize(s, dim=-1), F.normalize(t, dim=-1)) if r.get("normalized", True) else (s, t)


def official_mcr(r: dict, s: torch.Tensor, t: torch.Tensor, *, version: int, world_size: int = 1) -> dict[str, float]:
    """The official loss and terms, −coeff·comp − expa, and the student's gradient, all from `simdino_loss`."""
    eps, gamma = official_scaling(r["d"], s.shape[1], r["eps"], world_size=world_size)
    rate_of, coeff, s = "mean" if r["expa_type"] else "student", r.get("coeff", 1), s.clone().requires_grad_()

    def alignment(s, t):
        return simdino_loss(s, t, eps=eps, gamma=0.0)[1]["alignment"]

    loss, parts = simdino_loss(s, t, eps=eps, gamma=gamma / coeff, rate_of=rate_of)
    if version == 1:  # its cosines normalize, its rate does not
        unit = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
        shift, loss = 1, loss - parts["alignment"] + alignment(*unit)
        parts["alignment"] = alignment(*unit)
    else:  # its products of unnormalized features: s·t = ½‖s‖² + ½‖t‖² − ½‖s − t‖²
        shift = alignment(s, 0 * t) + alignment(0 * s, t)
    found = {"loss": coeff * (loss - shift), "comp": shift - parts["alignment"], "expa": gamma * parts["rate"]}
    (g,) = torch.autograd.grad(found["loss"], s)
    unit = F.normalize(s.detach(), dim=-1)
    found |= {"g[0,0,0]": g[0, 0, 0], "g[1,0,1]": g[1, 0, 1], "g[-1,-1,-1]": g[-1, -1, -1], "grad_fro": g.norm()}
    found["grad_tangent_fro"] = (g - (g * unit).sum(-1, keepdim=True) * unit).norm()
    if version == 2:
        found["global_comp"] = alignment(s[:2], 0 * t) + alignment(0 * s[:2], t) - alignment(s[:2], t)
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("version", [1, 2])
def test_simdino_equals_the_official_loss_in_every_recorded_case(version, bits):
    """Of unit features and coeff 1, official = ours at `official_scaling` − 1."""
    deviations, dtype = [], torch.float64 if bits == 64 else torch.float32
    for r in rows_of(oracle("mcr"), f"v{version}", f"v{version}_columns"):
        if r["float_bits"] != bits:
            continue
        s, t = (x.to(dtype) for x in views(r, r["n"]))
        found = official_mcr(r, s, t, version=version)
        deviations.append(deviation([*found.values()], [r[name] for name in found]))
        if r["normalized"] and r["coeff"] == 1:
            eps, gamma = official_scaling(r["d"], r["n"], r["eps"])
            loss, _ = simdino_loss(s, t, eps=eps, gamma=gamma, rate_of="mean" if r["expa_type"] else "student")
            assert loss.item() - 1 == pytest.approx(r["loss"], abs=1e-9 if bits == 64 else 1e-5)
    assert_parity(f"mcr v{version}, float{bits}", deviations)


def test_loss_is_right_where_half_precision_breaks_the_official_one():
    """float32: no further from float64 than the official float32. Half: right for the features as rounded."""
    dtypes = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    deviations, exact, nearer, broken = [], {}, 0, 0
    for r in rows_of(oracle("mcr_half")):  # of each case, float64 comes first
        rng = np.random.default_rng(77)
        u, x = (torch.tensor(rng.standard_normal(shape)) for shape in ((1, 1, r["d"]), (4, r["n"], r["d"])))
        z = F.normalize(x if r["kind"] == "random" else F.normalize(u, dim=-1) + 1e-3 * x, dim=-1).to(
            dtypes[r["dtype"]]
        )
        eps, gamma = official_scaling(r["d"], r["n"], r["eps"])
        with torch.autocast("cpu", torch.bfloat16):
            _, parts = simdino_loss(z[:2], z[2:], eps=eps, gamma=gamma)
        expa, comp, case = gamma * parts["rate"].item(), 1 - parts["alignment"].item(), (r["kind"], r["n"], r["eps"])
        if r["dtype"] == "f64":
            exact[case] = expa
            deviations.append(deviation([expa, comp], [r["expa"], r["comp"]]))
        elif r["dtype"] == "f32":
            assert comp == pytest.approx(r["comp"], rel=1e-5, abs=1e-5)
            nearer += abs(expa - exact[case]) < abs(r["expa"] - exact[case]) + 2e-7
        else:
            broken += math.isnan(float(r["expa"]))
            _, truth = simdino_loss(z[:2].double(), z[2:].double(), eps=eps, gamma=gamma)
            assert expa == pytest.approx(gamma * truth["rate"].item(), rel=1e-3)
            assert parts["alignment"].item() == pytest.approx(truth["alignment"].item(), rel=1e-4)
    assert (nearer, broken) == (7, 10)
    assert_parity("mcr_half, 8 digits", deviations)


def test_every_line_of_the_parity_page_is_tested_and_names_what_exists():
    files = [*Path(__file__).parent.glob("test_losses*.py"), Path(__file__).with_name("test_train_parity.py")]
    tests = "".join(path.read_text() for path in files)
    sections = oracle()
    assert len(CASES) == PARITY.count("\n| `") > 10
    for case, (ours, *_) in CASES.items():
        assert re.split(r"[ ,]", case)[0] in sections
        assert case in tests or case.startswith("mcr v") or f"{case.rsplit(' ', 3)[0]} {{centering}}" in tests
        assert all(hasattr(losses, name) for name in re.findall(r"`(\w+)[`(]", ours))


def test_official_scaling_of_local_covariances():
    """Eight ranks that do not gather work at eight times the precision that was asked for."""
    assert official_scaling(256, 64, 0.05, world_size=8)[0] == pytest.approx(math.sqrt(0.4))
    assert official_scaling(256, 64, 0.05, world_size=8, gathered=True)[0] == pytest.approx(math.sqrt(0.05))
    assert official_scaling(256, 64, 0.05, world_size=8)[1] == pytest.approx((256 + 512) / (256 * 512))


@pytest.mark.parametrize(
    ("d", "rows", "eps"), [(64, (64, 128), 0.5), (64, (128, 64), 0.7), (32, (100, 20), 1.0), (64, (32, 64), 0.3)]
)
def test_rescaled_groups_are_pulled_alike(d, rows, eps):
    """B8: of isotropic features, the rate of n′ rows at ε′ grows with their norm as that of n rows at ε does."""

    def pull(n, eps):
        z = F.normalize(torch.randn(100, n, d, dtype=torch.float64), dim=-1).requires_grad_()
        (gradient,) = torch.autograd.grad(coding_rate(z, eps=eps).sum(), z)
        return (gradient * z).sum().item() / 100

    other = rescaled(eps, 0.1, 1e-3, d=d, rows=rows, batch=(64, 256))
    assert pull(rows[1], other.eps) == pytest.approx(pull(rows[0], eps), rel=0.005)
    assert pull(rows[1], eps) != pytest.approx(pull(rows[0], eps), rel=0.1)
    assert (other.gamma, other.lr) == (0.1, pytest.approx(2e-3))


def test_rescaling_to_the_same_changes_nothing_and_what_cannot_be_is_refused():
    same = rescaled(0.5, 0.1, 1e-3, d=64, rows=(48, 48), batch=(64, 64))
    assert same == (pytest.approx(0.5), 0.1, 1e-3)
    with pytest.raises(ValueError, match="8 rows of 64 dimensions pull less than 64 did"):
        rescaled(0.5, 0.1, 1e-3, d=64, rows=(64, 8), batch=(64, 8))
    with pytest.raises(ValueError, match="eps must be positive"):
        rescaled(0.0, 0.1, 1e-3, d=64, rows=(64, 8), batch=(64, 8))
    with pytest.raises(ValueError, match="must be positive, got 64"):
        rescaled(0.5, 0.1, 1e-3, d=64, rows=(64, 0), batch=(64, 8))


def test_dino_equals_the_official_loss_over_three_calls():
    section, deviations = oracle("dino_v1"), []
    temps = section["teacher_temp_schedule_tt0.07"]
    for r in rows_of(section):
        if r["call"] == 0:
            rng, center = np.random.default_rng(r["seed"]), torch.zeros(r["K"], dtype=torch.float64)
        s = torch.tensor(rng.standard_normal((r["ncrops"], r["n"], r["K"])), requires_grad=True)
        t = torch.tensor(rng.standard_normal((2, r["n"], r["K"])))
        temp = 0.04 if r["tt"] == 0.04 else temps[r["call"]]
        loss, parts = dino_loss(s, t, center=center, student_temp=0.1, teacher_temp=temp, center_momentum=0.9)
        loss.backward()
        center, g = parts["center"], s.grad
        found = [loss, g.norm(), g[0, 0, 0], g[1, 0, 1], g[-1, -1, -1], center.norm(), center[0], center[-1]]
        names = ["loss", "grad_fro", "g[0,0,0]", "g[1,0,1]", "g[-1,-1,-1]", "center_norm", "center[0]", "center[-1]"]
        deviations.append(deviation([x.item() for x in found], [r[name] for name in names]))
    assert_parity("dino_v1, float64", deviations)


def test_losses_equal_loops_over_their_definitions():
    s, t, center = (torch.randn(shape, dtype=torch.float64) for shape in ((4, 3, 5), (2, 3, 5), (5,)))
    pairs = [(i, j) for i in range(4) for j in range(2) if i != j]
    distances = [sum((s[i, b] - t[j, b]).square().sum() / 2 for b in range(3)) / 3 for i, j in pairs]
    for rate_of, z in (("student", s[:2]), ("mean", (s[:2] + t) / 2)):
        loss, parts = simdino_loss(s, t, eps=0.4, gamma=0.3, rate_of=rate_of)
        rate = sum(naive_rate(view, 0.4) for view in z) / 2
        torch.testing.assert_close(parts["alignment"], sum(distances) / len(pairs))
        torch.testing.assert_close(loss, sum(distances) / len(pairs) - 0.3 * rate)

    def cross_entropy(scores, target):
        q, p = ((target - center) / 0.5).exp(), (scores / 0.3).exp()
        return -sum(q[k] / q.sum() * (p[k] / p.sum()).log() for k in range(5))

    loss, parts = dino_loss(s, t, center=center, student_temp=0.3, teacher_temp=0.5, center_momentum=0.9)
    expected = sum(cross_entropy(s[i, b], t[j, b]) for i, j in pairs for b in range(3)) / len(pairs) / 3
    torch.testing.assert_close(loss, expected)
    mean = sum(t[j, b] for j in range(2) for b in range(3)) / 6
    torch.testing.assert_close(parts["center"], 0.9 * center + 0.1 * mean)


@pytest.mark.parametrize("rate_of", ["student", "mean"])
def test_loss_derivatives(rate_of):
    s, t, center = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 4, 5), (2, 4, 5), (5,)))
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: simdino_loss(s, t, eps=0.4, gamma=0.3, rate_of=rate_of)[0], s)
    for centering in ("ema", "sinkhorn"):
        options = {"student_temp": 0.3, "teacher_temp": 0.5, "center_momentum": 0.9, "centering": centering}
        assert torch.autograd.gradcheck(lambda s, o=options: dino_loss(s, t, center=center, **o)[0], s)


def test_half_precision_and_autocast_do_not_reach_into_the_losses():
    s, t = torch.randn(3, 8, 16).bfloat16(), torch.randn(2, 8, 16).bfloat16()
    options = {"center": torch.zeros(16), "student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9}
    with torch.autocast("cpu", torch.bfloat16):
        found = simdino_loss(s, teacher=t, eps=0.5, gamma=0.1)[0], dino_loss(s, t, **options)[0]
    expected = simdino_loss(s.float(), t.float(), eps=0.5, gamma=0.1)[0], dino_loss(s.float(), t.float(), **options)[0]
    assert [x.dtype for x in found] == [torch.float32] * 2
    torch.testing.assert_close(found, expected)


def test_losses_of_float32_are_those_of_float64():
    """As computed when no autocast is on: by more than float32's rounding, nothing of a loss may be coarser."""
    s, t, center = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 64, 96), (2, 64, 96), (96,)))
    s, t = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
    dino = {"student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9}
    for centering in ("ema", "sinkhorn"):
        exact, parts = dino_loss(s, t, center=center, centering=centering, **dino)
        loss, found = dino_loss(s.float(), t.float(), center=center.float(), centering=centering, **dino)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
        for name in parts:
            torch.testing.assert_close(found[name].double(), parts[name], rtol=1e-5, atol=1e-6)
    exact, _ = simdino_loss(s, t, eps=0.5, gamma=0.1)
    torch.testing.assert_close(
        simdino_loss(s.float(), t.float(), eps=0.5, gamma=0.1)[0].double(), exact, rtol=1e-5, atol=0
    )


def test_one_prototype_has_nothing_to_say():
    s = torch.randn(2, 3, 1, requires_grad=True)
    for centering in ("ema", "sinkhorn"):
        options = {"student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9, "centering": centering}
        loss, _ = dino_loss(s, torch.randn(2, 3, 1), center=torch.zeros(1), **options)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, s)[0].abs().max() == 0


def test_a_misspelled_centering_is_refused():
    with pytest.raises(ValueError, match="centering must be 'ema' or 'sinkhorn', not 'sinkhron'"):
        losses._targets(torch.zeros(3, 4), torch.zeros(4), teacher_temp=0.1, center_momentum=0.9, centering="sinkhron")


def test_dino_is_blind_to_collapse():
    """C1: a constant one-hot output and a spread one both reach the infimum 0; entropy and kl split the loss."""
    center, options = torch.zeros(8), {"student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9}
    one, spread = torch.zeros(2, 8, 8), torch.eye(8).expand(2, 8, 8)
    one[..., 0] = 1
    for scores in (one, spread):
        loss, parts = dino_loss(100 * scores, 100 * scores, center=center, **options)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert (parts["entropy"] + parts["kl"]).item() == pytest.approx(loss.item(), abs=1e-6)


def test_a_word_that_names_no_rate_is_refused():
    """Of the check itself: while testing, the annotation of the loss refuses such a word before it."""
    with pytest.raises(ValueError, match="rate_of must be 'student' or 'mean', not 'Student'"):
        _check_views(torch.randn(2, 4, 6), torch.randn(2, 4, 6), "Student")


def test_numbers_are_checked_by_their_name():
    bad = {
        "eps": (0, -1, math.nan, math.inf, 1e308, 1e-200, "a", None, True, 1j),
        "student_temp": (0, math.nan),
        "order": (-1, math.nan, "a"),
        "k": (0, -3, 2.0, math.nan, None, True),
        "rank": (0, 1.5),
        "permutations": (10**12,),
        "temp": (10**30,),
        "share": (-0.1, 1.1, math.nan, "half"),
        "gamma": (-0.1, math.inf, None),
        "t": (0, 1e7),
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} must "):
                check_numbers(**{name: value})
    check_numbers(eps=np.float32(0.5), k=np.int64(3), order=math.inf, share=1, gamma=0, rank=10**18, t=2)

"""Claims: SimDINOv2, DINOv2 and their terms equal loops over their definitions and the official code's recorded
numbers; the rates of patches exclude the collapses of patches.

See tests/test_losses.py for what docs/parity.md has to do with it.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simdino.losses import (
    coding_rate,
    dino_loss,
    dinov2_loss,
    gram_distance,
    koleo_loss,
    patch_rates,
    simdino_loss,
    simdinov2_loss,
    sinkhorn_knopp,
)
from tests.simdino.test_losses import assert_parity, deviation, oracle, rows_of

TEMPS = {"student_temp": 0.1, "teacher_temp": 0.07, "center_momentum": 0.9}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(randn(*shape), dim=-1)


def weights(masks: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """1/(masked patches of the crop)/(crops), one for each masked patch of masks (crops, patches)."""
    each = 1 / masks.sum(-1, keepdim=True).clamp(min=1).to(dtype) / len(masks)
    return each.expand_as(masks)[masks]


def simdinov2_parts(student_patches, teacher_patches, patch_weights, crops: int = 2, **options) -> dict:
    """The parts for given patches, beside class tokens that do not matter."""
    z = F.normalize(torch.ones(2, crops // 2, 3).to(student_patches), dim=-1)
    return simdinov2_loss(z, z, student_patches, teacher_patches, patch_weights, gamma=0.0, **({"eps": 0.5} | options))[
        1
    ]


def dinov2_parts(student_patches, teacher_patches, patch_weights, **options) -> dict:
    z = torch.ones(2, 2, 3).to(student_patches)
    options = {"center": z[0, 0], "patch_center": 0 * student_patches.new_ones(student_patches.shape[1])} | options
    return dinov2_loss(z, z, student_patches, teacher_patches, patch_weights, z, **TEMPS, **options)[1]


# --- The official code's recorded numbers


def test_sinkhorn_and_centering_equal_the_official_dinov2():
    """The official code sums over pairs and, in DINOv2, over the diagonal ones, too: the loss of swapped views."""
    sinkhorn, centering = [], []
    for r in oracle("dino_v2")["rows"]:
        rng, v, k = np.random.default_rng(r["seed"]), r["ncrops"], r["K"]
        s, t = (torch.tensor(rng.standard_normal((views, r["n"], k))) for views in (v, 2))
        s.requires_grad_()
        options = {"student_temp": 0.1, "teacher_temp": r["temp"], "center_momentum": 0.9}

        def sums(centering, center, s=s, t=t, v=v, options=options):
            loss, parts = dino_loss(s, t, center=center, centering=centering, **options)
            diagonal, _ = dino_loss(s[[1, 0]], t, center=center, centering=centering, **options)
            return 2 * (v - 1) * loss, 2 * diagonal, parts["center"]

        q = sinkhorn_knopp(t.flatten(0, 1), temp=r["temp"])
        columns, rows = q.sum(0), q.sum(1)
        entropy = torch.special.entr(q).sum(-1).mean()
        assert q[0, :4].tolist() == pytest.approx(r["sk_row0"], rel=3e-5, abs=0)
        other, diagonal, center = sums("sinkhorn", torch.zeros(k))
        (g,) = torch.autograd.grad(other, s)
        only_global = 2 * dino_loss(s[:2], t, center=center, centering="sinkhorn", **options)[0]
        found = [columns.min(), columns.max(), rows.min(), rows.max(), entropy, other + diagonal, other, only_global]
        found += [g.norm(), g[0, 0, 0], g[1, 0, 1], g[-1, -1, -1]]
        names = ["sk_colsum", "sk_rowsum", "sk_entropy", "dinov2_total_sk", "sim_total_sk", "sim_global_sk", "sim_grad"]
        sinkhorn.append(deviation([x.item() for x in found], np.hstack([r[name] for name in names])))

        _, _, center = sums("ema", torch.zeros(k, dtype=torch.float64))  # one step, whose center the next one uses
        other, diagonal, _ = sums("ema", center)
        theirs = [r["dinov2_total_center"], *r["center"]]
        centering.append(deviation([(other + diagonal).item(), center.norm().item(), center[0].item()], theirs))
    assert_parity("dino_v2 sinkhorn, float32", sinkhorn)
    assert_parity("dino_v2 centering, float64", centering)


def test_patch_terms_equal_the_official_ones():
    """Official −Σ w·cos = patches − Σ w. Its weights are float32; the float64 ones belong to its unmasked form."""
    (r,) = oracle("ibot")["rows"]
    rng = np.random.default_rng(r["seed"])
    masks = torch.tensor(rng.random((r["B"], r["N"]))) < r["p"]
    masks[0] = False
    s, t = (torch.tensor(rng.standard_normal((r["B"], r["N"], r["d"]))) for _ in range(2))
    w, exact = weights(masks, torch.float32).double(), weights(masks)
    assert len(w) == r["n_masked"]

    def official(function, leaf, *, w=w, shift=0.0, **options):
        leaf = leaf.clone().requires_grad_()
        z = F.normalize(leaf, dim=-1) if shift else leaf
        target = F.normalize(t, dim=-1) if shift else t
        parts = function(z[masks], target[masks], w, **options)
        (g,) = torch.autograd.grad(parts["patches"], leaf)
        return parts, parts["patches"].item() - shift, g.norm().item(), g[masks][0, 0].item(), g[masks][-1, -1].item()

    deviations = []
    for name, leaf in (("cosine_norm", F.normalize(s, dim=-1)), ("cosine_raw", s)):
        _, full, *_ = official(simdinov2_parts, leaf, w=exact, shift=exact.sum().item(), crops=4)
        _, value, *gradient = official(simdinov2_parts, leaf, shift=w.sum().item(), crops=4)
        deviations.append(deviation([full, value, value, *gradient], r[name]))
    assert_parity("ibot cosine, float64", deviations)

    first, loss, norm, *_ = official(dinov2_parts, s, w=exact, centering="ema")
    center = first["patch_center"]
    exact_part = [loss, center.norm().item(), center[0].item()]
    assert_parity("ibot full, float64", [deviation(exact_part, [r["ibot_full_softmax"], *r["ibot_center"]])])
    _, *second = official(dinov2_parts, s, centering="ema", patch_center=center)
    _, *third = official(dinov2_parts, s, centering="sinkhorn")
    found = [[loss, norm], second[:2], third[:2]]
    assert_parity("ibot, float32", [deviation(a, b) for a, b in zip(found, r["ibot_center0_center1_sk"], strict=True)])
    assert sinkhorn_knopp(t[masks], temp=0.07)[0, :4].tolist() == pytest.approx(r["ibot_sk_row0"], rel=3e-5, abs=0)


def test_koleo_equals_the_official_one():
    deviations = []
    for r in rows_of(oracle("koleo")):
        x = torch.tensor(np.random.default_rng(r["seed"]).standard_normal((r["n"], r["d"])), requires_grad=True)
        loss = koleo_loss(x)
        (g,) = torch.autograd.grad(loss, x)
        found = [x.item() for x in (loss, g.norm(), g[0, 0], g[-1, -1])]
        deviations.append(deviation(found, [r["loss"], r["grad_fro"], r["g[0,0]"], r["g[-1,-1]"]]))
    assert_parity("koleo, float64", deviations)


# --- Definitions as loops, derivatives


def naive_sinkhorn(scores: torch.Tensor, temp: float) -> torch.Tensor:
    """As published: the total, the prototypes and the samples are in turn normalized to 1, 1/K and 1/n each."""
    q = (scores.float() / temp).exp()
    n, k = q.shape
    q = q / q.sum()
    for _ in range(3):
        for j in range(k):
            q[:, j] = q[:, j] / q[:, j].sum() / k
        for i in range(n):
            q[i] = q[i] / q[i].sum() / n
    return q * n


def naive_koleo(z: torch.Tensor) -> torch.Tensor:
    z = [x / x.norm() for x in z]
    nearest = [min((x - y).norm() for j, y in enumerate(z) if j != i) for i, x in enumerate(z)]
    return -sum(d.log() for d in nearest) / len(z)


def test_sinkhorn_and_koleo_equal_loops():
    scores, z = torch.randn(6, 5), randn(2, 7, 3)
    torch.testing.assert_close(sinkhorn_knopp(scores, temp=0.3), naive_sinkhorn(scores, 0.3), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(koleo_loss(z), torch.stack([naive_koleo(x) for x in z]), rtol=1e-6, atol=1e-7)


def patches_of(counts: list[int], d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher patches and weights of crops that have so many masked patches."""
    masks = torch.arange(max(counts) + 1) < torch.tensor(counts)[:, None]
    return unit(sum(counts), d), unit(sum(counts), d), weights(masks)


@pytest.mark.parametrize("counts", [[3, 0, 3, 1, 0, 5], [2, 2, 2, 2, 2, 2], [7, 7, 0, 0, 0, 0]])
def test_simdinov2_equals_loops(counts):
    s, t = unit(4, 3, 5), unit(2, 3, 5)
    sp, tp, w = patches_of(counts, 4)
    loss, parts = simdinov2_loss(s, t, sp, tp, w, eps=0.5, gamma=0.2, patch_weight=0.7, patch_gamma=0.1)
    crops = [(a, b) for a, b in zip(sp.split(counts), tp.split(counts), strict=True) if len(a)]
    patches = sum(sum((x - y).square().sum() for x, y in zip(a, b, strict=True)) / 2 / len(a) for a, b in crops) / 6
    within = sum(coding_rate(a, eps=0.5) for a, _ in crops) / len(crops)
    across = coding_rate(torch.stack([a.mean(0) / a.mean(0).norm() for a, _ in crops]), eps=0.5)
    expected = simdino_loss(s, t, eps=0.5, gamma=0.2)[0] + 0.7 * patches - 0.1 * (within + across)
    torch.testing.assert_close(loss, expected)
    found = [parts[name] for name in ("patches", "patch_rate_within", "patch_rate_across")]
    torch.testing.assert_close(found, [patches, within, across])


@pytest.mark.parametrize("counts", [[3, 0, 3, 1, 0, 5], [2, 2, 2, 2, 2, 2], [7, 7, 0, 0, 0, 0]])
def test_gram_anchoring_equals_loops(counts):
    """Of the anchor only the cosines within a crop matter: neither its dimension nor how a crop's tokens are turned."""
    s, t = unit(4, 3, 5), unit(2, 3, 5)
    sp, tp, w = patches_of(counts, 4)
    anchor = unit(sum(counts), 7)
    turned = torch.cat([a @ torch.linalg.qr(randn(7, 7))[0] for a in anchor.split(counts)])
    gram = sum(
        (a[i] @ a[j] - b[i] @ b[j]) ** 2 / len(a) ** 2 / 6
        for a, b in zip(sp.split(counts), anchor.split(counts), strict=True)
        for i in range(len(a))
        for j in range(len(a))
    )
    plain, parts = simdinov2_loss(s, t, sp, tp, w, eps=0.5, gamma=0.2)
    assert "gram" not in parts
    for of in (anchor, turned):
        loss, parts = simdinov2_loss(s, t, sp, tp, w, of, eps=0.5, gamma=0.2, gram_weight=0.3)
        torch.testing.assert_close([loss, parts["gram"]], [plain + 0.3 * gram, gram])


@pytest.mark.parametrize("centering", ["ema", "sinkhorn"])
def test_dinov2_equals_loops(centering):
    s, t, z, center, patch_center = randn(4, 3, 5), randn(2, 3, 5), randn(2, 3, 8), randn(5), randn(6)
    _, _, w = patches_of([3, 0, 3, 1, 0, 5], 6)
    sp, tp = randn(12, 6), randn(12, 6)
    centers = {"center": center, "patch_center": patch_center}
    options = {"centering": centering, "patch_weight": 0.7, "koleo_weight": 0.3}
    loss, parts = dinov2_loss(s, t, sp, tp, w, z, **centers, **TEMPS, **options)
    q = ((tp - patch_center) / 0.07).softmax(-1) if centering == "ema" else naive_sinkhorn(tp, 0.07).double()
    patches = sum(w[m] * -(q[m] * (sp[m] / 0.1).log_softmax(-1)).sum() for m in range(12))
    first, _ = dino_loss(s, t, center=center, centering=centering, **TEMPS)
    expected = first + 0.7 * patches + 0.3 * sum(naive_koleo(crop) for crop in z)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    moved = 0.9 * patch_center + 0.1 * tp.mean(0) if centering == "ema" else patch_center
    torch.testing.assert_close(parts["patch_center"], moved)


def test_derivatives():
    s, t, z, center = randn(3, 3, 4), randn(2, 3, 4), randn(2, 3, 4), randn(4)
    sp, tp, w = patches_of([3, 0, 2, 1, 0, 4], 4)
    sp.requires_grad_(), s.requires_grad_(), z.requires_grad_()
    options = {"eps": 0.5, "gamma": 0.2, "patch_gamma": 0.3}
    assert torch.autograd.gradcheck(
        lambda s, sp: simdinov2_loss(s, t, sp, tp, w, tp, **options, gram_weight=0.5)[0], (s, sp), fast_mode=True
    )
    for centering in ("ema", "sinkhorn"):
        options = {"center": center, "patch_center": center, "centering": centering} | TEMPS
        loss = lambda s, sp, z, o=options: dinov2_loss(s, t, sp, tp, w, z, **o)[0]  # noqa: E731
        assert torch.autograd.gradcheck(loss, (s, sp, z), fast_mode=True)


# --- What the terms are for


def test_sinkhorn_uses_every_sample_and_every_prototype_alike():
    q = sinkhorn_knopp(torch.randn(12, 4), temp=0.5, iterations=200)
    torch.testing.assert_close(q.sum(1), torch.ones(12))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0))
    torch.testing.assert_close(sinkhorn_knopp(torch.ones(5, 4), temp=0.1), torch.full((5, 4), 0.25))
    torch.testing.assert_close(sinkhorn_knopp(torch.randn(5, 1), temp=0.1), torch.ones(5, 1))
    large = sinkhorn_knopp(1e3 * torch.randn(12, 4), temp=0.04)  # where exp(scores/τ) is infinite in float32
    torch.testing.assert_close(large.sum(1), torch.ones(12))


def test_koleo_of_known_configurations():
    """Opposite points −log 2, orthonormal ones −log √2; equal ones are finite, and so is their gradient."""
    opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert koleo_loss(opposite).item() == pytest.approx(-math.log(2), abs=1e-6)
    assert koleo_loss(torch.eye(5)).item() == pytest.approx(-math.log(2) / 2, abs=1e-6)
    same = torch.ones(4, 3, requires_grad=True)
    loss = koleo_loss(same)
    assert 10 < loss.item() < -math.log(1e-8)
    assert torch.autograd.grad(loss, same)[0].isfinite().all()
    with pytest.raises(ValueError, match="two rows"):
        koleo_loss(torch.ones(1, 3))


def test_patch_weights_give_each_masked_crop_the_same_share():
    """Equal patches reach the official best value −½ where half of the crops are masked."""
    masks = torch.arange(9) < torch.tensor([4, 0, 7, 0])[:, None]
    p = unit(11, 3)
    assert simdinov2_parts(p, p, weights(masks), crops=4)["patches"].item() == 0
    assert weights(masks).sum().item() == pytest.approx(0.5)


def test_weights_or_a_bound_that_do_not_fit_give_rates_of_nan():
    """Nothing in a loss looks at a tensor, so that it cannot be refused."""
    masks = torch.arange(9) < torch.tensor([4, 0, 7, 0])[:, None]
    p, w = unit(11, 3), weights(masks)
    assert all(rate.isfinite() for rate in patch_rates(p, w, eps=0.5, crops=4, most_patches=7))
    wrong = (torch.ones(11, dtype=torch.float64), w.roll(2), w / 2)
    for bad in (
        *(patch_rates(p, x, eps=0.5, crops=4) for x in wrong),
        patch_rates(p, w, eps=0.5, crops=4, most_patches=6),
    ):
        assert all(rate.isnan() for rate in bad)


@pytest.mark.parametrize("padding", [0, 3])
def test_no_masked_patch(padding):
    p, w = F.normalize(torch.randn(padding, 4), dim=-1).requires_grad_(), torch.zeros(padding)
    z = F.normalize(torch.randn(2, 3, 4), dim=-1)
    loss, parts = simdinov2_loss(z, z, p, -p.detach(), w, eps=0.5, gamma=0.1, patch_gamma=0.1)
    torch.testing.assert_close(loss, simdino_loss(z, z, eps=0.5, gamma=0.1)[0])
    assert [parts[k].item() for k in ("patches", "patch_rate_within", "patch_rate_across")] == [0, 0, 0]
    assert torch.equal(torch.autograd.grad(loss, p)[0], torch.zeros(padding, 4))
    for centering in ("ema", "sinkhorn"):
        center = torch.ones(4)
        parts = dinov2_parts(p, p.detach(), w, patch_center=center, centering=centering)
        assert parts["patches"].item() == 0
        assert torch.equal(parts["patch_center"], center)
        assert torch.equal(torch.autograd.grad(parts["patches"], p)[0], torch.zeros(padding, 4))


def test_rates_of_patches_are_there_only_if_the_loss_has_them():
    p = unit(4, 3)
    w = torch.full((4,), 1 / 4 / 2, dtype=torch.float64)
    assert "patch_rate_within" not in simdinov2_parts(p, p, w)
    parts = simdinov2_parts(p, p, w, patch_gamma=0.1)
    found = patch_rates(p, w, eps=0.5, crops=2)
    assert (parts["patch_rate_within"], parts["patch_rate_across"]) == tuple(found)


def padded(patches: torch.Tensor, rows: int = 5) -> torch.Tensor:
    """Patches, or their weights, with rows after them that a loss should not see."""
    return torch.cat([patches, 0 * patches[:rows] if patches.ndim == 1 else unit(rows, patches.shape[1])])


@pytest.mark.parametrize("counts", [[3, 0, 3, 1, 0, 5], [2, 2, 2, 2, 2, 2]])
def test_padding_changes_nothing(counts):
    """Rows of weight 0: no loss, no part and no gradient sees them."""
    s, t, center = randn(4, 3, 5), randn(2, 3, 5), randn(4)
    sp, tp, w = patches_of(counts, 4)

    def compare(function, *class_tokens, before=(), **options):
        found = []
        for pad in (lambda x: x, padded):
            leaf = pad(sp).requires_grad_()
            anchor = (pad(tp),) if "gram_weight" in options else ()
            loss, parts = function(*class_tokens, leaf, pad(tp), pad(w), *anchor, *before, **options)
            gradient = torch.autograd.grad(loss, leaf)[0]
            assert not gradient[len(sp) :].any()
            found.append([loss, gradient[: len(sp)], *parts.values()])
        torch.testing.assert_close(found[1], found[0])

    for most in (None, 7):
        options = {"eps": 0.5, "gamma": 0.2, "patch_gamma": 0.3, "gram_weight": 0.4, "most_patches": most}
        compare(simdinov2_loss, F.normalize(s, dim=-1), F.normalize(t, dim=-1), **options)
    for centering in ("ema", "sinkhorn"):
        options = {"center": randn(5), "patch_center": center, "centering": centering} | TEMPS
        compare(dinov2_loss, s, t, before=(t,), **options)


def rotated_to(target: torch.Tensor, k: int) -> torch.Tensor:
    """k orthonormal rows whose mean points to a unit vector: a reflection takes the mean of e_1 .. e_k there."""
    d = len(target)
    mean = F.normalize(torch.eye(d, dtype=torch.float64)[:k].sum(0), dim=0)
    v = F.normalize(mean - target, dim=0)
    return torch.eye(d, dtype=torch.float64)[:k] - 2 * v[:k, None] * v


def test_rates_of_patches_exclude_each_collapse():
    """C2. Bounds k/2·log(1 + α/k) within and c/2·log(1 + α/c) across, of c crops with k masked patches in d = 12
    dimensions, are reached together. Tokens that depend on nothing, on the image, or on the place only, miss one
    and have the least rate, ½·log(1 + α), instead; with c = d images, the rate of all tokens pooled is at its bound.
    """
    c, k, d, eps = 12, 4, 12, 0.5
    alpha, directions, frame = d / eps**2, torch.linalg.qr(randn(d, d))[0], torch.linalg.qr(randn(d, d))[0][:k]
    least, most = 0.5 * math.log1p(alpha), {r: r / 2 * math.log1p(alpha / r) for r in (k, c)}
    w = weights(torch.ones(c, k, dtype=torch.bool))
    tokens = {
        "spread": torch.cat([rotated_to(u, k) for u in directions]),
        "constant": directions[:1].expand(c * k, d),
        "of the image": directions.repeat_interleave(k, 0),
        "of the place": frame.repeat(c, 1),
    }
    expected = {"spread": (most[k], most[c]), "constant": (least, least)}
    expected |= {"of the image": (least, most[c]), "of the place": (most[k], least)}
    for name, z in tokens.items():
        leaf = z.clone().requires_grad_()
        parts = simdinov2_parts(leaf, z, w, crops=c, eps=eps, patch_gamma=1.0)
        found = [parts[f"patch_rate_{which}"] for which in ("within", "across")]
        assert [x.item() for x in found] == pytest.approx(expected[name], rel=1e-9), name
        assert parts["patches"].item() == 0  # the alignment does not see it
        assert torch.autograd.grad(sum(found), leaf)[0].isfinite().all()
    assert coding_rate(tokens["of the image"], eps=eps).item() == pytest.approx(most[c], rel=1e-9)


def test_gram_anchoring_is_zero_at_the_anchor_and_its_gradient_leaves_what_is_constant():
    """In crops of P tokens that are all equal the distance to an orthonormal anchor is 1 − 1/P, and no descent
    direction leaves them to first order: Z Zᵀ has its gradient along Z, which is normal to the sphere.
    """
    w, anchor = weights(torch.ones(3, 4, dtype=torch.bool)), torch.eye(4, dtype=torch.float64).repeat(3, 1)
    assert gram_distance(anchor, anchor, w, crops=3).item() == 0
    constant = unit(1, 4).expand(12, 4).clone().requires_grad_()
    distance = gram_distance(constant, anchor, w, crops=3)
    assert distance.item() == pytest.approx(1 - 1 / 4, rel=1e-12)
    (gradient,) = torch.autograd.grad(distance, constant)
    along = (gradient * constant).sum(-1, keepdim=True) * constant
    torch.testing.assert_close(gradient, along.detach())
    with pytest.raises(ValueError, match="needs anchor_patches"):
        simdinov2_parts(anchor, anchor, w, crops=4, gram_weight=1.0)

"""The report: judgements on constructed features, its numbers and its forms."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import analysis
from analysis.measures.alignment_uniformity import uniformity
from analysis.measures.collapse import feature_std, lidar, mean_collapse
from analysis.measures.intrinsic_dimension import twonn
from analysis.measures.moments import Moments
from analysis.measures.spectra import effective_rank, participation_ratio, rankme
from analysis.reporting.features import report
from tests.configurations import gaussian, rotation, simplex, sphere

ROOT = Path(__file__).parents[2]
EPS = 0.05**0.5
N, D = 800, 64


def values(r):
    return r.to_frame()["value"]


def rms_one(z):
    return z / z.square().sum(1).mean().sqrt()


def offset(z, share):
    """Features of unit energy, `share` of it in their mean."""
    point = torch.zeros(z.shape[1], dtype=z.dtype)
    point[0] = math.sqrt(share)
    return point + math.sqrt(1 - share) * rms_one(z - z.mean(0))


def decaying(n, d, power):
    return gaussian(n, d) * torch.arange(1, d + 1) ** (-power / 2)


def untrained(n, d):
    """Correlated inputs through a random ReLU network and a LayerNorm: one direction common to all, few others."""
    x = decaying(n, 48, 2)
    for width in (256, 256, 256, 256):
        x = torch.relu(x @ gaussian(x.shape[1], width, seed=1) / math.sqrt(x.shape[1]))
    x = x @ gaussian(256, d, seed=2)
    return torch.nn.functional.layer_norm(x, (d,))


# --- Judgements


CONSTRUCTED = {
    "isotropic": (sphere(N, D), "healthy"),
    "rotated and scaled rows": (7 * sphere(N, D) @ rotation(D), "healthy"),
    "spectrum 1/j": (decaying(N, D, 1), "healthy"),
    "spectrum 1/j²": (decaying(N, D, 2), "dimensional collapse"),
    "rank 5 of 64": (gaussian(N, 5) @ gaussian(5, D, seed=1), "dimensional collapse"),
    "narrow cone": (offset(sphere(N, D), 0.98), "mean collapse"),
    "wide cone": (offset(sphere(N, D), 0.9), "mean collapse"),
    "mean with a third of the energy": (offset(sphere(N, D), 0.33), "healthy"),
    "constant and noise": (torch.ones(D) + 1e-3 * gaussian(N, D), "mean collapse"),
    "constant and little noise, float32": ((torch.ones(D) + 1e-6 * gaussian(N, D)).float(), "mean collapse"),
    "constant": (torch.ones(N, D), "mean collapse"),
    "zeros": (torch.zeros(N, D), "mean collapse"),
    "untrained network": (untrained(N, D), "mean collapse"),
    "rank 5 of 64 in 40 samples": (gaussian(40, 5) @ gaussian(5, D, seed=1), "dimensional collapse"),
    "constant in 20 samples": (torch.ones(D) + 1e-3 * gaussian(20, D), "mean collapse"),
    "isotropic in 40 samples": (sphere(40, D), "too few samples to judge"),
}


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_judgement_of_constructed_features(name):
    z, expected = CONSTRUCTED[name]
    result = report(z)
    assert result.judgement == expected, result.reason
    assert report(z @ rotation(D).to(z)).judgement == expected


def test_noise_around_one_point_is_complete_collapse_though_its_centered_rank_is_healthy():
    result = report(torch.ones(D) + 1e-3 * gaussian(N, D))
    row = result.to_frame().loc["effective rank, centered"]
    assert row["value"] > 0.95 * row["white_noise"]
    assert result.reason.startswith("Complete")
    assert values(result)["mean share"] > 0.999
    assert values(result)["feature std"] < 0.01
    cone = report(offset(sphere(N, D), 0.9)).reason
    assert cone.startswith("Partial")
    assert cone.endswith(("they would keep 99%.", "they would keep 100%."))


def test_class_collapse_needs_labels_and_more_than_the_mean():
    labels = torch.arange(N) % 10
    z = simplex(10, D)[labels] + 0.01 * gaussian(N, D)
    assert report(z).judgement == "dimensional collapse"
    assert report(z, labels=labels).judgement == "class collapse"
    assert report(z, labels=labels[torch.randperm(N)]).judgement == "dimensional collapse"
    assert report(sphere(N, D), labels=labels).judgement == "healthy"
    assert report(torch.ones(D) + 1e-3 * gaussian(N, D), labels=labels).judgement == "mean collapse"
    assert report(sphere(N, D), labels=torch.arange(N)).judgement == "healthy"  # every sample its own class


def test_views_further_apart_than_half_of_different_samples_are_a_problem():
    z, noise = sphere(N, D), sphere(2, N, D, seed=3)
    for share, expected in ((0.2, "healthy"), (0.8, "view problem")):
        views = math.sqrt(1 - share) * z + math.sqrt(share) * noise
        result = report(z, views=views)
        assert result.judgement == expected
        assert values(result)["alignment, ½E‖z − z′‖²"] == pytest.approx(share, abs=0.02)


# --- Numbers


def test_values_are_those_of_the_functions_on_unit_rows():
    z = 3 * gaussian(N, 8) + 0.5
    unit = torch.nn.functional.normalize(z, dim=1)
    r = values(report(z))
    expected = {
        "coding rate": torch.logdet(torch.eye(8, dtype=z.dtype) + 8 / (N * EPS**2) * unit.T @ unit) / 2,
        "effective rank": effective_rank(unit),
        "effective rank, centered": effective_rank(unit, center=True),
        "RankMe": rankme(unit),
        "participation ratio": participation_ratio(unit),
        "mean share": mean_collapse(unit),
        "feature std": feature_std(unit),
        "uniformity": uniformity(unit),
        "intrinsic dimension": twonn(unit).dimension,
    }
    assert r.to_dict() == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-9)


def test_isotropic_features_are_as_good_as_their_references_say():
    frame = report(sphere(640, 64)).to_frame().drop(index=["mean share", "uniformity", "intrinsic dimension"])
    assert frame["value"].to_numpy() == pytest.approx(frame["white_noise"].to_numpy(), rel=0.01)
    assert frame.loc["coding rate", "best"] == frame.loc["coding rate", "white_noise"]  # what batches can attain
    assert (frame["value"] <= frame["best"] * 1.001).all()
    assert (frame["se"] > 0).all()


def test_optimum_is_reached_by_a_tight_frame():
    frame = report(torch.eye(16).repeat(20, 1)).to_frame()
    assert "100.0% of R*" in frame.loc["coding rate", "says"]
    for name in ("effective rank", "RankMe", "participation ratio"):
        assert frame.loc[name, "value"] == pytest.approx(frame.loc[name, "best"], rel=1e-5)


def test_labels_views_and_tokens_add_their_rows():
    z, labels = sphere(N, 16), torch.arange(N) // (N // 4)
    z = torch.nn.functional.normalize(z + 2 * torch.eye(16, dtype=z.dtype)[labels], dim=1)
    views = torch.stack((z[:100], z[:100] + 0.1 * gaussian(100, 16)))
    result = report(z, labels=labels, views=views, tokens=gaussian(30, 9, 16))
    frame = result.to_frame()
    within = torch.cat([z[labels == k] - z[labels == k].mean(0) for k in range(4)]).square().sum() / (N - 4)
    assert frame.loc["spread within classes", "value"] == pytest.approx(within.item())
    assert frame.loc["k-NN accuracy", "value"] > 0.9
    assert frame.loc["k-NN accuracy", "white_noise"] == 0.25  # the largest class
    assert frame.loc["LiDAR", "value"] == pytest.approx(
        lidar(torch.nn.functional.normalize(views, dim=-1)).item(), rel=1e-9
    )
    assert {"patches of an image", "images at a patch"} <= set(frame.index)


def test_the_worst_class_is_named_beside_white_noise_of_its_size():
    labels = torch.arange(N) % 4
    labels[:6] = 9  # six rows have a rank of five at most, which is not their fault
    z, flat = sphere(N, 16), labels == 2
    z[flat] = torch.nn.functional.normalize(z[flat] * torch.tensor([1.0] * 8 + [0.1] * 8, dtype=z.dtype), dim=1)
    row = report(z, labels=labels).to_frame().loc["rank of the worst class"]
    assert "within class 2" in row["says"]
    assert row["value"] == pytest.approx(effective_rank(z[flat], center=True).item(), rel=1e-6)
    assert row["value"] > effective_rank(z[labels == 9], center=True).item() + 2
    noise = effective_rank(sphere(int(flat.sum()), 16), center=True).item()
    assert row["white_noise"] == pytest.approx(noise, rel=0.01)


def test_moments_gathered_in_training_give_the_same_judgement_and_numbers():
    for z in (sphere(N, 16), torch.nn.functional.normalize(offset(sphere(N, 16), 0.95), dim=1)):
        streamed, whole = report(Moments.of(z, blocks=16)), report(z)
        assert (streamed.judgement, streamed.reason) == (whole.judgement, whole.reason)
        assert values(streamed).to_dict() == pytest.approx(values(whole)[: len(streamed.rows)].to_dict(), rel=1e-9)
    with pytest.raises(ValueError, match="must be of unit rows"):
        report(Moments.of(2 * sphere(N, 16), blocks=16))
    with pytest.raises(ValueError, match="keeps no rows that labels could be of"):
        report(Moments.of(sphere(N, 16), blocks=16), labels=torch.arange(N))
    with pytest.raises(ValueError, match="needs blocks for its standard errors"):
        report(Moments.of(sphere(N, 16)))


def test_a_memory_map_is_read_like_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.reporting.features.CHUNK", 2**16)  # three chunks
    z = sphere(70_000, 32).float().numpy()
    np.save(tmp_path / "z.npy", z)
    mapped, array = report(np.load(tmp_path / "z.npy", mmap_mode="r")), report(torch.from_numpy(z))
    assert mapped.to_json() == array.to_json()
    assert any("4096 random rows" in w for w in mapped.warnings)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
def test_any_number_type_is_read(dtype):
    assert report((100 * np.abs(gaussian(200, 8).numpy())).astype(dtype)).n == 200


def test_few_samples_and_zero_rows_are_said():
    z = sphere(200, 32)
    z[:3] = 0
    result = report(z)
    assert any("n/d = 6.25 is below 10" in w for w in result.warnings)
    assert any("3 of 200 rows are zero" in w for w in result.warnings)
    assert not report(sphere(320, 32)).warnings


# --- Forms


def test_forms_hold_the_same_plain_numbers():
    result = report(sphere(N, D), labels=torch.arange(N) % 3)
    record = json.loads(result.to_json())
    assert [row["measure"] for row in record["rows"]] == list(result.to_frame().index)
    assert record["judgement"] == "healthy"
    assert {"n", "d", "eps", "blocks", "conventions", "reason"} <= record.keys()
    for row in result.rows:
        assert type(row.value) is float
        assert {type(x) for x in row[2:6]} <= {float, type(None)}
        assert row.healthier in ("higher", "lower", "neither")
        assert row.says.endswith(".")


def test_text_fits_a_terminal_and_shows_size_and_conventions():
    for z in (sphere(N, D), torch.ones(200, 1000) + 1e-3 * gaussian(200, 1000)):
        text = str(report(z, labels=torch.arange(len(z)) % 7))
        assert max(map(len, text.splitlines())) <= 100
        for part in (
            f"{len(z)} features in {z.shape[1]} dimensions",
            "n/d = ",
            "uncentered",
            "ε = 0.2236",
            "jackknife",
        ):
            assert part in text


def test_html_is_escaped_and_has_every_row():
    html = report(sphere(N, D), labels=torch.arange(N) % 3)._repr_html_()
    assert html.count("<tr") == 2 + 13  # two header rows
    assert "½" in html or "healthy" in html


def test_infinities_leave_valid_json():
    labels = torch.arange(N) % 2
    record = json.loads(report(torch.ones(N, 4), labels=labels).to_json())  # NC1 of equal class means is infinite
    assert {row["measure"]: row["value"] for row in record["rows"]}["NC1"] is None


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.ones(15, 4), "z has 15 rows, and 16 are needed"),
        (torch.ones(1, 4), "z has 1 rows"),
        (torch.ones(20), "shape"),
        (torch.ones(20, 3, 3), "shape"),
        (torch.full((20, 4), math.nan), "NaN"),
        (torch.ones(20, 0), "empty"),
    ],
)
def test_bad_features_are_named(z, message):
    with pytest.raises(ValueError, match=message):
        report(z)


def test_bad_labels_and_views_are_named():
    with pytest.raises(ValueError, match="labels must have shape"):
        report(sphere(N, D), labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 2 views"):
        report(sphere(N, D), views=sphere(1, N, D))
    with pytest.raises(ValueError, match="blocks"):
        report(sphere(N, D), blocks=1)


# --- The package


def test_everything_public_is_documented_and_there():
    for name in analysis.__all__:
        assert len(getattr(analysis, name).__doc__) > 80, name
    assert sorted(analysis.__all__) == list(analysis.__all__)


def test_no_public_name_is_a_module_of_the_package_too():
    """`import analysis.diagnose` would replace a function of that name, or the function hide the module."""
    modules = {path.stem for path in (ROOT / "analysis").glob("*.py")}
    assert not modules & set(analysis.__all__)


def test_the_package_imports_without_extras_and_without_its_commands():
    extras = ["matplotlib", "seaborn", "sklearn", "skimage", "PIL", "papermill", "IPython"]
    code = f"import sys; sys.modules.update(dict.fromkeys({extras}))\nfrom analysis import *\n"
    code += "commands = {'simdino.analysis.commands', 'simdino.analysis.claims', 'simdino.analysis.plots'}\n"
    code += "assert not commands & sys.modules.keys(), commands & sys.modules.keys()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

"""Claims: a page holds what the measures say of known features; random ones are like white noise in every panel;
each judgement and each number of a run that is off has its sentence, and a sound one has none; both kinds are drawn."""

import json
import math
import warnings
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from analysis.measures.spectra import effective_rank, eigenvalues
from analysis.plots.page_panels import plot_page
from analysis.reporting.advice import ADVICE, NOTHING, next_steps
from analysis.reporting.features import SUBSET, report
from analysis.reporting.judgement import Judgement
from analysis.reporting.page import one_page
from analysis.runs.correlations import backbone_measures
from analysis.runs.diagnosis import diagnose
from analysis.runs.outcomes import linear_accuracy
from analysis.runs.vit_layers import token_shares
from simdino.config import DINO, SimDINOv2
from simdino.train import get_run
from tests.configurations import sphere
from tests.simdino.test_train import TINY

matplotlib.use("agg")
N, D = 640, 16


@pytest.fixture(scope="module")
def white(tmp_path_factory):
    path = tmp_path_factory.mktemp("white") / "z.npz"
    np.savez(path, z=sphere(N, D).numpy(), labels=np.arange(N) % 4)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    dino = replace(TINY, recipe="dino", objective=DINO(), model=replace(TINY.model, prototypes=32))
    two = replace(TINY.model, mask_token=True, patch_head="shared")
    two = replace(TINY, recipe="simdinov2", objective=SimDINOv2(gamma=0.01), model=two)
    return {config.recipe: get_run(config, root, progress=False) for config in (TINY, dino, two)}


@pytest.fixture(scope="module")
def found(white, runs):
    """The pages of random features and of a run of each kind."""
    return {"features": one_page(white)} | {name: one_page(run.path) for name, run in runs.items()}


def test_images_without_classes_train_and_what_needs_classes_says_so(tmp_path):
    """From a folder of images alone to the page of the run and its picture."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(200):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    data = replace(TINY.data, name="folder", root=str(tmp_path / "images"))
    run = get_run(replace(TINY, data=data, recipe="flat"), tmp_path / "runs", progress=False)
    assert {"bank_labels", "test_labels"}.isdisjoint(run.probe)
    table = diagnose(run)
    assert table["knn"].isnull().all()
    assert table["knn_pixels"].isnull()
    assert table["effective_rank"].notnull().all()
    assert np.isnan(backbone_measures(run)["knn"])
    assert np.isnan(linear_accuracy([run]).item())
    page = one_page(run.path)
    assert "The images have no classes, and so there is no k-NN accuracy." in page.report.sentences
    assert "k-NN" not in " ".join(page.next)
    assert set(page.cosines["pairs"]) == {"all"}
    assert "nan" not in str(page)
    json.loads(page.report.to_json())
    with warnings.catch_warnings(action="error"):
        plot_page(page)
        plt.savefig(tmp_path / "page.png")
    plt.close("all")


# --- Features


def test_random_features_are_like_white_noise(found):
    found = found["features"]
    assert found.next == (NOTHING,)
    assert found.report.judgement == "healthy"
    assert (found.curves, found.log, found.preflight, found.facts) == (None, None, None, {})
    assert found.relative["value"].to_numpy() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(found.spectra["eigenvalue"], found.spectra["white_noise"], rtol=0.1)
    sizes = found.sizes.set_index("n")
    np.testing.assert_allclose(sizes["effective_rank"], sizes["white_noise"], rtol=0.05)
    for pairs, part in found.cosines.groupby("pairs"):
        assert pairs in ("one class", "different classes")
        mass = 2 / len(part)
        assert part["density"].sum() * mass == pytest.approx(1)
        assert part["white_noise"].sum() * mass == pytest.approx(1, rel=1e-3)
        assert np.abs(part["density"] - part["white_noise"]).sum() * mass < 0.1  # total variation twice


def test_spectrum_and_sizes_are_of_the_unit_rows(tmp_path):
    z = sphere(200, 8) * torch.linspace(0.5, 3, 200)[:, None] + 0.3
    np.save(tmp_path / "z.npy", z.numpy())
    found, unit = one_page(tmp_path / "z.npy", eps=0.5), z / z.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(found.spectra["eigenvalue"], eigenvalues(unit), rtol=1e-9)
    assert found.spectra["eigenvalue"].sum() == pytest.approx(1)
    assert found.sizes["effective_rank"].iloc[-1] == pytest.approx(effective_rank(unit).item())
    assert found.sizes["n"].iloc[-1] == 200
    assert found.report.eps == 0.5
    assert found.cosines["pairs"].unique().tolist() == ["all"]


def test_the_shares_of_white_noise_are_those_of_the_report(found):
    found, told = found["features"], report(sphere(N, D), labels=torch.arange(N) % 4)
    row = next(row for row in told.rows if row.measure == "effective rank")
    share = found.relative.set_index("measure").loc["effective rank"]
    assert share["value"] == pytest.approx(row.value / row.white_noise)
    assert share["high"] - share["low"] == pytest.approx(4 * row.se / row.white_noise)


def test_classes_are_seen_in_the_cosines(tmp_path):
    labels = torch.arange(100) % 2
    np.save(tmp_path / "z.npy", torch.eye(8)[labels].numpy())
    np.savetxt(tmp_path / "labels.txt", labels.numpy(), fmt="%d")
    cosines = one_page(tmp_path / "z.npy", labels=tmp_path / "labels.txt").cosines
    densest = cosines.loc[cosines.groupby("pairs")["density"].idxmax()].set_index("pairs")["cosine"]
    assert densest["one class"] > 0.97
    assert abs(densest["different classes"]) < 0.02


def test_zero_rows_are_left_out_and_large_files_sampled(tmp_path):
    z = sphere(SUBSET + 500, 4)
    z[::7] = 0
    np.save(tmp_path / "z.npy", z.numpy())
    found = one_page(tmp_path / "z.npy")
    assert found.sizes["n"].max() < SUBSET
    assert found.spectra["eigenvalue"].sum() == pytest.approx(1)


def test_bad_files_are_named(tmp_path, white):
    with pytest.raises(ValueError, match="there is no file"):
        one_page(tmp_path / "none.npy")
    np.savetxt(tmp_path / "labels.txt", np.arange(3), fmt="%d")
    with pytest.raises(ValueError, match=r"labels\.txt has 3 labels"):
        one_page(white, labels=tmp_path / "labels.txt")
    with pytest.raises(ValueError, match="is not a run directory"):
        one_page(tmp_path)
    np.save(tmp_path / "nan.npy", np.full((40, 3), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        one_page(tmp_path / "nan.npy")


# --- Runs


def test_a_run_brings_its_curves_its_preflight_and_its_facts(runs, found):
    run = runs["simdino"]
    found, last = found["simdino"], run.snapshot(12)["teacher/head/test"]
    assert list(found.reports) == ["head", "backbone"]
    assert found.log["step"].tolist() == run.metrics["step"].tolist()
    assert found.curves["step"].values.tolist() == run.steps
    head = found.spectra[found.spectra["set"] == "head"]
    np.testing.assert_allclose(head["eigenvalue"], eigenvalues(last, normalize=True), rtol=1e-6)
    assert f"{TINY.objective.gamma * run.metrics['rate'].iloc[-1]:.4f} is" in str(found.preflight)
    assert found.preflight.ceiling == pytest.approx(TINY.objective.gamma * run.metrics["rate_ceiling"].iloc[-1])
    assert found.facts["images"] == 64
    assert found.facts["pull"] > 0
    text, html = " ".join(repr(found).split()), found._repr_html_()  # as sentences, however they are wrapped
    for sentence in found.next:
        assert sentence in text
    assert "Known before the run" in html
    assert run.name in html


def test_a_run_without_an_expansion_has_no_preflight(found):
    found = found["dino"]
    assert found.preflight is None
    assert "pull" not in found.facts
    assert "Known before the run" not in found._repr_html_()


def test_patches_are_a_fact_where_the_objective_has_them(runs, found):
    assert "patches" not in found["simdino"].facts
    tokens = F.normalize(runs["simdinov2"].snapshot(12)["teacher/head/patches"], dim=-1)
    shares = token_shares(tokens)
    expected = shares.rest.item() / (1 - shares.common.item())
    assert found["simdinov2"].facts["patches"] == pytest.approx(expected)


def test_labels_and_eps_are_not_for_runs(runs):
    with pytest.raises(ValueError, match="labels, eps and judged_as are for features"):
        one_page(runs["simdino"].path, eps=0.5)


@pytest.mark.parametrize("kind", ["simdino", "dino", "features"])
def test_it_is_drawn(found, kind):
    fig = plot_page(found[kind])
    assert len(fig.axes) == (4 if kind == "features" else 8)
    assert all(ax.get_title() + ax.get_title(loc="left") and ax.get_xlabel() for ax in fig.axes)
    assert all(ax.has_data() for ax in fig.axes)
    plt.close(fig)


# --- Advice

SOUND = {"knn": 0.8, "knn_untrained": 0.4, "knn_pixels": 0.3, "images": 400.0}
SOUND |= {"spread": 0.9, "spread_halfway": 0.88, "alignment": 0.2, "pull": 1.2}


def judged(judgement, n=1000, d=16):
    return Judgement(judgement), n, d


@pytest.mark.parametrize("judgement", [*ADVICE, "healthy"])
def test_each_judgement_has_its_sentence(judgement):
    found = next_steps({"head": judged(judgement), "backbone": judged("healthy")})
    assert found == ((f"head: {ADVICE[judgement]}",) if judgement in ADVICE else (NOTHING,))


def test_a_sound_run_has_nothing_to_mend():
    assert next_steps({"head": judged("healthy")}, SOUND) == (NOTHING,)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"knn_untrained": 0.78}, "k-NN accuracy 0.800 is not above that of the untrained network, 0.780"),
        ({"knn_pixels": 0.9}, "is not above that of raw pixels, 0.900"),
        ({"spread_halfway": 0.5}, "The rate was still rising, from 50% of the way"),
        ({"alignment": 0.7}, "Two views of an image end 0.70 apart"),
        ({"patches": 0.01}, "only 1.0% of what varies tells patches apart: a patch collapse"),
        ({"pull": 12.0}, "the expansion pulls 12 times as hard as the alignment"),
        ({"pull": 0.1}, "the alignment pulls 10 times as hard as the expansion"),
        ({"pull": 0.0}, "the alignment pulls over 1000 times as hard"),
    ],
)
def test_what_is_off_in_a_run_has_its_sentence(changed, says):
    (sentence,) = next_steps({"head": judged("healthy")}, SOUND | changed)
    assert says in sentence


def test_few_samples_are_said_once_for_the_worst_set():
    (sentence,) = next_steps({"head": judged("healthy", n=100, d=16), "backbone": judged("healthy", n=100, d=64)})
    assert sentence.startswith("n/d is 1.6: ranks and rates read low")
    assert "640 samples" in sentence


def test_a_dead_network_does_not_divide_by_zero():
    found = next_steps({"head": judged("healthy")}, SOUND | {"knn": 0.0, "knn_untrained": 0.0})
    assert any("untrained network" in sentence for sentence in found)
    assert not any(math.isnan(float(w)) for s in found for w in s.split() if w.replace(".", "", 1).isdigit())

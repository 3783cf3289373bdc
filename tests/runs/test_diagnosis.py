"""Claims: the table of a run holds what the functions give on features whose answers are known; damage is named."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from analysis import theory
from analysis.runs.diagnosis import diagnose, diagnose_all, training_log
from simdino.runs import Run, snapshot_path
from simdino.whole_files import write_json, write_tensors

N, D, EPS = 60, 6, 0.5


@pytest.fixture
def write(tmp_path):
    """A run whose student's features are a tight frame in the head, then all equal; its backbone tells the classes."""

    def build(name: str, recipe: str, seed: int, *, teacher: bool, prototypes: bool = False, **changes) -> Run:
        path = tmp_path / name
        labels = torch.arange(N) % 3
        images = torch.randint(0, 255, (N, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        parts = {"images": images, "labels": labels}
        probe = {f"{part}_{what}": x.clone() for part in ("bank", "test") for what, x in parts.items()}
        write_tensors(path / "probe.safetensors", probe)
        objective = {"teacher_temp": 0.04, "center_momentum": 0.9} if prototypes else {"eps": EPS, "gamma": 0.1}
        config = {"objective": objective | changes, "optim": {"steps": 4}, "record": {"log_every": 2}}
        write_json(path / "config.json", {"recipe": recipe, "seed": seed} | config)
        rows = [{"step": step, "loss": loss} for step, loss in ((0, 1.0), (1, 0.9), (3, 0.5))]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        frame, constant = torch.eye(D).repeat(N // D, 1), F.normalize(torch.ones(N, D), dim=-1)
        backbone = torch.eye(8)[labels] + 0.01 * torch.randn(N, 8, generator=torch.Generator().manual_seed(1))
        for step, head in ((0, frame), (3, constant)):
            taps = {}
            for branch in ["student"] + ["teacher"] * teacher:
                taps |= {f"{branch}/head/test": 2 * head, f"{branch}/backbone/test": backbone}
                taps |= {f"{branch}/block0/test": backbone, f"{branch}/backbone/bank": backbone}
                taps |= {f"{branch}/head/views": torch.stack((frame[:D], frame[:D].roll(1, 0)))}
                scores = 9 * head + torch.tensor([20.0] + [0] * (D - 1))  # one prototype is ahead for all
                taps |= {f"{branch}/prototypes/test": scores} if prototypes else {}
            write_tensors(snapshot_path(path, step), {k: v.clone() for k, v in taps.items()})
        return Run.load(path)

    return build


def test_known_features_have_their_known_measures(write):
    table = diagnose(write("a", "simdino", 0, teacher=True))
    head = table.sel(branch="teacher", layer="head")
    frame, constant = head.sel(step=0), head.sel(step=3)
    assert frame["effective_rank"].item() == pytest.approx(D)
    assert frame["participation_ratio"].item() == pytest.approx(D)
    assert frame["rate"].item() == pytest.approx(theory.rate_maximum(N, D, EPS), rel=1e-6)
    assert frame["eigenvalues"].values[:D] == pytest.approx(1 / D)
    assert math.isnan(frame["eigenvalues"].values[D])  # the other layer is wider
    assert constant["effective_rank"].item() == pytest.approx(1)
    assert constant["rate"].item() == pytest.approx(theory.rate_collapsed(D, EPS), rel=1e-5)
    assert constant["spread"].item() == pytest.approx(0, abs=1e-5)
    assert constant["mean_collapse"].item() == pytest.approx(1)
    assert constant["feature_std"].item() == pytest.approx(0, abs=1e-6)
    assert frame["alignment"].item() == pytest.approx(1)  # orthogonal views: ½‖a − b‖² = 1
    assert math.isnan(frame["knn"].item())
    backbone = table.sel(branch="teacher", layer="backbone", step=0)
    assert backbone["knn"].item() == 1
    assert math.isnan(backbone["rate"].item())
    assert table["layer"].values.tolist() == ["block0", "backbone", "head"]
    assert 0 <= table["knn_pixels"].item() <= 1


def test_without_a_teacher_both_branches_are_the_student(write):
    table = diagnose(write("a", "simdino-no-teacher", 0, teacher=False))
    same = table.sel(branch="student", drop=True)
    assert same.identical(table.sel(branch="teacher", drop=True))


def test_several_runs_are_labeled_by_recipe_and_seed(write):
    runs = [write(f"a{s}", "simdino", s, teacher=True) for s in (0, 1)]
    runs += [write(f"b{s}", "dino", s, teacher=True, prototypes=True) for s in (0, 1)]
    table = diagnose_all(runs)
    assert table["recipe"].values.tolist() == ["simdino", "dino"]
    assert table["seed"].values.tolist() == [0, 1]
    assert table["effective_rank"].sel(recipe="simdino", layer="prototypes").isnull().all()
    assert table["effective_rank"].sel(recipe="dino", layer="prototypes", branch="teacher").notnull().all()
    information = table["prototype_information"].sel(recipe="dino", seed=0, layer="prototypes", branch="teacher")
    assert information.values == pytest.approx([math.log(D), 0], abs=1e-6)  # one each; then none
    assert training_log(runs)["loss"].sel(recipe="dino", seed=1, step=3).item() == 0.5


@pytest.mark.parametrize(
    ("changes", "informed"),
    [({}, True), ({"center_momentum": 1.0}, False), ({"center_momentum": 1.0, "centering": "sinkhorn"}, True)],
)
def test_prototype_entropies_are_of_the_targets_that_the_run_had(write, changes, informed):
    """One-hot scores, one prototype ahead of the others for all: a center or Sinkhorn-Knopp removes its lead."""
    table = diagnose(write("a", "dino", 0, teacher=True, prototypes=True, **changes))
    table = table.sel(branch="teacher", layer="prototypes", step=0)
    assert table["prototype_information"].item() == pytest.approx(informed * math.log(D), abs=1e-6)
    assert table["prototype_conditional"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("table", [diagnose_all, training_log])
def test_two_configurations_of_a_recipe_are_not_two_seeds(write, table):
    run = write("a", "simdino", 0, teacher=True)
    for other in (write("b", "simdino", 0, teacher=True), write("c", "simdino", 1, teacher=True, gamma=0.2)):
        with pytest.raises(ValueError, match=f"a and {other.name} are not two seeds of one configuration of simdino"):
            table(iter([run, other]))


def test_knn_of_a_small_bank_without_some_classes_counts_misses(write):
    """A bank of 10 < k = 20 images, 3 of class 0 and 7 of class 1: both are told, and class 2 is missed."""
    run = write("a", "simdino", 0, teacher=False)
    few = torch.tensor([0, 3, 6, 1, 4, 7, 10, 13, 16, 19])
    probe = {k: v[few] if k.startswith("bank") else v for k, v in run.probe.items()}
    snapshots = {step: run.snapshot(step) for step in run.steps}
    write_tensors(run.path / "probe.safetensors", probe)
    for step, snapshot in snapshots.items():
        snapshot = {k: v[few] if k.endswith("bank") else v for k, v in snapshot.items()}
        write_tensors(snapshot_path(run.path, step), snapshot)
    table = diagnose(run)
    assert table["knn"].sel(layer="backbone").values == pytest.approx(2 / 3)
    assert 0 < table["knn_pixels"].item() <= 2 / 3
    write_tensors(run.path / "probe.safetensors", probe | {"bank_labels": torch.full((10,), 7)})
    assert diagnose(run)["knn"].sel(layer="backbone").values == pytest.approx(0)
    write_tensors(run.path / "probe.safetensors", probe | {"bank_images": 0 * probe["bank_images"]})  # black
    assert 0 <= diagnose(run)["knn_pixels"].item() <= 2 / 3


def test_a_damaged_or_empty_run_is_named(write):
    run = write("a", "simdino", 0, teacher=True)
    path = snapshot_path(run.path, 3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step_00000003\.safetensors"):
        diagnose(run)
    for step in (0, 3):
        snapshot_path(run.path, step).unlink()
    with pytest.raises(ValueError, match="recorded no features yet"):
        diagnose(str(run.path))

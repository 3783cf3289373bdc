"""Claims: a run is the same on one rank and on two, whether these share one group of images or have one each; what
cannot be shared evenly is refused; files decoded while training, and compiled blocks, change nothing.

Started by torchrun, this file is what one rank does.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from simdino import train as trainer
from simdino.config import Config, Data
from simdino.data import load
from simdino.ranks import PATIENCE
from simdino.runs import Run
from simdino.train import get_run
from simdino.whole_files import read_metadata, read_tensors
from tests.simdino.test_train import tiny

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def config_of(name: str, groups: str) -> Config:
    """A small run in float32, without stochastic depth, which is drawn rank by rank."""
    config = tiny(name, groups=int(groups), steps=6, lr=1e-3)
    if name == "dinov2":  # Sinkhorn-Knopp is over all ranks at once, as in the official code
        config = replace(config, objective=replace(config.objective, centering="ema"))
    return replace(config, model=replace(config.model, drop_path=0.0))


def on_ranks(*arguments: str, world: int = 2) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return subprocess.run([*launch, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def assert_same(one: Run, other: Run) -> None:
    """Every logged number and every weight, up to rounding that optimization has amplified."""
    own = {"student_mean_entropy", "teacher_mean_entropy", "center_distance", "score_spread", "seconds"}  # of one rank
    columns = [c for c in one.metrics if c not in own]
    assert columns == [c for c in other.metrics if c not in own]
    np.testing.assert_allclose(one.metrics[columns], other.metrics[columns], rtol=2e-3, atol=2e-5)
    a, b = (read_tensors(run.path / "checkpoint.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    for name in (k for k in a if k.startswith("student.") or k.endswith("center")):
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-4)


CASES = {
    "simdino, one group": ("simdino", "1"),
    "simdino, a group each": ("simdino", "2"),
    "simdinov2, one group": ("simdinov2", "1"),
    "dino, one group": ("dino", "1"),
    "dinov2, a group each": ("dinov2", "2"),
}


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory) -> Path:
    """The runs of all cases, trained in one start of two processes."""
    root = tmp_path_factory.mktemp("ranks")
    done = on_ranks("-m", "tests.simdino.test_train_ranks", str(root))
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_the_run_of_one(case, of_two_ranks, tmp_path):
    config = config_of(*CASES[case])
    two = Run.load(of_two_ranks / config.run_name)
    assert two.environment["ranks"] == 2
    assert_same(get_run(config, tmp_path, progress=False, device="cpu"), two)


def test_four_ranks_share_two_groups(tmp_path):
    """Each group's rows lie on two ranks, which take its rate together: the run of one rank."""
    done = on_ranks("-m", "tests.simdino.test_train_ranks", str(tmp_path), "shared", world=4)
    assert done.returncode == 0, done.stderr
    for name in SHARED:
        config = config_of(name, "2")
        four = Run.load(tmp_path / config.run_name)
        assert four.environment["ranks"] == 4
        assert_same(get_run(config, tmp_path / "one", progress=False, device="cpu"), four)


def test_a_rank_that_dies_ends_the_others(tmp_path):
    """It is killed before step 3, and the other, which waits for it, ends in seconds, not after the time-out."""
    began = time.perf_counter()
    done = on_ranks("-m", "tests.simdino.test_train_ranks", str(tmp_path), "dies")
    assert done.returncode != 0
    assert time.perf_counter() - began < 60
    assert not list(tmp_path.glob("*/DONE"))
    assert "exitcode" in done.stderr or "Signal" in done.stderr


def test_a_signal_to_one_rank_stops_all_of_them_at_one_step(tmp_path):
    """The second one gets it in step 3; the first, which hears of it, saves, and both go on from there."""
    began = time.perf_counter()
    done = on_ranks("-m", "tests.simdino.test_train_ranks", str(tmp_path), "stops")
    assert done.returncode != 0
    assert time.perf_counter() - began < 60
    assert "at step 4 of 6; the same command goes on there" in done.stderr
    (path,) = tmp_path.glob("*/checkpoint.safetensors")
    assert read_metadata(path)["step"] == "4"
    assert not (path.parent / "DONE").exists()
    assert get_run(config_of("simdino", "1"), tmp_path, device="cpu").metrics["step"].tolist() == list(range(6))


def test_groups_of_a_batch_are_not_one_group(tmp_path):
    """The rate is of half as many images: lower, and read against what half as many can have."""
    one, two = (get_run(config_of("simdino", g), tmp_path, progress=False).metrics for g in "12")
    assert (two["rate_isotropic"] < one["rate_isotropic"]).all()
    assert two["rate"][0] < one["rate"][0]
    assert two["loss_alignment"][0] == pytest.approx(one["loss_alignment"][0])


def test_torchrun_starts_a_recipe_and_one_rank_says_where(tmp_path):
    options = ["--profile", "smoke", "--device", "cpu", "--root", str(tmp_path)]
    done = on_ranks("-m", "simdino", "train", "simdino@optim.steps=100", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 steps; read it with") == 1
    (path,) = tmp_path.glob("*/DONE")
    assert path.parent.name in done.stdout


def test_ranks_that_cannot_share_a_batch_are_refused(tmp_path):
    options = ["--profile", "smoke", "--device", "cpu", "--root", str(tmp_path)]
    done = on_ranks("-m", "simdino", "train", "simdino@optim.groups=3,optim.batch_size=60", *options)
    assert done.returncode != 0
    assert "2 ranks cannot share a batch of 60 in 3 groups evenly" in done.stderr


def test_images_decoded_while_training_are_those_kept_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / part / label / f"{i}.png")
    config = replace(config_of("simdino", "1"), data=Data("folder", str(tmp_path), size=16))
    lazy = replace(config, data=replace(config.data, workers=2))
    kept, read = (get_run(c, tmp_path / "runs", progress=False, device="cpu") for c in (config, lazy))
    a, b = (read_tensors(run.path / "checkpoint.safetensors") for run in (kept, read))
    assert all(torch.equal(a[k], b[k]) for k in a)
    images = load("folder", root=tmp_path, size=16, lazy=True)
    assert images.train.shape == (48, 3, 16, 16)
    assert torch.equal(images.train[[5, 30]], load("folder", root=tmp_path, size=16).train[[5, 30]])
    with pytest.raises(ValueError, match="for a folder and a size only"):
        load("digits", size=16, lazy=True)


def one_shape(*, compile: str) -> Config:
    """Little to compile: one block, global views alone."""
    config = config_of("simdino", "1")
    optim, crops = replace(config.optim, compile=compile), replace(config.crops, local_crops=0)
    return replace(config, model=replace(config.model, depth=1), optim=optim, crops=crops)


def test_compiled_blocks_train_the_same_run(tmp_path):
    """In a process of its own: the types that tests check at run time do not compile."""
    code = "import sys, tests.simdino.test_train_ranks as t\nt.get_run(t.one_shape(compile='default'), sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, check=True, capture_output=True)
    run = Run.load(tmp_path / one_shape(compile="default").run_name)
    assert_same(get_run(one_shape(compile="no"), tmp_path, progress=False, device="cpu"), run)


SHARED = ("simdino", "simdinov2")


def signaled(step: int, number: int) -> None:
    """Let the second rank send itself a signal in a step."""
    schedules = trainer.schedules

    def counted(o, at):
        if at == step and dist.get_rank() == 1:
            os.kill(os.getpid(), number)
        return schedules(o, at)

    trainer.schedules = counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    root, *what = sys.argv[1:]
    if what in (["dies"], ["stops"]):
        signaled(3, signal.SIGKILL if what == ["dies"] else signal.SIGTERM)
    for case in [(name, "2") for name in SHARED] if what == ["shared"] else CASES.values():
        get_run(config_of(*case), root, device="cpu", progress=False)
    dist.destroy_process_group()

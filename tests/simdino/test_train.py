"""Claims: every method takes real steps and stays finite; a killed or stopped run goes on bit for bit; a step is the
stated one; bad input ends in one sentence, a status that is not 0, and no run that counts as done."""

import ast
import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

from simdino import train as trainer
from simdino.config import Config, Model, Optim, Record
from simdino.losses import coding_rate
from simdino.optim import clip_gradients, schedules
from simdino.recipes import NOTES, RECIPES, recipe
from simdino.record import snapshot_steps
from simdino.runs import Run
from simdino.step_inputs import batch_indices, hidden_patches, most_hidden, patch_masks, patch_weights
from simdino.step_log import feature_monitors, rate_references, spectrum_monitors
from simdino.train import get_run, networks
from simdino.whole_files import read_tensors

REPOSITORY = Path(__file__).parents[2]
TINY = replace(
    recipe("simdino", "smoke"),
    data=replace(RECIPES["simdino"].data, name="digits", size=16),
    crops=replace(RECIPES["simdino"].crops, global_size=16, local_size=8, local_crops=1),
    model=Model(patch=4, dim=24, depth=2, heads=2, hidden=32, out=16, drop_path=0.2),
    optim=Optim(steps=12, batch_size=32),
    record=Record(log_every=1, checkpoint_seconds=0.0, snapshots=2, probe=64, bank=64, views=16),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, config in RECIPES.items() if config.data.name == "photos"])
def test_every_method_takes_20_real_steps(name, tmp_path):
    config = recipe(name, "smoke")
    run = get_run(config, tmp_path, progress=False)
    assert run.done
    assert run.steps[0] == 0
    assert run.steps[-1] == 20
    metrics = run.metrics
    assert metrics["step"].tolist() == list(range(20))
    costly = [
        c
        for c in metrics
        if c.startswith(("gradient_alignment", "gradient_rate"))
        or ("patch_rate" in c and not config.objective.patch_gamma)
    ]
    assert metrics.drop(columns=costly).notna().all(axis=None)
    assert all(metrics["step"][metrics[c].notna()].tolist() == [0, 5, 10, 15, 19] for c in costly)
    assert (metrics["rate"] <= metrics["rate_ceiling"]).all()
    first, last = run.snapshot(0), run.snapshot(20)
    assert ("teacher/head/test" in last) == (config.optim.teacher == "ema")
    assert not torch.equal(first["student/backbone/test"], last["student/backbone/test"])
    branch = "teacher" if config.optim.teacher == "ema" else "student"
    assert last[f"{branch}/backbone/views"].shape == (2, 64, 96)
    assert last[f"{branch}/backbone/patches"].shape == (16, 16, 96)
    assert (f"{branch}/head/patches" in last) == config.model.mask_token
    assert ("gradient_rate" in metrics) == name.startswith("sim")


def test_a_second_request_trains_nothing(tmp_path, monkeypatch):
    first = get_run(TINY, tmp_path, progress=False)
    monkeypatch.setattr(trainer, "_train", lambda *a, **k: pytest.fail("trained again"))
    assert get_run(TINY, tmp_path) == first


def test_a_complete_run_is_returned_whatever_code_trained_it(tmp_path, monkeypatch):
    run = get_run(TINY, tmp_path, progress=False)
    path = run.path / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": "other"}))
    monkeypatch.setattr(trainer, "_train", lambda *a, **k: pytest.fail("trained again"))
    assert get_run(TINY, tmp_path) == run


def assert_equal_to_the_bit(whole: Run, resumed: Run) -> None:
    """Networks, snapshots and log; not the seconds."""
    for file in ["checkpoint.safetensors", *(f"snapshots/step_{s:08d}.safetensors" for s in whole.steps)]:
        a, b = read_tensors(whole.path / file), read_tensors(resumed.path / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), file
    columns = [c for c in whole.metrics if c != "seconds"]
    assert whole.metrics[columns].equals(resumed.metrics[columns])


def tiny(name: str, **optim) -> Config:
    """A recipe's objective on a network for seconds."""
    base = RECIPES[name].model
    model = replace(TINY.model, **{k: getattr(base, k) for k in ("prototypes", "mask_token", "patch_head")})
    return replace(TINY, objective=RECIPES[name].objective, model=model, optim=replace(TINY.optim, **optim))


@pytest.mark.parametrize("name", ["simdino", "dino", "dinov2", "simdinov2-separate-gram"])
def test_a_killed_run_goes_on_bit_for_bit(name, tmp_path):
    """Killed by the kernel after a checkpoint, then resumed: every tensor and every logged loss is that of one go."""
    config = tiny(name)
    whole = get_run(config, tmp_path / "whole", progress=False)
    code = (
        "import simdino.train as t, tests.simdino.test_train as s, os, signal\n"
        "step = t.schedules\n"
        "t.schedules = lambda o, i: os.kill(os.getpid(), signal.SIGKILL) if i == 6 else step(o, i)\n"
        f"t.get_run(s.tiny({name!r}), {str(tmp_path / 'cut')!r}, progress=False)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    path = tmp_path / "cut" / config.run_name
    assert (path / "checkpoint.safetensors").is_file()
    assert not (path / "DONE").exists()
    with open(path / "metrics.jsonl", "a") as log:
        log.write('{"step": 6, "lo')  # and the kill came in the middle of a line
    resumed = get_run(config, tmp_path / "cut", progress=False)
    assert resumed.done
    assert_equal_to_the_bit(whole, resumed)


@pytest.fixture
def heard():
    """The signals that stop a run are not ignored here, as they may be in a job in the background."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, h) for n, h in zip(numbers, (signal.default_int_handler, signal.SIG_DFL), strict=True)]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def at_step(monkeypatch, at: int, act) -> None:
    """Do something in the middle of a step."""
    schedules = trainer.schedules
    monkeypatch.setattr(trainer, "schedules", lambda o, step: (act() if step == at else None, schedules(o, step))[1])


@pytest.mark.parametrize("name", ["simdino", "dinov2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_after_its_step_and_it_goes_on_bit_for_bit(name, number, tmp_path, monkeypatch, heard):
    """Before any checkpoint is due by time, in a step that logs nothing costly: no step is lost or done twice."""
    config = replace(tiny(name), record=replace(TINY.record, log_every=5, checkpoint_seconds=1e9))
    whole = get_run(config, tmp_path / "whole", progress=False)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt, match="at step 7 of 12; the same command goes on there") as stopped:
            get_run(config, tmp_path / "cut", progress=False)
    assert stopped.value.status == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    (path,) = (tmp_path / "cut").glob("*/metrics.jsonl")
    assert Run.load(path.parent).metrics["step"].tolist() == list(range(7))
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: pytest.fail("step 6 was done twice"))
        resumed = get_run(config, tmp_path / "cut", progress=False)
    assert_equal_to_the_bit(whole, resumed)


def test_a_signal_in_the_last_step_leaves_only_the_end_to_do(tmp_path, monkeypatch, heard):
    at_step(monkeypatch, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt, match="at step 12 of 12"):
        get_run(TINY, tmp_path, progress=False)
    monkeypatch.setattr(trainer, "schedules", lambda o, step: pytest.fail("a step too many"))
    assert get_run(TINY, tmp_path, progress=False).steps[-1] == 12


def test_a_second_signal_interrupts_at_once(tmp_path, monkeypatch, heard):
    config = replace(TINY, record=replace(TINY.record, checkpoint_seconds=1e9))
    at_step(monkeypatch, 6, lambda: [os.kill(os.getpid(), n) for n in (signal.SIGINT, signal.SIGTERM)])
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted$") as stopped:
        get_run(config, tmp_path, progress=False)
    assert stopped.value.status == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("*/checkpoint.safetensors"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_thread_trains_and_leaves_signals_alone(tmp_path, monkeypatch, heard):
    seen = []
    at_step(monkeypatch, 6, lambda: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=get_run, args=(TINY, tmp_path), kwargs={"progress": False})
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
    assert get_run(TINY, tmp_path).done


@pytest.mark.parametrize(("name", "number"), [("train", signal.SIGINT), ("batch", signal.SIGTERM)])
def test_a_stopped_command_says_so_in_one_sentence(name, number, tmp_path):
    run = recipe("simdino", "smoke").run_name
    of = ["simdino", "--root", str(tmp_path)] if name == "train" else [str(tmp_path / run)]
    code = (
        "import os, signal, sys, simdino.train as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "step = t.schedules\n"
        f"t.schedules = lambda o, i: (i == 6 and os.kill(os.getpid(), {number:d}), step(o, i))[1]\n"
        "from simdino.analysis.commands import main\n"
        f"main({[name, *of, '--profile', 'smoke']!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 128 + number
    said = [line for line in done.stderr.splitlines() if line.strip() and f"{run}: " not in line]  # beside the bar
    assert said == [f"simdino {name}: stopped {run} at step 7 of 20; the same command goes on there"]
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_processes_that_decode_images_stops_none_of_them(number, tmp_path):
    """Sent to all of them at once, as a terminal or a cluster does: the step gets its images, and all of them end."""
    rng = np.random.default_rng(0)
    for i in range(80):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "images" / "a" / f"{i}.png")
    code = (
        "import os, signal, time, simdino.train as t, tests.simdino.test_train as s\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from dataclasses import replace\n"
        f"data = replace(s.TINY.data, name='folder', root={str(tmp_path / 'images')!r}, workers=2)\n"
        "step, make_views = t.schedules, t.make_views\n"
        "def views(*a):\n"
        "    if t.at == 6:\n"
        f"        os.killpg(0, {number:d}), time.sleep(1)\n"
        "    return make_views(*a)\n"
        "def schedules(o, i):\n"
        "    t.at = i\n"
        "    return step(o, i)\n"
        "t.schedules, t.make_views = schedules, views\n"
        f"t.get_run(replace(s.TINY, data=data), {str(tmp_path / 'runs')!r}, progress=False)\n"
    )
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "start_new_session": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stderr.splitlines()[-1].endswith("at step 7 of 12; the same command goes on there")
    assert "DataLoader" not in done.stderr


def test_a_run_cut_short_before_its_first_checkpoint_starts_anew(tmp_path):
    path = tmp_path / TINY.run_name
    path.mkdir()
    (path / "config.json").write_text('{"rec')
    (path / "metrics.jsonl").write_text('{"step": 99')
    run = get_run(TINY, tmp_path, progress=False)
    assert run.config["recipe"] == "simdino"
    assert run.metrics["step"].tolist() == list(range(12))


def test_what_is_not_a_run_is_left_alone(tmp_path):
    path = tmp_path / TINY.run_name
    path.mkdir()
    (path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="in the way: it is not a run"):
        get_run(TINY, tmp_path, progress=False)
    assert (path / "thesis.txt").read_text() == "all of it"


def test_the_teacher_has_no_stochastic_depth(tmp_path, monkeypatch):
    seen = []
    ema = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: (seen.append(a[0]), ema(*a))[1])
    networks = []
    build = trainer.Network
    monkeypatch.setattr(trainer, "Network", lambda *a, **k: networks.append(build(*a, **k)) or networks[-1])
    get_run(TINY, tmp_path, progress=False)
    student, teacher = networks
    assert len(seen) == 12
    x = torch.randn(4, 1, 16, 16)
    assert not torch.equal(student.train()(x)[0], student(x)[0])
    assert torch.equal(teacher.train()(x)[0], teacher(x)[0])


def test_training_leaves_the_random_numbers_of_the_caller_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    get_run(TINY, tmp_path, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_a_state_that_is_not_finite_is_not_kept(tmp_path, monkeypatch):
    """NaN from step 2 on, found at step 11: the run ends there, says where it began and what it can go on from."""
    config = replace(TINY, record=replace(TINY.record, log_every=11))
    loss, calls = trainer.simdino_loss, iter(range(99))
    broken = lambda *a, **k: (lambda x: (x[0] * math.nan, x[1]) if next(calls) >= 2 else x)(loss(*a, **k))  # noqa: E731
    monkeypatch.setattr(trainer, "simdino_loss", broken)
    with pytest.raises(FloatingPointError, match=r"loss is not finite at step 2; its last checkpoint is of step 1$"):
        get_run(config, tmp_path, progress=False)
    (path,) = tmp_path.glob("*/checkpoint.safetensors")
    assert all(v.isfinite().all() for v in read_tensors(path).values())
    assert Run.load(path.parent).metrics["step"].tolist() == [0, 1]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises((FloatingPointError, ValueError), match=r"not finite|NaN or infinite"):
        get_run(replace(TINY, optim=replace(TINY.optim, lr=1e30, clip=0.0)), tmp_path, progress=False)
    assert not list(tmp_path.glob("*/DONE"))


def test_two_processes_that_ask_for_one_run_train_it_once(tmp_path):
    code = "import simdino.train as t, tests.simdino.test_train as s; "
    code += f"t.get_run(s.TINY, {str(tmp_path)!r}, progress=False)"
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) for _ in "ab"]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    assert get_run(TINY, tmp_path).metrics["step"].tolist() == list(range(12))


def test_a_finished_run_needs_no_lock(tmp_path, monkeypatch):
    """So that it can be read from a folder that cannot be written."""
    run = get_run(TINY, tmp_path, progress=False)
    (tmp_path / f".{TINY.run_name}.lock").unlink()
    monkeypatch.setattr(trainer, "FileLock", lambda *_: pytest.fail("locked"))
    assert get_run(TINY, tmp_path) == run


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock"), None])
def test_a_file_system_without_locks_is_refused_in_a_sentence(error, tmp_path, monkeypatch):
    """Of one that has no locks at all, filelock only takes note of a file, which a killed process would leave."""

    class Lock(filelock.SoftFileLock if error is None else filelock.FileLock):
        def _acquire(self):
            if error is not None:
                raise error
            super()._acquire()

    monkeypatch.setattr(trainer, "FileLock", Lock)
    with pytest.raises(OSError, match=r"a folder that can be written and locked, and .* is none: .*(lock|flock)"):
        get_run(TINY, tmp_path / "runs", progress=False)
    assert [path for path in (tmp_path / "runs").iterdir() if path.suffix != ".lock"] == []


def test_bfloat16_is_refused_on_a_processor_that_lacks_it(tmp_path):
    """Such a one is pretended, to oneDNN, by naming an older kind."""
    arguments = ["simdino@optim.precision=bf16", "--profile", "smoke", "--device", "cpu", "--root", str(tmp_path)]
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-m", "simdino", "train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=older)
    assert done.returncode == 1
    assert "bf16 is slower than fp32 on this CPU" in done.stderr


POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


@pytest.mark.parametrize("package", ["simdino", "analysis"])
def test_nothing_needs_a_posix_system(package):
    for path in (REPOSITORY / package).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        assert names & POSIX == set(), path


def test_patch_weights_count_each_masked_crop_alike():
    """1/(masked patches of the crop)/(crops): those of one crop sum to 1/crops, and all to the share that is masked."""
    masks = torch.tensor([[True, True, False], [False, False, False], [True, False, False], [True, True, True]])
    weights = patch_weights(masks)
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 12, 1 / 12, 1 / 12])
    config = tiny("simdinov2", batch_size=32)
    shown = patch_masks(config, 0)
    assert shown.shape == (2, 32, 16)
    shown = shown.flatten(0, 1)
    assert patch_weights(shown).sum().item() == pytest.approx(shown.any(1).float().mean().item())
    assert shown.any(1).sum() in (31, 32)  # mask_p of the crops; the smallest ratio may leave no room for a block


@pytest.mark.parametrize("parts", [1, 4])
def test_hidden_patches_are_padded_to_one_number_in_every_step(parts):
    """Whatever is drawn: the rows are the hidden patches, what pads them weighs nothing, and the shares sum to one."""
    config, full = tiny("simdinov2", batch_size=32), []
    for step in range(8):
        masks = patch_masks(config, step)
        hidden = [hidden_patches(masks, config, part=(k, parts), share=parts) for k in range(parts)]
        assert {len(h.rows) for h in hidden} == {len(h.weights) for h in hidden} == {most_hidden(config, parts)}
        assert sum(h.share for h in hidden).item() == pytest.approx(1)
        for k, h in enumerate(hidden):
            count = int((h.weights > 0).sum())
            assert torch.equal(h.masks, masks.unflatten(1, (parts, -1))[:, k].flatten(0, 1))
            assert torch.equal(h.rows[:count], h.masks.flatten().nonzero()[:, 0])
            assert not h.weights[count:].any()
            full.append(count / len(h.rows))
    assert max(full) <= 1
    assert parts > 1 or min(full) > 0.8  # little is computed for nothing


def test_the_log_measures_the_features_of_a_batch():
    """Rate, effective rank and largest share from the smaller Gram matrix: those of the covariance."""
    for n, d in ((8, 20), (40, 6)):
        z = torch.nn.functional.normalize(torch.randn(2, n, d, generator=torch.Generator().manual_seed(n)), dim=-1)
        found = feature_monitors(z)
        assert found["gram"].shape == (2, min(n, d), min(n, d))
        found |= {k: v[0] for k, v in spectrum_monitors(found["gram"][None], d, 0.5).items()}
        shares = torch.linalg.svdvals(z.double()).square() / n  # unit rows: they sum to 1
        expected = {
            "rate": coding_rate(z, eps=0.5).mean(),
            "effective_rank": torch.special.entr(shares).sum(1).exp().mean(),
            "largest_share": shares[:, 0].mean(),
            "alignment": 1 - (z[0] * z[1]).sum(1).mean(),
            "mean_norm2": z.mean(1).norm(dim=1).square().mean(),
        }
        assert {k: found[k].item() for k in expected} == pytest.approx(
            {k: v.item() for k, v in expected.items()}, rel=1e-4
        )


def test_the_clipped_norm_is_of_all_of_a_module_or_of_a_tensor():
    """Against torch's own, tensor by tensor."""
    network = networks(tiny("simdino"), 1, "cpu")["student"]
    for by in ("all", "module", "tensor"):
        generator = torch.Generator().manual_seed(0)
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        before = [p.grad.clone() for p in network.parameters()]
        total = clip_gradients(network, Optim(clip=0.5, clip_by=by))
        after = [p.grad for p in network.parameters()]
        assert total.item() == pytest.approx(torch.cat([g.flatten() for g in before]).norm().item(), rel=1e-5)
        for p, g in zip(network.parameters(), before, strict=True):
            p.grad = g
        parts = {"all": [network], "module": network.children(), "tensor": network.parameters()}[by]
        for part in parts:
            torch.nn.utils.clip_grad_norm_(part.parameters() if by != "tensor" else part, 0.5)
        for p, g in zip(network.parameters(), after, strict=True):
            torch.testing.assert_close(g, p.grad)


def test_schedules_start_peak_and_end_where_they_should():
    o = Optim(steps=100, lr=1.0, lr_end=0.1, warmup=0.1, weight_decay=0.0, weight_decay_end=0.4, ema=0.9, ema_end=1.0)
    rates = [schedules(o, step)[0] for step in range(100)]
    assert rates[:10] == pytest.approx([s / 10 for s in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)  # halfway down the cosine
    assert schedules(o, 100) == pytest.approx((0.1, 0.4, 1.0))
    assert schedules(o, 0)[1:] == pytest.approx((0.0, 0.9))


def test_an_epoch_visits_every_image_once():
    seen = torch.cat([batch_indices(100, 20, seed=3, step=s) for s in range(5)])
    assert seen.sort().values.tolist() == list(range(100))
    assert not torch.equal(batch_indices(100, 20, 3, 0), batch_indices(100, 20, 3, 5))


def test_rate_references_are_those_of_the_batch():
    """Ceiling r/2·log(1 + d/(ε²r)); random unit vectors lie under it and above the collapsed ½·log(1 + d/ε²)."""
    r = rate_references(TINY)
    assert r["rate_ceiling"] == pytest.approx(8 * math.log1p(16 / 0.05 / 16))
    assert 0.5 * math.log1p(16 / 0.05) < r["rate_isotropic"] < r["rate_ceiling"]


def test_snapshots_are_log_spaced():
    assert sorted(snapshot_steps(1000, 3)) == [0, 1, 10, 100, 1000]


@pytest.mark.parametrize("teacher", ["ema", "student", "student-with-gradient", "frozen"])
@pytest.mark.parametrize("name", ["simdino", "dinov2"])
def test_the_four_teachers(name, teacher, tmp_path):
    config = tiny(name, teacher=teacher, steps=3, ema=0.5, ema_end=0.5)
    run = get_run(config, tmp_path, progress=False)
    evaluated = "teacher" if teacher == "ema" else "student"
    for step in (0, 3):
        assert {k.split("/")[0] for k in run.snapshot(step)} == {evaluated, "student"}
    for part in ("bank", "test"):
        assert not torch.equal(*(run.snapshot(step)[f"{evaluated}/backbone/{part}"] for step in (0, 3)))
    kept = read_tensors(run.path / "checkpoint.safetensors")
    teachers = {k.removeprefix("teacher."): v for k, v in kept.items() if k.startswith("teacher.")}
    assert bool(teachers) == (teacher in ("ema", "frozen"))
    if teacher == "frozen":
        first = networks(config, 1, "cpu")["teacher"].state_dict()
        assert all(torch.equal(v, first[k]) for k, v in teachers.items())


def test_the_anchor_of_patches_is_the_untrained_network(tmp_path, monkeypatch):
    seen, group_loss = [], trainer.group_loss
    monkeypatch.setattr(trainer, "group_loss", lambda *given: seen.append(given) or group_loss(*given))
    config = tiny("simdinov2-separate-gram", steps=3)
    log = get_run(config, tmp_path, progress=False).metrics
    first = networks(config, 1, "cpu")["student"].state_dict()
    for *_, anchor in seen:
        assert all(torch.equal(v, first[k]) for k, v in anchor.state_dict().items())
        assert not any(p.requires_grad for p in anchor.parameters())
    assert (log["loss_gram"] > 0).all()
    get_run(tiny("simdinov2", steps=1), tmp_path, progress=False)
    assert seen[-1][-1] is None


@pytest.mark.parametrize("name", ["simdino", "simdinov2"])
def test_full_gradient_and_stop_gradient_differ(name, tmp_path):
    losses = {}
    for teacher in ("student", "student-with-gradient"):
        losses[teacher] = get_run(tiny(name, teacher=teacher), tmp_path, progress=False).metrics["loss"]
    assert losses["student"][0] == pytest.approx(losses["student-with-gradient"][0])
    assert losses["student"].iloc[-1] != losses["student-with-gradient"].iloc[-1]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "simdino", "train", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["simdinp"], "did you mean 'simdino'"),
        (["simdino", "--profile", "cpi"], "did you mean 'cpu'"),
        (["simdino@optim.lrr=3"], "unknown field 'optim.lrr'; did you mean 'optim.lr'"),
        (["simdino@optim.lr=-1"], "optim.lr must be a number in (0, ∞), not -1.0"),
        (["simdino@data.name=cifar10,data.root=/nowhere"], "/nowhere"),
        (["simdino@data.name=cifar11"], "cifar10"),
        (["simdino", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["simdino@optim.batch_size=100000"], "larger than the"),
        (["simdino", "--optim.lr", "0.002"], "--optim.lr is no option: write simdino@optim.lr=0.002"),
        (
            ["dino@optim.ema=0.9", "--optim.batch-size=32", "--crops.global-scale", "0.2", "1"],
            "write dino@optim.ema=0.9,optim.batch_size=32,crops.global_scale=0.2,1",
        ),
        (["--optim.lr", "0.002", "simdino"], "--optim.lr is no option: write RECIPE@optim.lr=..."),
        (["simdino", "--fast"], "there is no option --fast"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        trainer.main([*arguments, "--root", str(tmp_path)])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not [f for f in tmp_path.iterdir() if f.is_dir()]


def test_the_command_line_trains_a_variant_and_says_where(tmp_path):
    done = command("simdino@optim.steps=100", "--profile", "smoke", "--root", str(tmp_path), "--seed", "7")
    assert done.returncode == 0, done.stderr
    (path,) = [f for f in tmp_path.iterdir() if f.is_dir()]
    assert path.name == recipe("simdino@optim.steps=100", "smoke", 7).run_name
    assert str(path) in done.stdout
    assert (path / "DONE").is_file()


def test_the_command_line_lists_recipes_and_fields(capsys):
    with pytest.raises(SystemExit):
        trainer.main(["--help"])
    shown = capsys.readouterr().out
    assert "simdino train simdino@optim.lr=0.002" in shown
    assert all(f"  {name} " in shown and note in shown for name, note in NOTES.items())
    trainer.main(["simdino@optim.lr=2e-3", "--profile", "smoke", "--fields"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["optim.lr=0.002", "float", "in", "(0,", "∞)"] in lines
    assert ["crops.global_scale=0.4,1.0", "float,float", "in", "(0,", "1]"] in lines
    assert ["model.arch=vit", "vit", "|", "convnet"] in lines
    assert lines[-1][:5] == ["Profile", "smoke", "trains", "0.02", "of"]

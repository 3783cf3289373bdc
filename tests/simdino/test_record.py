"""Claims: what is recorded waits on the host, is computed in chunks, and is the network's; weights are kept whole."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from simdino import record
from simdino.augment import center_view, multi_crop
from simdino.checkpoint import resume, save_checkpoint
from simdino.config import Model, Optim, Record, derived_seed
from simdino.data import load
from simdino.recipes import RECIPES
from simdino.record import patch_features, probe_images, record_features, record_weights
from simdino.runs import Run, snapshot_path, weights_path
from simdino.train import get_run, networks
from simdino.vit import Network
from simdino.weights import load_weights
from simdino.whole_files import read_tensors, write_json

TINY = replace(
    RECIPES["simdino"],
    crops=replace(RECIPES["simdino"].crops, global_size=16, local_size=8, local_crops=1),
    model=Model(patch=4, dim=24, depth=2, heads=2, hidden=32, out=16, drop_path=0.2),
    record=Record(probe=64, bank=64, views=16),
)
PATCHES = replace(  # a recipe whose loss has patches
    TINY,
    objective=RECIPES["dinov2"].objective,
    model=replace(
        TINY.model, **{k: getattr(RECIPES["dinov2"].model, k) for k in ("prototypes", "mask_token", "patch_head")}
    ),
)


@pytest.fixture(scope="module")
def images():
    pytest.importorskip("sklearn")
    return load("digits", size=16)


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "config.json", {"recipe": "simdino"})
    return Run.load(tmp_path)


def moved_on(network, by=0.1):
    """The network after a step, so that it is no longer what its seed gives."""
    with torch.no_grad():
        for p in network.parameters():
            p += by
    return network


# --- The images


def test_the_probe_is_on_the_host_and_its_views_are_those_of_the_test_images(images):
    probe = probe_images(images, TINY)
    assert {name: (len(x), x.device.type) for name, x in probe.items() if name != "views"} == dict.fromkeys(
        ("bank_images", "bank_labels", "test_images", "test_labels"), (64, "cpu")
    )
    two = replace(TINY.crops, global_crops=2, local_crops=0)
    generator = torch.Generator().manual_seed(derived_seed("views"))
    assert torch.equal(probe["views"], multi_crop(probe["test_images"][:16], two, generator)[0])


def test_features_in_chunks_are_those_of_the_network(images, monkeypatch):
    network = networks(PATCHES, 1, "cpu")["student"].train()
    some = images.test[:20]
    x = center_view(some, PATCHES.crops.global_size, PATCHES.crops)
    whole, whole_patches = record_features(network, some, PATCHES), patch_features(network, some, PATCHES)
    assert torch.equal(whole["backbone"], network.eval()(x)[1]["backbone"])
    assert torch.equal(record_features(network, x, PATCHES)["backbone"], whole["backbone"])  # views are as they are
    sizes = []
    network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    monkeypatch.setattr(record, "IMAGES_AT_ONCE", 8)
    chunked, chunked_patches = record_features(network, some, PATCHES), patch_features(network, some, PATCHES)
    assert sizes == 2 * [8, 8, 4]
    assert whole_patches.keys() == {"backbone", "head"}
    for a, b in ((whole, chunked), (whole_patches, chunked_patches)):
        assert a.keys() == b.keys()
        for tap in a:
            torch.testing.assert_close(b[tap], a[tap])


class Elsewhere(Network):
    """A network on another device, which keeps what it was given; the meta device stands for an accelerator."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.weight, self.given = torch.nn.Parameter(torch.zeros(1, device="meta")), []
        self.backbone = SimpleNamespace(image_feature=lambda t: t, patch_tokens=lambda t: t)

    def forward(self, x, *which):
        self.given.append(x)
        return x, {"tokens": x, "backbone": x, "selected": x}


def test_images_are_moved_to_where_the_network_is(images, monkeypatch):
    monkeypatch.setattr(record, "IMAGES_AT_ONCE", 2)
    network = Elsewhere()
    record_features(network, images.test[:3], PATCHES)
    patch_features(network, images.test[:3], PATCHES)
    record_features(network, torch.zeros(3, 1, 16, 16), PATCHES)
    assert [(len(x), x.device.type, x.dtype) for x in network.given] == 3 * [
        (2, "meta", torch.float32),
        (1, "meta", torch.float32),
    ]


# --- The networks


def test_weights_are_kept_at_a_step_and_read_back(run):
    assert run.weight_steps == []
    branches = networks(TINY, 1, "cpu")
    record_weights(run.path, 0, branches)
    moved_on(branches["student"])
    record_weights(run.path, 123, branches)
    assert (run.path / "weights" / "step_00000123.safetensors").is_file()
    assert run.weight_steps == [0, 123]
    kept = run.weights(123)
    assert kept.keys() == {f"{b}.{k}" for b, network in branches.items() for k in network.state_dict()}
    assert all(torch.equal(kept[f"{b}.{k}"], v) for b, net in branches.items() for k, v in net.state_dict().items())
    name = next(k for k in kept if k.startswith("student."))
    torch.testing.assert_close(kept[name], run.weights(0)[name] + 0.1)
    with pytest.raises(ValueError, match=r"has no weights of step 12; it has \[0, 123\]"):
        run.weights(12)


def test_kept_weights_are_a_network_like_a_checkpoints(run):
    branches = networks(TINY, 1, "cpu")
    record_weights(run.path, 5, {"student": moved_on(branches["student"]), "teacher": branches["teacher"]})
    for branch, network in branches.items():
        loaded = load_weights(weights_path(run.path, 5), branch=branch, config=TINY.model)
        assert loaded[1:4] == ([], [], [])
        assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.network.state_dict().items())


def test_an_interrupted_write_keeps_no_half_of_the_weights(run, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        record_weights(run.path, 5, networks(TINY, 1, "cpu"))
    assert run.weight_steps == []


# --- The checkpoint


def trained():
    """Networks, an optimizer that has taken a step, and DINO's centers."""
    branches = networks(TINY, 1, "cpu")
    optimizer = torch.optim.AdamW(branches["student"].parameters(), lr=0.1)
    for p in branches["student"].parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return branches, optimizer, {"center": torch.rand(16)}


def test_a_finished_checkpoint_has_networks_and_centers_only(tmp_path):
    seconds = {"seconds": 3.5, "recording_seconds": 0.5}
    branches, optimizer, centers = trained()
    file = tmp_path / "checkpoint.safetensors"
    save_checkpoint(tmp_path, 11, seconds, branches, optimizer, centers)
    before, size = read_tensors(file), file.stat().st_size
    save_checkpoint(tmp_path, 12, seconds, branches, None, centers)
    after = read_tensors(file)
    assert after.keys() == {k for k in before if not k.startswith("optimizer.")}
    assert file.stat().st_size < 0.6 * size  # student and teacher, of once four networks
    assert load_weights(file, branch="teacher", config=TINY.model)[1:4] == ([], [], [])


@pytest.mark.parametrize("finished", [False, True])
def test_both_kinds_of_checkpoint_are_resumed(tmp_path, finished):
    seconds = {"seconds": 3.5, "recording_seconds": 0.5}
    branches, optimizer, centers = trained()
    save_checkpoint(tmp_path, 12, seconds, branches, None if finished else optimizer, centers)
    others = networks(TINY, 1, "cpu")
    fresh = torch.optim.AdamW(others["student"].parameters(), lr=0.1)
    center = {"center": torch.zeros(16)}
    assert resume(tmp_path, others, fresh, center) == (12, 3.5, 0.5)
    assert torch.equal(center["center"], centers["center"])
    for branch, network in branches.items():
        state = others[branch].state_dict()
        assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    assert len(fresh.state) == (0 if finished else len(optimizer.state))


def test_a_run_that_lacks_only_its_end_is_ended_without_training(tmp_path, monkeypatch):
    """Killed between its last checkpoint, which has no optimizer, and DONE: what is missing is written, as it was."""
    config = replace(
        TINY,
        data=replace(TINY.data, name="digits", size=16),
        optim=Optim(steps=3, batch_size=32),
        record=replace(TINY.record, log_every=1, snapshots=1),
    )
    run = get_run(config, tmp_path, device="cpu", progress=False)
    assert not any(k.startswith("optimizer.") for k in read_tensors(run.path / "checkpoint.safetensors"))
    last, log = run.snapshot(3), (run.path / "metrics.jsonl").read_text()
    (run.path / "DONE").unlink()
    snapshot_path(run.path, 3).unlink()
    monkeypatch.setattr("simdino.train.group_loss", lambda *_: pytest.fail("nothing is left to train"))
    ended = get_run(config, tmp_path, device="cpu", progress=False)
    assert ended.done
    assert (run.path / "metrics.jsonl").read_text() == log
    assert all(torch.equal(value, last[name]) for name, value in ended.snapshot(3).items())

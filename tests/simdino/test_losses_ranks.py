"""Claims: two processes together have the loss and the gradient of one, and alone those of the official code."""

import json
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from simdino.losses import dino_loss, dinov2_loss, gather_rows, simdinov2_loss, sinkhorn_knopp
from tests.simdino.test_losses import ORACLE, assert_parity, deviation, official_mcr, rows_of, views
from tests.simdino.test_losses_v2 import TEMPS, weights


def shared_batch(n: int, d: int) -> dict[str, torch.Tensor]:
    """Inputs of n images: views, patches of two global crops each, and which of these are masked."""
    generator = torch.Generator().manual_seed(n * d)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    masks = torch.rand(2, n, 5, generator=generator) < 0.4
    masks[:, ::2] = False
    return {
        "views": draw(3, n, 6),
        "patches": draw(2, n, 5, 6),
        "masks": masks,
        "net": draw(d, 6),
        "teacher": draw(d, 6),
    }


def objective(name: str, net, teacher, views, patches, masks, *, n: int) -> torch.Tensor:
    """One of the losses of the images given, of which there are n on all processes together."""
    s, t = net(views), views[:2] @ teacher.T
    sp, tp = net(patches[masks]), patches[masks] @ teacher.T
    w = weights(masks.flatten(0, 1))
    if name.startswith("dino"):
        k = len(teacher)
        centers = {"center": torch.ones(k, dtype=torch.float64), "patch_center": torch.ones(k, dtype=torch.float64)}
        options = TEMPS | centers | {"centering": name.split()[1], "koleo_weight": 0.0}
        return dinov2_loss(s, t, sp, tp, w, s[:2], **options)[0]
    s, t, sp, tp = (gather_rows(F.normalize(x, dim=-1)) for x in (s, t, sp, tp))
    w = gather_rows(w[:, None] * masks.shape[1] / n)[:, 0]  # a share of all crops, no more of this rank's
    return simdinov2_loss(s, t, sp, tp, w, eps=0.5, gamma=0.1, patch_gamma=0.1)[0]


CASES = {  # name: (objective, images of each rank, d)
    "n < d, uneven": ("simdinov2", (5, 3), 24),
    "n > d, uneven": ("simdinov2", (20, 13), 8),
    "a rank without images": ("simdinov2", (6, 0), 8),
    "centering": ("dino ema", (4, 4), 8),
    "sinkhorn": ("dino sinkhorn", (4, 4), 8),
}


def on_rank(rank: int, folder: str) -> None:
    """All that two processes compute, written to <rank>.json."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    torch.set_num_threads(1)
    found = {}
    for case, (name, rows, d) in CASES.items():
        batch, own = shared_batch(sum(rows), d), slice(sum(rows[:rank]), sum(rows[: rank + 1]))
        net = torch.nn.Linear(6, d, bias=False, dtype=torch.float64)
        net.weight.data = batch["net"]
        ddp = torch.nn.parallel.DistributedDataParallel(net)
        mine = [batch[k][:, own] for k in ("views", "patches", "masks")]
        loss = objective(name, ddp, batch["teacher"], *mine, n=sum(rows))
        loss.backward()
        found[case] = {"loss": loss.item(), "gradient": net.weight.grad.tolist()}
    scores = shared_batch(9, 16)["views"][0]
    own = [scores[:2], scores[2:]][rank].expand(2, -1, -1)
    found["sinkhorn_knopp"] = sinkhorn_knopp(own[0], temp=0.3).tolist()
    found["center"] = dino_loss(own, own, center=scores[0], **TEMPS)[1]["center"].tolist()
    found["mcr_dist"] = []
    for r in (r for r in rows_of(json.loads(ORACLE.read_text())["mcr_dist"]) if r["rank"] == rank):
        n = r["n_per_rank"]
        s, t = (x[:, rank * n : (rank + 1) * n] for x in views(r, 2 * n))
        mcr = official_mcr(r, s, t, version=1, world_size=2)
        found["mcr_dist"].append([r["reduce_cov"] == 0, deviation([*mcr.values()], [r[name] for name in mcr])])
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, (str(folder),), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_loss_and_the_gradient_of_one(ranks, case):
    """The gathered loss is the same on either; of DINO's, the mean over the processes is."""
    name, rows, d = CASES[case]
    batch = shared_batch(sum(rows), d)
    net = torch.nn.Linear(6, d, bias=False, dtype=torch.float64)
    net.weight.data = batch["net"]
    loss = objective(name, net, batch["teacher"], *(batch[k] for k in ("views", "patches", "masks")), n=sum(rows))
    loss.backward()
    found = [rank[case] for rank in ranks]
    values = [x["loss"] for x in found] if name == "simdinov2" else [np.mean([x["loss"] for x in found])]
    tolerance = 1e-6 if name == "dino sinkhorn" else 1e-11
    assert values == pytest.approx([loss.item()] * len(values), rel=tolerance)
    for x in found:
        np.testing.assert_allclose(x["gradient"], net.weight.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_sinkhorn_and_the_center_are_over_the_rows_of_all_processes(ranks):
    scores = shared_batch(9, 16)["views"][0]
    together = np.concatenate([rank["sinkhorn_knopp"] for rank in ranks])
    np.testing.assert_allclose(together, sinkhorn_knopp(scores, temp=0.3), rtol=1e-5)
    for rank in ranks:
        np.testing.assert_allclose(rank["center"], 0.9 * scores[0] + 0.1 * scores.mean(0), rtol=1e-12)


def test_local_rates_equal_the_official_ones_on_two_ranks(ranks):
    rows = [row for rank in ranks for row in rank["mcr_dist"]]
    assert all(local for local, _ in rows)
    assert_parity("mcr_dist, float64", [x for _, x in rows])

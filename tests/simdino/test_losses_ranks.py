"""Claims: two processes together have the loss and the gradient of one, and alone those of the official code."""

import json
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from simdino.losses import dino_loss, dinov2_loss, simdino_loss, simdinov2_loss, sinkhorn_knopp
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


def objective(name: str, net, batch: dict[str, torch.Tensor], group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """One of the losses of some images, whose hidden patches are padded to as many as there are patches."""
    views, patches, masks, teacher = (batch[k] for k in ("views", "patches", "masks", "teacher"))
    s, t, w = net(views), views[:2] @ teacher.T, weights(masks.flatten(0, 1))
    padding = masks.numel() - len(w)
    hidden, w = F.pad(patches[masks], (0, 0, 0, padding), value=1.0), F.pad(w, (0, padding))
    sp, tp = net(hidden), hidden @ teacher.T
    if name.startswith("dino"):
        k = len(teacher)
        centers = {"center": torch.ones(k, dtype=torch.float64), "patch_center": torch.ones(k, dtype=torch.float64)}
        options, method = TEMPS | {"centering": name.split()[1]}, name.split()[0]
        if method == "dino":
            return dino_loss(s, t, center=centers["center"], **options)[0]
        return dinov2_loss(s, t, sp, tp, w, s[:2], **centers, **options, koleo_weight=0.0)[0]
    s, t, sp, tp = (F.normalize(x, dim=-1) for x in (s, t, sp, tp))
    method, *rate_of = name.split()
    options = {"eps": 0.5, "gamma": 0.1, "group": group, "rate_of": rate_of[0] if rate_of else "student"}
    if method == "simdino":
        return simdino_loss(s, t, **options)[0]
    return simdinov2_loss(s, t, sp, tp, w, tp, **options, patch_gamma=0.1, gram_weight=0.5, most_patches=5)[0]


CASES = {  # name: (objective, images of each rank, d, whether the ranks share one group of images)
    f"{name}, n {'<' if d > 2 * rows else '>'} d, {'one group' if shared else 'a group each'}": (name, rows, d, shared)
    for name in ("simdino", "simdino mean", "simdinov2", "dino ema", "dino sinkhorn", "dinov2 ema", "dinov2 sinkhorn")
    for rows, d in ((4, 24), (16, 8))
    for shared in (False, True)
}


def part(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    """The batch of some of the images."""
    return batch | {k: batch[k][:, rows] for k in ("views", "patches", "masks")}


def linear(weight: torch.Tensor) -> torch.nn.Linear:
    net = torch.nn.Linear(*weight.T.shape, bias=False, dtype=torch.float64)
    net.weight.data = weight
    return net


class Collectives(TorchDispatchMode):
    """Note how many numbers each exchange between the ranks is of."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.sizes.append(sum(x.numel() for x in args[0]))
        return function(*args, **(kwargs or {}))


def on_rank(rank: int, folder: str) -> None:
    """All that two processes compute, written to <rank>.json."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    torch.set_num_threads(1)
    found = {}
    for case, (name, rows, d, shared) in CASES.items():
        batch = shared_batch(2 * rows, d)
        net = linear(batch["net"])
        own = part(batch, slice(rank * rows, (rank + 1) * rows))
        ddp = torch.nn.parallel.DistributedDataParallel(net)
        loss = objective(name, ddp, own, dist.group.WORLD if shared else None)
        loss.backward()
        found[case] = {"loss": loss.item(), "gradient": net.weight.grad.tolist()}
    z = F.normalize(shared_batch(6, 16)["views"][:2, 3 * rank : 3 * rank + 3], dim=-1).requires_grad_()
    with Collectives() as counted:
        simdino_loss(z, z.detach(), eps=0.5, gamma=0.1, group=dist.group.WORLD)[0].backward()
    found["exchanged"] = counted.sizes
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
    """The mean over the processes is that of one process with all rows or, with a group each, the mean of both groups.

    Of DINO, centers and Sinkhorn-Knopp are over all rows, and the rest is a mean.
    """
    name, rows, d, shared = CASES[case]
    batch = shared_batch(2 * rows, d)
    net = linear(batch["net"])
    parts = [batch]
    if not shared and name.startswith("simdino"):
        parts = [part(batch, slice(rows)), part(batch, slice(rows, None))]
    loss = sum(objective(name, net, some) for some in parts) / len(parts)
    loss.backward()
    found = [rank[case] for rank in ranks]
    tolerance = 1e-6 if "sinkhorn" in name else 1e-10
    assert np.mean([x["loss"] for x in found]) == pytest.approx(loss.item(), rel=tolerance)
    for x in found:
        np.testing.assert_allclose(x["gradient"], net.weight.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_ranks_that_share_a_group_exchange_its_covariances_alone(ranks):
    """One (d, d) matrix for each global view, once, and nothing on the way back."""
    assert [rank["exchanged"] for rank in ranks] == [[2 * 6 * 6]] * 2


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

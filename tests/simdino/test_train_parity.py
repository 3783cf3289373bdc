"""Claims: the training loop takes the official trainers' steps: SimDINO's and DINO's `train_one_epoch` over six steps,
SimDINOv2's and DINOv2's forward and backward; schedules, parameter groups and EMA are the official ones.

Networks, images and crops are those of the records; everything else is `simdino.train` as it runs.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simdino import train as trainer
from simdino.config import DINO, Config, Crops, DINOv2, Model, Optim, Record, SimDINO, SimDINOv2
from simdino.data import Dataset
from simdino.losses import official_scaling
from simdino.optim import parameter_groups, schedules, teacher_temperature
from simdino.recipes import RECIPES
from simdino.step_inputs import Hidden, patch_weights
from simdino.train import get_run, group_loss
from simdino.vit import Network
from simdino.whole_files import read_tensors
from tests.simdino.test_losses import assert_parity, deviation, oracle
from tests.simdino.test_vit import fill

EPS, GAMMA = official_scaling(32, 8, 0.05)
V1 = Config(
    "v1",
    crops=Crops(global_size=32, local_size=16, local_crops=4),
    model=Model(stem="patch", patch=8, dim=48, depth=3, heads=4, pool="cls", hidden=64, out=32, pos_offset=0.1),
    objective=SimDINO(EPS, GAMMA),
    optim=Optim(
        steps=6,
        batch_size=8,
        lr=0.002,
        lr_end=1e-5,
        warmup=0.5,
        warmup_reaches="last",
        weight_decay_end=0.4,
        clip=0.3,
        clip_by="tensor",
        ema=0.9,
        ema_end=1.0,
        freeze_prototypes=0.5,
        precision="fp32",
    ),
    record=Record(log_every=1),
)


def of(config: Config, **parts) -> Config:
    """A configuration with parts exchanged."""
    return Config(**vars(config) | parts)


def trained(config: Config, tmp_path, monkeypatch) -> tuple:
    """Metrics and final tensors of a run on the recorded network and crops."""
    rng = np.random.default_rng(81)
    shapes = 2 * [(8, 3, 32, 32)] + 4 * [(8, 3, 16, 16)]
    drawn = [[torch.tensor(rng.standard_normal(shape)) for shape in shapes] for _ in range(3)]
    views = iter(2 * [(torch.stack(crops[:2]), torch.stack(crops[2:])) for crops in drawn])

    def network(model: Model, **shape) -> Network:
        net = Network(model, **shape).double()
        fill(net, 80)
        return net

    blank = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    images = Dataset(blank, torch.zeros(8).long(), blank, torch.zeros(8).long(), ("",))
    monkeypatch.setattr(trainer, "load", lambda *a, **k: images)
    monkeypatch.setattr(trainer, "Network", network)
    monkeypatch.setattr(trainer, "make_views", lambda *a: next(views))
    monkeypatch.setattr(trainer, "record_snapshot", lambda *a: 0.0)
    monkeypatch.setattr(trainer, "probe_images", lambda *a: {})
    run = get_run(config, tmp_path, progress=False, device="cpu")
    return run.metrics, read_tensors(run.path / "checkpoint.safetensors")


def final(tensors: dict) -> list[float]:
    """What the record keeps of the end."""
    branches = [{k: v for k, v in tensors.items() if k.startswith(f"{b}.")} for b in ("student", "teacher")]
    sums = [sum(v.abs().sum().item() for v in branch.values()) for branch in branches]
    norms = [tensors[f"{b}.backbone.norm.weight"][0].item() for b in ("student", "teacher")]
    return [*sums, *norms, tensors["teacher.head.mlp.4.bias"].sum().item()]


def test_six_steps_of_simdino_are_the_official_ones(tmp_path, monkeypatch):
    recorded = oracle("train_v1")["simdino_expa0_eps0.05"]
    log, tensors = trained(V1, tmp_path, monkeypatch)
    steps = np.stack([log.loss - 1, 1 - log.loss_alignment, GAMMA * log.loss_rate], 1)
    assert_parity(
        "train_v1 simdino, float64", [deviation(steps, recorded["steps"]), deviation(final(tensors), recorded["final"])]
    )


def test_six_steps_of_dino_are_the_official_ones(tmp_path, monkeypatch):
    recorded = oracle("train_v1")["dino"]
    config = of(V1, model=Model(**vars(V1.model) | {"prototypes": 64}), objective=DINO())
    log, tensors = trained(config, tmp_path, monkeypatch)
    pairs = [(log.loss.to_numpy()[:, None], recorded["steps"]), (final(tensors), recorded["final"])]
    pairs += [([tensors["center"].norm(), tensors["center"][0]], recorded["center"])]
    assert_parity("train_v1 dino, float64", [deviation(*pair) for pair in pairs])


V2 = Config(
    "v2",
    crops=Crops(global_size=32, local_size=16, local_crops=4),
    model=Model(
        stem="patch",
        patch=4,
        dim=48,
        depth=3,
        heads=4,
        pool="cls",
        registers=4,
        mask_token=True,
        layer_scale=0.1,
        pos_antialias=True,
        hidden=64,
        out=32,
        patch_head="shared",
    ),
    objective=SimDINOv2(*official_scaling(32, 6, 0.05), rate_of="mean"),
    optim=Optim(precision="fp32"),
)
BASELINE = Model(**vars(V2.model) | {"prototypes": 40, "prototype_norm": "learned"})
PROBED = ("backbone.cls_token", "backbone.mask_token", "backbone.pos_embed", "backbone.norm.bias")


def forward_backward(config: Config, calls: int = 1) -> tuple[dict, list[float]]:
    """Terms and gradients of the recorded batch, by the function that the training loop calls."""
    networks = [Network(config.model, size=32).double() for _ in range(2)]
    for network, seed in zip(networks, (90, 92), strict=True):
        for part in network.children():
            fill(part, seed)
    student, teacher = networks
    rng = np.random.default_rng(91)
    crops = tuple(
        torch.tensor(rng.standard_normal(shape)).unflatten(0, (-1, 6)) for shape in ((12, 3, 32, 32), (24, 3, 16, 16))
    )
    masks = torch.tensor(rng.random((12, 64)) < 0.3)
    masks[::2] = False
    rows = masks.flatten().nonzero()[:, 0]
    padding = (0, 5)  # what pads the hidden patches to one number counts for nothing
    hidden = Hidden(masks, F.pad(rows, padding), F.pad(patch_weights(masks), padding), torch.tensor(1.0))
    centers = {name: torch.zeros(40) for name in ("center", "patch_center")} if config.model.prototypes else {}
    temp = torch.tensor(getattr(config.objective, "teacher_temp", 1.0), dtype=torch.float64)
    for _ in range(calls):  # which differ by the center alone
        loss, terms, *_ = group_loss(config, student, teacher, crops, hidden, centers, temp)
        centers = {name: terms[name] for name in centers}
    loss.backward()
    masked = masks.any(1).double().mean().item()  # Σ w
    norms = [
        torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]).norm().item()
        for part in student.children()
    ]
    grads = {k: p.grad for k, p in student.named_parameters() if k in PROBED}
    single = [grads[k].flatten()[0 if "pos" not in k else 48].item() for k in PROBED]
    terms = {k: v.item() for k, v in terms.items() if v.ndim == 0} | {"loss": loss.item(), "masked": masked}
    return terms, [*norms, *single]


def test_a_batch_of_simdinov2_is_the_official_one():
    recorded = oracle("train_v2")["simdinov2_expa1"]
    terms, gradients = forward_backward(V2)
    official = recorded["steps"][0]
    gamma = V2.objective.gamma
    ours = [
        1 - terms["alignment"],
        gamma * terms["rate"],
        terms["patches"] - terms["masked"],
        terms["loss"] - 1 - terms["masked"],
    ]
    theirs = [official[k] for k in ("dino_mcr_comp_loss", "dino_mcr_expa_loss", "ibot_comp_loss", "total_loss")]
    expected = recorded["grad_norm_backbone_head"] + recorded["g_cls_token[0]_mask_token[0]_pos[1,0]_norm.bias[0]"]
    assert_parity("train_v2 simdinov2, 8 digits", [deviation(ours, theirs), deviation(gradients, expected)])


@pytest.mark.parametrize("centering", ["sinkhorn", "ema"])
def test_a_batch_of_dinov2_is_the_official_one(centering):
    recorded = oracle("train_v2")
    config = of(V2, model=BASELINE, objective=DINOv2(teacher_temp=0.05, centering=centering))
    terms, gradients = forward_backward(config, calls=2)
    ours = [terms["entropy"] + terms["kl"], terms["patches"], 0.1 * terms["koleo"], terms["loss"]]
    if centering == "sinkhorn":
        case = recorded["dinov2_sinkhorn"]
        theirs = [case["steps"][0][k] for k in ("dino_loss", "ibot_loss", "koleo_loss", "total_loss")]
        expected = case["grad_norm_backbone_head"] + case["g_cls_token[0]_mask_token[0]_pos[1,0]_norm.bias[0]"]
    else:  # whose log shows the terms of patches and KoLeo halved
        case = recorded["dinov2_official_check"]["dinov2_centering"]
        theirs = [case["dino_loss_total"], 2 * case["logged_ibot_loss"], 2 * case["logged_koleo_loss"]]
        ours, expected, gradients = ours[:3], case["grad_norm_backbone_head"], gradients[:2]
    assert_parity(f"train_v2 dinov2 {centering}, 8 digits", [deviation(ours, theirs), deviation(gradients, expected)])


# --- Schedules, groups, EMA


def optim(**options) -> Optim:
    """The recorded schedules: 500 steps, the first 50 of warm-up."""
    return Optim(steps=500, warmup=0.1, lr_end=1e-6, weight_decay_end=0.4, ema_end=1.0, **options)


def test_schedules_are_the_official_ones():
    recorded = oracle("schedules")
    v1 = optim(lr=1e-3, warmup_reaches="last", ema=0.996)
    ours = np.array([schedules(v1, step) for step in recorded["at"]])
    deviations = [deviation(column, theirs) for column, theirs in zip(ours.T, recorded["v1"].values(), strict=True)]
    dinov2 = optim(lr=4e-3, warmup_reaches="last", teacher_temp_start=0.04, teacher_temp_warmup=0.1)
    simdinov2 = optim(lr=4e-3, lr_start=1e-6, ema=0.9, teacher_temp_start=0.04, teacher_temp_warmup=0.1)
    for name, o in (("dinov2", dinov2), ("simdinov2", simdinov2)):
        rates, _, momenta = zip(*(schedules(o, step) for step in recorded["at_v2"]), strict=True)
        temperatures = [teacher_temperature(o, 0.07, step) for step in recorded["at_v2"]]
        deviations += [
            deviation(rates, recorded[f"{name}_lr"]),
            deviation(temperatures, recorded[f"{name}_teacher_temp"]),
        ]
    deviations += [deviation(momenta, recorded["simdinov2_momentum(0.9 -> 1)"])]
    assert_parity("schedules, float64", deviations)


def factors(model: Model, o: Optim) -> dict[str, tuple[float, float]]:
    """(factor of the learning rate, of the weight decay) by name."""
    network = Network(model, size=32)
    names = {p: name for name, p in network.named_parameters()}
    return {names[p]: (g["factor"], g["decay"]) for g in parameter_groups(network, o) for p in g["params"]}


def test_parameter_groups_are_the_official_ones():
    """Version 1: what decays; version 2: also the learning rate by layer. DINO's prototype norms stay."""
    recorded, deviations = oracle("param_groups"), []
    v1 = factors(Model(**vars(V1.model) | {"depth": 2, "prototypes": 64}), Optim())
    for decay in (1.0, 0.0):
        listed = recorded["v1_simdino_decay" if decay else "v1_simdino_no_decay"]
        head = recorded["v1_dino_head_decay" if decay else "v1_dino_head_no_decay"]
        ours = {name for name, factor in v1.items() if factor == (1.0, decay)} - {"head.last_layer.weight_g"}
        assert ours == {*listed, *head}
        deviations.append(0.0)
    v2 = factors(Model(**vars(BASELINE) | {"depth": 4}), Optim(layer_decay=0.9, patch_embed_lr=0.2))
    for rows, prefix in ((recorded["v2_chunks0"], "backbone."), (recorded["dinov2_head"], "head.")):
        ours = [v2[prefix + name] for name, *_ in rows]
        deviations.append(deviation(ours, [row[1:3] for row in rows]))
    assert_parity("param_groups, float64", deviations)


def test_the_teacher_moves_as_the_official_one():
    recorded, rng = oracle("ema"), np.random.default_rng(70)
    draw = lambda: [torch.tensor(rng.standard_normal(shape)) for shape in ((3, 4), (5,))]  # noqa: E731
    teacher, rows = draw(), []
    for momentum, *_ in recorded["rows"]:
        torch._foreach_lerp_(teacher, draw(), 1 - momentum)
        numbers = teacher[0].sum(), teacher[0][0, 0], teacher[1].sum(), teacher[1][-1]
        rows.append([momentum, *(x.item() for x in numbers)])
    assert_parity("ema, float64", [deviation(rows, recorded["rows"])])


@pytest.mark.parametrize("size", "sbl")
def test_the_published_recipes_scale_as_the_official_code(size):
    """Eight ranks of 64 (v2: 128) images whose covariances are not gathered."""
    for name, rows in (("simdino", 64), ("simdinov2", 128)):
        config = RECIPES[f"{name}-vit{size}16-imagenet"]
        eps, gamma = official_scaling(256, rows, 0.05, world_size=8)
        assert (config.objective.eps, config.objective.gamma) == (eps, gamma)
        assert config.optim.batch_size // config.optim.groups == rows

"""One kernel, three coats: hook, metric and callback give the numbers of the bare functions on all rows at once."""

import json
import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import multiprocessing as mp
from torch import nn

from analysis.measures.classes import nc1
from analysis.measures.moments import Moments
from analysis.measures.rates import coding_rate_of_spectrum
from analysis.measures.spectra import effective_rank, rankme
from analysis.measures.uncertainty import jackknife
from analysis.monitoring.monitor import (
    CLASS_MEASURES,
    DEFAULT,
    MOMENT_MEASURES,
    FeatureCallback,
    FeatureMetric,
    FeatureMonitor,
)
from analysis.reporting.features import report, verdict
from tests.configurations import gaussian

torchmetrics = pytest.importorskip("torchmetrics")
pytest.importorskip("lightning")

N, D = 101, 6
Z = gaussian(N, D) * torch.arange(1, D + 1) + 0.7
LABELS = torch.arange(N) % 3
EXPECTED = {name: measure(Z).item() for name, measure in MOMENT_MEASURES.items()}


def floats(values):
    return {name: float(value) for name, value in values.items()}


def approx(values):
    return pytest.approx(floats(values), rel=1e-10)


# --- Forward hook


def test_monitor_outlives_inference_mode_and_training_after_it():
    module = nn.Linear(D, 4).double()
    with FeatureMonitor(module) as monitor:
        with torch.inference_mode():
            module(Z[:30])
        module(Z[30:60]).sum().backward()
        with torch.no_grad():
            module(Z[60:])
    assert monitor.compute() == approx({name: MOMENT_MEASURES[name](module(Z).detach()) for name in DEFAULT})


def test_monitor_gathers_what_a_report_needs():
    module = nn.Identity()
    with FeatureMonitor(module, features=partial(nn.functional.normalize, dim=1), blocks=4) as monitor:
        for batch in Z.split(32):
            module(batch)
    result = report(monitor.moments)
    assert result.n == N
    assert result.to_frame().loc["effective rank", "value"] == pytest.approx(effective_rank(Z, normalize=True).item())
    assert (result.judgement, result.reason) == verdict(monitor.moments)
    with pytest.raises(ValueError, match="blocks must be 0 or at least 2"):
        FeatureMonitor(module, blocks=1)


def test_verdict_does_not_depend_on_scale_and_knows_total_collapse():
    for z, expected in [
        (5 * gaussian(500, D), "healthy"),
        (7 * torch.eye(D)[:1].repeat(50, 1) + 0.01 * gaussian(50, D), "mean collapse"),
        (torch.zeros(50, D), "mean collapse"),
        (gaussian(500, 1) * torch.ones(D), "dimensional collapse"),
    ]:
        assert verdict(Moments.of(z))[0] == expected
    with pytest.raises(ValueError, match="no rows"):
        verdict(Moments(D))


def test_monitor_sees_every_forward_pass_while_it_is_open_and_changes_nothing():
    module = nn.Linear(D, 4).double()
    features = module(Z)
    with FeatureMonitor(module, measures=MOMENT_MEASURES) as monitor:
        outputs = [module(batch) for batch in Z.split(30)]
    module(Z + 1)
    assert torch.allclose(torch.cat(outputs), features, rtol=0, atol=1e-14)
    assert outputs[0].requires_grad
    assert monitor.compute() == approx({name: measure(features.detach()) for name, measure in MOMENT_MEASURES.items()})
    monitor.reset()
    with pytest.raises(ValueError, match="no features yet"):
        monitor.compute()


def test_monitor_forms_its_products_in_the_precision_that_is_asked_for():
    for precision, rel in (("exact", 1e-12), ("fast", 1e-5)):
        with FeatureMonitor(nn.Identity(), precision=precision) as monitor:
            monitor.module(Z)
        assert monitor.moments.precision == precision
        assert monitor.compute()["effective_rank"].item() == pytest.approx(effective_rank(Z).item(), rel=rel)


def test_monitor_picks_features_and_names_an_output_that_is_none():
    tokens = gaussian(10, 5, D)
    with FeatureMonitor(nn.Identity(), features=lambda t: t[:, 0]) as monitor:
        monitor.module(tokens)
    assert monitor.compute()["effective_rank"] == effective_rank(tokens[:, 0])
    with (
        FeatureMonitor(nn.Identity()) as monitor,
        pytest.raises(ValueError, match=r"must be \(n, d\), got \(10, 5, 6\)"),
    ):
        monitor.module(tokens)
    with FeatureMonitor(nn.LSTM(D, 2).double()) as monitor, pytest.raises(ValueError, match="got tuple: pick with"):
        monitor.module(tokens)


def test_monitor_removes_its_hook_when_training_fails():
    module = nn.Identity()
    with pytest.raises(RuntimeError), FeatureMonitor(module):
        raise RuntimeError
    assert not module._forward_hooks


def test_monitor_under_autocast_counts_half_precision_features_exactly():
    module = nn.Linear(D, 4)
    with FeatureMonitor(module) as monitor, torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(Z.float())
    assert output.dtype == torch.bfloat16
    assert monitor.compute()["effective_rank"] == approx({"x": effective_rank(output.detach().double())}).expected["x"]


@pytest.mark.parametrize("coat", [partial(FeatureMonitor, nn.Identity()), partial(FeatureMetric, D), FeatureCallback])
def test_unknown_measures_are_named(coat):
    with pytest.raises(ValueError, match=r"measures must be among effective_rank, .* got 'efective_rank'"):
        coat(measures=["efective_rank"])


# --- torchmetrics


def test_metric_over_batches_of_any_size_and_its_batch_values():
    metric = FeatureMetric(D, measures=MOMENT_MEASURES)
    first = metric(Z[:40])
    for batch in Z[40:].split(25):
        metric.update(batch)
    assert first == approx({name: measure(Z[:40]) for name, measure in MOMENT_MEASURES.items()})
    assert floats(metric.compute()) == approx(EXPECTED)
    metric.reset()
    metric.update(Z[:40])
    assert floats(metric.compute()) == approx(first)


def test_metric_takes_own_functions_classes_and_blocks():
    own = {
        "rate": partial(coding_rate_of_spectrum, eps=0.5),
        "nc1": nc1,
        "se": lambda m: jackknife(effective_rank, m).se,
    }
    metric = FeatureMetric(D, measures=own, classes=3, blocks=4)
    for batch, labels in zip(Z.split(8), LABELS.split(8), strict=True):
        metric.update(batch, labels)
    whole = Moments.of(Z, LABELS, blocks=4)
    assert floats(metric.compute()) == approx({name: measure(whole) for name, measure in own.items()})


def test_class_measures_go_by_name_and_need_classes():
    metric = FeatureMetric(D, measures=[*CLASS_MEASURES, "rankme"], classes=3)
    for batch, labels in zip(Z.split(40), LABELS.split(40), strict=True):
        metric.update(batch, labels)
    whole = Moments.of(Z, LABELS)
    expected = {name: measure(whole) for name, measure in CLASS_MEASURES.items()} | {"rankme": rankme(Z)}
    assert floats(metric.compute()) == approx(expected)
    without = FeatureMetric(D, measures=["nc1"])
    without.update(Z)
    with pytest.raises(ValueError, match="Moments must have classes"):
        without.compute()


def test_metrics_of_one_collection_share_their_state():
    own = {"own": partial(rankme, center=True)}
    collection = torchmetrics.MetricCollection(
        {"a": FeatureMetric(D, measures=["rankme"]), "b": FeatureMetric(D, measures=own)}
    )
    for batch in Z.split(30):
        collection.update(batch)
    assert list(collection.compute_groups.values()) == [["a", "b"]]
    assert floats(collection.compute()) == approx({"rankme": rankme(Z), "own": rankme(Z, center=True)})


def test_metric_merges_pickles_and_ignores_half():
    one, two, none = (FeatureMetric(D) for _ in range(3))
    one.update(Z[:13])
    two.update(Z[13:])
    one.merge_state(two)
    one.merge_state(none)
    restored = pickle.loads(pickle.dumps(one.half()))
    assert restored.moments.dtype == torch.float64
    assert floats(restored.compute()) == approx({name: EXPECTED[name] for name in DEFAULT})


def test_metric_names_bad_features():
    with pytest.raises(ValueError, match="z contains NaN"):
        FeatureMetric(D).update(torch.full((2, D), torch.nan))
    with pytest.raises(ValueError, match="z must have d=6 columns"):
        FeatureMetric(D).update(torch.ones(2, 3))


def shard(rank, path):
    """One of two ranks: the metric on uneven shards, on one shard that is empty, and the callback's monitor."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=2)
    found = {}
    for name, rows in {"uneven": [Z[:13], Z[13:]], "empty": [Z[:0], Z]}.items():
        metric = torchmetrics.MetricCollection([FeatureMetric(D, measures=MOMENT_MEASURES)])
        for batch in rows[rank].split(20) if len(rows[rank]) else ():
            metric.update(batch)
        found[name] = floats(metric.compute())
    for name, rows in {"monitor": [Z[:13], Z[13:]], "monitor, empty": [Z[:0], Z]}.items():
        with FeatureMonitor(nn.Identity(), measures=MOMENT_MEASURES) as monitor:
            if len(rows[rank]):
                monitor.module(rows[rank])
        monitor.all_reduce()
        found[name] = floats(monitor.compute())
    nothing = FeatureMonitor(nn.Identity())
    nothing.all_reduce()
    assert nothing.moments is None
    Path(path, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_with_uneven_shards_give_the_numbers_of_one_pass(tmp_path):
    mp.start_processes(shard, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {name: approx(EXPECTED) for name in ("uneven", "empty", "monitor", "monitor, empty")}


def test_rows_that_checkpointing_computes_again_count_once():
    from torch.utils.checkpoint import checkpoint

    for reentrant in (False, True):
        module, x = nn.Linear(D, 4).double(), Z.clone().requires_grad_()
        with FeatureMonitor(module) as monitor:
            out = checkpoint(module, x, use_reentrant=reentrant)
            out.sum().backward()
            assert monitor.moments.n == N
            checkpoint(module, x, use_reentrant=reentrant)
        assert monitor.moments.n == 2 * N


def test_metrics_of_every_measure_can_be_sent_to_other_processes():
    every = [*MOMENT_MEASURES, *CLASS_MEASURES]
    metric = FeatureMetric(D, classes=3, measures=every)
    metric.update(Z, LABELS)
    sent = pickle.loads(pickle.dumps(metric))
    assert sent.compute() == metric.compute()
    assert sent.compute().keys() == set(every)


# --- Lightning


def network():
    from lightning.pytorch import LightningModule

    class Network(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone, self.head = nn.Linear(D, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.backbone(x))

        def training_step(self, batch):
            return self(batch[0]).square().mean()

        def validation_step(self, batch, index, dataloader_idx=0):
            self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0)

    return Network()


def fit(tmp_path, *callbacks, validation=(Z,), **options):
    from lightning.pytorch import Trainer

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), **quiet, **options
    )
    data, *others = (torch.utils.data.TensorDataset(z.float()) for z in (Z, *validation))
    model, loaders = network(), [torch.utils.data.DataLoader(other, 30) for other in others]
    trainer.fit(model, torch.utils.data.DataLoader(data, 50), loaders if len(loaders) > 1 else loaders[0])
    return model, trainer.callback_metrics


@pytest.mark.filterwarnings("ignore")
def test_callback_logs_a_layer_and_the_output_of_validation(tmp_path):
    model, logged = fit(tmp_path, FeatureCallback("backbone", measures=MOMENT_MEASURES), FeatureCallback())
    features = model.backbone(Z.float()).detach()
    expected = {f"backbone/{name}": measure(features) for name, measure in MOMENT_MEASURES.items()}
    expected |= {f"features/{name}": MOMENT_MEASURES[name](model.head(features).detach()) for name in DEFAULT}
    assert floats(logged) == pytest.approx(floats(expected), rel=1e-5)
    assert not model._forward_hooks
    assert not model.backbone._forward_hooks


def test_callback_warns_of_collapse_and_not_of_health(tmp_path):
    with pytest.warns(UserWarning, match="backbone: mean collapse. Complete mean collapse: "):
        fit(tmp_path, FeatureCallback("backbone", features=lambda z: 0.01 * z + 5))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapse")
        fit(tmp_path, FeatureCallback("backbone", features=lambda z: gaussian(*z.shape)))


@pytest.mark.filterwarnings("ignore")
def test_two_validation_loaders_have_their_own_numbers(tmp_path):
    other = gaussian(70, 1, seed=3) * torch.ones(D)
    model, logged = fit(tmp_path, FeatureCallback("backbone"), validation=(Z, other))
    expected = {
        f"backbone/{name}/dataloader_idx_{i}": MOMENT_MEASURES[name](model.backbone(z.float()).detach())
        for i, z in enumerate((Z, other))
        for name in DEFAULT
    }
    assert floats(logged) == pytest.approx(floats(expected), rel=1e-5)
    assert not model.backbone._forward_hooks


@pytest.mark.filterwarnings("ignore")
def test_callback_merges_the_ranks(tmp_path):
    model, logged = fit(tmp_path, FeatureCallback("backbone", measures=MOMENT_MEASURES), devices=2, strategy="ddp_fork")
    features = model.backbone(torch.cat((Z, Z[:1])).float()).detach()  # Lightning's sampler makes the shards equal
    assert floats(logged) == pytest.approx(
        {f"backbone/{k}": m(features).item() for k, m in MOMENT_MEASURES.items()}, rel=1e-5
    )


@pytest.mark.filterwarnings("ignore")
def test_callback_names_a_layer_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="got 'bakbone'; did you mean 'backbone'"):
        fit(tmp_path, FeatureCallback("bakbone"))


# --- Without the extra


def test_without_the_extra_the_hook_works_and_the_others_say_what_to_install():
    code = """
import sys
sys.modules.update(dict.fromkeys(["torchmetrics", "lightning"]))
import torch
from analysis.monitoring.monitor import FeatureCallback, FeatureMetric, FeatureMonitor
with FeatureMonitor(torch.nn.Identity()) as monitor:
    monitor.module(torch.eye(3))
assert abs(monitor.compute()["effective_rank"] - 3) < 1e-12
for make in (lambda: FeatureMetric(3), lambda: FeatureCallback()):
    try:
        make()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "FeatureMetric needs torchmetrics: pip install 'simdino[integrations]'",
        "FeatureCallback needs lightning: pip install 'simdino[integrations]'",
    ], done.stderr

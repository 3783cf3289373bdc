"""Few shots and linear heads: twins of them, optimality conditions, what is chosen by whom, intervals, bad input."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch.nn.functional import cross_entropy

from analysis.measures.neighbors import knn_accuracy
from analysis.probes import image
from analysis.probes.image import accuracy_interval, few_shot_accuracy, linear_probe, logistic_regression
from tests.configurations import sphere


def blobs(seed: int = 0, m: int = 200, n: int = 100, d: int = 6, classes: int = 4, noise: float = 0.8):
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, d, generator=g, dtype=torch.float64)
    train_labels, test_labels = torch.arange(m) % classes, torch.arange(n) % classes
    train = centers[train_labels] + noise * torch.randn(m, d, generator=g, dtype=torch.float64)
    test = centers[test_labels] + noise * torch.randn(n, d, generator=g, dtype=torch.float64)
    return train, train_labels, test, test_labels


few_shot_blobs = partial(blobs, m=120, n=40, d=8, classes=5, noise=1.2)
PROBES = {"linear": linear_probe, "logistic": logistic_regression}


# --- Few shots


def test_one_shot_is_the_nearest_of_one_image_a_class():
    train, train_labels, test, test_labels = few_shot_blobs()
    one = few_shot_accuracy(train[:5], train_labels[:5], test, test_labels, shots=1, draws=3)
    expected = knn_accuracy(train[:5], train_labels[:5], test, test_labels, k=1)
    assert one.tolist() == [expected.item()] * 3


def test_all_shots_are_the_class_means():
    train, train_labels, test, test_labels = few_shot_blobs()
    value = few_shot_accuracy(train, train_labels, test, test_labels, shots=24, draws=2)
    unit = train / train.norm(dim=1, keepdim=True)
    means = torch.stack([unit[train_labels == k].mean(0) for k in range(5)])
    cosines = torch.nn.functional.cosine_similarity(test[:, None], means[None], dim=2)
    assert value.tolist() == [(cosines.argmax(1) == test_labels).double().mean().item()] * 2


def test_draws_are_of_the_asked_number_differ_and_help():
    data = few_shot_blobs(m=400, n=200)
    values = few_shot_accuracy(*data, shots=(1, 5, 40), draws=16)
    assert [v.shape for v in values.values()] == [(16,)] * 3
    assert values[1].std() > 0
    assert values[1].mean() + 0.05 < values[5].mean() < values[40].mean()
    assert torch.equal(few_shot_accuracy(*data, shots=5, draws=16), values[5])
    assert not torch.equal(few_shot_accuracy(*data, shots=5, draws=16, seed=1), values[5])


def test_drawn_images_are_of_their_class_and_without_repetition():
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([image.shuffled_by_class(labels, generator) for _ in range(200)])
    assert (labels[orders] == labels.sort().values).all()
    assert (orders.sort(1).values == torch.arange(7)).all()
    assert {tuple(o[:2].tolist()) for o in orders} == {(1, 4), (4, 1)}


def test_few_shots_of_collapsed_features_score_chance():
    labels = torch.arange(60) % 3
    value = few_shot_accuracy(torch.ones(60, 4), labels, torch.ones(30, 4), labels[:30], shots=2, draws=2)
    assert value.tolist() == pytest.approx([1 / 3] * 2)


def test_too_few_images_for_the_shots_are_named():
    train, train_labels, test, test_labels = few_shot_blobs(m=23)
    with pytest.raises(ValueError, match="5 shots are more than the 4 training samples of a class"):
        few_shot_accuracy(train, train_labels, test, test_labels, shots=(1, 5))
    for options in ({"shots": 0}, {"shots": ()}, {"draws": 0}):
        with pytest.raises(ValueError, match=r"(shots|draws) must be a positive integer"):
            few_shot_accuracy(train, train_labels, test, test_labels, **options)
    with pytest.raises(ValueError, match="train has a zero row"):
        few_shot_accuracy(0 * train, train_labels, test, test_labels)


# --- SGD


@pytest.mark.parametrize("batch", [200, 64])  # 64 does not divide 200
def test_all_rates_at_once_are_as_many_runs_of_torchs_sgd(batch):
    x, y, _, _ = blobs()
    weight, bias = image._sgd(x, y, 4, [0.01, 0.3], epochs=7, batch=batch, seed=5, progress=False)
    for i, lr in enumerate([0.01, 0.3]):
        head = torch.nn.Linear(6, 4, dtype=torch.float64)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr * batch / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=0)
        generator = torch.Generator().manual_seed(5)
        for _ in range(7):
            for some in torch.randperm(len(x), generator=generator).split(batch):
                optimizer.zero_grad()
                cross_entropy(head(x[some]), y[some]).backward()
                optimizer.step()
            schedule.step()
        torch.testing.assert_close(weight[i], head.weight.T)
        torch.testing.assert_close(bias[i], head.bias)


def test_the_best_rate_of_the_held_out_part_is_chosen_and_trained_anew_on_everything():
    train, train_labels, test, test_labels = blobs()
    probe = linear_probe(train, train_labels, test, test_labels, lrs=(1.0, 1e-6, 0.1), epochs=20, seed=3)
    assert list(probe.held_out) == [1e-6, 0.1, 1.0]
    assert probe.held_out[probe.chosen] == max(probe.held_out.values())
    weight, bias = image._sgd(train, train_labels, 4, [probe.chosen], epochs=20, batch=256, seed=3, progress=False)
    assert probe.accuracy.item() == ((test @ weight[0] + bias[0]).argmax(1) == test_labels).double().mean().item()


def test_a_diverged_rate_is_never_chosen():
    train, train_labels, test, test_labels = blobs()
    probe = linear_probe(1e6 * train, train_labels, 1e6 * test, test_labels, lrs=(1e-13, 1e300), epochs=20)
    assert probe.chosen == 1e-13
    assert probe.held_out[1e300] == 0


# --- L-BFGS


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("m", [200, 5])  # more and fewer than the six dimensions
def test_gradient_vanishes_at_the_solution_wherever_it_started(l2, m):
    x, y, _, _ = blobs(m=m)
    x = x + 5  # a mean that the bias has to make up for
    energy = (x - x.mean(0)).square().sum(1).mean()
    ((w, b),) = image._lbfgs(x, y, 4, [l2])
    generator = torch.Generator().manual_seed(m)
    start = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 4), (4,)))
    ((other, bias),) = image._lbfgs(x, y, 4, [l2], start=start)
    near = {"atol": 1e-3 * max(w.abs().max(), b.abs().max()).item(), "rtol": 0}
    torch.testing.assert_close(other, w, **near)
    torch.testing.assert_close(bias - bias.mean(), b - b.mean(), **near)  # one constant for all classes is nobody's
    w, b = w.requires_grad_(), b.requires_grad_()
    (cross_entropy(x @ w + b, y) + l2 * energy / 2 * w.square().sum()).backward()
    assert w.grad.abs().max() < 1e-5 * (x.abs().max() + 1)
    assert b.grad.abs().max() < 1e-5


def test_a_path_of_strengths_has_the_solutions_of_each():
    x, y, _, _ = blobs()
    for strength, (w, _) in zip((1.0, 1e-2), image._lbfgs(x, y, 4, [1.0, 1e-2]), strict=True):
        torch.testing.assert_close(w, image._lbfgs(x, y, 4, [strength])[0][0], atol=1e-4, rtol=0)


def test_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, test, _ = blobs()
    size = (x - x.mean(0)).square().sum(1).mean().sqrt()
    for l2 in (1.0, 1e-2):
        peer = linear_model.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=1000)
        peer = peer.fit((x / size).numpy(), y.numpy())
        ((w, b),) = image._lbfgs(x, y, 4, [l2])
        p = (test @ w + b).softmax(1).numpy()
        np.testing.assert_allclose(p, peer.predict_proba((test / size).numpy()), atol=1e-5)


def test_shift_rotation_and_scale_change_nothing():
    train, train_labels, test, test_labels = blobs(noise=1.5)
    value = logistic_regression(train, train_labels, test, test_labels)
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    moved = logistic_regression(100 * train @ q + 7, train_labels, 100 * test @ q + 7, test_labels)
    assert moved == value


def test_strong_regularization_leaves_the_class_shares():
    """W → 0: the bias alone is left, the logarithm of the classes' shares; so the largest class wins everywhere."""
    x, y = sphere(60, 5).double(), torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    ((w, b),) = image._lbfgs(x, y, 3, [1e6])
    assert w.abs().max() < 1e-5
    torch.testing.assert_close(
        b.softmax(0), torch.tensor([1 / 2, 1 / 3, 1 / 6], dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_noise_features_are_regularized_and_clean_ones_are_not():
    """Forty samples in fifty dimensions of noise separate perfectly: held-out data must choose the strong end."""
    g = torch.Generator().manual_seed(0)
    signal = torch.arange(400) % 2
    x = 3 * torch.randn(400, 50, generator=g, dtype=torch.float64)
    x[:, 0] += 4.0 * signal
    noisy = logistic_regression(x[:60], signal[:60], x[60:], signal[60:])
    weak = logistic_regression(x[:60], signal[:60], x[60:], signal[60:], l2=(1e-6,))
    assert noisy.chosen >= 1e-2
    assert noisy.accuracy > weak.accuracy


# --- Both heads


@pytest.mark.parametrize("name", PROBES)
def test_overlapping_gaussians_reach_the_bayes_rate(name):
    """Two classes N(±μ, I): the best classifier is linear and right for Φ(‖μ‖) of the images."""
    g, n, d = torch.Generator().manual_seed(0), 6000, 8
    y = torch.arange(n) % 2
    x = torch.randn(n, d, generator=g) + (2 * y[:, None] - 1) / math.sqrt(d)  # ‖μ‖ = 1
    probe = PROBES[name](x[:3000], y[:3000], x[3000:], y[3000:], **({"epochs": 20} if name == "linear" else {}))
    bayes = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1.0)).item()  # 0.841
    assert probe.accuracy.item() == pytest.approx(bayes, abs=3 * math.sqrt(bayes * (1 - bayes) / 3000))


@pytest.mark.parametrize("name", PROBES)
def test_the_test_set_chooses_nothing(name):
    train, train_labels, test, test_labels = blobs(noise=2.0)
    swept = {"lrs": (0.01, 1.0), "epochs": 5} if name == "linear" else {"l2": (1.0, 1e-4)}
    one = PROBES[name](train, train_labels, test, test_labels, **swept)
    other = PROBES[name](train, train_labels, test[:10], (test_labels[:10] + 1) % 4, **swept)
    assert one[1:] == other[1:]


@pytest.mark.parametrize("name", PROBES)
def test_accepts_half_precision_numpy_strided_views_and_gaps_between_labels(name):
    train, train_labels, test, test_labels = blobs()
    f = lambda *data: PROBES[name](*data, **({"epochs": 5} if name == "linear" else {})).accuracy  # noqa: E731
    value = f(train, train_labels, test, test_labels)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert value == f(torch.cat((train, train), 1)[:, :6], train_labels, test.T.contiguous().T, test_labels)
    assert value == f(train.numpy(), train_labels.numpy(), test.numpy(), test_labels.numpy())
    assert value == f(train, 10**6 * train_labels, test, 10**6 * test_labels)
    assert value.item() == pytest.approx(f(train.bfloat16(), train_labels, test.half(), test_labels).item(), abs=0.05)


@pytest.mark.parametrize("name", PROBES)
def test_collapsed_features_and_zeros_score_the_largest_class(name):
    labels = torch.tensor([1] * 30 + [0] * 20)
    for z in (torch.ones(50, 3), torch.zeros(50, 3)):
        probe = PROBES[name](z, labels, z, labels)
        assert probe.accuracy.item() == pytest.approx(0.6)


@pytest.mark.parametrize("name", PROBES)
def test_held_out_is_a_share_of_every_class(name):
    labels = torch.tensor([0] * 20 + [1] * 5 + [2] * 2 + [3])
    held = image._held_out(labels, 0.2, seed=0)
    assert [held[labels == k].sum().item() for k in range(4)] == [4, 1, 1, 0]
    assert not torch.equal(held, image._held_out(labels, 0.2, seed=1))
    assert PROBES[name](sphere(28, 5), labels, sphere(28, 5), labels).held_out  # a class held out of nothing


@pytest.mark.parametrize("name", PROBES)
def test_bad_input_is_named(name):
    train, train_labels, test, test_labels = blobs()
    good = {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels}
    sweep = "lrs" if name == "linear" else "l2"
    nan = test.clone()
    nan[3, 2] = torch.nan
    for change, message in [
        ({"test_labels": test_labels + 1}, "test_labels has class 4, of which train_labels has no sample"),
        ({"train_labels": train_labels[:-1]}, "labels must have shape"),
        ({"train_labels": train_labels - 1}, "negative"),
        ({"test": test[:, :5]}, "same dimension, got 6 and 5"),
        ({"test": nan}, "test contains NaN"),
        ({"train": train[0]}, "train must have shape"),
        ({sweep: ()}, f"{sweep}.* must be positive"),
        ({sweep: (0.0, 1.0)}, f"{sweep}.* must be positive"),
        ({sweep: (math.inf,)}, f"{sweep}.* must be positive"),
        ({"held_out": 1.0}, "held_out must be a share between 0 and 1"),
        ({"train": train[:4], "train_labels": train_labels[:4]}, "no class with two samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            PROBES[name](**(good | change))
    if name == "linear":
        for options in ({"epochs": 0}, {"batch": 0}):
            with pytest.raises(ValueError, match="must be a positive integer"):
                linear_probe(**good, **options)


# --- Intervals


@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (100, 0.95), (120, 0.77), (1000, 0.1)])
def test_intervals_cover_as_often_as_they_say(n, p):
    """Exact: the probability, over all outcomes of n images, that the interval holds p; discrete, so near the level."""
    coverage = sum(
        binom.pmf(h, n, p) for h in range(n + 1) if np.prod(np.subtract(accuracy_interval(h / n, n), p)) <= 0
    )
    assert coverage == pytest.approx(0.95, abs=0.025)


def test_interval_is_wilsons():
    z, p, n = 1.959963984540054, 0.8, 50
    center, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)]
    assert accuracy_interval(torch.tensor(p, dtype=torch.float64), n) == pytest.approx(expected)
    assert accuracy_interval(0.0, n)[0] == 0
    assert accuracy_interval(1.0, n)[1] == 1


@pytest.mark.parametrize(("accuracy", "n"), [(0.5, 0), (1.1, 10), (-0.1, 10), (float("nan"), 10), (0.55, 10)])
def test_what_is_no_share_of_images_is_refused(accuracy, n):
    with pytest.raises(ValueError, match="accuracy must be a share of n images"):
        accuracy_interval(accuracy, n)

"""Input is validated in one place: what passes, what it becomes, and the sentence that bad input gets."""

import numpy as np
import pytest
import torch

from analysis.measures.inputs import as_features, as_labels, as_spectrum, as_views, require_unit_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_all_but_float64_becomes_float32(dtype):
    z = torch.ones(3, 2).to(dtype)
    assert as_features(z).dtype == torch.float32
    assert as_features(z.double()).dtype == torch.float64
    assert as_views(z.expand(2, 3, 2)).dtype == torch.float32


def test_numpy_and_strided_arrays_pass_with_their_values():
    z = np.arange(24.0).reshape(6, 4)
    for view in (z, z[::2], z.T):
        assert np.array_equal(as_features(view).numpy(), view)


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_normalized_rows_have_norm_one_and_their_gradient(scale):
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * scale
    unit = as_features(z, normalize=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(as_views(z[None].expand(2, 4, 3), normalize=True)[1], unit)
    require_unit_rows(unit.bfloat16().float())
    assert torch.autograd.gradcheck(lambda x: as_features(x, normalize=True), (z / scale).double().requires_grad_())


def test_finite_values_whose_sum_overflows_pass():
    assert as_features(torch.full((2, 2), 3e38)).isfinite().all()


BAD = {
    "z must have shape \\(n, d\\), got \\(3,\\)": torch.ones(3),
    "z must not be empty": torch.ones(0, 3),
    "z contains NaN or infinite": torch.tensor([[1.0, float("inf")]]),
    "z must be real": torch.ones(2, 2) * 1j,
    "z must be numeric": np.array([["a", "b"]]),
    "z needs at least 2 rows, got 1": torch.ones(1, 3),
    "z has a zero row": torch.zeros(2, 3),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_features_are_named(message):
    with pytest.raises(ValueError, match=message):
        as_features(BAD[message], normalize=True, min_rows=2)


def test_rows_off_the_sphere_are_named():
    with pytest.raises(ValueError, match="teacher must have unit-norm rows"):
        require_unit_rows(1.1 * torch.eye(3), "teacher")


def test_views():
    with pytest.raises(ValueError, match="views must have shape \\(v, n, d\\)"):
        as_views(torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least 2 views, got 1"):
        as_views(torch.ones(1, 3, 2))


def test_labels():
    assert as_labels(np.array([0, 2], dtype=np.uint8), 2, classes=3).dtype == torch.int64
    for bad, message in [
        (torch.tensor([0, 3]), "below classes=3"),
        (torch.tensor([-1, 0]), "not be negative"),
        (torch.tensor([0.0, 1.0]), "must be integers"),
        (torch.tensor([0]), "shape \\(2,\\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_labels(bad, 2, classes=3)


def test_spectrum_is_sorted_and_rounding_is_cut():
    assert as_spectrum(torch.tensor([1.0, 3.0, -1e-8])).tolist() == [3, 1, 0]
    with pytest.raises(ValueError, match="must not be negative"):
        as_spectrum(torch.tensor([1.0, -0.1]))

"""Views for last layers are the same for every run of a recipe, and a run's student is the one that was recorded."""

import pytest
import torch

from analysis.probes.heads import head_views, run_student, view_features
from simdino.config import Crops, Model
from simdino.recipes import recipe
from simdino.train import get_run
from simdino.vit import Network

SHAPE = "data.name=digits,data.size=8,crops.global_size=8,model.patch=4,model.dim=24,model.hidden=16,model.out=8"
TINY = f"{SHAPE},optim.steps=100,optim.batch_size=16,record.snapshots=1,record.probe=360"


def test_views_are_the_same_for_every_run_and_half_of_the_images_are_fitted_to(tmp_path):
    run = get_run(recipe(f"simdino@{TINY}", "smoke"), tmp_path, progress=False)
    first, second = (head_views(run, draws=3, most=4000) for _ in range(2))
    assert first.fitted.shape[:2] == (3, 1437 // 2)
    assert first.views.shape[:2] == (2, 360)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    network = run_student(run)
    assert view_features(network, first.views).shape == (2, 360, 24)
    recorded = run.snapshot(run.steps[-1])["student/backbone/test"]  # of all held-out images, in another order
    found = view_features(network, first.center)[0]
    torch.testing.assert_close(found.mean(0), recorded.mean(0), atol=1e-5, rtol=1e-5)


def test_hidden_patches_are_those_of_the_crops_in_half_of_the_views():
    network = Network(Model(patch=4, dim=24, heads=2, mask_token=True, hidden=16, out=8), size=16).eval()
    torch.nn.init.constant_(network.backbone.mask_token, 3.0)
    views = torch.randn(2, 40, 3, 16, 16)
    seen, hidden = view_features(network, views), view_features(network, views, hidden=Crops(mask_p=0.5))
    changed = (seen != hidden).any(-1)
    assert changed.sum() == 40
    assert torch.equal(hidden, view_features(network, views, hidden=Crops(mask_p=0.5)))


def test_a_run_with_local_crops_is_refused(tmp_path):
    config = recipe(f"simdino@{TINY},crops.local_crops=1,crops.local_size=4", "smoke")
    run = get_run(config, tmp_path, progress=False)
    with pytest.raises(ValueError, match="has local crops, for which no best last layer is known"):
        head_views(run, draws=2, most=100)

"""Claims: a run that is trained again ends with the weights that it ended with, to the bit; what it does then at
several χ is measured; other runs have nothing to say here.
"""

import numpy as np
import pytest
import torch

from analysis import theory
from analysis.runs.collapsed_runs import RAISED_CHI, growth_outcome, run_config, run_views, trained_again
from simdino.data import load
from simdino.recipes import recipe
from simdino.train import get_run
from simdino.weights import load_weights

SMALL = "optim.teacher=student,optim.clip=0.0,optim.weight_decay=0.0,optim.weight_decay_end=0.0,model.dim=24"
SMALL += ",model.hidden=16,model.out=8,optim.batch_size=16,crops.global_size=16,optim.precision=fp32,record.snapshots=1"


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    gamma = 0.05 / theory.collapse_number(8, 0.05**0.5, 1.0)
    config = recipe(f"simdino@objective.gamma={gamma:.6g},optim.steps=1000,{SMALL}", "smoke", 1)  # 20 steps
    return get_run(config, tmp_path_factory.mktemp("runs"), progress=False), config


def test_a_run_trained_again_is_the_run(collapsed):
    run, config = collapsed
    assert run_config(run) == config
    images = load(config.data.name, root=config.data.root, size=config.data.size).train
    network, optimizer = trained_again(config, images)
    ended = load_weights(run.path / "checkpoint.safetensors", branch="student", config=config.model).network
    for name, value in ended.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)
    assert {float(state["step"]) for state in optimizer.state.values()} == {20.0}
    views = list(run_views(config, images, range(20, 22)))
    assert views[0].shape == (2, 16, 1, 16, 16)
    assert not torch.equal(*views)


def test_a_larger_chi_makes_the_spread_of_a_collapsed_run_grow_faster(collapsed):
    run, _ = collapsed
    found = growth_outcome(run, watched=32)
    assert found["step"] == [0, 20, 30] * len(RAISED_CHI)
    columns = {name: np.array(values).reshape(-1, 3) for name, values in found.items()}
    np.testing.assert_allclose(columns["chi"], np.repeat(RAISED_CHI[:, None], 3, axis=1))
    assert len(set(columns["share"][:, 0])) == 1  # one state, from which all go on
    growth = np.log(columns["spread"][:, 1] / columns["spread"][:, 0])
    assert (np.diff(growth) > 0).all()
    assert (columns["speed"] > 0).all()


def test_other_runs_have_no_growth_next_to_collapse(tmp_path):
    for name in ("simdino", "dino", f"simdino@objective.gamma=1.0,{SMALL}"):
        text = "optim.steps=50,optim.batch_size=8,record.snapshots=1"
        text = text if "@" not in name else "optim.steps=50"
        run = get_run(recipe(f"{name}{',' if '@' in name else '@'}{text}", "smoke"), tmp_path, progress=False)
        assert not any(growth_outcome(run, watched=32).values())

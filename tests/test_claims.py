import json
import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from analysis.claims import check_parameters, claim, gallery, publish
from analysis.commands import gallery_command
from analysis.plots import claims_board, style
from simdino.runs import Run, write_json

matplotlib.use("agg")
DECLARED = 'profile = "cpu"\nseeds = None\nout_dir: str = "figures"\n'


@pytest.fixture
def fig():
    style.use_style()
    fig, ax = plt.subplots()
    ax.plot([0, 1], **style.THEORY)
    yield fig
    plt.close(fig)


@pytest.mark.parametrize(
    ("relation", "measured", "holds"),
    [
        ("equal", 1.0, True),
        ("equal", 1.25, True),
        ("equal", 0.75, True),
        ("equal", 1.26, False),
        ("at_most", -9.0, True),
        ("at_most", 1.25, True),
        ("at_most", 1.26, False),
        ("at_least", 9.0, True),
        ("at_least", 0.75, True),
        ("at_least", 0.74, False),
        ("equal", math.nan, False),
        ("at_most", math.nan, False),
        ("at_least", math.nan, False),
        ("equal", math.inf, False),
    ],
)
def test_claim_holds_within_its_tolerance(relation, measured, holds):
    assert claim("c", "s", predicted=1.0, measured=measured, tolerance=0.25, relation=relation)["holds"] is holds


def test_a_nan_prediction_never_holds_and_equal_infinities_do():
    assert not claim("c", "s", predicted=math.nan, measured=math.nan, tolerance=math.inf)["holds"]
    assert claim("c", "s", predicted=math.inf, measured=math.inf)["holds"]


def test_claim_takes_tensors_arrays_and_truth_values():
    c = claim("c", "s", predicted=torch.tensor(2.0), measured=np.array([1.5, 2.0, 2.5], dtype=np.float32))
    assert c == {
        "id": "c",
        "statement": "s",
        "predicted": 2.0,
        "measured": 2.0,
        "tolerance": 0.0,
        "relation": "equal",
        "kind": "theorem",
        "holds": True,
        "sd": 0.5,
        "n": 3,
    }
    assert claim("c", "s", predicted=True, measured=torch.tensor(True))["holds"] is True


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_claim_refuses_a_meaningless_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance of claim 'c'"):
        claim("c", "s", predicted=1.0, measured=1.0, tolerance=tolerance)


def test_check_parameters_names_the_unknown_parameter_and_the_nearest():
    with pytest.raises(ValueError, match=r"no parameter 'profil'; did you mean 'profile'\? Declared: profile, seeds"):
        check_parameters(["", "import torch", DECLARED, '# Parameters\nseeds = [0]\nprofil = "smoke"\n'])


def test_check_parameters_accepts_declared_names_and_a_notebook_opened_by_hand():
    assert check_parameters(["", DECLARED, '# Parameters\nprofile = "smoke"\nout_dir = "x"\n', "later = 1"]) is None
    assert check_parameters(["", DECLARED, "anything = 1"]) is None


def test_check_parameters_does_not_take_other_cells_names_for_parameters():
    with pytest.raises(ValueError, match="no parameter 'early'"):
        check_parameters(["", "early = 1", DECLARED, "# Parameters\nearly = 2\n"])


def test_check_parameters_refuses_an_unknown_profile_injected_or_typed():
    for executed in (["", DECLARED, '# Parameters\nprofile = "smoek"\n'], ["", 'profile = "smoek"  # comment\n']):
        with pytest.raises(ValueError, match="unknown profile 'smoek'; did you mean 'smoke'"):
            check_parameters(executed)


@pytest.mark.parametrize(("name", "refused"), [("seeds", False), ("sedes", True)])
def test_check_parameters_against_papermill_itself(tmp_path, notebook, name, refused):
    source = notebook(tmp_path / "in.ipynb", parameters=DECLARED, cells=["check_parameters(In)", "print(seeds)"])
    if refused:
        with pytest.raises(papermill.PapermillExecutionError, match=r"did you mean 'seeds'\?"):
            papermill.execute_notebook(source, tmp_path / "out.ipynb", {name: [1]}, progress_bar=False)
    else:
        out = papermill.execute_notebook(source, tmp_path / "out.ipynb", {name: [1]}, progress_bar=False)
        assert "[1]" in out.cells[-1].outputs[0].text


def test_publish_writes_the_figure_and_everything_that_made_it(tmp_path, fig, capsys):
    claims = [
        claim("flat", "λ = 1/d", predicted=0.25, measured=0.25),
        claim("odd", "NaN is | kept", predicted=1, measured=math.nan, kind="observation"),
    ]
    publish(fig, claims, name="01_flat", out_dir=tmp_path / "new", profile="smoke", seeds=(0, 1))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["01_flat.json", "01_flat.png"]
    text = (tmp_path / "new/01_flat.json").read_text()
    assert "NaN" not in text.replace("NaN is", "")
    record = json.loads(text)
    assert record["claims"][0] == claims[0]
    assert record["claims"][1]["measured"] == "nan"
    assert (record["profile"], record["seeds"], record["notebook"]) == ("smoke", [0, 1], "notebooks/01_flat.ipynb")
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]
    assert record["threads"] == torch.get_num_threads()
    assert 0 < record["minutes"] < 60
    with Image.open(tmp_path / "new/01_flat.png") as image:
        assert image.width == 1600
        assert image.text["Source"] == "notebooks/01_flat.ipynb"
        assert record["commit"] in image.text["Comment"]
    table = capsys.readouterr().out.splitlines()
    assert table[2].split()[:2] == ["FAILS", "odd"]


def test_publish_stops_on_a_theorem_that_fails_after_writing_it_down(tmp_path, fig):
    claims = [claim("flat", "λ = 1/d", predicted=0.25, measured=0.5), claim("fine", "1 = 1", predicted=1, measured=1)]
    with pytest.raises(AssertionError, match=r"flat: λ = 1/d: predicted = 0.25, measured 0.5") as error:
        publish(fig, claims, name="01_flat", out_dir=tmp_path, profile="smoke")
    assert "fine" not in str(error.value)
    assert json.loads((tmp_path / "01_flat.json").read_text())["claims"][0]["holds"] is False


@pytest.mark.parametrize("ids", [[], ["a", "a"]])
def test_publish_needs_claims_with_distinct_ids(tmp_path, fig, ids):
    with pytest.raises(ValueError, match="distinct ids"):
        publish(fig, [claim(i, "s", predicted=1, measured=1) for i in ids], name="n", out_dir=tmp_path, profile="cpu")
    assert not list(tmp_path.iterdir())


def test_gallery_shows_every_figure_and_marks_what_fails(tmp_path, fig, capsys):
    right = claim("a", "rank = d", predicted=4, measured=[3.998, 4.0, 4.002], tolerance=0.01, kind="observation")
    wrong = claim("b", "|x| is small", predicted=1, measured=3, relation="at_most", kind="observation")
    publish(fig, [right], name="01_right", out_dir=tmp_path, profile="cpu", seeds=(0, 1, 2))
    gallery_command([str(tmp_path)])
    assert "\n1 of 1 claims hold.\n" in (tmp_path / "README.md").read_text()
    publish(fig, [right, wrong], name="02_wrong", out_dir=tmp_path, profile="cpu")
    text = gallery(tmp_path).read_text()
    assert (
        "\n2 of 3 claims hold.\n\n**These do not:**\n\n- [02_wrong](#02_wrong): \\|x\\| is small (observation)" in text
    )
    assert "| holds | rank = d | = 4 | 4 ± 0.002 (n = 3) | 0.01 | observation |" in text
    assert "| **FAILS** | \\|x\\| is small | ≤ 1 | 3 | 0 | observation |" in text
    assert "![01_right](01_right.png)" in text
    assert "seeds 0, 1, 2 (n = 3)" in text
    assert "notebooks/01_right.ipynb)" in text
    assert "![all claims, one row for each notebook](claims.png)" in text
    with Image.open(tmp_path / "claims.png") as image:
        assert image.width == 1800


def test_the_board_has_a_square_a_claim_those_that_fail_last():
    record = {"title": "t", "claims": [{"holds": h, "kind": k} for h, k in ((False, "theorem"), (True, "observation"))]}
    ax = claims_board.plot_board(
        [record, record | {"claims": [{"holds": True, "kind": "theorem"}]}], plt.figure().gca()
    )
    squares = [ax.collections[i] for i in range(2)]
    assert [len(s.get_offsets()) for s in squares] == [2, 1]
    colors = [[to_hex(c).upper() for c in s.get_facecolors()] for s in squares]
    assert colors == [[claims_board.OBSERVED, claims_board.FAILS], [claims_board.HOLDS]]
    assert ax.get_title(loc="left") == "2 of 3 claims hold"
    plt.close("all")


def test_figure_of_runs_names_what_trained_them_and_not_only_what_drew_it(tmp_path, fig):
    runs = [Run(tmp_path / str(i)) for i in range(3)]
    for run, commit in zip(runs, ["def", "abc", "def"], strict=True):
        run.path.mkdir()
        write_json(
            run.path / "environment.json", {"commit": commit, "source": "12", "hardware": "some GPU", "cores": 1}
        )
        write_json(run.path / "DONE", {"seconds": 30})
        write_json(run.path / "config.json", {"optim": {"precision": "bf16" if commit == "abc" else "fp32"}})
    one = claim("a", "s", predicted=1, measured=1)
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu", runs=runs)
    record = json.loads((tmp_path / "01.json").read_text())
    assert record["runs"] == {
        "commit": ["abc", "def"],
        "source": ["12"],
        "hardware": ["some GPU"],
        "precision": ["bf16", "fp32"],
        "count": 3,
        "minutes": 1.5,
    }
    text = gallery(tmp_path).read_text()
    assert "3 runs, 1.5 minutes of training, some of it in bfloat16 on some GPU, commit abc, def · [notebook]" in text
    assert "minutes in the notebook" in text
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu", runs=[runs[1]])
    assert "1 runs, 0.5 minutes of training, in bfloat16 on some GPU" in gallery(tmp_path).read_text()
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu", runs=[runs[0]])
    assert "bfloat16" not in gallery(tmp_path).read_text()
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu")
    assert "training" not in gallery(tmp_path).read_text()


def test_gallery_names_what_is_missing_or_damaged(tmp_path, fig):
    with pytest.raises(ValueError, match="holds no published figures"):
        gallery(tmp_path)
    publish(fig, [claim("a", "s", predicted=1, measured=1)], name="01", out_dir=tmp_path, profile="cpu")
    (tmp_path / "01.png").unlink()
    with pytest.raises(ValueError, match=r"01\.json has no picture"):
        gallery(tmp_path)
    (tmp_path / "01.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*01\.json"):
        gallery(tmp_path)
    (tmp_path / "01.json").write_text("[]")
    with pytest.raises(ValueError, match=r"01\.json is not a claims file"):
        gallery(tmp_path)

import json
import math
import os
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from scipy import stats

from analysis import claims as claims_module
from analysis.claims import Proportion, check_parameters, claim, gallery, publish
from analysis.commands import gallery_command
from analysis.plots import claims_board, style
from simdino.runs import Run
from simdino.whole_files import write_json

matplotlib.use("agg")
DECLARED = 'profile = "cpu"\nseeds = None\nout_dir: str = "figures"\n'


@pytest.fixture
def fig():
    style.use_style()
    fig, ax = plt.subplots()
    ax.plot([0, 1], **style.THEORY)
    yield fig
    plt.close(fig)


def computed(id="c", statement="s", **options):
    """A claim about a number in which nothing is random."""
    return claim(id, statement, **({"source": "theory", "unit": "computation", "predicted": 1} | options))


@pytest.mark.parametrize(
    ("relation", "measured", "verdict"),
    [
        ("equal", 1.0, "holds"),
        ("equal", 1.25, "holds"),
        ("equal", 0.75, "holds"),
        ("equal", 1.26, "fails"),
        ("at_most", -9.0, "holds"),
        ("at_most", 1.25, "holds"),
        ("at_most", 1.26, "fails"),
        ("at_least", 9.0, "holds"),
        ("at_least", 0.75, "holds"),
        ("at_least", 0.74, "fails"),
        ("equal", math.nan, "fails"),
        ("at_most", math.nan, "fails"),
        ("at_least", math.nan, "fails"),
        ("equal", math.inf, "fails"),
    ],
)
def test_a_computed_number_holds_within_its_tolerance_or_fails(relation, measured, verdict):
    assert computed(measured=measured, tolerance=0.25, relation=relation)["verdict"] == verdict


def test_a_nan_prediction_never_holds_and_equal_infinities_do():
    assert computed(predicted=math.nan, measured=math.nan, tolerance=math.inf)["verdict"] == "fails"
    assert computed(predicted=math.inf, measured=math.inf)["verdict"] == "holds"


def test_claim_takes_tensors_arrays_and_truth_values():
    c = claim(
        "c",
        "s",
        predicted=torch.tensor(2.0),
        measured=np.array([1.5, 2.0, 2.5], dtype=np.float32),
        tolerance=2,
        source="theory",
        unit="seed",
    )
    half = 4.302652729911275 * 0.5 / 3**0.5  # t with two degrees of freedom
    assert c.pop("interval") == pytest.approx([2 - half, 2 + half])
    assert c == {
        "id": "c",
        "statement": "s",
        "source": "theory",
        "kind": "theorem",
        "predicted": 2.0,
        "relation": "equal",
        "tolerance": 2.0,
        "measured": 2.0,
        "unit": "seed",
        "n": 3,
        "sd": 0.5,
        "verdict": "holds",
    }
    assert computed(predicted=True, measured=torch.tensor(True))["verdict"] == "holds"


def test_the_interval_decides_and_what_is_undecided_says_what_would_decide_it():
    options = {"predicted": 0, "relation": "at_least", "source": "paper", "unit": "seed"}
    assert claim("c", "s", measured=[0.9, 1.0, 1.1], **options)["verdict"] == "holds"
    assert claim("c", "s", measured=[-0.9, -1.0, -1.1], **options)["verdict"] == "fails"
    open_ = claim("c", "s", measured=[-1.0, 1.0, 2.0], **options)
    assert open_["verdict"] == "undecided"
    n = open_["decisive_n"]
    more = np.tile([-1.0, 1.0, 2.0], 1000)[: 3 * (n // 3 + 1)]
    assert claim("c", "s", measured=more, **options)["verdict"] == "holds"
    assert open_["half_width"] == pytest.approx(stats.t.ppf(0.975, 2) * open_["sd"] / 3**0.5)
    alone = claim("c", "s", measured=[1.0], **options)
    assert (alone["verdict"], alone["interval"], alone["decisive_n"]) == ("undecided", [-math.inf, math.inf], None)
    assert claim("c", "s", measured=[0.0, 0.0], **options)["verdict"] == "holds"


def test_a_proportion_has_wilsons_interval():
    options = {"relation": "at_least", "source": "paper", "unit": "image"}
    c = claim("c", "s", predicted=0.5, measured=Proportion(8, 10), **options)
    expected = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert c["interval"] == pytest.approx([expected.low, expected.high])
    assert (c["measured"], c["hits"], c["n"], c["verdict"]) == (0.8, 8, 10, "undecided")
    assert claim("c", "s", predicted=0.5, measured=Proportion(16, 20), **options)["verdict"] == "holds"
    assert 10 < c["decisive_n"] <= 20
    assert claim("c", "s", predicted=0.5, measured=Proportion(0, 20), **options)["verdict"] == "fails"


def test_intervals_from_elsewhere_need_their_n():
    options = {"predicted": 0, "relation": "at_least", "source": "paper", "unit": "setting", "measured": 0.2}
    c = claim("c", "s", **options, n=33, interval=(-0.1, 0.5), seed=7)
    assert (c["verdict"], c["n"], c["resampling_seed"]) == ("undecided", 33, 7)
    assert claim("c", "s", **options, n=c["decisive_n"], interval=(0.01, 0.4))["verdict"] == "holds"
    with pytest.raises(ValueError, match="claim 'c' needs an interval"):
        claim("c", "s", **options, n=33)
    with pytest.raises(ValueError, match="claim 'c' needs n and an interval"):
        claim("c", "s", **options, interval=(0.0, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -1.0}, "tolerance of claim 'c' must not be negative"),
        ({"tolerance": math.nan}, "tolerance of claim 'c' must not be negative"),
        ({"source": "folklore"}, "source of claim 'c' must be one of theory, paper, control, threshold, identity"),
        ({"relation": "about"}, "relation of claim 'c' must be one of equal, at_most, at_least"),
        ({"kind": "guess"}, "kind of claim 'c' must be one of theorem, observation"),
    ],
)
def test_claim_refuses_what_has_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        computed(measured=1.0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "threshold", "measured": [3.0, 3.1]}, "'c' of 01 has a predicted of 1, and .* says nothing"),
        ({"source": "control", "measured": [3.0, 3.1]}, "'c' of 01 has a predicted of 1"),
        ({"source": "theory", "measured": [3.0, 3.1], "tolerance": 0.1}, "'c' of 01 has a tolerance of 0.1"),
        ({"source": "paper", "measured": 0.123456789, "predicted": 0.123456789}, "predicts is the measured number"),
    ],
)
def test_publish_refuses_what_has_no_foundation(tmp_path, fig, options, message):
    unit = "computation" if isinstance(options["measured"], float) else "seed"
    unfounded = computed(kind="observation", unit=unit, **options)
    with pytest.raises(ValueError, match=message):
        publish(fig, [unfounded], name="01", out_dir=tmp_path, profile="cpu")
    assert not list(tmp_path.iterdir())


def test_publish_takes_thresholds_that_were_fixed_beforehand(tmp_path, fig, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/expectations.toml").write_text('[01.c]\npredicted = 1\ntolerance = 0.1\nwhy = "a guess"\n')
    monkeypatch.setattr(claims_module, "CHECKOUT", tmp_path)
    options = {"source": "threshold", "kind": "observation", "unit": "seed", "measured": [1.0, 1.01]}
    publish(fig, [computed(tolerance=0.1, **options)], name="01", out_dir=tmp_path, profile="cpu")
    with pytest.raises(ValueError, match=r"has a tolerance of 0\.2, and .* says 0\.1"):
        publish(fig, [computed(tolerance=0.2, **options)], name="01", out_dir=tmp_path, profile="cpu")


def test_a_rehearsal_is_marked_and_keeps_away_from_the_results(tmp_path, fig, monkeypatch):
    monkeypatch.setattr(claims_module, "CHECKOUT", tmp_path)
    with pytest.raises(ValueError, match="profile smoke is a rehearsal"):
        publish(fig, [computed(measured=1)], name="01", out_dir=tmp_path / "figures", profile="smoke")
    assert fig.texts == []
    publish(fig, [computed(measured=1)], name="01", out_dir=tmp_path / "build", profile="smoke")
    assert [text.get_text() for text in fig.texts] == ["rehearsal: a few steps, no result"]


def test_what_was_missing_is_said(tmp_path, fig, capsys):
    sentence = "bring CamVid as data/camvid.npz"
    publish(fig, [computed(measured=1)], name="01", out_dir=tmp_path, profile="cpu", missing=[sentence])
    assert json.loads((tmp_path / "01.json").read_text())["missing"] == [sentence]
    assert f"Left out: {sentence}\n" in capsys.readouterr().out


def test_check_parameters_names_the_unknown_parameter_and_the_nearest():
    with pytest.raises(ValueError, match=r"no parameter 'profil'; did you mean 'profile'\? Declared: profile, seeds"):
        check_parameters(["", "import torch", DECLARED, '# Parameters\nseeds = [0]\nprofil = "smoke"\n'])


def test_check_parameters_accepts_declared_names_and_a_notebook_opened_by_hand():
    assert check_parameters(["", DECLARED, '# Parameters\nprofile = "smoke"\nout_dir = "x"\n', "later = 1"]) is None
    assert check_parameters(["", DECLARED, "anything = 1"]) is None


def test_check_parameters_does_not_take_other_cells_names_for_parameters():
    with pytest.raises(ValueError, match="no parameter 'early'"):
        check_parameters(["", "early = 1", DECLARED, "# Parameters\nearly = 2\n"])


TYPED = 'seeds = [0]\nrecipes = ["a"]\ndata = []\nblock = 3\neps = 0.5\ntrain = False\nlog = "x"\nout_dir = None\n'


def as_notebook(injected, declared=TYPED):
    """The names of a notebook after its parameters were checked."""
    names = {"In": ["", declared, f"# Parameters\n{injected}"], "check_parameters": check_parameters}
    for source in names["In"]:
        exec(source, names)
    exec("check_parameters(In)", names)
    return names


@pytest.mark.parametrize(
    ("injected", "name", "expected"),
    [
        ("seeds = 1", "seeds", [1]),
        ('seeds = "[3]"', "seeds", [3]),
        ('seeds = "[1, 2]"', "seeds", [1, 2]),
        ('seeds = "1,2"', "seeds", [1, 2]),
        ("seeds = [4, 5]", "seeds", [4, 5]),
        ('recipes = "simdino@optim.lr=1,optim.ema=0"', "recipes", ["simdino@optim.lr=1,optim.ema=0"]),
        ("""recipes = "['a', 'b']\"""", "recipes", ["a", "b"]),
        ("recipes = []", "recipes", []),
        ('data = "~/x"', "data", [os.path.expanduser("~/x")]),
        ("eps = 1", "eps", 1),
        ("train = True", "train", True),
        ("out_dir = None", "out_dir", None),
        ('out_dir = "~/y"', "out_dir", os.path.expanduser("~/y")),
    ],
)
def test_check_parameters_takes_values_as_they_read(injected, name, expected):
    assert as_notebook(injected)[name] == expected


@pytest.mark.parametrize(
    ("injected", "words"),
    [
        ('seeds = "[3"', "seeds must be a list of whole numbers, such as [0], and '[3' does not read as one"),
        ("seeds = 0.5", "seeds must be a list of whole numbers, such as [0], not 0.5"),
        ("seeds = True", "seeds must be a list of whole numbers"),
        ("seeds = []", "seeds must be a list of whole numbers"),
        ("seeds = None", "seeds must be a list of whole numbers"),
        ('seeds = "a"', "seeds must be a list of whole numbers"),
        ("recipes = [1]", "recipes must be a list of text"),
        ('block = "3"', "block must be a whole number, not '3'"),
        ("block = 3.0", "block must be a whole number, not 3.0"),
        ("block = True", "block must be a whole number, not True"),
        ('eps = "a"', "eps must be a number, not 'a'"),
        ('eps = float("inf")', "eps must be a number, not nan"),
        ("train = 1", "train must be True or False, not 1"),
        ("out_dir = 2026", "out_dir must be text, not 2026; -r out_dir 2026 gives it as text"),
        ("log = None", "log must be text, not None"),
    ],
)
def test_check_parameters_refuses_values_of_another_type_before_any_work(injected, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        as_notebook(injected)


def test_what_is_none_unless_it_is_given_has_a_type_too():
    declared = "seeds = None\neps = None\nwhat = None\n"
    assert as_notebook("seeds = 2\neps = 1\nwhat = 'a'", declared)["seeds"] == [2]
    for injected in ("seeds = 'a'", "eps = 'a'", "what = 3"):
        with pytest.raises(ValueError, match=f"parameter {injected.split()[0]} must be"):
            as_notebook(injected, declared)


def test_figures_go_home_where_the_folder_begins_with_a_tilde(fig, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    publish(fig, [computed(measured=1)], name="x", out_dir="~/figures", profile="smoke")
    assert sorted(f.name for f in (tmp_path / "figures").iterdir()) == ["x.json", "x.png"]


def test_somebody_s_own_style_does_not_reach_the_figures(tmp_path):
    with matplotlib.rc_context({"text.usetex": True, "axes.grid": False, "font.size": 30}):
        style.use_style()
        fig, ax = plt.subplots()
        ax.set_title("Γ, λ")
        fig.savefig(tmp_path / "x.png")
        plt.close(fig)
        assert (matplotlib.rcParams["text.usetex"], matplotlib.rcParams["axes.grid"]) == (False, True)
        assert matplotlib.rcParams["font.size"] == 10


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
        computed("flat", "λ = 1/d", predicted=0.25, measured=0.25),
        computed("odd", "NaN is | kept", measured=math.nan, kind="observation"),
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
    assert table[2].split()[:2] == ["fails", "odd"]


def test_publish_stops_on_a_theorem_that_fails_after_writing_it_down(tmp_path, fig):
    claims = [computed("flat", "λ = 1/d", predicted=0.25, measured=0.5), computed("fine", "1 = 1", measured=1)]
    with pytest.raises(AssertionError, match=r"flat: λ = 1/d: predicted = 0.25, measured 0.5") as error:
        publish(fig, claims, name="01_flat", out_dir=tmp_path, profile="smoke")
    assert "fine" not in str(error.value)
    assert json.loads((tmp_path / "01_flat.json").read_text())["claims"][0]["verdict"] == "fails"


@pytest.mark.parametrize("ids", [[], ["a", "a"]])
def test_publish_needs_claims_with_distinct_ids(tmp_path, fig, ids):
    with pytest.raises(ValueError, match="distinct ids"):
        publish(fig, [computed(i, measured=1) for i in ids], name="n", out_dir=tmp_path, profile="cpu")
    assert not list(tmp_path.iterdir())


def test_gallery_shows_every_figure_and_marks_what_fails(tmp_path, fig, capsys):
    seeds = {"unit": "seed", "kind": "observation", "source": "paper"}
    right = computed("a", "rank = d", predicted=4, measured=[3.998, 4.0, 4.002], relation="at_most", **seeds)
    true = computed("i", "Σλ = 1", measured=1, source="identity")
    wrong = computed("b", "|x| is small", measured=3, relation="at_most", kind="observation")
    open_ = computed("o", "y is small", measured=Proportion(5, 10), predicted=0.4, relation="at_most", **seeds)
    publish(
        fig, [right | {"verdict": "holds"}, true], name="01_right", out_dir=tmp_path, profile="cpu", seeds=(0, 1, 2)
    )
    gallery_command([str(tmp_path)])
    text = (tmp_path / "README.md").read_text()
    assert "\nOf 2 claims 1 hold, 0 fail, 0 undecided; 1 of 1 identities hold.\n" in text
    publish(fig, [wrong, open_], name="02_wrong", out_dir=tmp_path, profile="cpu")
    text = gallery(tmp_path).read_text()
    assert "\nOf 4 claims 1 hold, 1 fail, 1 undecided; 1 of 1 identities hold.\n" in text
    assert "\n**These fail:**\n\n- [02_wrong](#02_wrong): \\|x\\| is small\n" in text
    assert "\n**The runs here do not decide these:**\n\n- [02_wrong](#02_wrong): y is small\n" in text
    assert "| holds | rank = d | ≤ 4 | 4 ± 0.002, n = 3 seeds | 3.995 to 4.005 |  | paper |" in text
    assert "| **FAILS** | \\|x\\| is small | ≤ 1 | 3 |  |  | theory |" in text
    assert re.search(
        r"\| \*undecided\* \| y is small \| ≤ 0\.4 \| 0\.5 \(5 of 10\), n = 10 seeds \| .*; \d+ seeds would", text
    )
    assert "![01_right](01_right.png)" in text
    assert "seeds 0, 1, 2 (n = 3)" in text
    assert "notebooks/01_right.ipynb)" in text
    assert "![all claims, one row for each notebook](claims.png)" in text
    with Image.open(tmp_path / "claims.png") as image:
        assert image.width == 1800


def test_the_board_has_a_square_a_claim_those_that_fail_after_those_that_hold():
    verdicts = [("fails", "theory"), ("undecided", "paper"), ("holds", "paper"), ("holds", "identity")]
    record = {"title": "t", "claims": [{"verdict": v, "source": source} for v, source in verdicts]}
    ax = claims_board.plot_board([record, record | {"claims": record["claims"][2:3]}], plt.figure().gca())
    squares = [ax.collections[i] for i in range(2)]
    assert [len(s.get_offsets()) for s in squares] == [4, 1]
    of, identity = claims_board.VERDICT_COLORS, claims_board.IDENTITY
    first = [to_hex(c).upper() for c in squares[0].get_facecolors()]
    assert first == [of["holds"], identity, of["fails"], of["undecided"]]
    assert ax.get_title(loc="left") == "2 of 4 claims hold"
    plt.close("all")


def test_figure_of_runs_names_what_trained_them_and_not_only_what_drew_it(tmp_path, fig):
    runs = [Run(tmp_path / str(i)) for i in range(3)]
    for run, commit in zip(runs, ["def", "abc", "def"], strict=True):
        run.path.mkdir()
        write_json(
            run.path / "environment.json", {"commit": commit, "source": "12", "hardware": "some GPU", "cores": 1}
        )
        write_json(run.path / "DONE", {"seconds": 30.0})
        write_json(run.path / "config.json", {"optim": {"precision": "bf16" if commit == "abc" else "fp32"}})
    one = computed("a", measured=1)
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu", runs=runs)
    record = json.loads((tmp_path / "01.json").read_text())
    assert record["runs"] == {
        "commit": ["abc", "def"],
        "source": ["12"],
        "hardware": ["some GPU"],
        "precision": ["bf16", "fp32"],
        "count": 3,
        "archived": 0,
        "minutes": 1.5,
    }
    text = gallery(tmp_path).read_text()
    said = (
        "0 archived runs, 3 trained here, 1.5 minutes of training, some of it in bfloat16 on some GPU, commit abc, def"
    )
    assert f"{said} · [notebook]" in text
    assert "minutes in the notebook" in text
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu", runs=[runs[1]])
    assert "1 trained here, 0.5 minutes of training, in bfloat16 on some GPU" in gallery(tmp_path).read_text()
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu", runs=[runs[0]])
    assert "bfloat16" not in gallery(tmp_path).read_text()
    publish(fig, [one], name="01", out_dir=tmp_path, profile="cpu")
    assert "training" not in gallery(tmp_path).read_text()


def test_gallery_names_what_is_missing_or_damaged(tmp_path, fig):
    with pytest.raises(ValueError, match="holds no published figures"):
        gallery(tmp_path)
    publish(fig, [computed("a", measured=1)], name="01", out_dir=tmp_path, profile="cpu")
    (tmp_path / "01.png").unlink()
    with pytest.raises(ValueError, match=r"01\.json has no picture"):
        gallery(tmp_path)
    (tmp_path / "01.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*01\.json"):
        gallery(tmp_path)
    (tmp_path / "01.json").write_text("[]")
    with pytest.raises(ValueError, match=r"01\.json is not a claims file"):
        gallery(tmp_path)

"""Claims: what recipes cost and reach is recorded once; the pages that say it say the same."""

import re
from pathlib import Path

import pytest

from simdino.recipes import NOTES, REACHED, RECIPES, recipes_page

ROOT = Path(__file__).parents[2]


def test_every_recipe_has_a_note_that_says_what_is_recorded():
    assert NOTES.keys() == RECIPES.keys()
    assert REACHED.keys() == {name for name, config in RECIPES.items() if config.data.name == "photos"}
    for name, r in REACHED.items():
        assert NOTES[name].startswith(f"{r.seconds} core-seconds; k-NN {r.knn:.3f} ± {r.knn_sd:.3f}")
        assert (f"{r.collapsed} of 5 collapse" in NOTES[name]) == (r.collapsed > 0)
    assert "k-NN 74.9 %, linear probe 77.3 %" in NOTES["simdino-vitb16-imagenet"]
    assert "no accuracy" in NOTES["dino-vits16-imagenet"]


def test_the_page_of_recipes_is_up_to_date():
    page = (ROOT / "docs/recipes.md").read_text()
    assert page == recipes_page(page), "run simdino recipes"
    emptied = re.sub(r"(<!-- table: \w+ -->\n).*?(<!-- end -->)", r"\1\2", page, flags=re.DOTALL)
    assert emptied.count("<!-- end -->") == 2
    assert emptied != page == recipes_page(emptied)
    assert all(f"| `{name}` |" in page for name in REACHED)


@pytest.mark.parametrize("name", ["simdino", "simdino-no-teacher", "dino", "dino-no-teacher"])
def test_the_readme_says_what_is_recorded(name):
    readme = " ".join((ROOT / "README.md").read_text().split())
    pairs = set(re.findall(r"\d+\.\d+ ± \d+\.\d+", readme))
    r = REACHED[name]
    assert {f"{r.knn:.3f} ± {r.knn_sd:.3f}", f"{r.rank} ± {r.rank_sd}"} <= pairs

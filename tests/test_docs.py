"""The pages say what is there. Links and files exist, planners and recipes are named, the reference is the code's."""

import json
import re
from pathlib import Path

import pytest

from modeling.visual_plan import VisualPlan
from scripts.readme_picture import read_points
from scripts.recipe_reference import PLANNER_CLASSES, reference, value_of

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *(ROOT / "docs").glob("*.md")]
)
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
PLANNERS = sorted(value_of(planner, "planner") for planner in PLANNER_CLASSES)
ROOMS = ("modeling", "data", "checkpoints", "training", "scripts", "tests", "recipes", "docs")
WIDTH, README_LINES = 120, 120

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(ROOMS)})/[\w./-]*[\w/]")
# What a reader makes, or puts there; NAME stands for a name of the reader's.
MADE = re.compile(r"data/(cache|llava_v1_5)|checkpoints/(internvl2|testbed)-|data/testbed|.*NAME")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page, to files and headings of the repository, that lead nowhere."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if not link.startswith(("http://", "https://")):
            name, _, heading = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (heading and heading not in headings(target.read_text(encoding="utf-8"))):
                broken.append(link)
    return broken


def headings(text: str) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def missing_files(text: str) -> list[str]:
    """Files and folders of the repository that a page mentions and that are not there."""
    return [name for name in FILE.findall(text) if not MADE.match(name) and not is_there(name)]


def is_there(name: str) -> bool:
    return (ROOT / name).exists() or (name.endswith("_") and any(ROOT.glob(f"{name}*")))  # written name_*.py


def unnamed(names: list[str], texts: str) -> list[str]:
    return [name for name in names if f"`{name}`" not in texts]


@pages
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pages
def test_files_are_there(page):
    assert missing_files(page.read_text(encoding="utf-8")) == []


def test_a_broken_link_and_a_missing_file_are_noticed():
    page = ROOT / "docs" / "plan.md"
    text = "[a](costs.md) [b](cost.md) [c](costs.md#costs) [d](costs.md#prices) [e](https://example.org/x)"
    assert broken_links(page, text) == ["cost.md", "costs.md#prices"]
    assert missing_files("`training/run.py` and `training/runs.py`, `data/`, `data/cache/x`") == ["training/runs.py"]


def test_every_planner_is_in_the_methods():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    head, *named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert head == "planner" and sorted(named) == PLANNERS


def test_every_recipe_is_in_the_list():
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert unnamed(RECIPES, text) == []
    assert unnamed([*RECIPES, "no_such.yaml"], text) == ["no_such.yaml"]


def test_the_reference_of_recipes_is_the_codes():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python scripts/recipe_reference.py > docs/recipes.md"


def test_the_reference_has_bounds_defaults_and_meanings():
    """What it must not lose, by a field of each kind."""
    rows = {line.split("|")[1].strip(): line for line in reference().splitlines() if line.startswith("| `")}
    assert "integer ≥ 1, or null | `null` | Optimizer steps" in rows["`training.max_steps`"]
    assert '`sdpa`, `eager` | `"sdpa"`' in rows["`model.attention`"]
    assert "list of at least 1, each number > 0 and < 1 | `[0.25, 0.5, 0.75]`" in rows["`plan.depths`"]
    assert {f"### `{name}`" for name in PLANNERS} <= set(reference().splitlines())


def test_the_readme_is_a_first_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES


@pages
def test_lines_are_not_too_wide(page):
    """Tables and commands may be."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    wide = [line for line in text.splitlines() if len(line) > WIDTH and not line.startswith(("|", "    "))]
    if page.name == "recipes.md":
        wide = []  # it is made, and a docstring is one line there
    assert wide == []


def test_the_plans_in_the_contract_are_plans():
    text = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    plan = VisualPlan.from_dict(json.loads(blocks[0]))
    assert len(plan) == 4 and plan.layers[1].tokens == plan.layers[2].tokens == 0.25


def test_the_picture_is_drawn_from_the_results():
    points = read_points((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert len(points) == 7 and points["shortv"] == [(24.0, 99.5, 98.7, 99.9)]

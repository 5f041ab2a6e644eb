"""Recipes: what a user can get wrong, each with the line it is answered by."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from checkpoints.build import dense_config
from data.sources.source import Source
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.students import limited_config
from training.recipe.base import BaseRecipe
from training.recipe.file import RECIPES, find_recipe, load_recipe
from training.run import Stage, execute
from training.tasks.dry_run import console, cost_table, dry_run

ROOT = RECIPES.parent
SHIPPED = sorted(path.name for path in RECIPES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)  # paths in recipes are relative to it


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid(name):
    recipe = load_recipe(name)
    assert recipe.name == name.removesuffix(".yaml")
    assert load_recipe(name).model_dump() == recipe.model_dump()


def test_a_recipe_is_found_by_name_and_by_path(tmp_path):
    assert find_recipe("debug") == find_recipe("debug.yaml") == RECIPES / "debug.yaml"
    own = tmp_path / "own.yaml"
    own.write_text((RECIPES / "debug.yaml").read_text())
    assert load_recipe(str(own)) == load_recipe("debug")
    with pytest.raises(ValueError, match=r"no recipe 'debgu': neither a file nor one of recipes/ \(debug.yaml, "):
        find_recipe("debgu")


def test_overrides_reach_any_depth():
    recipe = load_recipe(
        "debug",
        ["training.learning_rate=5e-5", "compare.1.name=other", "data.world.splits.test.rows=3", "name=x", "lora=null"],
    )
    assert recipe.training.learning_rate == 5e-5
    assert recipe.compare[1].name == "other"
    assert recipe.data.world.splits["test"].rows == 3
    assert recipe.name == "x" and recipe.lora is None


def test_a_source_is_a_split_of_the_world_or_of_a_data_set():
    sources = load_recipe(
        "debug", ["data.train=[{split: train, weight: 2}, {hub: a/b, split: test, where: {topic: [x, y]}}]"]
    ).data.train
    of_world, of_hub = (source.source({"train": Path("world/train.json")}) for source in sources)
    assert of_world == Source(path=Path("world/train.json"), images=Path("world"), weight=2)
    assert of_hub == Source(hub="a/b", split="test", where={"topic": ("x", "y")})


WRONG = {
    "trainin.max_steps=3": r"debug.yaml: unknown key trainin, did you mean training\?; allowed: calibration, ",
    "training.max_step=3": r"unknown key training.max_step, did you mean training.max_steps\?",
    "data.train.0.spilt=train": r"unknown key data.train.0.spilt, did you mean data.train.0.split\?",
    "data.world.splits.test.row=3": (
        r"unknown key data.world.splits.test.row, did you mean data.world.splits.test.rows\?"
    ),
    "plan.budget.visual_flop=0.1": r"unknown key plan.budget.visual_flop, did you mean plan.budget.visual_flops\?",
    "compare.1.plan.budgt=1": r"unknown key compare.1.plan.budgt, did you mean compare.1.plan.budget\?",
    "task=sparsfy": r"task: got 'sparsfy'; allowed: 'dense', 'sparsify'",
    "plan.planner=gredy": (
        r"plan.planner: got 'gredy'; allowed: 'fastv', 'file', 'g_search', 'greedy', .*'yopo', 'gates'"
    ),
    "plan={planner: vtw, budget: {visual_flops: 0.5}, hold_out: 0.5}": (
        r"plan: a budget decides without measuring: hold_out go with tolerance"
    ),
    "plan={planner: stack, of: [{planner: vica, budget: {visual_flop: 1}}, {planner: file, path: x}]}": (
        r"unknown key plan.of.0.budget.visual_flop, did you mean plan.of.0.budget.visual_flops\?"
    ),
    "seed=many": r"seed: got 'many'; input should be a valid integer",
    "training.micro_batch_size=0": r"training.micro_batch_size: got 0; input should be greater than or equal to 1",
    "plan.budget.visual_flops=1.5": r"plan.budget.visual_flops: got 1.5; input should be less than or equal to 1",
    "model.dtype=float8": r"model.dtype: got 'float8'; input should be 'float32' or 'bfloat16'",
    "model={path: dense, dtype: float32, min_pixels: 9, max_pixels: 8}": r"min_pixels: got 9, allowed: up to max_pix",
    "model.max_tiles=65": r"model.max_tiles: got 65; input should be less than or equal to 64",
    "model={}": r"model.path is missing \(and 1 more\)",
    "training.num_epochs=1": r"training: give either max_steps or num_epochs",
    "training.deepspeed=zero9.json": r"no file 'zero9.json'",
    "data.train.0.split=trian": r"data: split 'trian' is not one of data.world \(train, calibration, test\)",
    "data.train.0={weight: 2}": r"data.train.0: give path \(files\), hub \(a data set on the Hub\) or split",
    "data.train.0={path: a, hub: b/c}": r"data.train.0: give path \(files\) or hub \(a data set on the Hub\), not both",
    "data.train.0={hub: b/c, columns: {text: x}}": r"data.train.0.columns.text",
    "compare.0.name=student": "compare: names must differ from each other and from student, teacher, grey, dense, kept",
    "compare.0.name=Teacher": "names must differ from each other and from student, teacher, .*got Teacher",
    "compare.0.name=grey": "names must differ from each other and from student, teacher, grey",
    "compare.0.name=x.json": "compare: names may not end in .json",
    "data.evaluation=[{benchmarks: [pope, gqa], path: a}, {benchmarks: [pope], hub: b}]": (
        r"data: evaluation: pope is asked twice"
    ),
    "data.evaluation=[{split: test}, {benchmarks: [shapes], path: a}]": r"data: evaluation: shapes is asked twice",
    "name=../elsewhere": r"name: got '../elsewhere'; string should match pattern",
    "compare.9.name=x": r"override 'compare.9.name=x': '9' is not a position in a list of 3",
    "seed.deep=1": r"override 'seed.deep=1': 'deep' lies inside 0, which has no keys",
    "seed": r"override 'seed': expected key.sub=value",
    "seed=[1": r"override 'seed=\[1': not valid YAML: while parsing",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_said_in_one_line(override):
    with pytest.raises(ValueError, match=WRONG[override]):
        load_recipe("debug", [override])


def test_files_that_are_no_recipes(tmp_path):
    for content, message in (("a: [1", "not valid YAML"), ("- 1", "a recipe is a mapping of keys to values, got list")):
        path = tmp_path / "broken.yaml"
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_recipe(str(path))


def test_steps_in_which_a_plan_is_learned_are_taken_off_its_distillation():
    recipe = load_recipe("tiny_sparse")
    steps = {student.name: recipe.training_of(student).max_steps for student in recipe.students}
    assert steps["student"] == recipe.training.max_steps - recipe.plan.steps
    assert steps["yopo"] == steps["random"] == recipe.training.max_steps
    epochs = load_recipe("tiny_sparse", ["training.max_steps=null", "training.num_epochs=2"])
    assert {epochs.training_of(student) for student in epochs.students} == {epochs.training}
    with pytest.raises(ValueError, match="student student: plan.steps: got 40, allowed: less than training.max_steps"):
        load_recipe("tiny_sparse", ["training.max_steps=40"])


@pytest.mark.parametrize(
    "name", ["llava_sparse", "llava_13b_yopo_12", "internvl2_4b_sparse", "internvl2_8b_sparse", "internvl2_26b_sparse"]
)
def test_dry_runs_need_no_weights_and_write_nothing(name, capsys, tmp_path, monkeypatch):
    # Paths inside recipes lead into the checkout; the run would write to the working directory.
    monkeypatch.chdir(tmp_path)
    for folder in ("recipes", "checkpoints"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    dry_run(load_recipe(name))
    output = capsys.readouterr().out
    assert "is valid" in output and "D: FLOPs" in output and "distil" in output
    assert {path.name for path in tmp_path.iterdir()} == {"recipes", "checkpoints"}


def test_the_budget_of_a_dry_run_is_that_of_the_literature(capsys):
    """12 % of 7.63 T visual FLOPs is 24.5 % of the whole prefill (convention D)."""
    dry_run(load_recipe("llava_sparse"))
    output = capsys.readouterr().out
    for figure in ("3.82 T", "7.63 T", "8.5 T", "8.89 T", "12.0%", "24.5%"):
        assert figure in output


KNOWN = {  # left of the visual FLOPs of LLaVA-1.5-7B; the last layer's updates, which nobody reads, are not counted
    "{planner: fastv, keep: 0.5}": "51.3%",
    "{planner: pyramid_drop, budget: {visual_flops: 0.47}}": "47.0%",
    "{planner: p_sigmoid, k: 0.48, budget: {visual_flops: 0.2}}": "20.0%",
    "{planner: vtw, budget: {visual_flops: 0.5}}": "47.4%",
    "{planner: p_sigmoid, budget: {visual_flops: 0.2}}": "20.0%",
    "{planner: pre_pruning, keep: 0.25}": "23.9%",
    "{planner: stack, of: [{planner: fastv, keep: 0.5}, {planner: yopo, budget: {visual_flops: 0.12}}]}": "8.3%",
}
OPEN = (
    "{planner: g_search, tolerance: 0.01}",
    "{planner: vtw, tolerance: 0.01}",
    "{planner: stack, of: [{planner: vica, budget: {visual_flops: 1}}, {planner: fastv, keep: 0.5}]}",
    "{planner: stack, of: [{planner: file, path: recipes/plans/lists.json}, "
    "{planner: yopo, budget: {visual_flops: 0.12}}]}",
)


def printed_costs(plan: str, capsys) -> str:
    recipe = load_recipe("llava_sparse", [f"plan={plan}"])
    console.print(cost_table(recipe, dense_config(recipe.model.config)))
    return capsys.readouterr().out


@pytest.mark.parametrize("plan", KNOWN)
def test_dry_runs_count_what_a_config_decides(plan, capsys):
    assert KNOWN[plan] in printed_costs(plan, capsys)


@pytest.mark.parametrize("plan", OPEN)
def test_dry_runs_leave_open_what_the_search_finds(plan, capsys, tmp_path):
    VisualPlan.dense(32).replace(0, ffn=(1, 3)).save(tmp_path / "lists.json")
    assert printed_costs(plan.replace("recipes/plans", str(tmp_path)), capsys).count("as the search finds") == 5


@pytest.mark.parametrize(
    "name, limit, tokens",
    [
        ("qwen2_vl_sparse", "model.max_pixels=200704", "256 visual tokens in 1 grid"),
        ("qwen2_vl_sparse", "model.max_pixels=null", "576 visual tokens in 1 grid"),
        ("internvl2_8b_sparse", "model.max_tiles=3", "256 visual tokens in 1 grid"),
        ("internvl2_8b_sparse", "model.max_tiles=null", "1280 visual tokens in 5 grids"),
        ("llava_next_sparse", "model.max_tiles=2", "1152 visual tokens in 2 grids"),
    ],
)
def test_dry_runs_count_within_the_recipes_limits(name, limit, tokens, capsys):
    recipe = load_recipe(name, [limit])
    console.print(cost_table(recipe, limited_config(recipe.model, recipe.model.config)))
    assert tokens in " ".join(capsys.readouterr().out.split())


def test_limits_that_the_model_does_not_have_are_refused_in_a_dry_run():
    with pytest.raises(UserError, match="max_pixels: got 99, but 'llava' models have no such limit"):
        dry_run(load_recipe("llava_sparse", ["model.max_pixels=99"]))


def test_the_command_line_answers_in_one_line(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "train.py", *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    done = call("--local_rank=0", "--recipe", "debug", "training.max_stpes=3")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "did you mean training.max_steps?" in error[0] and "Traceback" not in done.stderr


# ---- runs ----


def recipe(seed: int = 0) -> BaseRecipe:
    return BaseRecipe(name="run", seed=seed)


def story(log: list, fail: bool = False) -> list[Stage]:
    def first(run):
        log.append("first")
        return {"value": 3}

    def second(run):
        log.append("second")
        if fail:
            raise RuntimeError("killed")
        return {"value": run.result("first")["value"] + 1}

    return [Stage("first", "one", first), Stage("second", "two", second)]


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path, capsys):
    log: list[str] = []
    with pytest.raises(RuntimeError, match="killed"):
        execute(recipe(), story(log, fail=True), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["seed"] == 0
    assert (tmp_path / "run" / "env.json").exists()
    run = execute(recipe(), story(log), tmp_path / "run")
    assert log == ["first", "second", "second"]
    assert run.result("second")["value"] == 4 and run.result("second")["seconds"] >= 0
    assert "stage 2 of 2: two" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.partial"))


def test_another_recipe_does_not_write_into_a_run(tmp_path):
    execute(recipe(), story([]), tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run with another recipe"):
        execute(recipe(seed=2), story([]), tmp_path / "run")
    log: list[str] = []
    execute(recipe(seed=2), story(log), tmp_path / "run", restart=True, confirmed=True)
    assert log == ["first", "second"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for restart in (False, True):
        with pytest.raises(ValueError, match="not a run's folder"):
            execute(recipe(), story([]), tmp_path / "mine", restart=restart)
    assert Path(tmp_path / "mine" / "thesis.txt").exists()

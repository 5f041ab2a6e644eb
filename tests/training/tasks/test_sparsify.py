"""The whole story of `task: sparsify` on a random model, in this process."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from checkpoints.build import load_dense
from checkpoints.load import load_checkpoint
from data.collator import Collator
from data.shapes.world import SplitSettings, WorldSettings, write_world
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from training.distillation.callbacks import read_metrics
from training.distillation.datasets import mixture
from training.distillation.students import dense_processor, train_student, trained_student
from training.gates.learning import learned_adapters
from training.recipe.file import load_recipe
from training.recipe.publish import PublishSettings
from training.run import Stage, execute
from training.schema import CHECKOUT
from training.tasks.publishing.publish import without_folders
from training.tasks.run_folder import load_plan, student_folder
from training.tasks.sparsify import stages

STAGES = ["data", "calibrate", "plan", "cost", "distil", "evaluate", "export", "benchmark", "report"]


@pytest.fixture(scope="module")
def run(dense_folder, tmp_path_factory):
    """A finished run of the debug recipe."""
    recipe = load_recipe("debug", [f"model.path={dense_folder}"])
    return execute(recipe, stages(recipe), tmp_path_factory.mktemp("pipeline") / "run")


@pytest.mark.parametrize("role", ["train", "calibration", "evaluation"])
def test_a_picture_that_breaks_off_is_left_out_of_every_role(dense_folder, tmp_path, role):
    world = WorldSettings(seed=3, splits={"rows": SplitSettings(part="train", rows=24)})
    path = write_world(tmp_path, world)["rows"]
    broken = path.parent / json.loads(path.read_text())[0]["image"]
    broken.write_bytes(broken.read_bytes()[:-40])
    source = {"path": str(path), "images": str(path.parent)}
    overrides = [f"model.path={dense_folder}", f"data.{role}=[{json.dumps(source)}]"]
    skipping = ["data.on_bad_sample=skip", "data.max_bad_share=0.1"]
    recipe = load_recipe("debug", [*overrides, *skipping])
    read = execute(recipe, stages(recipe)[:1], tmp_path / "run")
    left_out = json.loads((read.directory / "left_out.json").read_text())
    listed = [(name, row["row"], row["reason"]) for name, found in left_out.items() for row in found["rows"]]
    ((name, row, reason),) = listed
    assert (name, row) == (role, 0) and reason.split(" is ")[-1].startswith("truncated")
    assert left_out[role]["counts"] == {"image … is truncated or corrupt …": 1} == read.result("data")["left_out"][role]


def test_a_picture_that_changes_between_two_starts_is_refused_by_name(dense_folder, tmp_path):
    world = WorldSettings(seed=3, splits={"rows": SplitSettings(part="train", rows=24)})
    path = write_world(tmp_path, world)["rows"]
    picture = path.parent / json.loads(path.read_text())[0]["image"]
    source = json.dumps({"path": str(path), "images": str(path.parent)})
    recipe = load_recipe("debug", [f"model.path={dense_folder}", f"data.calibration=[{source}]"])
    only_data = [stages(recipe)[0], Stage("more", "", lambda run: (_ for _ in ()).throw(InterruptedError))]
    for _ in range(2):
        with pytest.raises(InterruptedError):
            execute(recipe, only_data, tmp_path / "run")
    before = picture.read_bytes()
    shutil.copyfile(path.parent / json.loads(path.read_text())[1]["image"], picture)
    with pytest.raises(UserError, match=f"{picture} has another content than when this run read its data. Put it back"):
        execute(recipe, only_data, tmp_path / "run")
    picture.unlink()
    with pytest.raises(UserError, match=f"{picture} is missing, and was there when this run read its data"):
        execute(recipe, only_data, tmp_path / "run")
    picture.write_bytes(before)
    with pytest.raises(InterruptedError):
        execute(recipe, only_data, tmp_path / "run")


def test_answers_that_do_not_fit_on_the_disk_are_refused_in_the_first_stage(dense_folder, tmp_path, monkeypatch):
    recipe = load_recipe("debug", [f"model.path={dense_folder}", "distillation.keep_answers=true"])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="keep_answers: the teacher's answers need .* GiB"):
        execute(recipe, stages(recipe)[:1], tmp_path / "run")


def test_every_stage_leaves_its_result(run):
    assert [stage.name for stage in stages(run.recipe)] == STAGES
    assert sorted(path.stem for path in (run.directory / "stages").iterdir()) == sorted(STAGES)
    assert run.result("data")["used"] == {"train": 24, "calibration": 6, "evaluation": 12}
    assert yaml.safe_load((run.directory / "recipe.yaml").read_text()) == run.recipe.model_dump(mode="json")


def test_the_result_is_one_flat_object(run):
    result = json.loads((run.directory / "result.json").read_text())
    assert set(result) == {
        "teacher_accuracy", "student_accuracy", "relative_accuracy", "visual_flops", "model_flops", "kv_bytes",
        "prefill_speedup", "seconds", "benchmarks",
    }  # fmt: skip
    (shapes,) = result["benchmarks"].values()
    assert shapes["dense"] == pytest.approx(100 * result["teacher_accuracy"])
    assert shapes["difference"] == pytest.approx(100 * (result["student_accuracy"] - result["teacher_accuracy"]))
    assert 0 < result["visual_flops"] <= run.recipe.plan.budget.visual_flops
    assert list(result["seconds"]) == STAGES[:-1]


def test_the_table_has_every_model(run):
    table = json.loads((run.directory / "table.json").read_text())
    assert [(row["name"], row["distilled"]) for row in table] == [
        ("dense", False),
        ("student", True),
        ("untrained", False),
        ("yopo", True),
        ("random", False),
        ("dense, grey pictures", False),
    ]
    for row in table[1:-1]:
        VisualPlan.load(run.directory / row["plan"])
    assert table[1]["visual_flops"] == table[2]["visual_flops"], "the same plan, untrained"


def test_the_checkpoint_is_the_trained_student(run):
    exported, _ = load_checkpoint(run.directory / "checkpoint", torch.float32)
    student = trained_student(run.recipe, load_plan(run, "student"), student_folder(run, "student"))
    dense, _ = load_dense(run.recipe.model.path, torch.float32)
    moved = 0.0
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], weight)
        moved = max(moved, (weight.sort().values - dense.state_dict()[name].sort().values).abs().max().item())
    assert moved > 1e-4, "training changed nothing"
    assert exported.visual_plan.is_integer


def test_a_finished_run_does_nothing_again(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in (run.directory / "stages").iterdir()}
    execute(run.recipe, stages(run.recipe), run.directory)
    assert capsys.readouterr().out.count("done before") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in (run.directory / "stages").iterdir()} == before


# ---- the card, and what is published ----


def test_the_card_says_what_was_done_and_measured(run):
    text = (run.directory / "checkpoint" / "README.md").read_text()
    data = ModelCard(text).data
    assert [(result.dataset_type, result.metric_type) for result in data.eval_results] == [("shapes", "accuracy")]
    assert data.eval_results[0].metric_value == pytest.approx(100 * run.result("evaluate")["student"], abs=0.01)
    assert "| trained on | 24 samples of embedded world (train) |" in text
    assert "| steps | 3 steps of 4 samples |" in text and "| asked | 12 questions of embedded world (test) |" in text
    assert "trained for 3 steps of 4 samples" in (run.directory / "report.html").read_text(encoding="utf-8")
    figures = json.loads((run.directory / "benchmark.json").read_text())
    assert f"× {figures['batches'][0]['prefill']['speedup']:.2f} |" in text, "the figures come after the export"


def test_recipe_plan_and_result_travel_along(run):
    checkpoint = run.directory / "checkpoint"
    for name in ("plan.json", "result.json"):
        assert (checkpoint / name).read_bytes() == (run.directory / name).read_bytes()
    text = (checkpoint / "recipe.yaml").read_text()
    assert yaml.safe_load(text)["model"]["path"] == Path(run.recipe.model.path).name
    assert str(Path(run.recipe.model.path).parent) not in text
    assert yaml.safe_load(text)["training"] == run.recipe.training.model_dump(mode="json")


@pytest.mark.parametrize(
    "value, shared",
    [
        ("/data/mix/llava.json", "llava.json"),
        ("~/llava.json", "llava.json"),
        ("../mix/llava.json", "llava.json"),
        (str(CHECKOUT / "recipes" / "shapes" / "a.json"), "recipes/shapes/a.json"),
        (str(CHECKOUT / ".." / "a.json"), "a.json"),
        ("runs/a", "runs/a"),
        (["llava-hf/a", {"a": 1, "b": "/x/y"}], ["llava-hf/a", {"a": 1, "b": "y"}]),
    ],
)
def test_folders_of_this_machine_are_left_out(value, shared):
    assert without_folders(value) == shared


def test_a_finished_run_is_published_later(run, hub):
    settings = PublishSettings(repo_id="me/tiny", license="mit", base_model="llava-hf/tiny", tag="v1")
    recipe = run.recipe.model_copy(update={"publish": settings})
    published = execute(recipe, stages(recipe), run.directory)
    files = hub.files("me/tiny", "v1")
    assert published.result("publish")["url"].startswith(f"{hub.address}/me/tiny/commit/")
    assert {"recipe.yaml", "plan.json", "result.json", "model.safetensors"} < set(files)
    assert ModelCard(files["README.md"].decode()).data.base_model == "llava-hf/tiny"
    assert published.result("report") == run.result("report"), "nothing else is done again"


@pytest.mark.parametrize(
    "section, message",
    [
        ({"repo_id": "you/tiny", "license": "mit"}, "you/tiny: got owner you, allowed for this token: me"),
        ({"repo_id": "me/tiny"}, "publish: the licence is unknown"),
    ],
)
def test_what_cannot_be_published_is_refused_in_the_first_stage(dense_folder, tmp_path, hub, section, message):
    recipe = load_recipe("debug", [f"model.path={dense_folder}", f"publish={json.dumps(section)}"])
    with pytest.raises(UserError, match=message):
        execute(recipe, stages(recipe)[:1], tmp_path / "run")


# ---- a plan that is learned, from answers that are kept ----


@pytest.fixture(scope="module")
def learned(dense_folder, tmp_path_factory):
    """A finished run whose plan is learned."""
    plan = {"planner": "gates", "budget": {"visual_flops": 0.3}, "steps": 4, "ffn_blocks": 4, "draws": 3}
    servable = {
        **plan,
        "profile": "servable",
        "budget": {"visual_flops": 0.5},
        "start": {"planner": "yopo", "budget": {"visual_flops": 0.9}},
    }
    compare = [
        {"name": "untrained", "distil": False},
        {"name": "servable", "plan": servable, "distil": False},
    ]
    overrides = [f"model.path={dense_folder}", f"plan={json.dumps(plan)}", f"compare={json.dumps(compare)}"]
    recipe = load_recipe(
        "debug", [*overrides, "distillation.keep_answers=true", "name=learned", "training.max_steps=7"]
    )
    return execute(recipe, stages(recipe), tmp_path_factory.mktemp("learned") / "run")


def test_statistics_are_gathered_where_a_planner_reads_them():
    def names(plan, compare=()):
        recipe = load_recipe("debug", [f"plan={json.dumps(plan)}", f"compare={json.dumps(list(compare))}"])
        return [stage.name for stage in stages(recipe)]

    search = {"planner": "g_search", "tolerance": 0.1}
    assert names(search) == [name for name in STAGES if name != "calibrate"]
    assert names({"planner": "stack", "of": [search, search]}) == names(search)
    vica = {"planner": "vica", "budget": {"visual_flops": 0.5}}
    assert names(vica) == names(search, [{"name": "vica", "plan": vica, "distil": False}]) == STAGES
    assert names({"planner": "stack", "of": [search, vica]}) == STAGES


@pytest.mark.slow
def test_a_searched_plan_goes_the_same_way(dense_folder, tmp_path):
    plan = {"planner": "g_search", "tolerance": 0.5, "full_layers": 1, "trials": 3}
    recipe = load_recipe(
        "debug", [f"model.path={dense_folder}", f"plan={json.dumps(plan)}", "compare=[]", "name=searched"]
    )
    searched = execute(recipe, stages(recipe), tmp_path / "run")
    assert not (searched.directory / "calibration").exists()
    assert (searched.directory / "search" / "student" / "trials.journal").exists()
    assert "How the plan was searched" in (searched.directory / "report.html").read_text()
    assert load_checkpoint(searched.directory / "checkpoint", "auto")[0].visual_plan == load_plan(searched, "student")


def test_a_learned_plan_goes_the_same_way(learned):
    assert [stage.name for stage in stages(learned.recipe)] == [
        "data",
        "calibrate",
        "ask",
        "learn",
        "harden",
        *STAGES[3:],
    ]
    result = json.loads((learned.directory / "result.json").read_text())
    assert 0 < result["visual_flops"] <= 0.3
    hardening = json.loads((learned.directory / "gates" / "student" / "hardening.json").read_text())
    assert hardening["cost"] == pytest.approx(result["visual_flops"]) and set(hardening["soft"]) == {"kl", "agreement"}
    assert sorted(path.name for path in (learned.directory / "gates").iterdir()) == ["servable", "student"]
    assert "How the plan was learned" in (learned.directory / "report.html").read_text()


def test_the_student_goes_on_from_what_was_learned_beside_its_gates(learned):
    """Its first step is taken where the gates' training ended, not where LoRA begins."""
    first = read_metrics(student_folder(learned, "student") / "trainer" / "metrics.jsonl")[0]
    adapters = learned_adapters(learned.directory / "gates" / "student")
    plan = load_plan(learned, "student")
    alone = learned.directory / "alone"
    processor = dense_processor(learned.recipe.model)
    dataset, collator = mixture(learned.recipe, "train", processor, learned.directory / "data"), Collator(processor)
    for folder, given in ((alone / "fresh", None), (alone / "same", adapters)):
        train_student(learned.recipe, plan, dataset, collator, folder, given)
    fresh, same = (read_metrics(alone / name / "trainer" / "metrics.jsonl")[0] for name in ("fresh", "same"))
    assert same["forward_kl"] == pytest.approx(first["forward_kl"], rel=1e-3)
    assert fresh["forward_kl"] != pytest.approx(first["forward_kl"], rel=1e-2)


def test_a_servable_plan_shuts_no_head_and_no_reading(learned):
    plan, start = (
        load_plan(learned, "servable"),
        VisualPlan.load(learned.directory / "gates" / "servable" / "start.json"),
    )
    for layer, before in zip(plan.layers, start.layers, strict=True):
        assert layer.tokens == before.tokens
        assert layer.tokens == 0 or (layer.read, layer.heads) == (True, before.heads)


def test_a_budget_out_of_reach_stops_the_run_before_it_learns(dense_folder, tmp_path):
    plan = {"planner": "gates", "budget": {"visual_flops": 0.01}, "profile": "servable", "steps": 4}
    overrides = [
        f"model.path={dense_folder}",
        f"plan={json.dumps(plan)}",
        "compare=[]",
        "training.max_steps=7",
    ]
    recipe = load_recipe("debug", overrides)
    with pytest.raises(ValueError, match="plan.budget.visual_flops: got 0.01, allowed: 0"):
        execute(recipe, stages(recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "gates" / "student" / "trainer").exists()


def test_held_out_samples_are_looked_at_while_students_are_trained(dense_folder, tmp_path):
    """The teacher's kept answers are those to the samples that are trained on."""
    plan = "plan={planner: yopo, budget: {visual_flops: 0.5}}"
    overrides = ["validation={num_samples: 5, steps: 2}", "distillation.keep_answers=true", "compare=[]", plan]
    recipe = load_recipe("debug", [f"model.path={dense_folder}", *overrides])
    until_distil = stages(recipe)[: [stage.name for stage in stages(recipe)].index("distil") + 1]
    run = execute(recipe, until_distil, tmp_path / "run")
    assert run.result("data")["used"] == {"train": 19, "validation": 5, "calibration": 6, "evaluation": 12}
    rows = [row for row in read_metrics(run.directory / "metrics.jsonl") if "eval_loss" in row]
    assert [row["step"] for row in rows] == [2, 3] and all(0 <= row["eval_agreement"] <= 1 for row in rows)

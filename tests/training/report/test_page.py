"""The report: everything in it, nothing from outside, no hostile text alive, missing inputs named."""

import json
import math
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from checkpoints.card import speed_rows
from data.benchmarks.benchmark import Record
from data.shapes.world import SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan
from training.evaluation.comparison import as_dict, compare
from training.evaluation.results import Evaluation
from training.report.inputs import read_inputs
from training.report.next_steps import commands, links, trackers
from training.report.numbers import quantity
from training.report.page import cost_rows, curves, figure_text, stage_rows, write_report
from training.report.samples import NUM_SAMPLES, choose_samples, is_right, own_answers
from training.schema import CHECKOUT

HOSTILE = "<script>alert(1)</script><img src=http://example.org/a.png> $\\frac{a}{$ & \"q\" 'r'"

PLAN = VisualPlan(
    (
        LayerPlan(heads=2, ffn=128, radius=2, bidirectional=True),
        LayerPlan(ffn=64, radius=1),
        LayerPlan(attend=False, ffn=0, read=False),
        LayerPlan(heads=1, attend=False, ffn=0),
        LayerPlan(tokens=0.25, attend=False, ffn=0),
        LayerPlan(tokens=0.25),
        LayerPlan(tokens=0.25, read=False),
        LayerPlan(tokens=0.0),
    )
)

RECIPE = {
    "name": "tiny_sparse",
    "model": {"path": "llava-hf/llava-1.5-7b-hf"},
    "data": {"evaluation": [{"prompts": "lmms"}]},
    "training": {"report_to": ["tensorboard", "wandb"]},
}
MADE = {
    "plan": "`greedy` within 12.0% of the visual FLOPs",
    "trained on": "24 samples of vqa.json",
    "steps": "300 steps of 32 samples",
    "asked": "48 questions of mine.json",
    "machine": "2 × NVIDIA H100",
}


def spread(dense: float, sparse: float) -> dict:
    return {"dense": {"median": dense}, "sparse": {"median": sparse}, "speedup": dense / sparse}


def timings(batch_size: int, on_gpu: bool) -> dict:
    """Returns what benchmark.json has of one batch size."""
    return {
        "batch_size": batch_size,
        "prefill": spread(0.4, 0.1),
        "prefill_in_graph": spread(0.3, 0.15) if on_gpu else None,
        "prefill_with_vision": spread(0.5, 0.2),
        "decode": spread(1, 1) | {"tokens_per_second": {"dense": 20.0, "sparse": 25.0}},
        "peak_memory_bytes": {"dense": 2**31, "sparse": 2**30} if on_gpu else None,
    }


def speed(device: str) -> dict:
    """Returns a benchmark.json of two batch sizes."""
    return {
        "environment": {
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "device": device,
            "threads": 1,
            "dtype": "bfloat16",
        },
        "shape": {"num_layers": 8, "visual_tokens": 1144, "text_tokens": 64},
        "kv_bytes": {"measured": {"dense": 2**21, "sparse": 2**20}},
        "batches": [timings(batch_size, device != "cpu") for batch_size in (1, 4)],
    }


def made_up_run(directory: Path, num_questions: int, text: str = "") -> Path:
    """Returns a run's folder as `task: sparsify` leaves it, with real pictures and invented figures.

    Args:
        text: stands at the end of every text that the page shows.
    """
    rng = random.Random(0)
    world = WorldSettings(seed=0, splits={"test": SplitSettings(part="test", rows=num_questions)})
    questions = write_world(directory / "world", world)["test"]
    samples, _ = load_samples(Source(path=questions, images=questions.parent))

    def evaluation(name: str, skill: float) -> Evaluation:
        records = []
        for sample in samples:
            question, answer = sample.turns[-1]
            right = rng.random() < skill
            prediction, score = (
                (answer, 1.0) if right else ("something else", 0.4 if sample.family == "caption" else 0.0)
            )
            records.append(
                Record(
                    benchmark="shapes",
                    id=sample.id,
                    family=sample.family,
                    group=sample.family,
                    unit=sample.id,
                    question=question + text,
                    answers=(answer + text,),
                    prediction=prediction + text,
                    said=None,
                    score=score,
                    image=str(sample.images[0]),
                )
            )
        result = Evaluation.of(records)
        result.save(directory / "evaluation" / f"{name}.json")
        return result

    evaluations = [evaluation("teacher", 0.97), evaluation("student", 0.9), evaluation("grey", 0.3)]
    names = ("dense", "greedy plan, distilled", "dense, grey pictures")
    rows = [
        {
            "name": name + text,
            "plan": "plan.json" if index == 1 else None,
            "distilled": index == 1,
            "visual_flops": 0.118 if index == 1 else 1.0,
            "model_flops": 0.42 if index == 1 else 1.0,
            "accuracy": one.accuracy,
            "low": one.low,
            "high": one.high,
            "relative_accuracy": one.accuracy / evaluations[0].accuracy,
            "families": {family: value.accuracy for family, value in one.families.items()},
        }
        for index, (name, one) in enumerate(zip(names, evaluations, strict=True))
    ]
    seconds = {"data" + text: 12.3, "calibrate": 31.0, "plan": 74.9, "distil": 301.2, "export": 14.0, "evaluate": 55.5}
    result = {
        "teacher_accuracy": 0.971,
        "student_accuracy": 0.968,
        "relative_accuracy": 0.997,
        "benchmarks": as_dict(compare(*evaluations)),
        "visual_flops": 0.118,
        "model_flops": 0.42,
        "kv_bytes": 0.55,
        "prefill_speedup": 2.31,
        "seconds": seconds,
    }
    PLAN.save(directory / "plan.json")
    (directory / "stages").mkdir()
    (directory / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "note": "as told" + text}))
    for name, value in {
        "env.json": {"commit": "0123abc" + text, "packages": {"torch": "2.13.0"}, "gpus": []},
        "result.json": result,
        "stages/data.json": {
            "used": {"validation": 8, "train": 12160, "evaluation": 48},
            "left_out": {"train": {"more than 1024 tokens": 31, "turn … is empty" + text: 1207}, "evaluation": {}},
        },
        "benchmark.json": speed("cuda"),
        "table.json": rows,
        "cost.json": {
            "num_units": 4,
            "intermediate_size": 512,
            "layers": [0.35, 0.2, 0.0, 0.03, 0.02, 0.02, 0.0, 0.0],
            "dense": {"A": 3.1e8, "B": 6.2e8, "C": 9.1e8, "D": 1.3e9, "kv_bytes": 688128},
            "plan": {"A": 3.7e7, "B": 7.4e7, "C": 3.6e8, "D": 7.5e8, "kv_bytes": 270336},
        },
    }.items():
        (directory / name).write_text(json.dumps(value))
    lines = [
        {
            "step": step,
            "loss": math.exp(-step / 80) * 3 + 0.1,
            "cross_entropy": math.exp(-step / 80) + 0.05,
            "forward_kl": math.exp(-step / 80) * 2 + 0.05,
            "learning_rate": 1e-3,
            "note": text,
        }
        for step in range(1, 301)
    ]
    lines.append({"step": 300, "train_runtime": 301.2})
    gates = directory / "gates" / "student"
    (gates / "trainer").mkdir(parents=True)
    hardening = {
        "budget": {"visual_flops": 0.12},
        "expected_cost": 0.121,
        "cost": 0.1187,
        "unused_share_of_budget": 0.0108,
        "soft": {"kl": 0.0173, "agreement": 0.99},
        "hard": {"kl": 0.0211, "agreement": 0.98},
    }
    (gates / "hardening.json").write_text(json.dumps(hardening))
    opened = {step: math.exp(-step / 50) for step in range(10, 150, 10)}
    kinds = ("read", "attend", "ffn")
    history = [
        {"step": step} | {name: [value * layer / 8 for layer in range(8)] for name in kinds}
        for step, value in opened.items()
    ]
    costs = [{"step": step, "cost": value, "target": max(value, 0.12), "loss": 1.0} for step, value in opened.items()]
    for name, some in (("gates", history), ("metrics", costs)):
        (gates / "trainer" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made_up_run(tmp_path_factory.mktemp("run"), num_questions=48)


@pytest.fixture(scope="module")
def page(run) -> str:
    return write_report(run, MADE).read_text(encoding="utf-8")


@pytest.fixture
def broken(run, tmp_path) -> Path:
    """A copy of the run to break."""
    for path in run.rglob("*.*"):
        if path.suffix in (".json", ".jsonl", ".yaml") and "world" not in path.parts:
            copy = tmp_path / path.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


def test_the_page_holds_the_run_and_needs_nothing_else(run):
    path = write_report(run, MADE)
    page = path.read_text(encoding="utf-8")
    assert path == run / "report.html" and not list(run.glob("*.partial"))
    for expected in (
        "tiny_sparse",
        "97.1 %",
        "99.7 %",
        "2.31 ×",
        "11.8 %",
        "greedy plan, distilled",
        "dense, grey pictures",
        "620 M",
        "11.9 %",
        "0123abc",
        "calibrate",
        "reading",
        "48",
        "as told",
        "1.1\N{NO-BREAK SPACE}% of the budget is unused",
        "0.0173",
    ):
        assert expected in page, expected
    images = re.findall(r'<img [^>]*src="([^"]*)"', page)
    assert len(images) == 7 + NUM_SAMPLES
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in images)
    assert "http" not in re.sub(r'http-equiv|base64,[^"]*', "", page)


def test_hostile_text_stays_text(tmp_path):
    page = write_report(made_up_run(tmp_path, num_questions=24, text=HOSTILE), {**MADE, "steps": HOSTILE}).read_text(
        encoding="utf-8"
    )
    assert "<script" not in page
    assert "<img src=http" not in page
    # Recipe, environment, stage, reason, table row, the steps twice, and each sample's question, truth and two answers.
    assert page.count("&lt;script&gt;alert(1)") >= 7 + 4 * NUM_SAMPLES


def test_the_page_says_in_words_what_was_done(page):
    first = " ".join(re.search(r"<h1>.*?</h1>\s*<p>(.*?)</p>", page, re.DOTALL)[1].split())
    assert first == (
        "The dense model llava-hf/llava-1.5-7b-hf (8 decoder layers, 1,144 visual tokens for a picture) was made "
        "sparse. The student does 11.8 % of the dense model's work for visual tokens. Its plan: greedy within 12.0% of "
        "the visual FLOPs. It was trained for 300 steps of 32 samples, on 24 samples of vqa.json. Both models were "
        "asked 48 questions of mine.json. All this ran on 2 × NVIDIA H100."
    )


def test_the_page_links_to_what_is_there_and_names_what_is_next(page, run, tmp_path):
    assert re.findall(r'href="([^"]*)"', page) == ["plan.json", "result.json", "recipe.yaml", "evaluation/"]
    (tmp_path / "checkpoint").mkdir()
    assert links(tmp_path) == {"checkpoint": "checkpoint/"}
    for _, command, _ in commands(run):
        assert f"<code>{command}</code>" in page
    assert f"<code>tensorboard --logdir {run / 'students'}</code>" in page
    assert "wandb, run tiny_sparse/student" in page
    assert trackers({**RECIPE, "training": {"report_to": []}}, run) == []


def test_commands_that_are_named_exist_and_take_any_folder():
    for _, command, page in commands(Path("runs/it's mine")):
        words = shlex.split(command)
        script = (CHECKOUT / words[1]).read_text(encoding="utf-8")
        assert "runs/it's mine/checkpoint" in words and (CHECKOUT / "docs" / page).is_file()
        assert all(f'"{word}"' in script for word in words if word.startswith("--")), command


def test_speed_and_memory_are_shown_where_they_were_measured(page):
    on_gpu, on_cpu = (speed_rows(speed(device))[1:] for device in ("cuda", "cpu"))
    for batch in ("1", "4"):
        assert (batch, "prefill", "400.0 ms", "100.0 ms", "× 4.00") in on_cpu
        assert (batch, "decode", "20.0 tokens/s", "25.0 tokens/s", "× 1.00") in on_cpu
        assert (batch, "peak memory", "2,048 MiB", "1,024 MiB", "50.0%") in on_gpu
    only_on_gpu = {(batch, name) for batch in ("1", "4") for name in ("prefill as a CUDA graph", "peak memory")}
    assert {row[:2] for row in on_gpu} - {row[:2] for row in on_cpu} == only_on_gpu
    for row in on_gpu:
        assert f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" in page
    assert "bfloat16, cuda, torch 2.13.0" in page


def test_figures_do_not_wrap(page):
    for style in (r"\.tile b", "th, td"):
        assert re.search(rf"  {style} {{[^}}]*white-space: nowrap", page), style
    paragraphs = "".join(re.findall(r"<p>.*?</p>", page, re.DOTALL))
    assert "11.8\N{NO-BREAK SPACE}%" in paragraphs and not re.search(r"\d %", paragraphs)


def test_plots_stay_readable_on_a_narrow_screen(page):
    assert page.count('<div class="scroll"><img alt="') == 7 and ".scroll img { min-width:" in page


def test_answers_shown_are_to_rows_of_ones_own():
    records = [
        Record(name, str(number), "", "", str(number), "?", ("a",), "a", "a", 1.0, None)
        for number, name in enumerate(("pope", "shapes", "pope", "shapes"))
    ]
    rows, public = {"split": "test"}, {"benchmarks": ["pope"]}

    def shown(*entries):
        return [record.benchmark for record in own_answers(records, {"data": {"evaluation": list(entries)}})]

    assert shown(public, rows) == ["shapes", "shapes"]
    assert shown(public) == [record.benchmark for record in records]


def test_what_was_left_out_is_counted_by_reason(page):
    assert "<td>train</td><td>12,160</td><td>31: more than 1024 tokens; 1,207: turn … is empty</td>" in page
    assert "<td>evaluation</td><td>48</td><td>none</td>" in page


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "env.json",
        "result.json",
        "stages/data.json",
        "plan.json",
        "cost.json",
        "benchmark.json",
        "table.json",
        "metrics.jsonl",
        "evaluation/teacher.json",
        "evaluation/student.json",
        "evaluation/grey.json",
        "gates/student/hardening.json",
    ],
)
def test_a_missing_file_is_named_and_no_page_is_written(broken, name):
    (broken / name).unlink()
    with pytest.raises(ValueError, match=re.escape(str(broken / name))):
        write_report(broken, MADE)
    assert not list(broken.glob("report.html*"))


def test_the_plan_shown_is_the_students_own_and_not_that_of_another_row(broken):
    rows = json.loads((broken / "table.json").read_text())
    assert rows[-1]["plan"] is None
    VisualPlan.dense(len(PLAN)).save(broken / "other.json")
    rows[-1]["plan"] = "other.json"
    (broken / "table.json").write_text(json.dumps(rows))
    inputs = read_inputs(broken)
    assert inputs.plan == PLAN and VisualPlan.dense(len(PLAN)) in inputs.plans.values()


def test_a_searched_plan_is_shown_with_what_was_measured(page, broken):
    before = page
    assert "How the plan was searched" not in before
    recipe = {**RECIPE, "plan": {"planner": "vtw", "tolerance": 0.1}}
    (broken / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    curve = [{"layer": layer, "kl": 1.0 / layer, "kl_hold_out": None} for layer in range(1, 9)]
    (broken / "search" / "student").mkdir(parents=True)
    (broken / "search" / "student" / "curve.json").write_text(json.dumps(curve))
    page = write_report(broken, MADE).read_text(encoding="utf-8")
    assert "How the plan was searched" in page and page.count("data:image/png") == before.count("data:image/png") + 1


def test_a_plan_that_was_not_learned_has_no_such_section(broken):
    shutil.rmtree(broken / "gates")
    page = write_report(broken, MADE).read_text(encoding="utf-8")
    assert "How the plan was learned" not in page and "The plans compared" in page


def test_a_broken_file_is_named(broken):
    (broken / "table.json").write_text("[{")
    with pytest.raises(ValueError, match="table.json: not JSON"):
        write_report(broken, MADE)


def test_samples_show_right_and_wrong_answers_of_all_families():
    def records(scores):
        families = ("existence", "attribute", "relation")
        return [
            Record("shapes", str(i), families[i % 3], "", str(i), "?", ("red",), "red", "red", score, None)
            for i, score in enumerate(scores)
        ]

    dense = records([1.0] * 60)
    half = choose_samples(dense, records([1.0] * 30 + [0.0] * 30))
    assert len(half) == NUM_SAMPLES
    assert [is_right(student) for _, student in half] == [True] * 6 + [False] * 6
    assert {student.family for _, student in half[:6]} == {"existence", "attribute", "relation"}
    assert {student.family for _, student in half[6:]} == {"existence", "attribute", "relation"}

    one_wrong = choose_samples(dense, records([1.0] * 59 + [0.5]))
    assert [is_right(student) for _, student in one_wrong] == [True] * 11 + [False]
    all_wrong = choose_samples(dense, records([0.0] * 60))
    assert len(all_wrong) == NUM_SAMPLES
    assert len(choose_samples(dense[:5], records([1.0, 0.0] * 30)[:5])) == 5


def test_curves_are_the_loss_and_its_parts():
    metrics = [
        {"step": 1, "loss": 2.0, "forward_kl": 0.0},
        {"step": 2, "loss": 1.0, "forward_kl": 0.5},
        {"step": 2, "eval_loss": 1.5, "eval_agreement": 0.9},
        {"step": 2, "epoch": 1},
    ]
    assert curves(metrics) == {
        "loss": [(1, 2.0), (2, 1.0)],
        "loss on held-out samples": [(2, 1.5)],
        "KL to the teacher": [(2, 0.5)],
    }


def test_costs_that_were_not_counted_are_left_out():
    dense = {"A": 100, "B": 200, "C": 4000, "D": None, "kv_bytes": 64}
    plan = {"A": 25, "B": 50, "C": 3000, "D": None, "kv_bytes": 32}
    rows = cost_rows({"dense": dense, "plan": plan})
    assert [row[0][:2] for row in rows] == ["A:", "B:", "C:", "ke"]
    assert rows[2][1:] == ("4 k", "3 k", "75.0 %")


def test_stages_are_drawn_to_the_longest():
    assert stage_rows({"plan": 30.0, "distil": 60.0}) == [
        ("plan", "30", 50.0),
        ("distil", "60", 100.0),
        ("all", "90", 0.0),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (6.2e8, "620 M"), (7.63e12, "7.63 T"), (2e16, "2e+04 T")]
)
def test_quantities(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(("value", "unit", "text"), [(0.5, "%", "50.0 %"), (2.314, "×", "2.31 ×"), (None, "×", "–")])
def test_figures(value, unit, text):
    assert figure_text(value, unit) == text


def test_a_race_is_shown_with_what_its_winner_was_found_by(broken):
    losses = {"first": [0.25, 0.125], "<b>": [0.5], "third": [0.375, 0.0625]}
    rows = [{"name": name, "planner": "gates", "visual_flops": 0.11, "losses": it} for name, it in losses.items()]
    race = {"winner": "third", "rounds": [50, 100], "extra_steps": 400, "extra_share": 1.25, "candidates": rows}
    path = broken / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"race": race}))
    (broken / "gates" / "student").rename(broken / "gates" / "third")
    (broken / "gates" / "student" / "race").mkdir(parents=True)
    (broken / "gates" / "third").rename(broken / "gates" / "student" / "race" / "third")
    page = write_report(broken, MADE).read_text(encoding="utf-8")
    section = page.split("The race that found it")[1].split("</table>")[0]
    assert "<b>third</b> was left. The others took 400 steps, 125.0" in section and "<td>&lt;b&gt;</td>" in section
    assert re.findall("<td>([0-9.]*)</td>", section) == ["0.2500", "0.1250", "0.5000", "", "0.3750", "0.0625"]
    assert "How the plan was learned" in page

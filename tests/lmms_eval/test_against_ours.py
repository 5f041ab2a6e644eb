"""lmms-eval's answers and scores are our own on the same questions, of a dense and of a sparse checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.build import build_student, load_dense
from checkpoints.export import export_checkpoint
from checkpoints.load import load_checkpoint
from data.benchmarks.shapes import score
from data.sample import Sample
from data.shapes.world import SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.visual_plan import VisualPlan
from scripts.sparsify import probe_batch
from tests.lmms_eval.harness import run_harness, write_task
from training.evaluation.asking import evaluate
from training.evaluation.questions import asked_of

pytestmark = pytest.mark.slow

TINY_LLAVA = Path(__file__).resolve().parents[2] / "checkpoints" / "tiny-llava"
FAMILIES = {"local_pope": ("existence",), "local_gqa": ("attribute", "relation", "reading")}
"""Which questions of the embedded world a task asks."""
PLAN = VisualPlan.dense(8).replace(1, tokens=0.3).replace(2, ffn=0).replace(3, attend=False, ffn=32).replace(4, heads=2)
"""Untrained, it makes mistakes."""
SUFFIX = "\nAnswer the question using a single word or phrase."
"""What lmms-eval's task adds to each question of POPE."""
MAX_NEW_TOKENS = {"local_pope": 128, "local_gqa": 16}
"""Of lmms-eval's own tasks."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A dense checkpoint and a sparse one made of it."""
    dense, processor = load_dense(TINY_LLAVA, "float32")
    folder = tmp_path_factory.mktemp("sparse") / "checkpoint"
    export_checkpoint(build_student(dense, PLAN), processor, folder, card="", probe=probe_batch(processor))
    return {"dense": TINY_LLAVA, "sparse": folder}


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> dict[str, list[Sample]]:
    """Questions of each task."""
    world = WorldSettings(seed=5, splits={"test": SplitSettings(part="test", rows=96)})
    path = write_world(tmp_path_factory.mktemp("world"), world)["test"]
    samples, _ = load_samples(Source(path=path, images=path.parent))
    return {task: [sample for sample in samples if sample.family in families] for task, families in FAMILIES.items()}


@pytest.fixture(scope="module")
def tasks(questions, tmp_path_factory) -> Path:
    """The folder of the tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    for task, samples in questions.items():
        write_task(folder, task.removeprefix("local_"), samples)
    return folder


def our_answers(model, processor, samples: list[Sample], max_new_tokens: int) -> list[str]:
    """The answers of our own evaluation."""
    evaluation = evaluate(model, processor, [asked_of(samples)], batch_size=8, max_new_tokens=max_new_tokens)
    return [record.prediction for record in evaluation.records]


def harness_scores(task: str, rows: list[dict]) -> list[float]:
    """What lmms-eval's own metric gives each answer."""
    return [row["pope_accuracy"]["score"] if task == "local_pope" else row["exact_match"] for row in rows]


@pytest.mark.parametrize("kind, batch_size", [("dense", 5), ("sparse", 1), ("sparse", 7)])
def test_answers_and_scores_are_ours(checkpoints, questions, tasks, tmp_path, kind, batch_size):
    found = run_harness(
        "squint", tasks, tmp_path / "out", batch_size=batch_size, pretrained=checkpoints[kind], dtype="float32"
    )
    model, processor = load_checkpoint(checkpoints[kind], "float32")
    right = []
    for task, samples in questions.items():
        rows = found[task]
        assert [row["input"] for row in rows] == [sample.turns[0][0].removeprefix("<image>\n") for sample in samples]
        answers = our_answers(model, processor, samples, MAX_NEW_TOKENS[task])
        assert [row["filtered_resps"] for row in rows] == answers
        scores = [score(sample.family, text, sample.turns[0][1]) for sample, text in zip(samples, answers, strict=True)]
        assert harness_scores(task, rows) == scores
        right += scores
    assert len(set(answers)) > 4
    accuracy = sum(right) / len(right)
    assert accuracy > 0.95 if kind == "dense" else 0.5 < accuracy < 0.9


def test_the_prompt_of_the_public_task_is_ours(checkpoints, questions, tmp_path):
    """The model does not know its words, but its answers depend on them."""
    asked = questions["local_pope"]
    write_task(tmp_path / "tasks", "pope", asked, suffix=SUFFIX)
    rows = run_harness("squint", tmp_path / "tasks", tmp_path / "out", batch_size=16, pretrained=checkpoints["dense"])
    prompts = [row["input"] for row in rows["local_pope"]]
    assert all(prompt.endswith(SUFFIX) for prompt in prompts)
    samples = [
        replace(sample, turns=((f"<image>\n{prompt}", sample.turns[0][1]),))
        for sample, prompt in zip(asked, prompts, strict=True)
    ]
    model, processor = load_checkpoint(checkpoints["dense"], "auto")
    limit = MAX_NEW_TOKENS["local_pope"]
    answers = our_answers(model, processor, samples, limit)
    assert [row["filtered_resps"] for row in rows["local_pope"]] == answers
    assert answers != our_answers(model, processor, asked, limit)


def test_several_processes_give_the_same_samples(checkpoints, tasks, tmp_path):
    """Two ranks answer 16 and 48 questions, an uneven share of one task's."""
    arguments = {"batch_size": 8, "pretrained": checkpoints["sparse"], "dtype": "float32"}
    one, two = (
        run_harness("squint", tasks, tmp_path / str(processes), processes=processes, **arguments)
        for processes in (1, 2)
    )
    assert one == two

"""Several processes measure, search and answer as one does, to the last bit."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from data.sample import Sample
from tests.processes import run_processes
from tests.tiny_llava import tiny_llava
from tests.tiny_processor import tiny_processor
from tests.tiny_student import single_samples, tiny_batch, tiny_student
from training.evaluation.asking import evaluate
from training.evaluation.questions import asked_of
from training.measure.calibration import calibrate
from training.planners import PLANNERS
from training.planners.tools.search import Search, search_tasks
from training.ranks import led_by_rank_0

BATCHES = [*single_samples(tiny_batch((1, 2, 1))), tiny_batch((1,), seed=7), *single_samples(tiny_batch((2, 0)))]
PLANS = (
    {"planner": "greedy", "budget": {"visual_flops": 0.3}},
    {"planner": "shortv", "budget": {"visual_flops": 0.6}},
    {"planner": "vtw", "tolerance": 0.5},
    {"planner": "p_sigmoid", "budget": {"visual_flops": 0.7}, "full_layers": 1, "trials": 6},
    {"planner": "g_search", "measure": "accuracy", "tolerance": 0.2, "full_layers": 1, "trials": 3},
    {"planner": "yopo", "budget": {"visual_flops": 0.3}},
)
CLASSES = {planner.model_fields["planner"].annotation.__args__[0]: planner for planner in PLANNERS}


def measured(folder: Path) -> tuple[dict, list[str]] | None:
    """Statistics and plans on rank 0, as every rank calls it."""
    model, batches = tiny_student(num_layers=5, num_kv_heads=2), BATCHES

    def story(on_all_ranks) -> tuple[dict, list[str]]:
        statistics = calibrate(model, batches, folder, on_all_ranks)
        search = Search(model, batches, statistics, ranks=on_all_ranks)
        plans = [str(CLASSES[given["planner"]](**given).find(search).to_dict()) for given in PLANS]
        return {name: value.tolist() for name, value in vars(statistics).items()}, plans

    return led_by_rank_0(search_tasks(model, batches), story)


@pytest.mark.slow
def test_the_same_statistics_and_plans(tmp_path):
    alone = measured(tmp_path / "alone")
    assert run_processes(2, measured, tmp_path / "together") == [alone, None]
    assert len(set(alone[1])) >= 5, "plans that differ, or the comparison says little"


@pytest.mark.slow  # three processes
def test_more_processes_than_batches(tmp_path):
    assert run_processes(3, measured_on_one_batch, tmp_path)[0] == measured_on_one_batch(tmp_path / "alone")


def measured_on_one_batch(folder: Path) -> list | None:
    model, batches = tiny_student(num_layers=3), [tiny_batch((1, 2))]
    tasks = search_tasks(model, batches)
    return led_by_rank_0(tasks, lambda on_all_ranks: calibrate(model, batches, folder, on_all_ranks).unit_kl.tolist())


def answers(folder: Path) -> list[str]:
    processor = tiny_processor()
    model = tiny_llava(processor)
    questions = [("attribute", "what colour ?", "red"), ("existence", "is there a cross ?", "no")] * 3
    samples = [
        Sample(str(index), (folder / f"{index}.png",), ((f"<image> {question}", answer),), family)
        for index, (family, question, answer) in enumerate(questions)
    ]
    return [record.prediction for record in evaluate(model, processor, [asked_of(samples)], batch_size=2).records]


@pytest.mark.slow
def test_the_same_answers_on_every_rank(tmp_path):
    generator = torch.Generator().manual_seed(1)
    for index in range(6):
        pixels = torch.randint(0, 256, (24, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
    alone = answers(tmp_path)
    assert run_processes(2, answers, tmp_path) == [alone, alone]
    assert len(set(alone)) > 2

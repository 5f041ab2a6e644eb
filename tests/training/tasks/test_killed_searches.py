"""A run that is killed while it calibrates or searches goes on there, for found plans and for plans to learn from."""

import json

import pytest

import training.measure.calibration
from training.measure.answer_kl import AnswerKL
from training.recipe.file import load_recipe
from training.run import execute
from training.tasks.stages import stages_before_students


class Killed(Exception):
    pass


@pytest.fixture
def begin(dense_folder, tmp_path, monkeypatch):
    """Starts the run in a folder, killed at one measurement, and returns what was measured."""
    start = {"planner": "greedy", "budget": {"visual_flops": 0.5}}
    plan = {"planner": "gates", "budget": {"visual_flops": 0.3}, "steps": 2, "start": start}
    greedy = {"name": "greedy", "plan": {"planner": "greedy", "budget": {"visual_flops": 0.25}}, "distil": False}
    overrides = [f"model.path={dense_folder}", f"plan={json.dumps(plan)}", f"compare={json.dumps([greedy])}"]
    recipe = load_recipe("debug", [*overrides, "calibration.num_samples=4", "calibration.batch_size=2"])

    def start_in(folder: str, kill_after: int | None = None) -> list[str]:
        measured = []

        def counted(measure):
            def measure_or_die(*arguments):
                if len(measured) == kill_after:
                    raise Killed
                measured.append(repr(arguments[1]))
                return measure(*arguments)

            return measure_or_die

        with monkeypatch.context() as patch:
            patch.setattr(AnswerKL, "distance", counted(AnswerKL.distance))
            calibration = training.measure.calibration
            patch.setattr(calibration, "own_unit_kl", counted(calibration.own_unit_kl))
            try:
                execute(recipe, stages_before_students(recipe)[:3], tmp_path / folder)
            except Killed:
                assert kill_after is not None
        return measured

    return start_in


@pytest.mark.slow
def test_nothing_is_measured_twice(begin, tmp_path):
    whole = begin("whole")
    kills = (1, 9, 25)  # in calibration, in the start's search, and in the other's
    assert len(whole) > sum(kills)
    killed = [entry for kill_after in kills for entry in begin("killed", kill_after)]
    assert len(killed) == sum(kills)
    assert killed + begin("killed") == whole
    for name in ("gates/student/start.json", "plans/greedy.json", "calibration.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "killed/gates/student/start.search/answer_kl.jsonl").exists()
    assert (tmp_path / "killed/search/greedy/answer_kl.jsonl").exists()

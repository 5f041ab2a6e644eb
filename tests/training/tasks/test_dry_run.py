"""What a dry run says of what it does not look at."""

import pytest

from training.recipe.file import load_recipe
from training.tasks import dry_run


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("tiny_sparse", [], "training.precision: auto is counted as bfloat16"),
        ("tiny_sparse", ["training.precision=float32"], None),
        ("qwen2_vl_sparse", ["model.max_frames=32"], "model.max_frames is 32, but videos are not counted"),
        ("qwen2_vl_sparse", [], None),
    ],
)
def test_one_line_for_what_is_assumed(capsys, monkeypatch, name, overrides, said):
    monkeypatch.setattr(dry_run, "stage_tables", lambda recipe, *rest: [recipe.training.precision])
    dry_run.dry_run(load_recipe(name, overrides))
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "counted" in line]
    assert len(told) == (said is not None) and (said or "") in "".join(told)
    assert lines[-1] == ("float32" if "training.precision=float32" in overrides else "bfloat16")


def test_the_steps_of_a_race_are_stated():
    assert dry_run.race_lines(load_recipe("tiny_race")) == [
        "student student: a race (5 candidates to step 50, 3 candidates to step 100, 2 candidates to step 200) takes "
        "400 steps besides the student's 300, 133.3% of them"
    ]
    assert dry_run.race_lines(load_recipe("tiny_sparse")) == []

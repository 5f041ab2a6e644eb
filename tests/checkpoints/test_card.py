import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from checkpoints.build import build_student
from checkpoints.card import Licence, base_license, card, cost_table, model_card, plan_table
from checkpoints.export import export_checkpoint
from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.tiny_dense import tiny_dense

PLAN = VisualPlan(
    layers=(LayerPlan(heads=1, ffn=3, radius=2, bidirectional=True), LayerPlan(ffn=0), LayerPlan(tokens=0.0))
)
ROW = {
    "name": "greedy",
    "plan": "plan.json",
    "distilled": True,
    "visual_flops": 0.118,
    "model_flops": 0.31,
    "accuracy": 0.962,
    "low": 0.953,
    "high": 0.97,
    "relative_accuracy": 0.993,
    "families": {"existence": 0.97, "reading": 0.95},
}
OTHER = {**ROW, "name": "random", "distilled": False, "relative_accuracy": None}


@pytest.fixture(scope="module")
def config():
    return tiny_dense()[0].config


def test_metadata_is_what_the_hub_reads(config):
    card = ModelCard(
        model_card("tiny", PLAN, config, base_model="llava-hf/llava-1.5-7b-hf", base_license=Licence("llama2"))
    )
    assert card.data.base_model == "llava-hf/llava-1.5-7b-hf"
    assert card.data.license == "llama2"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "transformers"


def test_a_local_base_model_is_named_without_its_path(config, tmp_path):
    text = model_card("tiny", PLAN, config, base_model=str(tmp_path))
    assert ModelCard(text).data.base_model is None
    assert str(tmp_path) not in text and f"`{tmp_path.name}`" in text


def test_tables_and_picture(config):
    text = model_card("tiny", PLAN, config, base_model="a/b", rows=[ROW, OTHER], picture="plan.png")
    assert "](plan.png)" in text
    text = text.replace("95.3%\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}97.0%", "INTERVAL")  # it stays on one line
    assert "| greedy | yes | 11.8% | 31.0% | 96.2% | INTERVAL | 99.3% | 97.0% | 95.0% |" in text
    assert "| random | no | 11.8% | 31.0% | 96.2% | INTERVAL | – |" in text
    assert "## Measured" not in model_card("tiny", PLAN, config, base_model="a/b")


def test_plan_table_shows_what_is_executed(config):
    assert plan_table(PLAN, config).splitlines()[2:] == [
        "| 0 | 100% | yes | yes | 1 of 2 | 3 of 64 | radius 2, both ways |",
        # The last layer that is read: nothing reads what it would add to visual tokens.
        "| 1 | 100% | no | yes | 2 of 2 | 0 of 64 | all |",
        "| 2 | none | – | – | – | – | – |",
    ]
    dense = plan_table(VisualPlan.dense(3), config).splitlines()[2:]
    assert [row.split(" | ")[0] for row in dense] == ["| 0–1", "| 2"], "equal neighbours share a row"


def test_cost_table_has_four_conventions_and_falls_with_the_plan(config):
    rows = cost_table(PLAN, config).splitlines()[2:]
    assert [row[2] for row in rows] == ["A", "B", "C", "D"]
    assert all(float(row.split(" | ")[3].rstrip("% |")) < 90 for row in rows[:2])
    nothing = cost_table(VisualPlan(layers=(LayerPlan(tokens=0.0),) * 3), config).splitlines()[2:]
    assert nothing[0].endswith("| 0 | 0.0% |")


def test_licence_of_the_base_model(tmp_path):
    assert base_license(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    assert base_license(tmp_path) == Licence("apache-2.0")
    (tmp_path / "README.md").write_text("no metadata\n")
    assert base_license(tmp_path) is None


@pytest.mark.parametrize("metadata", ["- a", "a: [", "model-index: 3"])
def test_a_card_with_broken_metadata_is_refused(tmp_path, metadata):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# base\n")
    with pytest.raises(UserError, match=r"README.md: not a model card that can be read"):
        base_license(tmp_path)


def test_a_card_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"README.md: not a model card that can be read"):
        base_license(tmp_path)


def test_a_name_that_the_hub_cannot_have_has_no_licence():
    assert base_license("a/b/c/d") is None


def test_a_licence_the_hub_does_not_know_keeps_its_name(tmp_path):
    stated = Licence("other", "tongyi-qianwen", "https://example.org/LICENSE")
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tongyi-qianwen\nlicense_link: https://example.org/LICENSE\n---\n"
    )
    assert base_license(tmp_path) == stated


def test_the_versions_are_those_of_the_project():
    project = (Path(card.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name, oldest in card.OLDEST.items():
        assert f'"{name}>={oldest}' in project


def test_the_example_answers(config, tmp_path, monkeypatch, capsys):
    """The lines that a reader copies, on a checkpoint. Its code is this checkout's, as the export proves elsewhere."""
    dense, processor = tiny_dense()
    student = build_student(dense, PLAN)
    text = model_card("tiny", student.visual_plan, student.config, base_model="a/b")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace(card.PLACE, str(tmp_path / "checkpoint"))
    monkeypatch.setattr("checkpoints.export.verify", lambda *arguments: None)
    export_checkpoint(student, processor, tmp_path / "checkpoint", card=text, probe={})
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    exec(compile(example, "example", "exec"), {})
    assert capsys.readouterr().out.strip()

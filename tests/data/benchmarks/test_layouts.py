"""Benchmarks in LLaVA's layout and in the Hub's: the same questions and scores, and the same care with bad files."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import datasets
import pyarrow.parquet
import pytest

from data.benchmarks.benchmark import Benchmark
from data.benchmarks.gqa import Gqa
from data.benchmarks.mme import Mme
from data.benchmarks.place import Place, StoredPicture
from data.benchmarks.pope import Pope
from data.benchmarks.textvqa import TextVqa, TextVqaOcr
from data.benchmarks.vizwiz import VizWiz, VizWizTest
from data.benchmarks.vqav2 import Vqav2, Vqav2TestDev
from modeling.user_error import UserError
from tests.benchmark_files import gqa, mme, pope, textvqa, vizwiz, vqav2
from tests.data.benchmarks.judged import answered, colors, facts, measured


@dataclass
class Case:
    benchmark: Benchmark
    writer: ModuleType
    asked: str
    table: str
    columns: tuple[str, ...]
    fields: tuple[str, ...] = ("question_id", "image", "text")

    def __str__(self) -> str:
        return self.benchmark.name


CASES = [
    Case(
        Pope(),
        pope,
        "llava_pope_test.jsonl",
        "data/test",
        ("question_id", "question", "answer", "category", "image_source", "image"),
        ("question_id", "image", "text", "category"),
    ),
    Case(Mme(), mme, "llava_mme.jsonl", "data/test", ("question_id", "question", "answer", "category", "image")),
    Case(
        Gqa(),
        gqa,
        "llava_gqa_testdev_balanced.jsonl",
        "testdev_balanced_instructions/testdev",
        ("id", "imageId", "question", "answer"),
    ),
    Case(
        Vqav2TestDev(),
        vqav2,
        "llava_vqav2_mscoco_test-dev2015.jsonl",
        "data/testdev",
        ("question_id", "image_id", "question", "image"),
    ),
    Case(
        VizWizTest(), vizwiz, "llava_test.jsonl", "data/test", ("question_id", "question", "image"), ("image", "text")
    ),
    Case(
        TextVqa(),
        textvqa,
        "llava_textvqa_val_v051_ocr.jsonl",
        "data/validation",
        ("image_id", "question", "answers", "image"),
    ),
    Case(
        TextVqaOcr(),
        textvqa,
        "llava_textvqa_val_v051_ocr.jsonl",
        "data/validation",
        ("image_id", "question", "answers", "ocr_tokens", "image"),
    ),
]
VALIDATION = [
    Case(
        Vqav2(),
        vqav2,
        "",
        "data/validation",
        ("question_id", "image_id", "question", "answers", "answer_type", "image"),
    ),
    Case(VizWiz(), vizwiz, "", "data/val", ("question_id", "question", "answers", "image")),
]
every = pytest.mark.parametrize("case", CASES, ids=str)
every_table = pytest.mark.parametrize("case", CASES + VALIDATION, ids=str)


@pytest.fixture
def llava(case, tmp_path) -> Path:
    case.writer.write_llava(tmp_path / "llava")
    return tmp_path / "llava"


@pytest.fixture
def hub(case, tmp_path) -> Path:
    case.writer.write_hub(tmp_path / "hub")
    return tmp_path / "hub"


def change_row(path: Path, change: Callable[[dict], object], row: int = 1) -> None:
    """Changes a row of a file of JSON lines."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows[row])
    path.write_text("\n".join(map(json.dumps, rows)))


def table_of(case: Case, hub: Path) -> tuple[pyarrow.Table, Path]:
    """A table in the Hub's layout, and its file."""
    file = hub / f"{case.table}-00000-of-00001.parquet"
    return pyarrow.parquet.read_table(file).replace_schema_metadata(None), file


def with_column(table: pyarrow.Table, column: str, values: object) -> pyarrow.Table:
    return table.set_column(table.column_names.index(column), column, [values])


@every
def test_both_layouts_and_styles_ask_the_same(case, llava, hub):
    of_llava, of_hub = (case.benchmark.questions(Place(folder), "llava") for folder in (llava, hub))
    assert facts(of_llava) == facts(of_hub) and len(of_llava) > 3
    assert colors(of_llava) == colors(of_hub) and len(set(colors(of_hub))) > 1
    for folder in (llava, hub):
        assert facts(case.benchmark.questions(Place(folder), "lmms")) == facts(of_llava)
    for question in of_llava:
        assert question.text.startswith("<image>\n") and question.text.count("<image>") == 1
        assert question.text.endswith("\nAnswer the question using a single word or phrase.")


@every
def test_questions_about_one_picture_are_one_unit(case, hub):
    questions = case.benchmark.questions(Place(hub), "llava")
    by_unit = {question.unit: color for question, color in zip(questions, colors(questions), strict=True)}
    assert [by_unit[question.unit] for question in questions] == colors(questions)
    assert len(by_unit) < len(questions) or case.writer is vizwiz


@every
def test_both_layouts_score_the_same(case, llava, hub):
    of_llava, of_hub = (case.benchmark.questions(Place(folder), "llava") for folder in (llava, hub))
    if not of_llava[0].answers:
        pytest.skip("its answers are not published")
    wrong = itertools.cycle(["", "No way.", "purple"])
    said = [next(wrong) if number % 2 else f"{q.answers[0]}." for number, q in enumerate(of_llava)]
    metrics = [measured(case.benchmark, answered(case.benchmark, asked, said)) for asked in (of_llava, of_hub)]
    assert metrics[0] == metrics[1] and 0 < next(iter(metrics[0].values())) < case.benchmark.best
    right = answered(case.benchmark, of_hub, [max(q.answers, key=q.answers.count) for q in of_hub])
    assert next(iter(measured(case.benchmark, right).values())) == case.benchmark.best


@every_table
def test_a_saved_table_is_read_as_well(case, hub, tmp_path):
    if case.writer is gqa:
        pytest.skip("it has two tables")
    split = Path(case.table).name
    read = datasets.Dataset.from_parquet(str(hub / f"{case.table}-00000-of-00001.parquet"))
    datasets.DatasetDict({split: read}).save_to_disk(tmp_path / "saved")
    expected = facts(case.benchmark.questions(Place(hub), "llava"))
    assert facts(case.benchmark.questions(Place(tmp_path / "saved"), "llava")) == expected


@every
def test_no_picture_is_opened_before_it_is_asked_about(case, llava, hub, monkeypatch):
    monkeypatch.setattr(StoredPicture, "read", lambda self: pytest.fail("opened"))
    for picture in itertools.chain(llava.rglob("*.jpg"), llava.rglob("*.png")):
        picture.write_bytes(b"no picture")
    of_llava, of_hub = (case.benchmark.questions(Place(folder), "llava") for folder in (llava, hub))
    assert facts(of_llava) == facts(of_hub)
    with pytest.raises(UserError, match="not a picture"):
        colors(of_llava)


@every
def test_each_field_of_a_question_file_is_needed(case, llava):
    for field in case.fields:
        kept = (llava / case.asked).read_text()
        change_row(llava / case.asked, lambda row, field=field: row.pop(field))
        with pytest.raises(UserError, match=rf"{case.asked}, line 2: no field is called '{field}'"):
            case.benchmark.questions(Place(llava), "llava")
        (llava / case.asked).write_text(kept)
    case.benchmark.questions(Place(llava), "llava")


@every
@pytest.mark.parametrize("value", [None, 7.5, True, ["a"], {"a": 1}, "", "nothing of ours"], ids=str)
def test_each_field_of_a_question_file_is_checked(case, llava, value):
    for field in case.fields:
        kept = (llava / case.asked).read_text()
        change_row(llava / case.asked, lambda row, field=field: row.update({field: value}))
        with pytest.raises(UserError, match=str(llava)) as error:
            case.benchmark.questions(Place(llava), "llava")
        assert len(str(error.value).splitlines()) == 1
        (llava / case.asked).write_text(kept)


@every
@pytest.mark.parametrize("name", ["missing.jpg", "../../secret.jpg", "/etc/passwd", "a\0b", ".", 5], ids=repr)
def test_a_picture_lies_in_its_folder(case, llava, name):
    (llava.parent / "secret.jpg").write_bytes(b"")
    change_row(llava / case.asked, lambda row: row.update(image=name))
    with pytest.raises(UserError, match=r"image|picture"):
        case.benchmark.questions(Place(llava), "llava")


@every
def test_a_text_without_its_suffix_is_refused(case, llava):
    change_row(llava / case.asked, lambda row: row.update(text="Is it? Answer briefly."))
    with pytest.raises(UserError, match=rf"{case.asked}, row 2: got a text that ends with 'Is it\? Answer briefly"):
        case.benchmark.questions(Place(llava), "llava")


@every
def test_a_question_file_must_be_json(case, llava):
    with (llava / case.asked).open("a") as file:
        file.write("\n{")
    with pytest.raises(UserError, match=rf"{case.asked}, line \d+: not JSON"):
        case.benchmark.questions(Place(llava), "llava")


@every_table
def test_each_column_of_a_table_is_needed(case, hub):
    table, file = table_of(case, hub)
    for column in case.columns:
        pyarrow.parquet.write_table(table.drop_columns(column), file)
        with pytest.raises(UserError, match=rf"{hub}: no column is called '{column}'; they are "):
            case.benchmark.questions(Place(hub), "llava")


@every_table
@pytest.mark.parametrize(
    "value", [*(pytest.param(value, marks=pytest.mark.slow) for value in (1.5, [1, 2])), None], ids=str
)
def test_each_column_of_a_table_is_checked(case, hub, value):
    table, file = table_of(case, hub)
    for column in case.columns:
        pyarrow.parquet.write_table(with_column(table, column, [value] * table.num_rows), file)
        with pytest.raises(UserError, match=rf"{hub}.*(row 0|image: got|no picture)"):
            case.benchmark.questions(Place(hub), "llava")


@every_table
def test_a_row_without_a_picture_is_refused(case, hub):
    if case.writer is gqa:
        case = replace(case, table="testdev_balanced_images/testdev")
    table, file = table_of(case, hub)
    images = pyarrow.array([*table["image"].to_pylist()[:-1], None], table["image"].type)
    pyarrow.parquet.write_table(with_column(table, "image", images), file)
    with pytest.raises(UserError, match=rf"row {table.num_rows - 1}: image: has no picture"):
        case.benchmark.questions(Place(hub), "llava")


@every_table
def test_a_question_holds_no_mark_of_a_picture(case, hub):
    table, file = table_of(case, hub)
    pyarrow.parquet.write_table(with_column(table, "question", ["What is <image>?"] * table.num_rows), file)
    with pytest.raises(UserError, match="row 0: got a question that holds the mark <image>"):
        case.benchmark.questions(Place(hub), "llava")


@every_table
def test_an_empty_folder_is_refused(case, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        case.benchmark.questions(Place(tmp_path), "llava")

"""MMBench: the same questions in both layouts, circular accuracy, and files that are refused."""

import csv
import io

import pytest

from data.benchmarks.mmbench import MmBenchCn, MmBenchEn
from tests.data.benchmarks.judged import answered, colors, facts, measured
from tests.data.benchmarks.small_files import change_table, place_of, refusal

ENGLISH, CHINESE = MmBenchEn(), MmBenchCn()
TABLE = "en/dev-00000-of-00001.parquet"
PERCEPTION, REASONING = "finegrained_perception (instance-level)", "logic_reasoning"
TRUE = ["C", "B", "A", "B", "A", "C", "A", "B", "D"]
"""The true letters: questions 241, 252 and 300; 241, 252 and 300 turned once; 241 and 300 twice; 241 three times."""

both = pytest.mark.parametrize("benchmark", [ENGLISH, CHINESE], ids=lambda benchmark: benchmark.name)


def change_rows(place, benchmark, change):
    """Writes LLaVA's file anew with rows that `change` has changed in place."""
    path = place.path / benchmark.files[0]
    rows = list(csv.DictReader(path.open(newline="", encoding="utf-8"), delimiter="\t"))
    change(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@both
@pytest.mark.parametrize("style", ["llava", "lmms"])
def test_both_layouts_have_the_same_questions_and_scores(tmp_path, benchmark, style):
    llava, hub = (benchmark.questions(place_of(benchmark, tmp_path, layout), style) for layout in ("llava", "hub"))
    assert facts(llava) == facts(hub) and colors(llava) == colors(hub)
    assert [question.choices for question in llava] == [question.choices for question in hub]
    assert [question.answers[0] for question in llava] == TRUE
    predictions = [*TRUE[:4], "B", *TRUE[5:]]
    metrics = [measured(benchmark, answered(benchmark, questions, predictions)) for questions in (llava, hub)]
    assert metrics[0] == metrics[1]
    assert metrics[0]["circular"] == pytest.approx(200 / 3)


def test_questions_are_units_of_all_their_rotations(tmp_path):
    questions = ENGLISH.questions(place_of(ENGLISH, tmp_path, "llava"), "llava")
    assert [question.id for question in questions][2:5] == ["300", "1000241", "1000252"]
    assert [question.unit for question in questions] == ["241", "252", "300", "241", "252", "300", "241", "300", "241"]
    assert [question.group for question in questions[:3]] == [PERCEPTION, PERCEPTION, REASONING]
    assert questions[1].choices == {"A": "yes", "B": "no"}


@pytest.mark.parametrize(
    ("benchmark", "style", "text"),
    [
        (
            ENGLISH,
            "llava",
            "<image>\nPeople sleep\nat night.\nWhen was this taken?\nA. at night\nB. at noon\nC. never\n"
            "Answer with the option's letter from the given choices directly.",
        ),
        (
            ENGLISH,
            "lmms",
            "<image>\nPeople sleep\nat night. When was this taken? There are several options:\n"
            "A. at night\nB. at noon\nC. never\n\nAnswer with the option's letter from the given choices directly.",
        ),
        (
            CHINESE,
            "llava",
            "<image>\n人们在晚上睡觉。\n这是什么时候拍的？\nA. 晚上\nB. 中午\nC. 从不\n请直接回答选项字母。",
        ),
        (
            CHINESE,
            "lmms",
            "<image>\n人们在晚上睡觉。 这是什么时候拍的？ 有如下几个选项：\nA. 晚上\nB. 中午\nC. 从不\n\n"
            "请直接使用所提供的选项字母作为答案回答。",
        ),
    ],
)
def test_both_styles_of_prompts(tmp_path, benchmark, style, text):
    questions = benchmark.questions(place_of(benchmark, tmp_path, "llava"), style)
    assert questions[2].text == text


def test_a_hint_may_be_missing(tmp_path):
    place = place_of(ENGLISH, tmp_path, "hub")
    for style, start in (
        ("llava", "<image>\nWhat is the colour?\nA. blue"),
        ("lmms", "<image>\nWhat is the colour? There"),
    ):
        assert ENGLISH.questions(place, style)[0].text.startswith(start)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        (TRUE, {"circular": 100, "vanilla": 100, "unparsable": 0, PERCEPTION: 100, REASONING: 100}),
        # Always "A": each question is right in one rotation, which is the first for 300 alone.
        (["A"] * 9, {"circular": 0, "vanilla": 100 / 3, "unparsable": 0, PERCEPTION: 0, REASONING: 0}),
        # One rotation of 241 is wrong: it counts as wrong, and still as right for `vanilla`.
        ([*TRUE[:8], "A"], {"circular": 200 / 3, "vanilla": 100, "unparsable": 0, PERCEPTION: 50, REASONING: 100}),
        # 252 as it is cannot be read.
        (
            ["C", "maybe", *TRUE[2:]],
            {"circular": 200 / 3, "vanilla": 200 / 3, "unparsable": 100 / 9, PERCEPTION: 50, REASONING: 100},
        ),
        # Letters in other forms, and texts of options.
        (
            ["(C)", "no", "A.", "The answer: B", "yes it is", "at night", "A", "B", "D) red"],
            {"circular": 200 / 3, "vanilla": 100, "unparsable": 0, PERCEPTION: 50, REASONING: 100},
        ),
    ],
)
def test_metrics_worked_by_hand(tmp_path, predictions, expected):
    questions = ENGLISH.questions(place_of(ENGLISH, tmp_path, "llava"), "llava")
    metrics = measured(ENGLISH, answered(ENGLISH, questions, predictions))
    assert metrics == pytest.approx(expected)
    assert list(metrics)[:3] == ["circular", "vanilla", "unparsable"]


def test_pictures_are_base64_or_stand_in_another_row(tmp_path):
    place = place_of(ENGLISH, tmp_path, "llava")
    pictures = [question.images[0] for question in ENGLISH.questions(place, "llava")]
    assert [picture.row for picture in pictures] == [0, 1, 2, 3, 4, 5, 0, 2, 0]
    assert pictures[6].read().data == pictures[3].read().data


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", "999", "row 1: image: got '999', base64 or the index of a row is expected"),
        ("image", "1", "row 1: image: got '1'"),
        ("image", "2000241", "row 1: image: got '2000241'"),  # a row that holds an index itself
        ("image", "", "row 1: image: got ''"),
        ("index", "x", "row 1: index: got 'x', a whole number is expected"),
        ("index", "-1", "row 1: index: got '-1'"),
        ("index", "241", "row 1: index: got 241 a second time"),
        ("index", "٣", "row 1: index: got '٣'"),
        ("answer", "E", "row 1: answer: got 'E', one of A, B is"),
        ("answer", "", "row 1: answer: got ''"),
        ("B", "nan", "row 1: answer: got 'B', one of A is expected"),  # options end where one is missing
        ("question", "<image>", "holds the mark <image>"),
    ],
)
def test_a_bad_row_is_refused_by_name(tmp_path, field, value, message):
    place = place_of(ENGLISH, tmp_path, "llava")
    change_rows(place, ENGLISH, lambda rows: rows[1].update({field: value}))
    said = refusal(ENGLISH, place)
    assert message in said and "mmbench_dev_20230712.tsv" in said


@pytest.mark.parametrize("text", ["!" * 40, "iVBORw0KGgo" * 5, "ï" * 40])
def test_what_is_not_base64_is_refused_when_it_is_read(tmp_path, text):
    place = place_of(ENGLISH, tmp_path, "llava")
    change_rows(place, ENGLISH, lambda rows: rows[0].update(image=text))
    question = ENGLISH.questions(place, "llava")[0]
    with pytest.raises(ValueError, match="image of row 0: not base64"):
        question.sample()


def test_a_huge_picture_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.benchmarks.mmbench.LONGEST_PICTURE", 20)
    assert "row 0: image: got" in refusal(ENGLISH, place_of(ENGLISH, tmp_path, "llava"))


def test_a_huge_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.benchmarks.mmbench.MAX_FILE", 20)
    assert "has more than 20 bytes" in refusal(ENGLISH, place_of(ENGLISH, tmp_path, "llava"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "cannot be read"),
        (bytes(100), "no column is called 'index'"),
        (b"\xff\xfe\tquestion\n1\t2\n", "cannot be read"),
        (b"index\tquestion\n1\tWhat?\n", "no column is called 'hint'; they are index, question"),
        (b"index\tquestion\n1\tWhat?\textra\tmore\n1\t2\n", "no column is called"),
        (b'index\tquestion\n1\t"open\n', "cannot be read"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    place = place_of(ENGLISH, tmp_path, "llava")
    (place.path / ENGLISH.files[0]).write_bytes(text)
    assert message in refusal(ENGLISH, place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"L2-category": ...}, "no column is called 'l2-category'"),
        ({"hint": ...}, "no column is called 'hint'"),
        ({"answer": 3}, "row 0: answer: got 3, one of"),
        ({"A": 3}, "row 0: A: got 3, a text"),
        ({"question": None}, "row 0: question: got None"),
        ({"index": 1.5}, "row 0: index: got 1.5"),
        ({"L2-category": None}, "row 0: L2-category: got None"),
        ({"image": "a.png"}, "image: got string"),
    ],
)
def test_a_bad_table_is_refused_by_name(tmp_path, change, message):
    place = place_of(ENGLISH, tmp_path, "hub")
    change_table(place, TABLE, **change)
    assert message in refusal(ENGLISH, place)


@both
@pytest.mark.parametrize("layout", ["llava", "hub"])
def test_what_the_server_takes(tmp_path, benchmark, layout):
    place = place_of(benchmark, tmp_path, layout)
    records = answered(benchmark, benchmark.questions(place, "llava"), [*TRUE[:8], 'tab\t"quoted"\nline'])
    (file, text), *others = benchmark.submission(records, place).items()
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert file == f"{benchmark.name}.tsv" and not others
    assert list(rows[0]) == ["index", "question", "A", "B", "C", "D", "answer", "prediction"]
    assert [row["prediction"] for row in rows] == [*TRUE[:8], 'tab\t"quoted"\nline']
    assert [row["index"] for row in rows] == [record.id for record in records]


def test_rows_that_were_not_asked_are_empty_in_it(tmp_path):
    place = place_of(ENGLISH, tmp_path, "llava")
    records = answered(ENGLISH, ENGLISH.questions(place, "llava"), TRUE)
    rows = list(csv.DictReader(io.StringIO(ENGLISH.submission(records[1:2], place)["mmbench_en.tsv"]), delimiter="\t"))
    assert [row["prediction"] for row in rows] == ["", "B", *[""] * 7]

"""MME: two questions about each picture, one to be answered with yes and one with no (arXiv 2306.13394)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style, Totals, ratio, units_of
from data.benchmarks.columns import id_of, one_of, rows_of, stored_pictures, text_of
from data.benchmarks.place import Place, StoredPicture, read_json_lines, read_text
from data.benchmarks.prompts import IMAGE, SHORT_ANSWER, about_picture, without_suffix
from modeling.user_error import UserError

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
QUESTIONS = "llava_mme.jsonl"
RELEASE = "MME_Benchmark_release_version"
YES_OR_NO = " Please answer yes or no."


class Mme(Benchmark):
    """Yes or no, in 14 subtasks.

    A subtask scores the share of right answers plus the share of pictures with both answers right, each in %, so at
    most 200. `perception` is the sum of ten subtasks (at most 2000), and what papers print. `cognition` is the sum of
    four (at most 800). `unparsable` is the share of answers that are neither yes nor no, which are wrong. Answers are
    read as by the benchmark's own tool. Both styles of prompts are the same.
    """

    name = "mme"
    title = "MME"
    folders = ("MME",)
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 16}
    best = 200.0 * len(PERCEPTION)

    def questions(self, place: Place, style: Style) -> list[Question]:
        found = self._of_llava(place) if place.file(QUESTIONS) else self._of_table(place)
        asked: dict[str, int] = defaultdict(int)
        for question in found:
            asked[question.unit] += 1
        for picture, count in asked.items():
            if count != 2:
                raise UserError(f"{place}: questions about picture {picture!r}: got {count}, 2 are expected")
        return found

    def _of_llava(self, place: Place) -> list[Question]:
        path = place.needed_file(QUESTIONS)
        truths: dict[Path, dict[str, str]] = {}
        found = []
        for number, row in enumerate(read_json_lines(path, ("question_id", "image", "text")), start=1):
            where = f"{path}, row {number}"
            picture = text_of(row, "question_id", where)
            category = one_of({"category": picture.partition("/")[0]}, "category", (*PERCEPTION, *COGNITION), where)
            asked = without_suffix(text_of(row, "text", where), SHORT_ANSWER, where)
            answers = place.needed_file(*_answer_files(category, picture))
            if answers not in truths:
                truths[answers] = _truths(answers)
            if _key(asked) not in truths[answers]:
                raise UserError(f"{where}: {answers} has no question {asked!r}")
            image = place.image(row["image"], RELEASE)
            found.append(_question(picture, category, asked, truths[answers][_key(asked)], image, where))
        return found

    def _of_table(self, place: Place) -> list[Question]:
        columns = ("question_id", "question", "answer", "category")
        table = place.table((*columns, "image"), split="test")
        pictures = stored_pictures(table, "image", str(place))
        found = []
        for picture, (where, row) in zip(pictures, rows_of(table, columns, str(place)), strict=True):
            asked = text_of(row, "question", where).strip().replace(YES_OR_NO, "")
            category = one_of(row, "category", (*PERCEPTION, *COGNITION), where)
            found.append(_question(id_of(row, "question_id", where), category, asked, row["answer"], picture, where))
        return found

    def judge(self, question: Question, prediction: str) -> Judgement:
        said = said_in(prediction)
        return Judgement(float(said == question.answers[0]), said)

    def tally(self, unit: Sequence[Record]) -> dict[str, float]:
        right = [record.score == 1 for record in unit]
        return {
            f"{unit[0].group}: questions": len(unit),
            f"{unit[0].group}: right": sum(right),
            f"{unit[0].group}: pictures": 1,
            f"{unit[0].group}: both right": all(right),
            "questions": len(unit),
            "unparsable": sum(record.said is None for record in unit),
        }

    def metrics(self, totals: Totals) -> dict[str, np.ndarray]:
        scores = {
            category: ratio(totals[f"{category}: right"], totals[f"{category}: questions"])
            + ratio(totals[f"{category}: both right"], totals[f"{category}: pictures"])
            for category in (*PERCEPTION, *COGNITION)
            if f"{category}: pictures" in totals
        }
        perception, cognition = (
            sum((scores[category] for category in part if category in scores), np.zeros(()))
            for part in (PERCEPTION, COGNITION)
        )
        return {
            "perception": perception,
            "cognition": cognition,
            **scores,
            "unparsable": ratio(totals["unparsable"], totals["questions"]),
        }

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns a file for each subtask, as the benchmark's own tool takes them.

        A line is the picture's text file, the question, the true answer, and the model's, with tabs between.
        """
        files: dict[str, str] = defaultdict(str)
        for unit in units_of(records).values():  # the tool takes two lines at a time
            for record in unit:
                asked = record.question.removeprefix(IMAGE).removesuffix(SHORT_ANSWER) + YES_OR_NO
                line = (
                    f"{PurePosixPath(record.id).stem}.txt",
                    asked,
                    record.answers[0].capitalize(),
                    record.prediction,
                )
                files[f"{record.group}.txt"] += "\t".join(" ".join(field.split()) for field in line) + "\n"
        return dict(files)


def said_in(prediction: str) -> str | None:
    """Returns "yes" or "no" as the benchmark's own tool reads an answer; None where it reads neither."""
    text = prediction.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return next((word for word in ("yes", "no") if word in text[:4]), None)


def _question(
    picture: str, category: str, asked: str, answer: object, image: Path | StoredPicture, where: str
) -> Question:
    true = one_of({"answer": answer}, "answer", ("Yes", "No", "yes", "no"), where)
    text = about_picture(asked, where) + SHORT_ANSWER
    return Question(picture, text, (image,), (true.lower(),), unit=picture, group=category)


def _answer_files(category: str, picture: str) -> tuple[str, str]:
    """Returns where the questions about a picture and their true answers may stand."""
    file = f"{PurePosixPath(picture).stem}.txt"
    return f"{RELEASE}/{category}/questions_answers_YN/{file}", f"{RELEASE}/{category}/{file}"


def _truths(path: Path) -> dict[str, str]:
    """Returns the true answer to each question of a file of the benchmark's release."""
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        asked, tab, answer = line.strip().partition("\t")
        if line.strip():
            if not tab:
                raise UserError(
                    f"{path}, line {number}: got {line[:80]!r}, a question, a tab and an answer are expected"
                )
            found[_key(asked.replace(YES_OR_NO, ""))] = answer.strip()
    return found


def _key(asked: str) -> str:
    """Returns a question so that it is found, whether or not two spaces stand between its sentences."""
    return " ".join(asked.split())

"""VizWiz: questions of blind people about the pictures that they took (arXiv 1802.08218)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style
from data.benchmarks.columns import id_of, rows_of, stored_pictures, text_of, texts_of
from data.benchmarks.metrics.vqa_accuracy import check_answers, normalise, vqa_accuracy
from data.benchmarks.place import Place, StoredPicture, read_json_lines
from data.benchmarks.prompts import SHORT_ANSWER, about_picture, without_suffix
from modeling.user_error import UserError

QUESTIONS = "llava_test.jsonl"
SUFFIX = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT_ANSWER


class VizWiz(Benchmark):
    """A word or a phrase, or "unanswerable", scored by the soft accuracy of VQA, over the 4,319 validation questions.

    Papers print test, whose answers are not published (`vizwiz_test`). Only the first letter of a question is large, as
    LLaVA and lmms-eval ask it. A question is called by its picture, of which it is the only one. Both styles of prompts
    are the same.
    """

    name = "vizwiz"
    title = "VizWiz val"
    folders = ("vizwiz", "VizWiz-VQA")
    # lmms-eval names no limit.
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 128}

    def questions(self, place: Place, style: Style) -> list[Question]:
        if place.file(QUESTIONS):
            raise UserError(f"{place}: LLaVA's files hold test, whose answers are not published; ask for vizwiz_test")
        return _of_table(place, "val", with_answers=True)

    def judge(self, question: Question, prediction: str) -> Judgement:
        return Judgement(vqa_accuracy(prediction, question.answers), normalise(prediction) or None)

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns the list that EvalAI's challenge 2185 takes."""
        answers = [{"image": f"{record.unit}.jpg", "answer": normalise(record.prediction)} for record in records]
        return {f"{self.name}.json": json.dumps(answers)}


class VizWizTest(VizWiz):
    """The 8,000 test questions, which papers print. EvalAI's challenge 2185 scores the submission."""

    name = "vizwiz_test"
    title = "VizWiz test"

    def questions(self, place: Place, style: Style) -> list[Question]:
        if not place.file(QUESTIONS):
            return _of_table(place, "test", with_answers=False)
        path = place.needed_file(QUESTIONS)
        found = []
        for number, row in enumerate(read_json_lines(path, ("image", "text")), start=1):
            where = f"{path}, row {number}"
            text = without_suffix(text_of(row, "text", where), SUFFIX, where)
            image = place.image(row["image"], "test")
            found.append(_question(row["image"], text, image, (), where))
        return found


def _of_table(place: Place, split: str, *, with_answers: bool) -> list[Question]:
    columns = ("question_id", "question", *(("answers",) if with_answers else ()))
    table = place.table((*columns, "image"), split=split)
    pictures = stored_pictures(table, "image", str(place))
    return [
        _question(
            id_of(row, "question_id", where),
            text_of(row, "question", where).capitalize(),
            picture,
            check_answers(texts_of(row, "answers", where), where) if with_answers else (),
            where,
        )
        for picture, (where, row) in zip(pictures, rows_of(table, columns, str(place)), strict=True)
    ]


def _question(picture: str, text: str, image: Path | StoredPicture, answers: tuple[str, ...], where: str) -> Question:
    """Returns the question about the picture of this name, with or without its ending."""
    unit = PurePosixPath(picture).stem
    return Question(unit, about_picture(text, where) + SUFFIX, (image,), answers, unit)

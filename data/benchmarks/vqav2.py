"""VQAv2: short answers to questions about COCO's pictures (arXiv 1612.00837)."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style
from data.benchmarks.columns import id_of, number_of, one_of, rows_of, stored_pictures, text_of, texts_of
from data.benchmarks.metrics.vqa_accuracy import check_answers, normalise, vqa_accuracy
from data.benchmarks.place import Place, StoredPicture, checked, read_json_lines
from data.benchmarks.prompts import SHORT_ANSWER, about_picture, without_suffix
from modeling.user_error import UserError

QUESTIONS = "llava_vqav2_mscoco_test-dev2015.jsonl"
ALL_IDS = "llava_vqav2_mscoco_test2015.jsonl"
TYPES = ("yes/no", "number", "other")
"""Of answers."""


class Vqav2(Benchmark):
    """A word or a phrase, scored by the soft accuracy of VQA, over the 214,354 questions of the validation part.

    The accuracy of each type of answers stands beside. Papers print test-dev, whose answers are not published
    (`vqav2_testdev`). LLaVA was trained on pictures of the validation part: compare models by it, and say "val".

    All answers are normalised as by LLaVA. The official scorer leaves them as they are where all ten people agree, and
    lmms-eval normalises true answers less. Both change little. Both styles of prompts are the same.
    """

    name = "vqav2"
    title = "VQAv2 val"
    folders = ("vqav2", "VQAv2")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 16}
    numeric_ids = True

    def questions(self, place: Place, style: Style) -> list[Question]:
        if place.file(QUESTIONS):
            raise UserError(
                f"{place}: LLaVA's files hold test-dev, whose answers are not published; ask for vqav2_testdev"
            )
        return _of_table(place, "validation", with_answers=True)

    def judge(self, question: Question, prediction: str) -> Judgement:
        return Judgement(vqa_accuracy(prediction, question.answers), normalise(prediction) or None)

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns the list that the official scorer takes."""
        return {"vqav2_val2014.json": json.dumps([_answer(record) for record in records])}


class Vqav2TestDev(Vqav2):
    """The 107,394 questions of test-dev, which papers print. EvalAI's challenge 830 scores the submission.

    In LLaVA's layout the submission names all questions of test2015, as the server asks, with "" where none was asked.
    The Hub's layout has no list of them: there it names those that were asked.
    """

    name = "vqav2_testdev"
    title = "VQAv2 test-dev"

    def questions(self, place: Place, style: Style) -> list[Question]:
        if not place.file(QUESTIONS):
            return _of_table(place, "testdev", with_answers=False)
        path = place.needed_file(QUESTIONS)
        of_server = set(_all_ids(place))
        found = []
        for number, row in enumerate(read_json_lines(path, ("question_id", "image", "text")), start=1):
            where = f"{path}, row {number}"
            identifier = number_of(row, "question_id", where)
            if identifier not in of_server:
                raise UserError(f"{where}: question_id: {ALL_IDS} has no question {identifier}")
            text = without_suffix(text_of(row, "text", where), SHORT_ANSWER, where)
            image = place.image(row["image"], "test2015")
            found.append(_question(identifier, text, image, row["image"], where))
        return found

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns the list that the server takes."""
        answers = [_answer(record) for record in records]
        if place.file(QUESTIONS):
            said = {answer["question_id"]: answer["answer"] for answer in answers}
            answers = [{"question_id": int(one), "answer": said.get(int(one), "")} for one in _all_ids(place)]
        return {"vqav2_test-dev2015.json": json.dumps(answers)}


def _of_table(place: Place, split: str, *, with_answers: bool) -> list[Question]:
    columns = ("question_id", "image_id", "question", *(("answers", "answer_type") if with_answers else ()))
    table = place.table((*columns, "image"), split=split)
    pictures = stored_pictures(table, "image", str(place))
    found = []
    for picture, (where, row) in zip(pictures, rows_of(table, columns, str(place)), strict=True):
        answers: tuple[str, ...] = ()
        if with_answers:
            people = row["answers"] if isinstance(row["answers"], list) else [row["answers"]]
            texts = [checked(person, ("answer",), f"{where}: answers")["answer"] for person in people]
            answers = check_answers(texts_of({"answers": texts}, "answers", where), where)
        group = one_of(row, "answer_type", TYPES, where) if with_answers else ""
        identifier, text = number_of(row, "question_id", where), text_of(row, "question", where)
        found.append(_question(identifier, text, picture, id_of(row, "image_id", where), where, answers, group))
    return found


def _question(
    identifier: str,
    text: str,
    image: Path | StoredPicture,
    picture: str,
    where: str,
    answers: tuple[str, ...] = (),
    group: str = "",
) -> Question:
    """Returns a question about the picture of this file name or number. COCO's file names end with the number."""
    number = re.search("[0-9]{1,18}$", PurePosixPath(picture).stem)
    unit = str(int(number[0])) if number else picture
    return Question(identifier, about_picture(text, where) + SHORT_ANSWER, (image,), answers, unit, group)


def _all_ids(place: Place) -> list[str]:
    path = place.needed_file(ALL_IDS)
    rows = read_json_lines(path, ("question_id",))
    return [number_of(row, "question_id", f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def _answer(record: Record) -> dict:
    return {"question_id": int(record.id), "answer": normalise(record.prediction)}

"""GQA, its balanced test-dev questions: how things in a picture relate (arXiv 1902.09506)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import ClassVar

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style
from data.benchmarks.columns import id_of, rows_of, stored_pictures, text_of
from data.benchmarks.place import Place, checked, read_json, read_json_lines
from data.benchmarks.prompts import SHORT_ANSWER, about_picture, without_suffix
from modeling.user_error import UserError

QUESTIONS = "llava_gqa_testdev_balanced.jsonl"
ANSWERS = (
    "data/testdev_balanced_questions.json",
    "data/questions1.2/testdev_balanced_questions.json",
    "data/questions/testdev_balanced_questions.json",
)


class Gqa(Benchmark):
    """A word or a phrase, over the 12,578 balanced test-dev questions. Accuracy is what papers print.

    An answer in lower case, without the full stops at its end, must equal the true one, as in LLaVA's evaluation.
    lmms-eval ignores all punctuation. Both styles of prompts are the same.
    """

    name = "gqa"
    title = "GQA"
    folders = ("gqa", "GQA")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 16}

    def questions(self, place: Place, style: Style) -> list[Question]:
        return self._of_llava(place) if place.file(QUESTIONS) else self._of_tables(place)

    def _of_llava(self, place: Place) -> list[Question]:
        path = place.needed_file(QUESTIONS)
        answers = place.needed_file(*ANSWERS)
        truths = checked(read_json(answers), (), str(answers))
        found = []
        for number, row in enumerate(read_json_lines(path, ("question_id", "image", "text")), start=1):
            where = f"{path}, row {number}"
            identifier = id_of(row, "question_id", where)
            if identifier not in truths:
                raise UserError(f"{where}: question_id: {answers} has no question {identifier!r}")
            of_answer = f"{answers}, question {identifier}"
            text = without_suffix(text_of(row, "text", where), SHORT_ANSWER, where)
            found.append(
                Question(
                    id=identifier,
                    text=about_picture(text, where) + SHORT_ANSWER,
                    images=(place.image(row["image"], "data/images"),),
                    answers=(text_of(checked(truths[identifier], ("answer",), of_answer), "answer", of_answer),),
                    unit=PurePosixPath(row["image"]).stem,
                )
            )
        return found

    def _of_tables(self, place: Place) -> list[Question]:
        columns = ("id", "imageId", "question", "answer")
        table = place.table(columns, split="testdev", config="testdev_balanced_instructions")
        table_of_pictures = place.table(("id", "image"), split="testdev", config="testdev_balanced_images")
        stored = stored_pictures(table_of_pictures, "image", f"{place}, testdev_balanced_images")
        named = rows_of(table_of_pictures, ("id",), f"{place}, testdev_balanced_images")
        pictures = {id_of(row, "id", where): picture for picture, (where, row) in zip(stored, named, strict=True)}
        found = []
        for where, row in rows_of(table, columns, f"{place}, testdev_balanced_instructions"):
            picture = id_of(row, "imageId", where)
            if picture not in pictures:
                raise UserError(f"{where}: imageId: testdev_balanced_images has no picture {picture!r}")
            found.append(
                Question(
                    id=id_of(row, "id", where),
                    text=about_picture(text_of(row, "question", where), where) + SHORT_ANSWER,
                    images=(pictures[picture],),
                    answers=(text_of(row, "answer", where),),
                    unit=picture,
                )
            )
        return found

    def judge(self, question: Question, prediction: str) -> Judgement:
        said = said_in(prediction)
        return Judgement(float(said == question.answers[0]), said or None)

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns the predictions that the official `eval.py` takes."""
        predictions = [{"questionId": record.id, "prediction": said_in(record.prediction)} for record in records]
        return {"testdev_balanced_predictions.json": json.dumps(predictions)}


def said_in(prediction: str) -> str:
    """Returns an answer as the official scorer is given it."""
    return prediction.strip().rstrip(".").lower()

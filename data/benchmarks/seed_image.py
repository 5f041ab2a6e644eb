"""SEED-Bench, its questions about pictures (arXiv 2307.16125)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style
from data.benchmarks.columns import id_of, number_of, one_of, rows_of, stored_pictures, text_of
from data.benchmarks.metrics.letters import single_letter
from data.benchmarks.place import Place, checked, read_json, read_json_lines
from data.benchmarks.prompts import OPTION_LETTER, about_picture, without_suffix
from modeling.user_error import UserError

LETTERS = "ABCD"
CHOICES = {letter: f"choice_{letter.lower()}" for letter in LETTERS}
"""Letter of an option -> the column of its text."""
TYPES = {
    1: "Scene Understanding",
    2: "Instance Identity",
    3: "Instance Attributes",
    4: "Instance Location",
    5: "Instances Counting",
    6: "Spatial Relation",
    7: "Instance Interaction",
    8: "Visual Reasoning",
    9: "Text Understanding",
}
"""What questions about pictures ask for. Questions about videos have the numbers from 10."""
FIELDS = ("question_id", "question", *CHOICES.values(), "answer", "data_type", "data_id", "question_type_id")
LLAVA_FILE = "llava-seed-bench.jsonl"


class SeedImage(Benchmark):
    """The letter of an option, over the 14,233 questions about a picture, in all and for each of the nine types.

    The whole answer must be the letter, as in LLaVA's scorer; lmms-eval looks at its first sign alone. LLaVA-1.5's
    paper prints the accuracy over pictures and videos together, which is some 8 points lower; most later papers print
    this one. Both styles of prompts are the same.
    """

    name = "seed_image"
    title = "SEED-Bench image"
    folders = ("seed_bench", "SEED-Bench")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 128}
    numeric_ids = True

    def questions(self, place: Place, style: Style) -> list[Question]:
        return self._of_llava(place) if place.file(LLAVA_FILE) else self._of_table(place)

    def _of_llava(self, place: Place) -> list[Question]:
        path, truths = place.needed_file(LLAVA_FILE), _truths(place)
        found = []
        for number, row in enumerate(read_json_lines(path, ("question_id", "image", "text"))):
            where = f"{path}, question {number}"
            truth = truths.get(id_of(row, "question_id", where))
            if truth is None:
                raise UserError(f"{where}: question_id: got {row['question_id']!r:.80}, which SEED-Bench.json lacks")
            if _about_picture(truth, where):
                text = without_suffix(text_of(row, "text", where), OPTION_LETTER, where)
                found.append(_question(truth, text, place.image(row["image"], "."), where))
        return found

    def _of_table(self, place: Place) -> list[Question]:
        table = place.table((*FIELDS, "image"), split="test")
        pictures = stored_pictures(table, "image", str(place))
        found = []
        for picture, (where, row) in zip(pictures, rows_of(table, FIELDS, str(place)), strict=True):
            if _about_picture(row, where):
                options = "".join(f"\n{letter}. {text_of(row, name, where)}" for letter, name in CHOICES.items())
                text = text_of(row, "question", where) + options
                found.append(_question(row, text, picture, where))
        return found

    def judge(self, question: Question, prediction: str) -> Judgement:
        said = single_letter(prediction.strip(), LETTERS)
        return Judgement(float(said in question.answers), said)

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns the lines that LLaVA's converter writes for the leaderboard, of the questions about pictures."""
        lines = [json.dumps({"question_id": record.id, "prediction": record.prediction}) for record in records]
        return {f"{self.name}.jsonl": "".join(f"{line}\n" for line in lines)}


def _truths(place: Place) -> dict[str, dict]:
    """Returns the questions of SEED-Bench.json by their ids. Those about pictures have all of FIELDS."""
    path = place.needed_file("SEED-Bench.json")
    questions = checked(read_json(path), ("questions",), str(path))["questions"]
    if not isinstance(questions, list):
        raise UserError(f"{path}: questions: got {type(questions).__name__}, a list is expected")
    found = {}
    for number, question in enumerate(questions):
        where = f"{path}, question {number}"
        checked(question, FIELDS, where)
        found[id_of(question, "question_id", where)] = question
    return found


def _about_picture(row: Mapping[str, Any], where: str) -> bool:
    if row["data_type"] not in ("image", "video"):
        raise UserError(f"{where}: data_type: got {row['data_type']!r:.80}, allowed: image, video")
    return row["data_type"] == "image"


def _question(row: Mapping[str, Any], text: str, image: Any, where: str) -> Question:
    kind = row["question_type_id"]
    if not isinstance(kind, int) or kind not in TYPES:
        raise UserError(f"{where}: question_type_id: got {kind!r:.80}, allowed: 1 to {max(TYPES)}")
    return Question(
        id=number_of(row, "question_id", where),
        text=about_picture(text, where) + OPTION_LETTER,
        images=(image,),
        answers=(one_of(row, "answer", LETTERS, where),),
        unit=id_of(row, "data_id", where),
        group=TYPES[kind],
        choices={letter: text_of(row, name, where) for letter, name in CHOICES.items()},
    )

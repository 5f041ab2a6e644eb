"""TextVQA: questions about what is written in a picture (arXiv 1904.08920)."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Style
from data.benchmarks.columns import id_of, rows_of, stored_pictures, text_of, texts_of
from data.benchmarks.metrics.vqa_accuracy import check_answers, normalise, vqa_accuracy
from data.benchmarks.place import Place, StoredPicture, checked, read_json, read_json_lines
from data.benchmarks.prompts import SHORT_ANSWER, about_picture, without_suffix
from modeling.user_error import UserError

QUESTIONS = "llava_textvqa_val_v051_ocr.jsonl"
ANSWERS = "TextVQA_0.5.1_val.json"
OCR = "\nReference OCR token: "


class TextVqa(Benchmark):
    """A word or a phrase, scored by the soft accuracy of VQA, over the 5,000 validation questions.

    The model reads the picture alone, as in lmms-eval's default. `textvqa_ocr` also tells it what an OCR system read,
    as in LLaVA's papers, which gives some ten points more: never compare the two. Only the first letter of a question
    is large, as LLaVA and lmms-eval ask it. A question is called by its picture's id, so several have the same one.
    Both styles of prompts are the same.
    """

    name = "textvqa"
    title = "TextVQA"
    folders = ("textvqa",)
    # lmms-eval names no limit.
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 128}
    with_ocr: ClassVar[bool] = False

    def questions(self, place: Place, style: Style) -> list[Question]:
        return self._of_llava(place) if place.file(QUESTIONS) else self._of_table(place)

    def _of_llava(self, place: Place) -> list[Question]:
        path = place.needed_file(QUESTIONS)
        truths = _truths(place)
        found = []
        for number, row in enumerate(read_json_lines(path, ("question_id", "image", "text")), start=1):
            where = f"{path}, row {number}"
            picture = id_of(row, "question_id", where)
            text = without_suffix(text_of(row, "text", where), SHORT_ANSWER, where)
            asked, ocr, tokens = text.partition(OCR)
            if not ocr:
                raise UserError(f"{where}: text: got {text[-80:]!r}, OCR tokens after {OCR.strip()!r} are expected")
            if (picture, asked.lower()) not in truths:
                raise UserError(f"{where}: {ANSWERS} has no question {asked!r} about picture {picture!r}")
            image = place.image(row["image"], "train_images")
            found.append(self._question(picture, asked, tokens, image, truths[picture, asked.lower()], where))
        return found

    def _of_table(self, place: Place) -> list[Question]:
        columns = ("image_id", "question", "answers", *(("ocr_tokens",) if self.with_ocr else ()))
        table = place.table((*columns, "image"), split="validation")
        stored = stored_pictures(table, "image", str(place))
        found = []
        for image, (where, row) in zip(stored, rows_of(table, columns, str(place)), strict=True):
            asked = text_of(row, "question", where).capitalize()
            tokens = ", ".join(texts_of(row, "ocr_tokens", where)) if self.with_ocr and row["ocr_tokens"] != [] else ""
            answers = check_answers(texts_of(row, "answers", where), where)
            found.append(self._question(id_of(row, "image_id", where), asked, tokens, image, answers, where))
        return found

    def _question(
        self, picture: str, asked: str, tokens: str, image: Path | StoredPicture, answers: tuple[str, ...], where: str
    ) -> Question:
        text = asked + OCR + tokens if self.with_ocr else asked
        return Question(picture, about_picture(text, where) + SHORT_ANSWER, (image,), answers, unit=picture)

    def judge(self, question: Question, prediction: str) -> Judgement:
        return Judgement(vqa_accuracy(prediction, question.answers), normalise(prediction) or None)


class TextVqaOcr(TextVqa):
    """TextVQA, and the prompt holds what an OCR system read in the picture. LLaVA's papers print this."""

    name = "textvqa_ocr"
    title = "TextVQA (OCR tokens)"
    with_ocr = True


def _truths(place: Place) -> dict[tuple[str, str], tuple[str, ...]]:
    """Returns the ten answers to each question, by the picture's id and the question in small letters."""
    path = place.needed_file(ANSWERS)
    rows = checked(read_json(path), ("data",), str(path))["data"]
    if not isinstance(rows, list):
        raise UserError(f"{path}: data: got {type(rows).__name__}, a list is expected")
    found = {}
    for number, row in enumerate(rows):
        where = f"{path}, data {number}"
        checked(row, ("image_id", "question", "answers"), where)
        answers = check_answers(texts_of(row, "answers", where), where)
        found[id_of(row, "image_id", where), text_of(row, "question", where).lower()] = answers
    return found

"""DocVQA: questions about scanned pages (arXiv 2007.00398)."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Style, Totals, ratio
from data.benchmarks.columns import id_of, rows_of, stored_pictures, text_of, texts_of
from data.benchmarks.metrics.anls import anls
from data.benchmarks.place import Place
from data.benchmarks.prompts import SHORT_ANSWER, about_picture

FIELDS = ("questionId", "question", "answers", "docId")


class DocVqa(Benchmark):
    """A few words of a page, over the 5,349 questions of the validation. Papers print ANLS, in %.

    An answer scores its similarity to the most similar true answer, 1 - edit distance / length of the longer one, where
    that is 0.5 or more. Case and repeated spaces do not count. Papers often print the test split, whose answers are not
    published. It lies in the Hub's layout alone. Both styles of prompts are the same.
    """

    name = "docvqa"
    title = "DocVQA val"
    folders = ("docvqa", "DocVQA")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 128}

    def questions(self, place: Place, style: Style) -> list[Question]:
        table = place.table((*FIELDS, "image"), split="validation", config="DocVQA")
        pictures = stored_pictures(table, "image", str(place))
        return [
            Question(
                id=id_of(row, "questionId", where),
                text=about_picture(text_of(row, "question", where), where) + SHORT_ANSWER,
                images=(picture,),
                answers=texts_of(row, "answers", where),
                unit=id_of(row, "docId", where),
            )
            for picture, (where, row) in zip(pictures, rows_of(table, FIELDS, str(place)), strict=True)
        ]

    def judge(self, question: Question, prediction: str) -> Judgement:
        return Judgement(anls(prediction, question.answers), prediction.strip() or None)

    def metrics(self, totals: Totals) -> dict[str, np.ndarray]:
        return {"ANLS": ratio(totals["all score"], totals["all count"])}

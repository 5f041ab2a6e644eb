"""Captions: COCO's validation pictures of 2017 (arXiv 1504.00325), and NoCaps (arXiv 1812.08658)."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style, Totals, ratio
from data.benchmarks.columns import id_of, rows_of, stored_pictures, texts_of
from data.benchmarks.metrics.cider import Cider
from data.benchmarks.place import Place
from data.benchmarks.prompts import IMAGE
from modeling.user_error import UserError

PROMPT = "Provide a one-sentence caption for the provided image."
CIDER = "CIDEr (no PTB)"


class Captions(Benchmark):
    """One sentence about a picture, compared with those of several people by CIDEr-D.

    The metric is 100 times the mean CIDEr-D, as papers print it: 110, not 1.10. Words are not those of the Penn
    Treebank tokenizer, which needs Java, so it differs a little from the official scorer's, and its name says so. The
    submission file is what that scorer takes.

    The files lie in the Hub's layout alone, as LLaVA has none. Both styles of prompts are lmms-eval's.

    Attributes:
        split: the split of the data set.
        id_column: the column that tells a picture's id.
        captions_column: the column of a picture's captions.
    """

    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 64, "lmms": 64}
    split: ClassVar[str]
    id_column: ClassVar[str]
    captions_column: ClassVar[str]

    def questions(self, place: Place, style: Style) -> list[Question]:
        texts = (self.id_column, self.captions_column)
        table = place.table((*texts, "image"), split=self.split)
        pictures = stored_pictures(table, "image", str(place))
        rows = list(rows_of(table, texts, str(place)))
        ids = [_picture_id(row, self.id_column, where) for where, row in rows]
        captions = [texts_of(row, self.captions_column, where) for where, row in rows]
        cider = Cider(captions)
        return [
            Question(
                id=identifier,
                text=IMAGE + PROMPT,
                images=(picture,),
                answers=references,
                unit=identifier,
                details={"cider": cider},
            )
            for identifier, picture, references in zip(ids, pictures, captions, strict=True)
        ]

    def judge(self, question: Question, prediction: str) -> Judgement:
        score = question.details["cider"].score(prediction, question.answers)
        return Judgement(score, prediction.strip() or None)

    def metrics(self, totals: Totals) -> dict[str, np.ndarray]:
        return {CIDER: ratio(totals["all score"], totals["all count"])}

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns the captions in COCO's format of results, which pycocoevalcap and the servers of both sets take."""
        results = [{"image_id": int(record.id), "caption": record.prediction} for record in records]
        return {f"{self.name}_results.json": json.dumps(results)}


class CocoCaptions(Captions):
    """COCO's 5,000 validation pictures of 2017, with five captions each. Papers print Karpathy's split more often."""

    name = "coco_captions"
    title = "COCO captions val2017"
    folders = ("coco_captions", "COCO-Caption2017")
    split = "val"
    id_column = "question_id"
    captions_column = "answer"


class NoCaps(Captions):
    """NoCaps' 4,500 validation pictures, with ten captions each. Many show things that COCO's captions never name."""

    name = "nocaps"
    title = "NoCaps val"
    folders = ("nocaps", "NoCaps")
    split = "validation"
    id_column = "image_id"
    captions_column = "annotations_captions"


def _picture_id(row: Mapping[str, Any], column: str, where: str) -> str:
    """Returns the number of a picture, which the column holds, or the name of its file. Raises UserError if neither."""
    name = id_of(row, column, where)
    number = re.fullmatch(r"(?:\w*_)?0*([0-9]{1,18})(?:\.jpg)?", name)
    if number is None:
        raise UserError(f"{where}: {column}: got {name!r:.80}, a picture's number is expected, or a file named by it")
    return number[1]

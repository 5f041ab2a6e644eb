"""POPE: is there such a thing in the picture? (arXiv 2305.10355)

Its three splits differ in how the things that are absent were chosen: at random, because they are frequent, or because
they go with what is there.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style, Totals, ratio
from data.benchmarks.columns import id_of, number_of, one_of, rows_of, stored_pictures, text_of
from data.benchmarks.place import Place, read_json_lines
from data.benchmarks.prompts import SHORT_ANSWER, about_picture, without_suffix
from modeling.user_error import UserError

SPLITS = ("adversarial", "popular", "random")
ANSWERS = ("yes", "no")
QUESTIONS = "llava_pope_test.jsonl"


class Pope(Benchmark):
    """Yes or no about a thing. Papers print the mean F1 of the three splits, which is the first metric.

    Answers are read as in LLaVA's evaluation: the first sentence says "no" if one of its words is No, not or no, and
    else "yes", whatever it says. `unparsable` is the share of answers without either word. lmms-eval counts an answer
    as wrong where it is not yes or no alone. Its yes-ratio is that of the true answers; here it is that of the model's.
    Both styles of prompts are the same.
    """

    name = "pope"
    title = "POPE"
    folders = ("pope", "POPE")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 128, "lmms": 128}
    numeric_ids = True

    def questions(self, place: Place, style: Style) -> list[Question]:
        return self._of_llava(place) if place.file(QUESTIONS) else self._of_table(place)

    def _of_llava(self, place: Place) -> list[Question]:
        path = place.needed_file(QUESTIONS)
        labels = {
            split: _read_labels(place.needed_file(f"coco/coco_pope_{split}.json", f"coco_pope_{split}.json"))
            for split in SPLITS
        }
        found = []
        for number, row in enumerate(read_json_lines(path, ("question_id", "image", "text", "category")), start=1):
            where = f"{path}, row {number}"
            split = one_of(row, "category", SPLITS, where)
            # Labels belong to questions by their order, and not by their ids.
            labelled, label = next(labels[split], (None, ""))
            if labelled != row["image"]:
                raise UserError(
                    f"{where}: is about picture {row['image']!r}, the next label of {split} is about {labelled!r}"
                )
            found.append(
                Question(
                    id=number_of(row, "question_id", where),
                    text=_asked(without_suffix(text_of(row, "text", where), SHORT_ANSWER, where), where),
                    images=(place.image(row["image"], "val2014", "coco/val2014"),),
                    answers=(label,),
                    unit=PurePosixPath(row["image"]).stem,
                    group=split,
                )
            )
        return found

    def _of_table(self, place: Place) -> list[Question]:
        columns = ("question_id", "question", "answer", "category", "image_source")
        table = place.table((*columns, "image"), split="test")
        pictures = stored_pictures(table, "image", str(place))
        return [
            Question(
                id=number_of(row, "question_id", where),
                text=_asked(text_of(row, "question", where), where),
                images=(picture,),
                answers=(one_of(row, "answer", ANSWERS, where),),
                unit=PurePosixPath(id_of(row, "image_source", where)).stem,
                group=one_of(row, "category", SPLITS, where),
            )
            for picture, (where, row) in zip(pictures, rows_of(table, columns, str(place)), strict=True)
        ]

    def judge(self, question: Question, prediction: str) -> Judgement:
        said = said_in(prediction)
        return Judgement(float((said or "yes") == question.answers[0]), said)

    def tally(self, unit: Sequence[Record]) -> dict[str, float]:
        counted: dict[str, float] = defaultdict(float)
        for record in unit:
            for said in ANSWERS:
                for true in ANSWERS:
                    counted[f"{record.group}: said {said}, true {true}"] += (
                        said == (record.said or "yes") and true == record.answers[0]
                    )
            counted[f"{record.group}: unparsable"] += record.said is None
        return counted

    def metrics(self, totals: Totals) -> dict[str, np.ndarray]:
        splits = [split for split in SPLITS if f"{split}: unparsable" in totals]
        kinds = {name.partition(": ")[2] for name in totals}
        pooled = {kind: sum((totals[f"{split}: {kind}"] for split in splits), np.zeros(())) for kind in kinds}
        of_all = _measured(pooled)
        of_splits = {split: _measured({kind: totals[f"{split}: {kind}"] for kind in kinds}) for split in splits}
        of_each = {f"{split} {name}": value for split in splits for name, value in of_splits[split].items()}
        return {
            "F1": sum((of_splits[split]["F1"] for split in splits), np.zeros(())) / len(splits),
            "accuracy": of_all.pop("accuracy"),
            "pooled F1": of_all.pop("F1"),
            **of_all,
            **of_each,
        }


def said_in(prediction: str) -> str | None:
    """Returns "no" or "yes" as LLaVA's evaluation reads an answer, and None where it reads "yes" without that word."""
    words = prediction.partition(".")[0].replace(",", "").split(" ")
    if {"No", "not", "no"} & set(words):
        return "no"
    return "yes" if any(word.strip(" \n\t!?;:\"'").lower() == "yes" for word in words) else None


def _measured(counted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns metrics in % of how often each was said where each was true."""
    hits, false_alarms = counted["said yes, true yes"], counted["said yes, true no"]
    misses, rejections = counted["said no, true yes"], counted["said no, true no"]
    everything = hits + false_alarms + misses + rejections
    return {
        "accuracy": ratio(hits + rejections, everything),
        "F1": ratio(2 * hits, 2 * hits + false_alarms + misses),
        "precision": ratio(hits, hits + false_alarms),
        "recall": ratio(hits, hits + misses),
        "yes-ratio": ratio(hits + false_alarms, everything),
        "unparsable": ratio(counted["unparsable"], everything),
    }


def _read_labels(path: Path) -> Iterator[tuple[Any, str]]:
    """Gives the picture and the true answer of each label."""
    for number, row in enumerate(read_json_lines(path, ("image", "label")), start=1):
        yield row["image"], one_of(row, "label", ANSWERS, f"{path}, row {number}")


def _asked(question: str, where: str) -> str:
    return about_picture(question.strip(), where) + SHORT_ANSWER

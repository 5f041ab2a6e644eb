"""POPE: is there such a thing in the picture? (arXiv 2305.10355)

Its three splits differ in how the things that are absent were chosen: at random, because they are frequent, or because
they go with what is there.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style, Totals, ratio
from data.benchmarks.place import Place, StoredPicture, read_json_lines
from modeling.user_error import UserError

SPLITS = ("adversarial", "popular", "random")
SUFFIX = "\nAnswer the question using a single word or phrase."


class Pope(Benchmark):
    """Yes or no about a thing. Papers print the mean F1 of the three splits.

    Every answer without a "no" counts as "yes", as in LLaVA's evaluation. `unparsable` is the share of answers that
    hold neither word.
    """

    name = "pope"
    title = "POPE"
    folders = ("pope", "POPE")
    max_new_tokens = {"llava": 128, "lmms": 128}

    def questions(self, place: Place, style: Style) -> list[Question]:
        if place.file("llava_pope_test.jsonl"):
            return self._of_llava(place)
        return self._of_table(place)

    def _of_llava(self, place: Place) -> list[Question]:
        asked = read_json_lines(place.needed_file("llava_pope_test.jsonl"), ("question_id", "image", "text", "category"))
        labels = {
            split: read_json_lines(place.needed_file(f"coco/coco_pope_{split}.json", f"coco_pope_{split}.json"), ("label",))
            for split in SPLITS
        }
        found, seen = [], dict.fromkeys(SPLITS, 0)
        for row in asked:
            split = row["category"]
            if split not in SPLITS:
                raise UserError(f"{place}: got category {split!r}, allowed: {', '.join(SPLITS)}")
            if seen[split] == len(labels[split]):
                raise UserError(f"{place}: more questions of category {split} than the {seen[split]} labels")
            label = labels[split][seen[split]]["label"]  # labels belong to questions by their order, not by their ids
            seen[split] += 1
            image = place.image(row["image"], "val2014", "coco/val2014")
            found.append(
                Question(
                    id=str(row["question_id"]),
                    text="<image>\n" + row["text"],
                    images=(image,),
                    answers=(label,),
                    unit=row["image"],
                    group=split,
                )
            )
        return found

    def _of_table(self, place: Place) -> list[Question]:
        table = place.table(("question_id", "question", "answer", "image", "category", "image_source"), split="test")
        texts = table.remove_columns("image")
        return [
            Question(
                id=str(row["question_id"]),
                text="<image>\n" + row["question"] + SUFFIX,
                images=(StoredPicture(table, number, "image"),),
                answers=(row["answer"],),
                unit=row["image_source"],
                group=row["category"],
            )
            for number, row in enumerate(texts)
        ]

    def judge(self, question: Question, prediction: str) -> Judgement:
        said = read_answer(prediction)
        return Judgement(float((said or "yes") == question.answers[0]), said)

    def tally(self, unit: Sequence[Record]) -> dict[str, float]:
        counted: dict[str, float] = defaultdict(float)
        for record in unit:
            said, true = record.said or "yes", record.answers[0]
            counted[f"{record.group} said {said}, true {true}"] += 1
            counted["unparsable"] += record.said is None
        return counted

    def metrics(self, totals: Totals) -> dict[str, np.ndarray]:
        return {}  # sketch

"""MMBench in English and Chinese: questions with options, each asked once for every rotation (arXiv 2307.06281)."""

import base64
import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pandas as pd
import pyarrow.compute as pc

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style, Totals, ratio
from data.benchmarks.columns import number_of, one_of, rows_of, stored_pictures, text_of
from data.benchmarks.metrics.letters import named_option
from data.benchmarks.place import MAX_FILE, Place, StoredPicture
from data.benchmarks.prompts import OPTION_LETTER, about_picture
from data.sample import EmbeddedFile
from data.sources.library import in_one_line
from modeling.user_error import UserError

LETTERS = "ABCD"
FIELDS = ("index", "question", "hint", *LETTERS, "answer")
L2_CATEGORY = ("l2-category", "L2-category")
"""What tables call the column of categories of the second level."""
FIRST_COPY = 1_000_000
"""A row whose index is k times that, plus the index of another row, asks its question with the options rotated."""
MISSING = ("", "nan", "none")
"""What stands for no text, in any case."""
LONGEST_INDEX = 16
"""In the column of pictures, a text of at most so many letters is the index of the row that holds the picture."""
LONGEST_PICTURE = 2**26
"""Letters of base64 that a picture may have."""


@dataclass(frozen=True)
class EncodedPicture(StoredPicture):
    """A picture that stands in a row as base64."""

    def read(self) -> EmbeddedFile:
        """Returns the picture as a file's bytes. Raises UserError where the text is not base64."""
        text = self.table.select_columns(self.column)[self.row][self.column]
        try:
            return EmbeddedFile(base64.b64decode(text, validate=True), str(self))
        except ValueError as error:  # binascii.Error is one; signs beyond ASCII raise another
            raise UserError(f"{self}: not base64 ({error})") from error


class MmBench(Benchmark):
    """The letter of an option. Papers print `circular`: a question is right if it is right with all its rotations.

    `vanilla` is the accuracy over the questions as they are, which is higher. Circular accuracy stands beside for each
    category of the second level. `unparsable` is the share of answers that name no option.

    Letters are found by VLMEvalKit's static rules. What these cannot read is wrong here, where the official server asks
    ChatGPT, so that its accuracy is a little higher for models that do not answer with a letter. The server takes the
    submission's table saved as .xlsx.

    The two styles of prompts differ: lmms-eval's has a sentence before the options and an empty line after them, and in
    Chinese another request.

    Attributes:
        files: names of LLaVA's file.
        config: the language, as the Hub's configurations are called.
        requests: what each style says after the options.
        introduction: what lmms-eval says before the options.
    """

    numeric_ids = True
    files: ClassVar[tuple[str, ...]]
    config: ClassVar[str]
    requests: ClassVar[Mapping[Style, str]]
    introduction: ClassVar[str]

    def questions(self, place: Place, style: Style) -> list[Question]:
        source = str(place.file(*self.files) or place)
        table, pictures, category = self._rows(place)
        found: list[Question] = []
        seen: set[str] = set()
        for picture, (where, row) in zip(pictures, rows_of(table, table.column_names, source), strict=True):
            index = number_of(row, "index", where)
            if index in seen:
                raise UserError(f"{where}: index: got {index} a second time, each row has its own")
            seen.add(index)
            choices = _choices(row, where)
            found.append(
                Question(
                    id=index,
                    text=about_picture(self._text(row, choices, style, where), where),
                    images=(picture,),
                    answers=(one_of(row, "answer", list(choices), where),),
                    unit=str(int(index) % FIRST_COPY),
                    group=text_of(row, category, where),
                    choices=choices,
                )
            )
        return found

    def _rows(self, place: Place) -> tuple[datasets.Dataset, Sequence[StoredPicture], str]:
        """Returns a table of texts, the picture of each row, and what the column of categories is called."""
        path = place.file(*self.files)
        table = _table_of_tsv(path) if path else place.table((*FIELDS, "image"), split="dev", config=self.config)
        where = str(path or place)
        _check_columns(table.column_names, where)
        category = next(name for name in L2_CATEGORY if name in table.column_names)
        pictures = _encoded_pictures(table, where) if path else stored_pictures(table, "image", where)
        return table.select_columns([*FIELDS, category]), pictures, category

    def _text(self, row: Mapping[str, Any], choices: Mapping[str, str], style: Style, where: str) -> str:
        """Returns a question with its hint and options, as a style asks it."""
        hint, question = _optional_text(row, "hint", where), text_of(row, "question", where)
        options = "".join(f"\n{letter}. {choice}" for letter, choice in choices.items())
        between, introduction = ("\n", "") if style == "llava" else (" ", f" {self.introduction}")
        return (hint + between if hint else "") + question + introduction + options + self.requests[style]

    def judge(self, question: Question, prediction: str) -> Judgement:
        said = named_option(prediction, question.choices)
        return Judgement(float(said in question.answers), said)

    def tally(self, unit: Sequence[Record]) -> dict[str, float]:
        """Counts a question once, with all its rotations, and for `vanilla` and `unparsable` each answer."""
        counted: dict[str, float] = defaultdict(float)
        right = float(all(record.score == 1 for record in unit))
        for name in filter(None, ("circular", unit[0].group)):
            counted[f"{name} score"] += right
            counted[f"{name} count"] += 1
        for record in unit:
            counted["unparsable score"] += record.said is None
            counted["unparsable count"] += 1
            if int(record.id) < FIRST_COPY:
                counted["vanilla score"] += record.score or 0.0
                counted["vanilla count"] += 1
        return counted

    def metrics(self, totals: Totals) -> dict[str, np.ndarray]:
        first = ("circular", "vanilla", "unparsable")
        names = [name.removesuffix(" count") for name in totals if name.endswith(" count")]
        return {
            name: ratio(totals[f"{name} score"], totals[f"{name} count"])
            for name in (*(name for name in first if name in names), *sorted(set(names) - set(first)))
        }

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns a tab-separated table of all rows with their predictions, empty where a row was not asked."""
        table, _, _ = self._rows(place)
        predictions = {record.id: record.prediction for record in records}
        columns = ("index", "question", *LETTERS, "answer")
        file = io.StringIO()
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([*columns, "prediction"])
        for where, row in rows_of(table, columns, str(place)):
            writer.writerow([*row.values(), predictions.get(number_of(row, "index", where), "")])
        return {f"{self.name}.tsv": file.getvalue()}


class MmBenchEn(MmBench):
    """The 4,377 rows of the English dev part of July 2023, rotations among them, or the 4,329 of October 2023."""

    name = "mmbench_en"
    title = "MMBench EN dev"
    folders = ("mmbench", "MMBench")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 1024, "lmms": 1024}
    files = ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv")
    config = "en"
    requests: ClassVar[Mapping[Style, str]] = {"llava": OPTION_LETTER, "lmms": "\n" + OPTION_LETTER}
    introduction = "There are several options:"


class MmBenchCn(MmBench):
    """The 4,329 rows of the Chinese dev part, rotations among them."""

    name = "mmbench_cn"
    title = "MMBench CN dev"
    folders = ("mmbench_cn", "MMBench")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 1024, "lmms": 256}
    files = ("mmbench_dev_cn_20231003.tsv",)
    config = "cn"
    requests: ClassVar[Mapping[Style, str]] = {
        "llava": "\n请直接回答选项字母。",
        "lmms": "\n\n请直接使用所提供的选项字母作为答案回答。",
    }
    introduction = "有如下几个选项："


def _table_of_tsv(path: Path) -> datasets.Dataset:
    """Returns the rows of a tab-separated file, all fields as the texts that they are."""
    if path.stat().st_size > MAX_FILE:
        raise UserError(f"{path}: has more than {MAX_FILE} bytes")
    with in_one_line(str(path)):
        names = list(pd.read_csv(path, sep="\t", nrows=0).columns)
        _check_columns(names, str(path))
        features = datasets.Features({name: datasets.Value("string") for name in names})
        return datasets.load_dataset(
            "csv", data_files=str(path), split="train", sep="\t", keep_default_na=False, features=features
        )


def _check_columns(there: Sequence[str], where: str) -> None:
    """Raises UserError where a column is missing."""
    for names in (*((name,) for name in (*FIELDS, "image")), L2_CATEGORY):
        if not set(names) & set(there):
            raise UserError(f"{where}: no column is called {names[0]!r}; they are {', '.join(there)}")


def _encoded_pictures(table: datasets.Dataset, where: str) -> list[StoredPicture]:
    """Returns the picture of each row of such a file. Copies may tell the index of the row that holds theirs."""
    lengths = pc.fill_null(pc.binary_length(table.data.column("image")), 0).to_pylist()
    rows = {index: row for row, index in enumerate(table["index"])}
    pictures: list[StoredPicture] = []
    for row, length in enumerate(lengths):
        holder = row
        if length > LONGEST_PICTURE:
            raise UserError(f"{where}, row {row}: image: got {length} letters, at most {LONGEST_PICTURE} are allowed")
        if length <= LONGEST_INDEX:
            index = table[row]["image"]
            holder = rows.get(index, row)
            if lengths[holder] <= LONGEST_INDEX:
                raise UserError(f"{where}, row {row}: image: got {index!r}, base64 or the index of a row is expected")
        pictures.append(EncodedPicture(table, holder, "image"))
    return pictures


def _choices(row: Mapping[str, Any], where: str) -> dict[str, str]:
    """Returns the options by their letters, up to the first that is missing."""
    choices: dict[str, str] = {}
    for letter in LETTERS:
        text = _optional_text(row, letter, where)
        if not text:
            break
        choices[letter] = text
    return choices


def _optional_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a text; "" where it is missing."""
    text = text_of(row, name, where) if row[name] is not None else ""
    return "" if text.lower() in MISSING else text

"""ScienceQA-IMG: questions from school with options, those that have a picture (arXiv 2209.09513)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from data.benchmarks.benchmark import Benchmark, Judgement, Question, Record, Style
from data.benchmarks.columns import id_of, one_of, rows_of, stored_pictures, text_of, texts_of
from data.benchmarks.metrics.letters import leading_letter
from data.benchmarks.place import Place, checked, read_json
from data.benchmarks.prompts import OPTION_LETTER, about_picture
from modeling.user_error import UserError

LETTERS = "ABCDE"
LLAVA_FILE = "llava_test_CQM-A.json"


class ScienceQaImg(Benchmark):
    """The letter of an option, over the 2,017 test problems with a picture. Accuracy is what papers print.

    An answer counts where it is the letter, begins with "X. ", or holds "The answer is X." once, as in LLaVA's scorer.
    An answer of another form is wrong; lmms-eval also takes "B." alone. Both styles of prompts are the same.

    The Hub's table has no ids: there, a question is called by the number of its row. So the submission, which is what
    LLaVA's scorer takes, is written in LLaVA's layout alone.
    """

    name = "scienceqa_img"
    title = "ScienceQA-IMG"
    folders = ("scienceqa", "ScienceQA")
    max_new_tokens: ClassVar[Mapping[Style, int]] = {"llava": 1024, "lmms": 16}

    def questions(self, place: Place, style: Style) -> list[Question]:
        return self._of_llava(place) if place.file(LLAVA_FILE) else self._of_table(place)

    def _of_llava(self, place: Place) -> list[Question]:
        path = place.needed_file(LLAVA_FILE)
        problems = read_json(path)
        if not isinstance(problems, list):
            raise UserError(f"{path}: got {type(problems).__name__}, a list of problems is expected")
        found = []
        for number, problem in enumerate(problems):
            where = f"{path}, problem {number}"
            checked(problem, ("id", "conversations"), where)
            if "image" not in problem:
                continue
            asked, answered = _turns(problem["conversations"], where)
            text = text_of(asked, "value", where).replace("<image>", "").strip()
            identifier = id_of(problem, "id", where)
            found.append(
                Question(
                    id=identifier,
                    text=about_picture(text, where) + OPTION_LETTER,
                    images=(place.image(problem["image"], "images/test"),),
                    answers=(one_of(answered, "value", LETTERS, where),),
                    unit=identifier,
                )
            )
        return found

    def _of_table(self, place: Place) -> list[Question]:
        texts = ("hint", "question", "choices", "answer")
        table = place.table((*texts, "image"), split="test", config="ScienceQA-IMG")
        pictures = stored_pictures(table, "image", str(place))
        found = []
        for number, (where, row) in enumerate(rows_of(table, texts, str(place))):
            hint, choices = row["hint"] and text_of(row, "hint", where), texts_of(row, "choices", where)
            letters = LETTERS[: len(choices)]
            if len(choices) > len(LETTERS):
                raise UserError(f"{where}: choices: got {len(choices)}, at most {len(LETTERS)} are allowed")
            if type(row["answer"]) is not int or row["answer"] not in range(len(choices)):
                raise UserError(f"{where}: answer: got {row['answer']!r:.80}, allowed: 0 to {len(choices) - 1}")
            context = f"Context: {hint}\n" if hint else ""
            options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
            found.append(
                Question(
                    id=str(number),
                    text=about_picture(context + text_of(row, "question", where) + options, where) + OPTION_LETTER,
                    images=(pictures[number],),
                    answers=(letters[row["answer"]],),
                    unit=str(number),
                )
            )
        return found

    def judge(self, question: Question, prediction: str) -> Judgement:
        said = leading_letter(prediction.strip(), LETTERS)
        return Judgement(float(said in question.answers), said)

    def submission(self, records: Sequence[Record], place: Place) -> dict[str, str]:
        """Returns LLaVA's answer file. Its scorer knows questions with a picture by the mark <image> in the prompt.

        Raises:
            UserError: the questions are not of LLaVA's file, so that they have other ids.
        """
        if place.file(LLAVA_FILE) is None:
            raise UserError(f"{place}: LLaVA's scorer of {self.name} knows the ids of {LLAVA_FILE} alone")
        answers = [
            {"question_id": record.id, "prompt": record.question, "text": record.prediction} for record in records
        ]
        return {f"{self.name}.jsonl": "".join(f"{json.dumps(answer)}\n" for answer in answers)}


def _turns(conversation: Any, where: str) -> tuple[dict, dict]:
    """Returns the question and the answer of a conversation, which must be of two turns."""
    if not isinstance(conversation, list) or len(conversation) != 2:
        raise UserError(f"{where}: conversations: got {conversation!r:.80}, a question and an answer are expected")
    asked, answered = (checked(turn, ("value",), f"{where}: conversations") for turn in conversation)
    return asked, answered

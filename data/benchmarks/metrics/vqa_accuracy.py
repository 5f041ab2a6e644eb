"""The soft accuracy of VQA (arXiv 1505.00468): an answer is as right as there are people who gave it."""

import re
from collections.abc import Sequence
from functools import lru_cache

from modeling.user_error import UserError

NUM_PEOPLE = 10
"""How many answered each question."""
_DELETED_OR_SPACE = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""As many periods are removed, by a mistake of the official scorer that is kept."""
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ARTICLES = ("a", "an", "the")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED)}
_CONTRACTED = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't oughtn't
    shan't shouldn't wasn't weren't won't wouldn't couldn't've hadn't've mightn't've shouldn't've wouldn't've
    could've might've must've not've should've would've
    he'd he'd've he's it'd it'd've it'll she'd've they'd they'd've they'll they're they've we'd've we've
    you'd you'd've you'll you're you've y'all y'all'll y'all'd've
    somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's
    how'd how'll how's what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's ma'am o'clock 'ow's'at 'twas
"""
"""Forms that get back an apostrophe that is left out. Those that are another word without it, as "we'll", do not."""
_CONTRACTIONS = {
    form[: mark.start()] + form[mark.end() :]: form for form in _CONTRACTED.split() for mark in re.finditer("'", form)
}


@lru_cache(maxsize=2**16)
def normalise(answer: str) -> str:
    """Returns an answer as the official scorer compares it: in lower case, without punctuation and articles, and with
    digits for small numbers."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Returns the mean of min(1, how many of the others gave this answer / 3) over each person left out, in [0, 1].

    Args:
        prediction: an answer.
        answers: what each person answered. At least one.
    """
    said = normalise(prediction)
    agreeing = sum(normalise(answer) == said for answer in answers)
    others = len(answers) - agreeing
    return (agreeing * min(3, agreeing - 1) + others * min(3, agreeing)) / (3 * len(answers))


def check_answers(answers: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Returns what people answered to one question. Raises UserError, with `where`, if there are not ten answers."""
    if len(answers) != NUM_PEOPLE:
        raise UserError(f"{where}: answers: got {len(answers)}, {NUM_PEOPLE} are expected")
    return answers


def _without_punctuation(text: str) -> str:
    cleaned = text
    for mark in _DELETED_OR_SPACE:
        deleted = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text) is not None
        cleaned = cleaned.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)

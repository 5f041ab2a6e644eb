"""Which option an answer means."""

import re
from collections.abc import Mapping

FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
"""How a word names an option beside the letter alone, in the order in which they are tried."""
ARTICLE_WORDS = 3
"""In an answer of more words than this, the word "A" is taken for an article."""


def single_letter(answer: str, letters: str) -> str | None:
    """Returns the letter that is the whole answer, as LLaVA's scorer of SEED-Bench wants it; None if it is none."""
    return answer if len(answer) == 1 and answer in letters else None


def leading_letter(answer: str, letters: str) -> str | None:
    """Returns the letter that an answer gives, as LLaVA's scorer of ScienceQA understands it; None if it gives none.

    The answer is a letter, or begins with "X. ", or holds "The answer is X." once. The last full stop may be any sign,
    as it may in LLaVA's scorer.
    """
    if len(answer) == 1:
        return single_letter(answer, letters)
    if answer[:1] in letters and answer[1:3] == ". ":
        return answer[0]
    stated = re.findall(r"The answer is ([A-Z]).", answer)
    return stated[0] if len(stated) == 1 and stated[0] in letters else None


def named_option(answer: str, choices: Mapping[str, str]) -> str | None:
    """Returns the letter of the option that an answer names; None if it names none, or several.

    These are the static rules of VLMEvalKit and lmms-eval for MMBench. No language model is asked. A word of the answer
    is a letter, or a letter in one of `FORMS`. Failing that, the answer holds the text of an option, in any case.

    Args:
        answer: the answer.
        choices: the text of each option, by its letter.
    """
    words = answer.split()
    for form in ("{}", *FORMS):
        named = [letter for letter in choices if form.format(letter) in words]
        article = form == "{}" and named == ["A"] and len(words) > ARTICLE_WORDS
        if len(named) == 1 and not article:
            return named[0]
    held = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return held[0] if len(held) == 1 else None

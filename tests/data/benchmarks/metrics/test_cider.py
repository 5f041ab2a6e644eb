"""CIDEr-D against its formula, written plainly."""

import math
import random

import pytest

from data.benchmarks.metrics.cider import Cider, words_of

CORPUS = [
    ["A red square.", "The square is red.", "a red red square on a red mat"],
    ["A big brown bear.", "A bear's head in the grass"],
    ["A bed with a bookshelf, and a window.", "A bedroom with a blue bed"],
    ["A stop sign on a corner", "A stop-sign, upside down."],
]


def cider_by_formula(caption: str, number: int, corpus: list[list[str]], sigma: float = 6.0) -> float:
    """10 · mean over n of mean over references of gaussian · Σ min(g(c), g(r)) · g(r) / (|g(c)| |g(r)|)."""
    tokens = [[words_of(reference) for reference in references] for references in corpus]
    words = words_of(caption)

    def grams(text: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

    def weight(gram: tuple[str, ...], text: list[str]) -> float:
        n = len(gram)
        pictures = sum(any(gram in grams(reference, n) for reference in references) for references in tokens)
        return grams(text, n).count(gram) * math.log(len(corpus) / max(1, pictures))

    by_length = []
    for n in (1, 2, 3, 4):
        cosines = []
        for reference in tokens[number]:
            mine, theirs = set(grams(words, n)), set(grams(reference, n))
            norm = math.sqrt(sum(weight(g, words) ** 2 for g in mine)) * math.sqrt(
                sum(weight(g, reference) ** 2 for g in theirs)
            )
            product = sum(min(weight(g, words), weight(g, reference)) * weight(g, reference) for g in mine & theirs)
            gaussian = math.exp(-((len(words) - len(reference)) ** 2) / (2 * sigma**2))
            cosines.append(gaussian * product / norm if norm else 0.0)
        by_length.append(sum(cosines) / len(cosines))
    return 10 * sum(by_length) / 4


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a WAVE.", ["a", "man", "riding", "a", "wave"]),
        ("the dog's t-shirt", ["the", "dog", "'s", "t-shirt"]),
        ("“Stop”: 2 signs!", ["stop", "2", "signs"]),
        ("- ... !", []),
        ("Ein Bär", ["ein", "bär"]),
    ],
)
def test_words_of_captions(caption, words):
    assert words_of(caption) == words


@pytest.mark.parametrize(
    "caption",
    [
        "A red square.",
        "a red",
        "red red red red red red",
        "A bear on a corner",
        "",
        "nothing of it here",
        "square " * 30,
    ],
)
@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_scores_are_those_of_the_formula(caption, number):
    found = Cider(CORPUS).score(caption, CORPUS[number])
    assert found == pytest.approx(cider_by_formula(caption, number, CORPUS))


def test_random_captions_score_as_the_formula_says():
    source = random.Random(0)
    corpus = [[" ".join(source.choices("abcdefg", k=source.randint(1, 9))) for _ in range(3)] for _ in range(8)]
    captions = [" ".join(source.choices("abcdefg", k=source.randint(1, 9))) for _ in range(8)]
    cider = Cider(corpus)
    found = [cider.score(caption, references) for caption, references in zip(captions, corpus, strict=True)]
    expected = [cider_by_formula(caption, number, corpus) for number, caption in enumerate(captions)]
    assert found == pytest.approx(expected)
    wider = [cider_by_formula(caption, number, corpus, sigma=5) for number, caption in enumerate(captions)]
    assert found != pytest.approx(wider, rel=1e-3), "the width of the Gaussian tells"


def test_a_score_worked_by_hand():
    """Two pictures, one reference each. "b" is only in the first: its weight is log 2. "a" is in both: its is 0.

    The caption "b" is the reference "a b" but for its length: a cosine of 1 for n = 1, and nothing for longer n-grams.
    """
    cider = Cider([["a b"], ["a c"]])
    assert cider.score("b", ["a b"]) == pytest.approx(10 * math.exp(-1 / 72) / 4)
    assert cider.score("a", ["a b"]) == 0.0
    assert cider.score("a b", ["a b"]) == pytest.approx(10 * 2 / 4)  # n = 1 and n = 2


def test_a_word_said_more_often_than_by_people_gains_nothing():
    cider = Cider([["b d"], ["a c"]])
    assert cider.score("b b", ["b d"]) < cider.score("b e", ["b d"])

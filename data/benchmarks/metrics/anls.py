"""ANLS, the average normalised Levenshtein similarity (arXiv 1907.00490, 2007.00398)."""

from collections.abc import Iterable

THRESHOLD = 0.5
"""Answers that are less similar than this score nothing."""


def anls(prediction: str, answers: Iterable[str]) -> float:
    """Returns the similarity to the most similar true answer, in [0, 1]; 0 where it is below THRESHOLD.

    Case does not count, nor do spaces beyond one. A similarity is 1 - edit distance / length of the longer text.
    """
    return max((_similarity(_plain(prediction), _plain(answer)) for answer in answers), default=0.0)


def edit_distance(one: str, other: str) -> int:
    """Returns how many letters must be put in, left out or exchanged to make one text of the other."""
    distances = list(range(len(other) + 1))  # from the letters of `one` read so far, none yet, to each start of `other`
    for row, letter in enumerate(one, start=1):
        diagonal, distances[0] = distances[0], row
        for column, other_letter in enumerate(other, start=1):
            exchanged = diagonal + (letter != other_letter)
            diagonal = distances[column]
            distances[column] = min(exchanged, diagonal + 1, distances[column - 1] + 1)
    return distances[-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longer, shorter = max(len(one), len(other)), min(len(one), len(other))
    if one == other:
        return 1.0
    if shorter < THRESHOLD * longer:  # the distance is at least the difference of the lengths
        return 0.0
    similarity = 1 - edit_distance(one, other) / longer
    return similarity if similarity >= THRESHOLD else 0.0

"""CIDEr-D (arXiv 1411.5726): how much a caption says what people said, in the words that tell pictures apart.

For n-grams of 1 to 4 words, captions are vectors: how often an n-gram stands in it, times log(pictures / pictures whose
references have it). A caption is compared with each reference by a cosine, in which no n-gram counts more often than
the reference has it, times a Gaussian of the difference in length. The score is ten times the mean of all cosines.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

LONGEST = 4
"""Words of the longest n-grams."""
SIGMA = 6.0
"""Standard deviation in words of the Gaussian of the difference in length."""
SCALE = 10.0

Ngram = tuple[str, ...]


def words_of(caption: str) -> list[str]:
    """Returns the words of a caption in lower case, without punctuation.

    A word with hyphens is one. What follows an apostrophe is a word of its own with it, as "'s" is. The official scorer
    has the Penn Treebank tokenizer instead, a Java program.
    """
    return re.findall(r"\w+(?:-\w+)*|['’]\w+", caption.lower())


@dataclass(frozen=True)
class Cider:
    """Scores captions of the pictures of one data set.

    Attributes:
        references: all references of each picture. They say which words are common.
    """

    references: Sequence[Sequence[str]]

    @cached_property
    def rarities(self) -> dict[Ngram, float]:
        """N-gram -> log(pictures / pictures that have it in a reference)."""
        frequencies = Counter(
            ngram
            for captions in self.references
            for ngram in {ngram for caption in captions for ngram in _ngrams(words_of(caption))}
        )
        return {ngram: math.log(len(self.references) / count) for ngram, count in frequencies.items()}

    def score(self, caption: str, references: Sequence[str]) -> float:
        """Returns CIDEr-D of one caption of a picture with these references, in [0, 10]. Papers print 100 times that.

        It is 0 for a caption without a word, and where there is one picture only.
        """
        words = words_of(caption)
        vectors = self._vectors(words)
        scores = []
        for reference in map(words_of, references):
            gaussian = math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
            cosines = [_clipped_cosine(*pair) for pair in zip(vectors, self._vectors(reference), strict=True)]
            scores.append(gaussian * sum(cosines) / LONGEST)
        return SCALE * sum(scores) / len(scores)

    def _vectors(self, words: Sequence[str]) -> list[dict[Ngram, float]]:
        """Returns a vector for each length of n-grams: n-gram -> weight."""
        rarities, of_unseen = self.rarities, math.log(len(self.references))
        vectors: list[dict[Ngram, float]] = [{} for _ in range(LONGEST)]
        for ngram, count in Counter(_ngrams(words)).items():
            vectors[len(ngram) - 1][ngram] = count * rarities.get(ngram, of_unseen)
        return vectors


def _ngrams(words: Sequence[str]) -> list[Ngram]:
    return [
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    ]


def _clipped_cosine(one: dict[Ngram, float], other: dict[Ngram, float]) -> float:
    product = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in one.items() if ngram in other)
    norms = math.hypot(*one.values()) * math.hypot(*other.values())
    return product / norms if norms else 0.0

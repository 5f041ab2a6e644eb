"""Questions about pasted things, in eleven families. Their answers are known from how the picture was made.

name: what is in a place.            where: in which place a thing is.
existence: whether a thing is there.  count: how often a thing, or a kind of thing, is there.
relation: on which side of another.   larger: which of two is larger in the picture.
category: of what kind a thing is.    knowledge: what people know of such things (data/pasted/parts/knowledge.py).
reading: the sign's word or number.   chart: which bar is longest, shortest, or longer than another.
list: the names of all things.

An asker takes a scene, all names and a random generator. It returns a question, or None where the scene has nothing to
ask about. No question fits two things, and none is asked whose answer people could argue about.
"""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from data.pasted.parts.knowledge import FACTS
from data.pasted.parts.names import CATEGORIES, Name
from data.pasted.scenes import Scene, Thing

_EASY = 0.3  # share of the absent things asked for that are like nothing in the picture
_LARGER = 1.3  # the longer side of the larger of two is at least so many times the other's
_LARGER_AREA = 1.6  # and its box at least so many times the other's
_APART = 0.12  # of the picture, by which two things stand apart where one is said to be on a side of the other
_ONCE = 0.2  # share of the counts of one that are asked for; blindly, most counts would be one
_AS_MANY = 12  # of the names with one answer to a fact, about so many are asked about, so that no answer is likely
_EXISTENCE = (
    "Is there {a} in the picture?",
    "Does the picture show {a}?",
    "Can you see {a} here?",
    "Do you see {a}?",
)
_EXISTENCE_OF_SEVERAL = ("Does the picture show {a}?", "Can you see {a} here?", "Do you see {a}?")


class Asked(NamedTuple):
    """One question, its answer, and what it is about. Questions of a family about the same are the same question."""

    question: str
    answer: str
    about: Hashable = None


Asker = Callable[[Scene, Sequence[Name], random.Random], Asked | None]


class Turn(NamedTuple):
    """One question, its answer and its family."""

    family: str
    question: str
    answer: str


def _single(scene: Scene) -> list[Thing]:
    """Returns the things whose name no other thing has."""
    counts = Counter(thing.name for thing in scene.things)
    return [thing for thing in scene.things if counts[thing.name] == 1]


def _ask_name(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    if scene.bars:
        return None
    thing = rng.choice(scene.things)
    phrasings = ("What is in the {}?", "What do you see in the {}?", "Which thing is in the {} of the picture?")
    place = scene.place(thing.box)
    return Asked(rng.choice(phrasings).format(place), thing.name.text, place)


def _ask_where(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    things = _single(scene)
    if scene.bars or not things:
        return None
    thing = rng.choice(things)
    phrasings = (
        "Where do you see the {}?",
        "In which part of the picture do you find the {}?",
        "Say where the {} can be seen.",
    )
    return Asked(rng.choice(phrasings).format(thing.name.text), scene.place(thing.box), thing.name)


def absent_names(scene: Scene, names: Sequence[Name], hard: bool) -> list[Name]:
    """Returns the names that are not in a picture, nor like one that is.

    Args:
        hard: whether they are of a subgroup that the picture has, or of none of these.
    """
    present = {thing.name for thing in scene.things}
    subgroups = {name.subgroup for name in present}
    return [
        name
        for name in names
        if (name.subgroup in subgroups) == hard and not any(name.is_like(other) for other in present)
    ]


def _ask_existence(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked:
    if rng.random() < 0.5:
        name, answer = rng.choice(scene.things).name, "yes"
    else:
        easy, hard = absent_names(scene, names, hard=False), absent_names(scene, names, hard=True)
        name, answer = rng.choice(easy if rng.random() < _EASY or not hard else hard), "no"
    phrasings = _EXISTENCE if name.with_article != name.text else _EXISTENCE_OF_SEVERAL
    return Asked(rng.choice(phrasings).format(a=name.with_article), answer, name)


def _ask_count(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    """Asks for a number. The number is drawn first, then what is there so many times."""
    if scene.bars:
        question = rng.choice(("How many bars are there?", "How many bars does the chart have?"))
        return Asked(question, str(len(scene.bars)))
    counts: Counter[str] = Counter()
    if scene.sign is None:  # which people might count as a thing
        counts["things"] = len(scene.things)
    counts.update(f"times: {thing.name.with_article}" for thing in scene.things)
    counts.update(f"{category}s" for thing in scene.things if (category := thing.name.category) in _COUNTED)
    numbers = sorted(set(counts.values()))
    if numbers[0] == 1 and rng.random() >= _ONCE:
        numbers = numbers[1:]
    if not numbers:
        return None
    number = rng.choice(numbers)
    what = rng.choice(sorted(what for what, count in counts.items() if count == number))
    if what.startswith("times: "):
        phrasings = ("How many times do you see {}?", "How often does the picture show {}?")
    elif what == "things":
        phrasings = ("How many {} are pasted on the background?", "How many {} does the picture show in all?")
    else:
        phrasings = ("How many {} are there?", "How many {} do you see?")
    return Asked(rng.choice(phrasings).format(what.removeprefix("times: ")), str(number), what)


_COUNTED = ("animal", "plant", "drink", "vehicle", "building", "instrument")
"""Categories whose things can be counted by a plain plural."""


def sides(a: Thing, b: Thing, size: int) -> list[str]:
    """Returns on which sides of b the whole of a stands out clearly: left, right, above, below."""
    (ax, ay), (bx, by) = a.box.middle, b.box.middle
    least = _APART * size
    found = [side for side, apart in (("left", bx - ax), ("right", ax - bx)) if apart >= least]
    return found + [side for side, apart in (("above", by - ay), ("below", ay - by)) if apart >= least]


def _ask_relation(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    things = _single(scene)
    pairs = [(a, b, side) for a in things for b in things if a is not b for side in sides(a, b, scene.size)]
    if not pairs:
        return None
    a, b, side = rng.choice(pairs)
    which = "left or right of" if side in ("left", "right") else "above or below"
    phrasings = (
        "Do you see the {a} {which} the {b}?",
        "Looking from the {b}, which way is the {a}: {options}?",
        "Say whether the {a} can be found {which} the {b}.",
    )
    options = which.removesuffix(" of")
    question = rng.choice(phrasings).format(a=a.name.text, b=b.name.text, which=which, options=options)
    return Asked(question, side, frozenset({a.name, b.name, which}))


def _ask_larger(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    things = [] if scene.bars else _single(scene)
    pairs = [(a, b) for a in things for b in things if is_larger(a, b)]
    if not pairs:
        return None
    pair = rng.choice(pairs)
    first, second = rng.sample(pair, 2)
    phrasings = (
        "Which looks larger, the {} or the {}?",
        "Which of the two is drawn larger, the {} or the {}?",
        "In the picture, which takes more room: the {} or the {}?",
    )
    question = rng.choice(phrasings).format(first.name.text, second.name.text)
    return Asked(question, pair[0].name.text, frozenset(pair))


def is_larger(a: Thing, b: Thing) -> bool:
    """Returns whether a thing is clearly larger in the picture than another."""
    sides_a, sides_b = max(a.box[2:]), max(b.box[2:])
    return sides_a >= _LARGER * sides_b and a.box.area >= _LARGER_AREA * b.box.area


def _ask_category(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    things = [] if scene.bars else [thing for thing in scene.things if thing.name.category]
    if not things:
        return None
    found = {thing.name.category: thing for thing in rng.sample(things, len(things))}
    thing = found[rng.choice(sorted(category for category in found if category))]
    assert thing.name.category is not None
    options = rng.sample([category for category in CATEGORIES if category != thing.name.category], 2)
    options.insert(rng.randrange(3), thing.name.category)
    phrasings = ("What kind of thing is in the {}: {}?", "The thing in the {}, is it rather {}?")
    listed = f"{options[0]}, {options[1]} or {options[2]}"
    place = scene.place(thing.box)
    return Asked(rng.choice(phrasings).format(place, listed), thing.name.category, place)


def _ask_knowledge(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    """Asks about a fact. The fact is drawn first, then the answer, then the thing."""
    known = [
        (fact, answer, thing)
        for fact in ([] if scene.bars else FACTS)
        for answer, texts in fact.answers.items()
        for thing in scene.things
        if thing.name.text in texts and rng.random() < _AS_MANY / len(texts)
    ]
    if not known:
        return None
    fact = rng.choice([fact for fact in FACTS if any(fact is other for other, _, _ in known)])
    answer = rng.choice(sorted({answer for other, answer, _ in known if other is fact}))
    thing = rng.choice([thing for other, said, thing in known if other is fact and said == answer])
    place = scene.place(thing.box)
    return Asked(rng.choice(fact.questions).format(place=place), answer, (fact.questions, place))


def _ask_reading(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    if scene.sign is None:
        return None
    phrasings = ("What {} is written on the sign?", "Which {} does the sign show?", "Read the {} on the sign.")
    return Asked(rng.choice(phrasings).format(scene.sign.kind), scene.sign.text)


def _ask_chart(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked | None:
    if not scene.bars:
        return None
    bars = sorted(zip(scene.bars, scene.things, strict=True), key=lambda bar: bar[0].height)
    texts = [thing.name.text for _, thing in bars]
    form = rng.choice(("longest", "shortest", "pair"))
    if form == "pair":
        low, high = sorted(rng.sample(range(len(texts)), 2))
        first, second = rng.sample((low, high), 2)
        phrasings = (
            "Is the bar above the {} longer than the one above the {}?",
            "Is the bar of the {} longer than that of the {}?",
        )
        question = rng.choice(phrasings).format(texts[first], texts[second])
        return Asked(question, "yes" if first == high else "no", (low, high))
    phrasings = (f"Which thing has the {form} bar?", f"What is below the {form} bar?")
    return Asked(rng.choice(phrasings), texts[-1 if form == "longest" else 0], form)


def _ask_list(scene: Scene, names: Sequence[Name], rng: random.Random) -> Asked:
    phrasings = (
        "List all things in the picture.",
        "Name all things that you see.",
        "Which things does the picture show?",
    )
    return Asked(rng.choice(phrasings), ", ".join(dict.fromkeys(thing.name.text for thing in scene.things)))


_ASKERS: dict[str, tuple[Asker, int]] = {
    "name": (_ask_name, 4),
    "where": (_ask_where, 3),
    "existence": (_ask_existence, 5),
    "count": (_ask_count, 2),
    "relation": (_ask_relation, 3),
    "larger": (_ask_larger, 4),
    "category": (_ask_category, 1),
    "knowledge": (_ask_knowledge, 2),
    "reading": (_ask_reading, 10),
    "chart": (_ask_chart, 8),
    "list": (_ask_list, 1),
}
"""Name of each family -> its asker, and how often it is chosen in a conversation, relative to the others."""
FAMILIES = tuple(_ASKERS)
_TWICE = ("name", "existence", "chart")
"""Families that ask twice about a picture where each question stands apart."""


def ask_conversation(scene: Scene, names: Sequence[Name], most: int, rng: random.Random) -> list[Turn]:
    """Returns at most `most` different questions about a scene, in random order, some families more often than others.

    What was asked is not asked again in other words.
    """
    weights = [weight for _, weight in _ASKERS.values()]
    return _ask(rng.choices(FAMILIES, weights, k=4 * most), scene, names, rng)[:most]


def ask_each_family(scene: Scene, names: Sequence[Name], rng: random.Random) -> list[Turn]:
    """Returns one question of each family that the scene allows, up to two of those of `_TWICE`, all different."""
    return _ask([family for family in FAMILIES for _ in range(1 + (family in _TWICE))], scene, names, rng)


def _ask(families: Sequence[str], scene: Scene, names: Sequence[Name], rng: random.Random) -> list[Turn]:
    """Returns a question of each of these families in turn, where there is a new one.

    Of what is there and what is not, none is asked about more than once more often than the other.
    """
    turns: dict[Hashable, Turn] = {}
    for family in families:
        asker, _ = _ASKERS[family]
        asked = asker(scene, names, rng)
        if asked is None:
            continue
        answers = Counter(turn.answer for turn in turns.values() if turn.family == family)
        if family != "existence" or answers[asked.answer] <= min(answers["yes"], answers["no"]):
            turns.setdefault((family, asked.about), Turn(family, asked.question, asked.answer))
    return list(turns.values())

"""Questions about the scenes of the embedded world, in six families that mirror public benchmarks.

existence (POPE): is there such a thing?
attribute (VQAv2): colour, shape, size or number of things.
relation (GQA): on which side of another thing a thing stands.
reading (TextVQA): the word or number of the sign.
choice (MMBench): a question with four options.
caption: a description of the picture.

Every family needs the picture. The text of a question tells at most how likely its answers are. Training conversations
also ask what no family asks: which thing is next to another, and simpler questions that are learnt first, such as what
is in a place or whether a colour is present.

An asker takes a scene and a random generator. It returns one turn (question, answer), or None where the scene has
nothing to ask about.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable

from data.shapes.scenes import COLORS, PLACES, SHAPES, WORDS, Scene, Thing

QUESTION_FAMILIES = ("existence", "attribute", "relation", "reading", "choice", "caption")
NOTHING = "nothing"
NOWHERE = "nowhere"
CAPTION_REQUEST = "Describe the picture."

Turn = tuple[str, str]
Asker = Callable[[Scene, random.Random], Turn | None]

_STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # (rows, columns)


def _absent_name(scene: Scene, rng: random.Random) -> str:
    """Returns a colour and shape that no thing has.

    In two of three cases the picture has both of them, or at least one.
    """
    names = {thing.name for thing in scene.things}
    colors = {thing.color for thing in scene.things}
    shapes = {thing.shape for thing in scene.things}
    absent = [(color, shape) for color in COLORS for shape in SHAPES if f"{color} {shape}" not in names]
    if rng.random() < 2 / 3:
        both = [(color, shape) for color, shape in absent if color in colors and shape in shapes]
        absent = both or [(color, shape) for color, shape in absent if color in colors or shape in shapes]
    return " ".join(rng.choice(absent))


def _with_article(name: str) -> str:
    return f"an {name}" if name.startswith("orange") else f"a {name}"


def _unique(scene: Scene, attribute: Callable[[Thing], str]) -> list[Thing]:
    """Returns the things that share this attribute with no other thing."""
    counts = Counter(map(attribute, scene.things))
    return [thing for thing in scene.things if counts[attribute(thing)] == 1]


def _ask_existence(scene: Scene, rng: random.Random) -> Turn:
    if rng.random() < 0.5:
        return f"Is there {_with_article(rng.choice(scene.things).name)}?", "yes"
    return f"Is there {_with_article(_absent_name(scene, rng))}?", "no"


def _ask_color(scene: Scene, rng: random.Random) -> Turn | None:
    things = _unique(scene, lambda thing: thing.shape)
    if not things:
        return None
    thing = rng.choice(things)
    return f"What color is the {thing.shape}-shaped thing?", thing.color


def _ask_shape(scene: Scene, rng: random.Random) -> Turn | None:
    things = _unique(scene, lambda thing: thing.color)
    if not things:
        return None
    thing = rng.choice(things)
    return f"What shape is the {thing.color} thing?", thing.shape


def _ask_size(scene: Scene, rng: random.Random) -> Turn:
    thing = rng.choice(scene.things)
    return f"What size is the {thing.name}?", thing.size


def _ask_number(scene: Scene, rng: random.Random) -> Turn:
    """Asks how many things share an attribute.

    The number is drawn first, then an attribute that this many things share. So every number that some attribute of the
    scene has is equally likely.
    """
    counts = {"a thing": len(scene.things)}
    counts |= {_with_article(f"{color} thing"): sum(thing.color == color for thing in scene.things) for color in COLORS}
    counts |= {f"a {shape}-shaped thing": sum(thing.shape == shape for thing in scene.things) for shape in SHAPES}
    number = rng.choice(sorted(set(counts.values())))
    what = rng.choice([what for what, count in counts.items() if count == number])
    return f"How many times is there {what}?", str(number)


def _ask_side(scene: Scene, rng: random.Random) -> Turn | None:
    """Asks on which side of another thing a thing is. The two must differ in that direction."""
    pairs = [(a, b) for a in scene.things for b in scene.things if a.column != b.column or a.row != b.row]
    if not pairs:
        return None
    thing, other = rng.choice(pairs)
    axes = [axis for axis in ("column", "row") if getattr(thing, axis) != getattr(other, axis)]
    if rng.choice(axes) == "column":
        sides, before = ("left", "right"), thing.column < other.column
        return f"Is the {thing.name} left or right of the {other.name}?", sides[0 if before else 1]
    sides, before = ("above", "below"), thing.row < other.row
    return f"Is the {thing.name} above or below the {other.name}?", sides[0 if before else 1]


def _ask_neighbor(scene: Scene, rng: random.Random) -> Turn | None:
    """Asks which thing is in the cell next to a thing."""
    by_place = {(thing.row, thing.column): thing for thing in scene.things}
    pairs = [
        (thing, direction, by_place[place])
        for thing in scene.things
        for direction, (rows, columns) in _STEPS.items()
        if (place := (thing.row + rows, thing.column + columns)) in by_place
    ]
    if not pairs:
        return None
    thing, direction, neighbor = rng.choice(pairs)
    return f"What is just {direction} the {thing.name}?", neighbor.name


def _ask_reading(scene: Scene, rng: random.Random) -> Turn:
    return f"What {scene.sign.kind} is written?", scene.sign.text


def _choose(turn: Turn | None, present: list[str], possible: Iterable[str], rng: random.Random) -> Turn | None:
    """Returns the same question with four options. Wrong options come from the picture as far as it has any."""
    if turn is None:
        return None
    question, answer = turn
    others = [option for option in possible if option != answer]
    rng.shuffle(others)
    others.sort(key=lambda option: option not in present)
    options = [answer, *others[:3]]
    rng.shuffle(options)
    return f"{question.removesuffix('?')}: {', '.join(options[:3])} or {options[3]}?", answer


def _choose_color(scene: Scene, rng: random.Random) -> Turn | None:
    return _choose(_ask_color(scene, rng), [thing.color for thing in scene.things], COLORS, rng)


def _choose_shape(scene: Scene, rng: random.Random) -> Turn | None:
    return _choose(_ask_shape(scene, rng), [thing.shape for thing in scene.things], SHAPES, rng)


def _choose_word(scene: Scene, rng: random.Random) -> Turn | None:
    return _choose(_ask_reading(scene, rng), [], WORDS, rng) if scene.sign.kind == "word" else None


def _ask_caption(scene: Scene, rng: random.Random) -> Turn:
    return CAPTION_REQUEST, scene.description


def _find_place(scene: Scene, rng: random.Random) -> Turn:
    if rng.random() < 0.75:
        thing = rng.choice(scene.things)
        return f"Where is the {thing.name}?", PLACES[thing.cell]
    return f"Where is the {_absent_name(scene, rng)}?", NOWHERE


def _look_at_place(scene: Scene, rng: random.Random) -> Turn:
    if rng.random() < 0.2:
        taken = {scene.sign.cell, *(thing.cell for thing in scene.things)}
        return f"What is in the {PLACES[rng.choice([c for c in range(len(PLACES)) if c not in taken])]}?", NOTHING
    thing = rng.choice(scene.things)
    return f"What is in the {PLACES[thing.cell]}?", f"{thing.size} {thing.name}"


def _find_sign(scene: Scene, rng: random.Random) -> Turn:
    return f"Where is the {scene.sign.kind}?", PLACES[scene.sign.cell]


def _detect_color(scene: Scene, rng: random.Random) -> Turn:
    present = {thing.color for thing in scene.things}
    if rng.random() < 0.5:
        return f"Is there {_with_article(rng.choice(sorted(present)))} thing?", "yes"
    absent = rng.choice([color for color in COLORS if color not in present])
    return f"Is there {_with_article(absent)} thing?", "no"


def _detect_shape(scene: Scene, rng: random.Random) -> Turn:
    present = {thing.shape for thing in scene.things}
    if rng.random() < 0.5:
        return f"Is there a {rng.choice(sorted(present))}-shaped thing?", "yes"
    absent = rng.choice([shape for shape in SHAPES if shape not in present])
    return f"Is there a {absent}-shaped thing?", "no"


_FAMILY_ASKERS: dict[str, tuple[Asker, ...]] = {
    "existence": (_ask_existence,),
    "attribute": (_ask_color, _ask_shape, _ask_size, _ask_number),
    "relation": (_ask_side,),
    "reading": (_ask_reading,),
    "choice": (_choose_color, _choose_shape, _choose_word),
    "caption": (_ask_caption,),
}
# Models learn to look up by colour long before they look up by shape, unless more questions ask by shape.
_LOOKUPS: dict[Asker, int] = {  # asker: how often it is chosen, relative to the others
    _ask_color: 3,
    _ask_shape: 1,
    _ask_size: 1,
    _ask_reading: 2,
    _find_place: 1,
    _look_at_place: 1,
    _find_sign: 1,
    _detect_color: 1,
    _detect_shape: 3,
    _ask_existence: 1,
}
CONVERSATIONS: dict[str, dict[Asker, int]] = {
    "lookup": _LOOKUPS,
    "all": _LOOKUPS
    | {
        _ask_existence: 4,
        _ask_number: 2,
        _ask_side: 3,
        _ask_neighbor: 2,
        _choose_color: 2,
        _choose_shape: 2,
        _choose_word: 1,
        _find_place: 3,
    },
    "hard": {
        _ask_existence: 1,
        _ask_color: 1,
        _ask_shape: 1,
        _ask_size: 1,
        _ask_number: 4,
        _ask_side: 5,
        _ask_neighbor: 2,
        _ask_reading: 1,
        _choose_color: 1,
        _choose_shape: 1,
        _choose_word: 1,
        _find_place: 1,
        _look_at_place: 1,
    },
    "exam": {
        _ask_existence: 5,
        _ask_color: 1,
        _ask_shape: 1,
        _ask_size: 2,
        _ask_number: 3,
        _ask_side: 5,
        _ask_reading: 1,
        _choose_color: 1,
        _choose_shape: 1,
        _choose_word: 1,
        _find_place: 3,
        _look_at_place: 1,
    },
}
_CAPTIONED = 1 / 3  # with more of them, the many words of captions would outweigh the few of answers


def ask_family(scene: Scene, family: str, rng: random.Random) -> list[Turn]:
    """Returns one question of `family`, all its forms equally likely, as a list of one turn.

    The list is empty where the scene gives the chosen form nothing to ask.
    """
    turn = rng.choice(_FAMILY_ASKERS[family])(scene, rng)
    return [] if turn is None else [turn]


def ask_conversation(scene: Scene, kinds: str, num_questions: int, rng: random.Random) -> list[Turn]:
    """Returns different questions about one scene. In a third of the conversations the caption comes last.

    A scene of few things may have fewer than `num_questions` to ask about.

    Args:
        scene: what the picture shows.
        kinds: one of CONVERSATIONS. "lookup" asks what is where. "all" asks the families' questions as well. "hard"
            asks most often those that are learnt last, and also the simpler ones that lead to them. "exam" asks hardly
            anything but the families' questions, the harder the more often.
        num_questions: the largest number of turns.
        rng: the only source of randomness.
    """
    turns: dict[str, str] = {}
    captioned = rng.random() < _CAPTIONED
    askers = CONVERSATIONS[kinds]
    for asker in rng.choices(list(askers), list(askers.values()), k=3 * num_questions):
        turn = asker(scene, rng)
        if turn is not None and len(turns) < num_questions - captioned:
            turns.setdefault(*turn)
    if captioned:
        turns |= dict([_ask_caption(scene, rng)])
    return list(turns.items())

"""Answers questions about the embedded world from a picture's caption alone, by other means than the world itself."""

import re

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")


def read_caption(caption: str) -> tuple[list[dict], dict]:
    """Things and sign, from clauses such as "top left: small red cross" and "middle center: number 47"."""
    things, sign = [], None
    for clause in caption.split(", "):
        place, content = clause.split(": ")
        row, column = place.split()
        where = {"place": place, "row": ROWS.index(row), "column": COLUMNS.index(column)}
        words = content.split()
        if len(words) == 2:
            sign = {**where, "kind": words[0], "text": words[1]}
        else:
            things.append(
                {**where, "size": words[0], "color": words[1], "shape": words[2], "name": " ".join(words[1:])}
            )
    return things, sign


def answer(question: str, caption: str) -> str:
    """The one right answer; AssertionError where a question has none or more than one."""
    things, sign = read_caption(caption)
    if question == "Describe the picture.":
        return caption
    if match := re.fullmatch(r"(.+): (.+), (.+), (.+) or (.+)\?", question):
        asked, *options = match.groups()
        right = answer(f"{asked}?", caption)
        assert len(set(options)) == 4 and options.count(right) == 1, question
        return right
    if match := re.fullmatch(r"Is there an? (.+)\?", question):
        return "yes" if any(matches(thing, match[1]) for thing in things) else "no"
    if match := re.fullmatch(r"How many times is there an? (.+)\?", question):
        return str(sum(matches(thing, match[1]) for thing in things))
    if match := re.fullmatch(r"What (color|shape|size) is the (.+)\?", question):
        return only(things, match[2])[match[1]]
    if match := re.fullmatch(r"What (word|number) is written\?", question):
        assert sign["kind"] == match[1]
        return sign["text"]
    if match := re.fullmatch(r"Where is the (word|number)\?", question):
        assert sign["kind"] == match[1]
        return sign["place"]
    if match := re.fullmatch(r"Where is the (.+)\?", question):
        found = [thing["place"] for thing in things if matches(thing, match[1])]
        assert len(found) <= 1
        return found[0] if found else "nowhere"
    if match := re.fullmatch(r"What is in the (.+)\?", question):
        found = [f"{thing['size']} {thing['name']}" for thing in things if thing["place"] == match[1]]
        assert sign["place"] != match[1]
        return found[0] if found else "nothing"
    if match := re.fullmatch(r"Is the (.+) (left or right of|above or below) the (.+)\?", question):
        axis, before, after = ("column", "left", "right") if "left" in match[2] else ("row", "above", "below")
        one, other = only(things, match[1])[axis], only(things, match[3])[axis]
        assert one != other
        return before if one < other else after
    match = re.fullmatch(r"What is just (left of|right of|above|below) the (.+)\?", question)
    assert match, question
    thing = only(things, match[2])
    rows, columns = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[match[1]]
    place = (thing["row"] + rows, thing["column"] + columns)
    return next(other["name"] for other in things if (other["row"], other["column"]) == place)


def matches(thing: dict, words: str) -> bool:
    return all(word in (*thing["name"].split(), "thing") for word in words.replace("-shaped", "").split())


def only(things: list[dict], words: str) -> dict:
    found = [thing for thing in things if matches(thing, words)]
    assert len(found) == 1, (words, found)
    return found[0]

"""Answers questions about pasted things from a row's boxes and pixels alone, by other means than the world itself."""

import io
import re

import numpy as np
from PIL import Image

from tests.data.pasted.tiny_stock import NAMES

KIND = {name.text: name.category for name in NAMES}
FLY, NO_FLY = {"bat", "eagle", "bee"}, {"dog", "lion", "bear", "polar bear", "penguin", "shark", "whale", "spider"}
LEGS = {
    **dict.fromkeys(("dog", "lion", "bear", "polar bear"), "4"), **dict.fromkeys(("eagle", "penguin"), "2"),
    **dict.fromkeys(("shark", "whale"), "0"), "bee": "6", "spider": "8",
}  # fmt: skip
SEA, NO_SEA = {"shark", "whale"}, {"dog", "lion", "bear", "eagle", "bee"}
FRUIT, NO_FRUIT = {"apple", "banana", "grapes"}, {"carrot", "onion"}
GOES = {"car": "land", "bus": "land", "canoe": "water"}
STRINGS = {"guitar": "yes", "trumpet": "no"}
WORN = {"top hat": "head", "shoe": "feet"}


def answer(family: str, question: str, row: dict) -> str:
    """The one right answer; AssertionError where a question has none or more than one."""
    things = row["things"]
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    size = image.width
    named = mentioned(question)
    if family == "list":
        return ", ".join(dict.fromkeys(thing["name"] for thing in things))
    if family == "existence":
        assert len(named) == 1
        present = {thing["name"] for thing in things}
        assert named[0] in present or not ("bear" in named[0] and {"bear", "polar bear"} & present)
        return "yes" if named[0] in present else "no"
    if family == "count":
        if "bars" in question:
            return str(len(things))
        if "things" in question:
            return str(len(things))
        if not named:
            (kind,) = [kind for kind in set(KIND.values()) if kind and f"{kind}s" in question]
            return str(sum(KIND[thing["name"]] == kind for thing in things))
        return str(sum(thing["name"] == named[0] for thing in things))
    if family == "chart":
        lengths = bar_lengths(image, things)
        if len(named) == 2:
            return "yes" if lengths[named[0]] > lengths[named[1]] else "no"
        return (max if "longest" in question else min)(lengths, key=lambda name: lengths[name])
    if family == "reading":
        (kind,) = re.findall("word|number", question)
        assert row["sign"]["text"].isdigit() == (kind == "number")
        return row["sign"]["text"]
    if family == "where":
        return place(only(things, named[0]), size)
    if family == "relation":
        a, b = (only(things, name) for name in (named[::-1] if question.startswith("Looking") else named))
        (ax, ay), (bx, by) = middle(a), middle(b)
        if "left or right" in question:
            assert abs(ax - bx) > 10
            return "left" if ax < bx else "right"
        assert abs(ay - by) > 10 and "above or below" in question
        return "above" if ay < by else "below"
    if family == "larger":
        a, b = sorted((only(things, name) for name in named), key=area)
        assert area(b) > 1.5 * area(a)
        return b["name"]
    (where,) = re.findall(r"(?:top|middle|bottom) (?:left|center|right)", question)
    (thing,) = [thing for thing in things if place(thing, size) == where]
    name = thing["name"]
    if family == "name":
        return name
    if family == "category":
        assert KIND[name] and KIND[name] in question
        return KIND[name]
    assert family == "knowledge"
    return fact(question, name)


def fact(question: str, name: str) -> str:
    if "fly" in question:
        assert name in FLY | NO_FLY
        return "yes" if name in FLY else "no"
    if "legs" in question:
        return LEGS[name]
    if "sea" in question:
        assert name in SEA | NO_SEA
        return "yes" if name in SEA else "no"
    if "fruit" in question:
        assert name in FRUIT | NO_FRUIT
        return "yes" if name in FRUIT else "no"
    if "strings" in question:
        return STRINGS[name]
    return GOES[name] if "vehicle" in question else WORN[name]


def mentioned(question: str) -> list[str]:
    """Names in the question, in its order; "polar bear" is no bear."""
    longest_first = sorted(KIND, key=len, reverse=True)
    return re.findall("|".join(rf"\b{name}\b" for name in longest_first), question)


def only(things: list[dict], name: str) -> dict:
    (found,) = [thing for thing in things if thing["name"] == name]
    return found


def middle(thing: dict) -> tuple[float, float]:
    return thing["x"] + thing["width"] / 2, thing["y"] + thing["height"] / 2


def area(thing: dict) -> int:
    return thing["width"] * thing["height"]


def place(thing: dict, size: int) -> str:
    x, y = middle(thing)
    column = "left" if x < size / 3 else "center" if x < 2 * size / 3 else "right"
    row = "top" if y < size / 3 else "middle" if y < 2 * size / 3 else "bottom"
    return f"{row} {column}"


def bar_lengths(image: Image.Image, things: list[dict]) -> dict[str, int]:
    """Coloured pixels right above the middle of each thing."""
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    panel = pixels[image.height // 2, image.width // 28 + 1]
    lengths = {}
    for thing in things:
        column = pixels[image.height // 28 + 2 : thing["y"], round(middle(thing)[0])]
        lengths[thing["name"]] = int((np.abs(column - panel).sum(axis=-1) > 120).sum())
    return lengths

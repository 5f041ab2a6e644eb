"""The names of things that are pasted: labels of emoji, as far as a person would name the drawing so.

A drawing must have one name, and two names must not fit one drawing. So most labels that say more than a thing ("dog
face"), that need a culture to be known, or that look like another one, are left out by hand.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass


def listed(text: str) -> frozenset[str]:
    """Returns what stands between the commas of a text of several lines."""
    return frozenset(" ".join(text.split()).split(", "))


ANIMALS, PLANTS, FOODS, DRINKS = "animal", "plant", "food", "drink"
VEHICLES, BUILDINGS, CLOTHES, INSTRUMENTS, TOOLS = "vehicle", "building", "piece of clothing", "instrument", "tool"
_CATEGORIES = {
    "animal-mammal": ANIMALS, "animal-bird": ANIMALS, "animal-amphibian": ANIMALS, "animal-reptile": ANIMALS,
    "animal-marine": ANIMALS, "animal-bug": ANIMALS, "plant-flower": PLANTS, "plant-other": PLANTS,
    "food-fruit": FOODS, "food-vegetable": FOODS, "food-prepared": FOODS, "food-asian": FOODS, "food-sweet": FOODS,
    "drink": DRINKS, "transport-ground": VEHICLES, "transport-water": VEHICLES, "transport-air": VEHICLES,
    "place-building": BUILDINGS, "place-religious": BUILDINGS, "clothing": CLOTHES,
    "musical-instrument": INSTRUMENTS, "tool": TOOLS,
}  # fmt: skip
"""Subgroup of emoji -> what its things are, but for those of `_OTHERWISE`."""
CATEGORIES = tuple(dict.fromkeys(_CATEGORIES.values()))
_OTHERWISE = listed(
    """feather, paw prints, seashell, coral, spider web, nest, maple leaf, mushroom, salt, butter, cooking pot,
    bowl, popcorn, ice cube, baby bottle, teapot, jar, brick, fountain, wheel, fuel pump, siren, traffic light, stop
    sign, bus stop, railway track, anchor, life ring, parachute, satellite, wheelchair, roller skate, skateboard,
    gem, lipstick, crown, ring, backpack, purse, shopping bags, folding fan, glasses, sunglasses, goggles, military
    helmet, boomerang, shield, balance scale, chains, magnet, gear, hook, toolbox, statue, kick scooter, honey pot,
    egg, peanuts, frying pan, takeout box"""
)  # fmt: skip
"""Names that are nothing of what their subgroup is, or of which people would doubt it."""

_GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
_NO_SUBGROUPS = ("time", "sky-weather", "event", "game", "place-map", "place-geographic", "place-other", "sound")
_KEPT_ANYWAY = listed(
    """watch, alarm clock, stopwatch, mantelpiece clock, thermometer, sun, star, tornado, rainbow, snowflake,
    snowman, comet, fire, droplet, umbrella, jack-o-lantern, fireworks, balloon, wrapped gift, bullseye, yo-yo,
    kite, crystal ball, video game, joystick, slot machine, game die, puzzle piece, teddy bear, piñata, nesting
    dolls, compass, volcano, desert island, fountain, tent, carousel horse, ferris wheel, barber pole, loudspeaker,
    megaphone, bell, ringed planet, crescent moon, Christmas tree, roller coaster"""
)  # fmt: skip
"""Labels that are kept although most of their subgroup is not."""
_RENAMED = {
    "automobile": "car", "lady beetle": "ladybug", "honeybee": "bee", "ear of corn": "corn", "red apple": "apple",
    "cheese wedge": "cheese", "hot beverage": "coffee", "locked": "padlock", "wrapped gift": "gift",
    "couch and lamp": "couch", "game die": "dice", "jack-o-lantern": "pumpkin", "artist palette": "palette",
    "american football": "football", "billed cap": "cap", "wastebasket": "trash can", "headphone": "headphones",
    "straight ruler": "ruler", "magnifying glass tilted left": "magnifying glass", "poultry leg": "chicken leg",
    "meat on bone": "meat", "cocktail glass": "cocktail", "ringed planet": "planet", "beverage box": "juice box",
    "vertical traffic light": "traffic light", "police car light": "siren", "thong sandal": "flip-flop",
    "woman’s hat": "sun hat", "man’s shoe": "shoe", "high-heeled shoe": "high heel", "t-shirt": "shirt",
    "one-piece swimsuit": "swimsuit", "hippopotamus": "hippo", "rhinoceros": "rhino", "glass of milk": "milk",
    "spiral shell": "seashell", "nest with eggs": "nest", "kiwi fruit": "kiwi", "gem stone": "gem",
    "ring buoy": "life ring", "fire engine": "fire truck", "delivery truck": "truck", "musical keyboard": "piano",
    "sauropod": "dinosaur", "spouting whale": "whale", "tropical fish": "fish", "ice hockey": "hockey stick",
    "french fries": "fries", "baguette bread": "baguette", "fried shrimp": "tempura", "birthday cake": "cake",
    "chocolate bar": "chocolate", "ice": "ice cube", "steaming bowl": "noodles", "pot of food": "cooking pot",
    "cup with straw": "soda", "evergreen tree": "fir tree", "four leaf clover": "clover", "ginger root": "ginger",
    "sheaf of rice": "rice plant", "pea pod": "peas", "green salad": "salad", "nut and bolt": "bolt",
    "carpentry saw": "saw", "moai": "statue", "roll of paper": "toilet paper", "fork and knife": "cutlery",
    "motor scooter": "scooter", "auto rickshaw": "rickshaw", "manual wheelchair": "wheelchair",
    "classical building": "temple", "flying saucer": "ufo", "closed book": "book", "tear-off calendar": "calendar",
    "mantelpiece clock": "clock", "ice skate": "skate", "fishing pole": "fishing rod", "flat shoe": "slipper",
    "running shirt": "tank top", "martial arts uniform": "karate suit", "crescent moon": "moon", "wine glass": "wine",
    "beer mug": "beer", "carousel horse": "carousel", "dollar banknote": "banknote", "postbox": "mailbox",
    "adhesive bandage": "bandage", "cooking": "frying pan", "Christmas tree": "christmas tree", "funeral urn": "urn",
    "bowl with spoon": "bowl", "folding hand fan": "folding fan",
}  # fmt: skip
_LEFT_OUT = listed(
    """bird, fish, poodle, green apple, open book, guide dog, service dog, black cat, ox, water buffalo, two-hump
    camel, ram, ewe, boar, rat, hatching chick, front-facing baby chick, dove, black bird, dragon, T-Rex, whale,
    orca, bug, beetle, cricket, fly, pig nose, wilted flower, rosette, white flower, cherry blossom, lotus, blossom,
    seedling, herb, shamrock, fallen leaf, leaf fluttering in wind, empty nest, leafless tree, tangerine, melon,
    olive, lime, leafy green, beans, flatbread, shallow pan of food, stuffed flatbread, falafel, fondue, tamale,
    oden, fish cake with swirl, moon cake, dango, roasted sweet potato, cooked rice, curry rice, bento box, rice
    cracker, soft ice cream, shortcake, custard, pie, teacup without handle, sake, clinking beer mugs, clinking
    glasses, tumbler glass, pouring liquid, mate, bottle with popping cork, bubble tea, fork and knife with plate,
    kitchen knife, brown mushroom, root vegetable, chestnut, ice cream, building construction, houses, derelict
    house, house with garden, office building, post office, hotel, love hotel, convenience store, school, department
    store, wedding, hut, bank, shinto shrine, kaaba, synagogue, hindu temple, railway car, high-speed train, bullet
    train, train, metro, light rail, station, monorail, tram car, mountain railway, oncoming bus, trolleybus,
    minibus, oncoming police car, oncoming taxi, oncoming automobile, articulated lorry, motorway, construction,
    horizontal traffic light, motorized wheelchair, sport utility vehicle, passenger ship, ferry, motor boat, small
    airplane, airplane departure, airplane arrival, suspension railway, mountain cableway, aerial tramway, bellhop
    bell, sports medal, military medal, softball, rugby football, cricket game, field hockey, goal net, flag in
    hole, kimono, sari, coat, woman’s clothes, running shoe, woman’s sandal, rescue worker’s helmet, bell with
    slash, musical notes, musical note, musical score, level slider, control knobs, mobile phone with arrow,
    telephone receiver, pager, low battery, optical disk, dvd, trackball, film frames, camera with flash,
    videocassette, magnifying glass tilted right, red paper lantern, diya lamp, desktop computer, green book, blue
    book, orange book, books, notebook, notebook with decorative cover, ledger, page with curl, page facing up,
    rolled-up newspaper, bookmark tabs, label, yen banknote, euro banknote, pound banknote, money with wings,
    receipt, chart increasing with yen, e-mail, incoming envelope, envelope with arrow, outbox tray, inbox tray,
    memo, open file folder, file folder, card index dividers, spiral notepad, spiral calendar, calendar, card index,
    chart increasing, chart decreasing, bar chart, round pushpin, linked paperclips, triangular ruler, card file
    box, unlocked, locked with pen, locked with key, old key, pick, hammer and pick, hammer and wrench, white cane,
    link, broken chain, clamp, alembic, petri dish, drop of blood, x-ray, bubbles, cigarette, coffin, headstone,
    nazar amulet, hamsa, placard, identification card, dagger, bomb, water pistol, clutch bag, handbag, briefs,
    shorts, bikini, hair pick, prayer beads, safety vest, lab coat, woman’s boot, performing arts, sewing needle,
    thread, knot, movie camera, video camera, film projector, pen, black nib, tennis, bowling, badminton, lacrosse,
    mouse trap, elevator, safety pin, ballet shoes, crossed swords, microbe, worm, wood, rock, canned food,
    sponge, lotion bottle, shower, plunger, studio microphone, cut of meat, stadium, wing, long drum, fax machine,
    ballot box with ballot, hospital, satellite antenna, seat, oil drum"""
)  # fmt: skip
_PLURAL = listed(
    """grapes, cherries, blueberries, peanuts, pancakes, fries, chopsticks, glasses, sunglasses, goggles, jeans,
    gloves, socks, shopping bags, headphones, maracas, scissors, skis, chains, nesting dolls, noodles, peas, bread,
    garlic, corn, broccoli, cheese, bacon, butter, salt, popcorn, sushi, chocolate, candy, milk, coffee, wine, beer,
    meat, spaghetti, soap, toilet paper, tempura, salad, ginger, coral, soda, cutlery, yarn, fireworks, rice plant,
    shaved ice, pizza, paw prints, dice, fire, ping pong"""
)  # fmt: skip
"""Names that stand without an article."""


_ALIKE = tuple(
    listed(group)
    for group in (
        "bear, polar bear, panda, teddy bear", "monkey, gorilla, orangutan", "deer, moose", "elephant, mammoth",
        "mouse, computer mouse", "chicken, rooster, baby chick", "fish, blowfish, shark", "whale, dolphin",
        "lizard, crocodile, dinosaur", "car, taxi, police car, racing car", "truck, pickup truck, fire truck",
        "scooter, kick scooter, motorcycle", "ship, sailboat, speedboat, canoe", "skate, roller skate, skateboard",
        "shoe, hiking boot, slipper, high heel, flip-flop", "cap, graduation cap, sun hat, top hat", "guitar, banjo",
        "shirt, necktie, tank top, karate suit", "clock, alarm clock, stopwatch, watch", "glasses, sunglasses, goggles",
        "bread, baguette, croissant, bagel", "hamburger, sandwich", "taco, burrito", "cake, cupcake",
        "noodles, spaghetti, chopsticks", "candy, lollipop", "soda, juice box", "cocktail, tropical drink",
        "keyboard, piano", "telephone, mobile phone", "fir tree, christmas tree, deciduous tree, palm tree",
        "bouquet, rose, hibiscus, sunflower, tulip, hyacinth", "hot pepper, bell pepper", "meat, chicken leg, bacon",
        "cutlery, spoon", "bowl, cooking pot, frying pan, egg, spoon", "computer disk, floppy disk", "fire, candle",
        "sun, star, comet", "bucket, trash can", "coin, money bag, banknote", "purse, backpack, luggage, briefcase",
        "loudspeaker, megaphone", "peanuts, peas", "envelope, package, mailbox", "urn, amphora", "fishing rod, fish",
        "bagel, doughnut", "desert island, palm tree", "carousel, horse", "nest, egg",
    )
)  # fmt: skip
"""Names of which one may be said of another's thing. No picture has two of such a group, and with one of them in a
picture, nobody asks for the others."""
_LIKE = {text: frozenset().union(*(group for group in _ALIKE if text in group)) for group in _ALIKE for text in group}


@dataclass(frozen=True)
class Name:
    """What a thing is called.

    Attributes:
        text: the name, in lower case.
        code: code points of its emoji as file names have them, such as "1f418".
        emoji: its emoji as text.
        subgroup: what it is like; names of one subgroup are easily confused.
        category: one of CATEGORIES, or None.
    """

    text: str
    code: str
    emoji: str
    subgroup: str
    category: str | None

    def is_like(self, other: "Name") -> bool:
        """Returns whether one of the two may be said of the other's thing."""
        return self == other or other.text in _LIKE.get(self.text, ())

    @property
    def with_article(self) -> str:
        if self.text in _PLURAL:
            return self.text
        return f"{'an' if self.text[0] in 'aeio' else 'a'} {self.text}"


def read_names(emoji: bytes, messages: bytes) -> list[Name]:
    """Returns the names that emojibase gives, in its order.

    Args:
        emoji: content of its `en/data.json`.
        messages: content of its `en/messages.json`, which names groups and subgroups.
    """
    said = json.loads(messages)
    groups = {group["order"]: group["key"] for group in said["groups"]}
    subgroups = {subgroup["order"]: subgroup["key"] for subgroup in said["subgroups"]}
    found = []
    for entry in json.loads(emoji):
        if groups.get(entry.get("group")) not in _GROUPS:
            continue
        label, subgroup = entry["label"], subgroups[entry["subgroup"]]
        if label in _LEFT_OUT or (subgroup in _NO_SUBGROUPS and label not in _KEPT_ANYWAY):
            continue
        text = _RENAMED.get(label, label)
        if re.fullmatch(r"[a-z]+([ -][a-z]+)?", text) is None or text.endswith(" face"):
            continue
        code = entry["hexcode"].lower().removesuffix("-fe0f")
        category = None if text in _OTHERWISE else _CATEGORIES.get(subgroup)
        found.append(Name(text, code, entry["emoji"].replace("\ufe0f", ""), subgroup, category))
    twice = [text for text, count in Counter(name.text for name in found).items() if count > 1]
    assert not twice, twice
    return found

"""What people know of things: questions about the thing in a place that its picture alone does not answer.

A thing of which people could argue stands under no answer, and is not asked about.
"""

from typing import NamedTuple

from data.pasted.parts.names import listed


class Fact(NamedTuple):
    """One property of things.

    Attributes:
        questions: phrasings, with {place} for where the thing is.
        answers: answer -> texts of the names for which it is true.
    """

    questions: tuple[str, ...]
    answers: dict[str, frozenset[str]]


_FLYING = listed("eagle, duck, owl, parrot, goose, swan, flamingo, bat, butterfly, bee, ladybug, mosquito")
_FOUR_LEGS = listed(
    """dog, wolf, fox, raccoon, cat, lion, tiger, leopard, moose, donkey, horse, zebra, deer, bison, cow, pig, goat,
    camel, llama, giraffe, elephant, mammoth, rhino, hippo, mouse, hamster, rabbit, beaver, hedgehog, bear, polar
    bear, panda, skunk, badger, crocodile, turtle, lizard, frog"""
)
_TWO_LEGS = listed(
    "turkey, chicken, rooster, baby chick, penguin, eagle, duck, swan, owl, dodo, flamingo, parrot, goose"
)
_SIX_LEGS = listed("butterfly, ant, bee, ladybug, cockroach, mosquito")
_NO_LEGS = listed("snake, fish, blowfish, shark, whale, dolphin, snail, jellyfish")
_SEA = listed("fish, blowfish, shark, whale, dolphin, octopus, squid, jellyfish, lobster, shrimp, oyster")
_ON_WHEELS = listed(
    """locomotive, tram, bus, ambulance, fire truck, police car, taxi, car, pickup truck, truck, tractor, racing
    car, motorcycle, scooter, rickshaw, bicycle"""
)
_ON_WATER = listed("sailboat, canoe, speedboat, ship")
_FRUIT = listed(
    """grapes, watermelon, lemon, banana, pineapple, mango, apple, pear, peach, cherries, strawberry, blueberries,
    kiwi"""
)
_NO_FRUIT = listed(
    """potato, carrot, broccoli, garlic, onion, ginger, bread, croissant, baguette, pretzel, bagel, pancakes,
    waffle, cheese, meat, chicken leg, bacon, hamburger, fries, pizza, hot dog, sandwich, taco, burrito, noodles,
    spaghetti, sushi, doughnut, cookie, cake, cupcake, chocolate, candy, lollipop"""
)
_WITH_STRINGS = listed("guitar, violin, banjo")
_BLOWN = listed("saxophone, trumpet, flute")
_BEATEN = listed("drum")
_SHOES = listed("shoe, hiking boot, slipper, high heel, flip-flop")
_HATS = listed("sun hat, top hat, graduation cap, cap")

FACTS = (
    Fact(
        ("Can the animal in the {place} fly?", "Is the animal in the {place} able to fly?"),
        {"yes": _FLYING, "no": (_FOUR_LEGS | _NO_LEGS | _SEA | listed("penguin, dodo, spider, ant, scorpion"))},
    ),
    Fact(
        ("How many legs does the animal in the {place} have?", "Number of legs of the animal in the {place}?"),
        {"0": _NO_LEGS, "2": _TWO_LEGS, "4": _FOUR_LEGS, "6": _SIX_LEGS, "8": listed("spider, scorpion")},
    ),
    Fact(
        ("Does the animal in the {place} live in the sea?", "Is the sea the home of the animal in the {place}?"),
        {"yes": _SEA, "no": (_FOUR_LEGS | _SIX_LEGS | _TWO_LEGS) - listed("polar bear, penguin, turtle, crocodile")},
    ),
    Fact(
        ("Is the food in the {place} a fruit?", "Does the food in the {place} count as fruit?"),
        {"yes": _FRUIT, "no": _NO_FRUIT},
    ),
    Fact(
        ("Does the vehicle in the {place} go on land, on water or in the air?", "Where does the vehicle in the {place} "
         "go: on land, on water or in the air?"),
        {"land": _ON_WHEELS, "water": _ON_WATER, "air": listed("airplane, helicopter, rocket")},
    ),
    Fact(
        ("Does the instrument in the {place} have strings?", "Are there strings on the instrument in the {place}?"),
        {"yes": _WITH_STRINGS, "no": _BLOWN | _BEATEN | listed("maracas")},
    ),
    Fact(
        ("Is what is in the {place} worn on the head or on the feet?",
         "On the head or on the feet: where is what is in the {place} worn?"),
        {"head": _HATS, "feet": _SHOES | listed("socks")},
    ),
)  # fmt: skip

"""Says in words what covers each patch of a picture of the embedded world.

A vision tower is trained on these words. A picture has P patches, in reading order.
"""

import numpy as np
from PIL import Image

from data.shapes.scenes import BACKGROUND, CELL_SIZE, COLORS, IMAGE_SIZE, PLACES, SHAPES, SIZES, WORDS, Scene

# Words that exclude each other, so that a patch has at most one of a group. They are written as in answers: every word
# begins with a space, but for the second digit of a number.
GROUPS = {
    "empty": (" nothing",),  # the background, which has no row or column either
    "row": tuple(dict.fromkeys(f" {place.split()[0]}" for place in PLACES)),
    "column": tuple(dict.fromkeys(f" {place.split()[1]}" for place in PLACES)),
    "color": tuple(f" {color}" for color in COLORS),
    "shape": tuple(f" {shape}" for shape in SHAPES),
    "size": tuple(f" {size}" for size in SIZES),
    "thing": (" thing",),  # one patch per thing, just above and left of its middle, so that things can be counted
    "kind": (" word", " number"),
    "word": tuple(f" {word}" for word in WORDS),
    "tens": tuple(f" {digit}" for digit in range(10)),
    "units": tuple(f"{digit}" for digit in range(10)),
}
NO_WORD = -100

_COVERED_PIXELS = 6  # a patch is covered where at least this many of its pixels are visible
_VISIBLE = 60  # a pixel is visible where its channels differ from the background by more than this, summed up


def patch_words(scene: Scene, image: Image.Image, patch_size: int) -> np.ndarray:
    """Returns the words for every patch, as indices into each of GROUPS.

    Args:
        scene: what the picture shows.
        image: `draw_scene(scene)`.
        patch_size: side of a patch in pixels; it divides IMAGE_SIZE.

    Returns:
        [P, len(GROUPS)] int64, NO_WORD where nothing of the group covers the patch.
    """
    side = IMAGE_SIZE // patch_size
    assert side * patch_size == IMAGE_SIZE and image.size == (IMAGE_SIZE, IMAGE_SIZE)
    difference = np.abs(np.asarray(image, dtype=np.int16) - np.array(BACKGROUND, dtype=np.int16)).sum(axis=-1)
    visible = (difference > _VISIBLE).reshape(side, patch_size, side, patch_size).sum(axis=(1, 3))
    covered = visible >= _COVERED_PIXELS
    middles = np.arange(side) * patch_size + patch_size // 2
    words = {name: np.full((side, side), NO_WORD, dtype=np.int64) for name in GROUPS}
    row, column = np.meshgrid(middles // CELL_SIZE, middles // CELL_SIZE, indexing="ij")
    cell = 3 * row + column
    words["empty"][~covered] = 0
    words["row"][covered], words["column"][covered] = row[covered], column[covered]
    for thing in scene.things:
        patches = covered & (cell == thing.cell)
        for name, word in (("color", thing.color), ("shape", thing.shape), ("size", thing.size)):
            words[name][patches] = GROUPS[name].index(f" {word}")
        x, y = (middle - patch_size // 2 for middle in thing.center)
        words["thing"][y // patch_size, x // patch_size] = 0
    patches = covered & (cell == scene.sign.cell)
    words["kind"][patches] = GROUPS["kind"].index(f" {scene.sign.kind}")
    if scene.sign.kind == "word":
        words["word"][patches] = GROUPS["word"].index(f" {scene.sign.text}")
    else:
        words["tens"][patches], words["units"][patches] = (int(digit) for digit in scene.sign.text)
    return np.stack([words[name].flatten() for name in GROUPS], axis=1)

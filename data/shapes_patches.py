"""What covers each patch of a picture of the embedded world: the dense targets of a vision tower.

Class 0 of every target but `cell` means none. P patches per picture, in reading order.
"""

import numpy as np
import torch
from PIL import Image

from data.shapes_scenes import BACKGROUND, CELL_SIZE, COLORS, IMAGE_SIZE, PLACES, SHAPES, SIZES, WORDS, Scene

TARGETS = {  # target: number of its classes
    "thing": len(COLORS) * len(SHAPES) + 1,  # jointly, so that what is bound together lies in one direction
    "color": len(COLORS) + 1,
    "shape": len(SHAPES) + 1,
    "size": len(SIZES) + 1,
    "center": 2,  # one patch per thing, just above and left of its middle: what is to be counted stands once
    "word": len(WORDS) + 1,
    "tens": 11,
    "units": 11,
    "cell": len(PLACES),
}

_COVERED_PIXELS = 6  # fewer than this many pixels do not make a patch covered
_VISIBLE = 60  # summed difference of the channels from the background


def patch_targets(scene: Scene, image: Image.Image, patch_size: int) -> dict[str, torch.Tensor]:
    """Class of every patch for each of TARGETS.

    Args:
        scene: what the picture shows.
        image: `draw_scene(scene)`.
        patch_size: side of a patch in pixels; it divides IMAGE_SIZE.

    Returns:
        Each target: [P] int64.
    """
    side = IMAGE_SIZE // patch_size
    assert side * patch_size == IMAGE_SIZE and image.size == (IMAGE_SIZE, IMAGE_SIZE)
    difference = np.abs(np.asarray(image, dtype=np.int16) - np.array(BACKGROUND, dtype=np.int16)).sum(axis=-1)
    visible = (difference > _VISIBLE).reshape(side, patch_size, side, patch_size).sum(axis=(1, 3))
    covered = visible >= _COVERED_PIXELS
    place = (np.arange(side) * patch_size + patch_size // 2) // CELL_SIZE
    targets = {name: np.zeros((side, side), dtype=np.int64) for name in TARGETS}
    targets["cell"] += 3 * place[:, None] + place[None, :]
    for thing in scene.things:
        patches = covered & (targets["cell"] == thing.cell)
        color, shape = list(COLORS).index(thing.color), SHAPES.index(thing.shape)
        targets["thing"][patches] = color * len(SHAPES) + shape + 1
        targets["color"][patches] = color + 1
        targets["shape"][patches] = shape + 1
        targets["size"][patches] = list(SIZES).index(thing.size) + 1
        x, y = (middle - patch_size // 2 for middle in thing.center)
        targets["center"][y // patch_size, x // patch_size] = 1
    patches = covered & (targets["cell"] == scene.sign.cell)
    if scene.sign.kind == "word":
        targets["word"][patches] = WORDS.index(scene.sign.text) + 1
    else:
        right = (np.arange(side) * patch_size + patch_size // 2) % CELL_SIZE >= CELL_SIZE // 2
        tens, units = (int(digit) + 1 for digit in scene.sign.text)
        targets["tens"][patches & ~right] = tens
        targets["units"][patches & right] = units
    return {name: torch.from_numpy(values).flatten() for name, values in targets.items()}

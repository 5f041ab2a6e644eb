"""What a picture file shows, as RGB: upright, over white, in 8 bits.

A phone writes its pictures as the sensor lies, and says in EXIF how to turn them. Whoever serves a checkpoint turns
them (transformers' `load_image` does), so training must see them turned too.
"""

import struct

from PIL import Image, ImageOps

from modeling.user_error import UserError

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is turned."""
UPRIGHT, SIDEWAYS = 1, (5, 6, 7, 8)
"""Its values for pictures that stand, and that lie on their side."""
PLAIN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")
"""PIL's modes of pictures in 8 bits or fewer, which it converts to RGB as one would expect."""


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (height, width) in pixels of a picture as it is shown. Nothing is decoded."""
    lies = _orientation(image) in SIDEWAYS
    if image.format == "TIFF" and ORIENTATION in image.tag_v2:  # type: ignore[attr-defined]
        lies = False  # PIL says already how large it will be
    return (image.width, image.height) if lies else (image.height, image.width)


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture as RGB. What is transparent becomes white, as on paper. An animation shows its first frame.

    Raises:
        UserError: the picture is of a kind that has no obvious colours, such as floating point numbers.
        Whatever PIL raises on broken files.
    """
    if _orientation(image) != UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # PIL would cut its values off at 255
        return image.convert("I").point(lambda value: value / 257 + 0.5).convert("L").convert("RGB")
    if image.mode not in PLAIN:
        raise UserError(f"its pixels are of mode {image.mode}, allowed: {', '.join(PLAIN)}, I;16")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Returns how a picture is turned. One whose EXIF cannot be read stands upright.

    PNG files may have EXIF behind the pixels too. PIL's own method for them would decode these to look there.
    """
    try:
        return Image.Image.getexif(image).get(ORIENTATION, UPRIGHT)
    except (SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error):
        return UPRIGHT

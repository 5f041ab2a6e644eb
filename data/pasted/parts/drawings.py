"""The drawings of things: for each name, in each style, pictures with nothing around the thing."""

import io
import re
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from data.pasted.archive import members
from data.pasted.packages import PACKAGES, fetch
from data.pasted.parts.names import Name, listed

HELD_OUT_STYLE = "twemoji"
"""The style that is never trained."""
STYLE_PACKAGES = {
    "fluent": "@lobehub/fluent-emoji-3d",
    HELD_OUT_STYLE: "emoji-datasource-twitter",
    "noto": "fonts-noto-color-emoji",
    "photo": "tuxpaint-stamps-default",
}
"""Name of each style -> the package that it comes from."""
MOST_PIXELS = 128
"""Of the longer side of a kept drawing."""
_NOTO_SIZE = 109  # the font has pictures of this one size
_SAME = {
    "apple red": "apple", "bear european": "bear", "chilepepper": "hot pepper", "yellowpepper": "bell pepper",
    "garbagecan": "trash can", "guitar classical": "guitar", "horse bay": "horse", "747": "airplane",
    "rhino black": "rhino", "hippopotamus": "hippo", "sedan": "car", "truck": "pickup truck", "firetruck": "fire truck",
    "indycar": "racing car", "bandage adhesive": "bandage", "mercurythermometer": "thermometer", "7spoke256": "wheel",
    "paintbrush large": "paintbrush", "camera 35mm": "camera", "lightbulb": "light bulb", 
    "usps mailbox": "mailbox", "rabbit little": "rabbit", "tiger sumatran": "tiger", 
    "pink flamingo": "flamingo", "magellanic penguin": "penguin", "tomato": "tomato",
    "drum tomtom floor": "drum", "kiwi": "kiwi", "toilet": "toilet", "stethoscope": "stethoscope",
    "scissors small open": "scissors", "broccoli": "broccoli", "mango": "mango", "avocado": "avocado",
}  # fmt: skip
"""What photographs of some stamps show. Of the others, the caption says it in full."""
_NO_PHOTOGRAPHS = listed(
    "bat, bee, butterfly, candle, cap, hedgehog, key, scarf, scissors, shrimp, spider, star, sun, top hat"
)
"""Names whose stamps are drawings."""


def read_drawings(style: str, names: Sequence[Name]) -> dict[str, tuple[Image.Image, ...]]:
    """Returns the drawings of a style, whose package is fetched. A style may lack names.

    Args:
        style: a key of STYLE_PACKAGES.
        names: the names that are wanted.

    Returns:
        Text of each name that has some -> its drawings, RGBA, cropped to what is visible, the longer side at most
            MOST_PIXELS.

    Raises:
        PackageUnavailable: the style's package cannot be had here.
        UserError: the package is damaged.
    """
    path = fetch(PACKAGES[STYLE_PACKAGES[style]])
    if style == "noto":
        ((_, font),) = members(path, r".*/NotoColorEmoji\.ttf")
        found = _of_font(font, names)
    elif style == "photo":
        found = _of_stamps(dict(members(path, r".*/stamps/(?!.*cartoon)(?!.*toys).*\.(png|txt)")), names)
    else:
        folder = {"fluent": r"package/assets/.*\.webp", HELD_OUT_STYLE: r"package/img/twitter/64/.*\.png"}[style]
        found = _of_files(dict(members(path, folder)), names)
    drawings: dict[str, tuple[Image.Image, ...]] = {}
    for text, image in found:
        drawings[text] = (*drawings.get(text, ()), cropped(image))
    return drawings


def cropped(image: Image.Image) -> Image.Image:
    """Returns what of a picture is not almost transparent, as RGBA of at most MOST_PIXELS."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 32)).getbbox()
    image = image.crop(box)
    image.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
    return image


def _of_files(files: dict[str, bytes], names: Sequence[Name]) -> Iterator[tuple[str, Image.Image]]:
    """Yields drawings of files that are called by the code points of their emoji."""
    by_code = {re.split(r"[/.]", file)[-2].removesuffix("-fe0f"): content for file, content in files.items()}
    for name in names:
        if name.code in by_code:
            yield name.text, Image.open(io.BytesIO(by_code[name.code]))


def _of_font(content: bytes, names: Sequence[Name]) -> Iterator[tuple[str, Image.Image]]:
    font = ImageFont.truetype(io.BytesIO(content), _NOTO_SIZE, layout_engine=ImageFont.Layout.BASIC)
    for name in names:
        if "-" in name.code:  # several characters that a plain layout draws side by side
            continue
        image = Image.new("RGBA", (_NOTO_SIZE * 3 // 2, _NOTO_SIZE * 3 // 2))
        ImageDraw.Draw(image).text((0, 0), name.emoji, font=font, embedded_color=True)
        if image.getbbox() is not None:  # the font is older than some emoji
            yield name.text, image


def _of_stamps(files: dict[str, bytes], names: Sequence[Name]) -> Iterator[tuple[str, Image.Image]]:
    """Yields the photographs whose caption, or whose file's name, is a name."""
    texts = {name.text for name in names}.difference(_NO_PHOTOGRAPHS)
    for file in sorted(files):
        if not file.endswith(".png"):
            continue
        stem = file.rpartition("/")[2].removesuffix(".png").replace("_", " ")
        lines = files.get(file.removesuffix(".png") + ".txt", b"").decode(errors="replace").splitlines()
        caption = re.sub(r"^(an?|the|some|a pair of) ", "", lines[0].lower()).strip(" .!") if lines else ""
        text = _SAME.get(stem, caption)
        if text in texts:
            yield text, Image.open(io.BytesIO(files[file]))

"""The licences of what a world is made of."""

from collections.abc import Iterable

from data.pasted.packages import PACKAGES
from data.pasted.parts.backgrounds import BACKGROUND_PACKAGES
from data.pasted.parts.drawings import STYLE_PACKAGES

_ALWAYS = ("emojibase-data", "vega_datasets")


def licence_list(styles: Iterable[str], backgrounds: Iterable[str]) -> str:
    """Returns a page in Markdown on what pictures are made of.

    Args:
        styles: the styles that are drawn.
        backgrounds: names of the backgrounds; those of textures say that no package of photographs was used.
    """
    textures = all(name.startswith("texture-") for name in backgrounds)
    used = [*_ALWAYS, *(STYLE_PACKAGES[style] for style in styles if style in STYLE_PACKAGES)]
    used += [] if textures else BACKGROUND_PACKAGES
    rows = [
        f"| {package.name} | {package.version} | {package.kind} | {package.content} | {package.licence} |"
        for package in (PACKAGES[name] for name in used)
    ]
    return "\n".join(
        [
            "# Licences",
            "",
            "The pictures in this folder are composed of what these packages hold. Each part keeps its licence, and",
            "those of Debian's packages ask that what is made from them is shared alike. Share the program that makes",
            "the pictures rather than the pictures.",
            "",
            "| package | version | registry | what is used | licence |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )

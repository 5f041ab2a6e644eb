"""Contact sheets: pictures of a split with their questions below, for people to look at."""

import io
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from data.pasted.parts.stock import font

_COLUMNS, _ROWS, _WIDTH, _LINE, _LETTERS = 3, 2, 620, 13, 7
_MOST_LINES = 14


def write_sheets(split: Path, count: int, folder: Path) -> list[Path]:
    """Writes the first pictures of a split with their questions and answers, six to a PNG.

    Args:
        split: a parquet file of the world.
        count: number of pictures.
        folder: where sheets are written; it is made if it is missing.

    Returns:
        The sheets, in order.
    """
    scenes: dict[str, tuple[bytes, list[str]]] = {}
    for batch in pq.ParquetFile(split).iter_batches(columns=["scene", "image", "conversations", "families"]):
        for row in batch.to_pylist():
            _, lines = scenes.setdefault(row["scene"], (row["image"]["bytes"], []))
            texts = [message["value"].removeprefix("<image>\n") for message in row["conversations"]]
            lines += [
                f"{family}: {question}  →  {answer}"
                for family, question, answer in zip(row["families"], texts[::2], texts[1::2], strict=True)
            ]
        if len(scenes) > count:
            break
    folder.mkdir(parents=True, exist_ok=True)
    shown, paths = list(scenes.values())[:count], []
    for start in range(0, len(shown), _COLUMNS * _ROWS):
        path = folder / f"{split.stem}-{start:05d}.png"
        _sheet(shown[start : start + _COLUMNS * _ROWS]).save(path)
        paths.append(path)
    return paths


def _sheet(scenes: list[tuple[bytes, list[str]]]) -> Image.Image:
    pictures = [Image.open(io.BytesIO(content)) for content, _ in scenes]
    height = max(picture.height for picture in pictures) + _LINE * _MOST_LINES + 8
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH, _ROWS * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, (_, lines)) in enumerate(zip(pictures, scenes, strict=True)):
        x, y = index % _COLUMNS * _WIDTH, index // _COLUMNS * height
        sheet.paste(picture, (x, y))
        for number, line in enumerate(lines[:_MOST_LINES]):
            place = (x, y + picture.height + 3 + number * _LINE)
            pen.text(place, line, fill="black", font=font("DejaVuSans", _LETTERS))
    return sheet

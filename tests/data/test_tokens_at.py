"""The tokens of a picture follow from its size, and are those that the whole processor makes."""

import random
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.image_utils import SizeDict

from data import images
from data.images import check_tokens_at, tokens_at
from modeling.user_error import UserError
from tests.families.family import TinyFamily
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL

FAMILIES = [LLAVA[0], LLAVA_NEXT[0], QWEN2_VL, INTERNVL[0]]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def whole(size: tuple[int, int], processor) -> torch.Tensor:
    """The tokens of a blank picture, by the processor's own call."""
    image = Image.new("RGB", size[::-1])
    return processor(text=processor.image_token, images=[image], add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ][0]


@families
def test_counted_tokens_are_those_of_the_whole_processor(family: TinyFamily):
    draw, processor = random.Random(0), family.processor()
    sizes = [(1, 1), (1, 200), (200, 1), (3, 600), (27, 29)]
    sizes += [(draw.randint(1, 300), draw.randint(1, 300)) for _ in range(60)]
    sizes = [size for size in sizes if max(size) <= 200 * min(size)]
    counts = set()
    for size in sizes:
        counted = tokens_at(size, processor)
        assert counted.dtype == torch.int64 and torch.equal(counted, whole(size, processor)), size
        counts.add(len(counted))
    assert len(counts) == 1 if family in LLAVA else len(counts) > 3


@families
def test_no_picture_is_processed(family: TinyFamily, monkeypatch):
    processor = family.processor()
    tokens_at((40, 30), processor)  # the tokens around those of a picture are looked at once

    def fail(*arguments, **options):
        raise AssertionError("a picture is processed")

    monkeypatch.setattr(type(processor), "__call__", fail)
    monkeypatch.setattr(type(processor.image_processor), "preprocess", fail)
    assert len(tokens_at((60, 90), processor)) > 0
    with pytest.raises(AssertionError, match="a picture is processed"):
        whole((60, 90), processor)


@families
def test_sizes_are_compared_with_the_processor(family: TinyFamily):
    check_tokens_at([(30, 40), (8, 90), (90, 8), (100, 100)], family.processor())
    check_tokens_at([], family.processor())


@pytest.mark.parametrize("odd", [(170, 17), (17, 170), (300, 300), (5, 5)])
def test_a_processor_that_counts_otherwise_is_refused(odd, monkeypatch):
    """The narrowest, the widest, the largest and the smallest of many sizes are compared."""
    processor = QWEN2_VL.processor()
    count = processor.image_processor.get_number_of_image_patches
    monkeypatch.setattr(
        processor.image_processor,
        "get_number_of_image_patches",
        lambda height, width, settings: count(height, width, settings) + 4 * ((height, width) == odd),
    )
    others = [(40 + step, 60) for step in range(20)]
    check_tokens_at(others, processor)
    with pytest.raises(
        UserError, match=rf"Qwen2VLProcessor is not supported: it makes \d+ tokens of a picture of {odd[1]} x {odd[0]}"
    ):
        check_tokens_at([*others, odd], processor)


def test_a_llava_that_does_not_crop_is_refused():
    processor = LLAVA[0].processor()
    processor.image_processor.do_center_crop = False
    with pytest.raises(UserError, match="LlavaProcessor is not supported: it makes 18 tokens of a picture of 60 x 30"):
        check_tokens_at([(30, 60)], processor)


def test_a_processor_without_a_crop_size_is_refused():
    processor = LLAVA[0].processor()
    processor.image_processor.crop_size = None
    with pytest.raises(UserError, match="LlavaProcessor is not supported: it cannot tell a picture's tokens"):
        tokens_at((30, 40), processor)


def test_a_size_that_the_processor_refuses():
    with pytest.raises(UserError, match=r"a picture of 300 x 1 pixels is refused by Qwen2VLImageProcessorPil \(abs"):
        tokens_at((1, 300), QWEN2_VL.processor())


@pytest.mark.parametrize(
    "make", [tokens_at, lambda size, processor: images._process(Image.new("RGB", size[::-1]), processor)]
)
def test_what_a_picture_would_be_scaled_to_is_bounded(make, monkeypatch):
    """A file of 8000 x 4 pixels takes 188 bytes. Its shorter side scaled to 336 pixels, it takes 677 MB, and copies."""
    processor = LLAVA[0].processor()
    processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 24, "width": 24}
    )
    with pytest.raises(
        UserError,
        match="a picture of 8000 x 4 pixels is refused: CLIPImageProcessorPil would scale it to 225792000 pixels; "
        "at most 64000000 pixels",
    ):
        make((4, 8000), processor)
    make((4, 400), processor)
    monkeypatch.setattr(images, "MAX_PIXELS", 336**2 * 100)
    make((4, 400), processor)
    monkeypatch.setattr(images, "MAX_PIXELS", 336**2 * 100 - 1)
    with pytest.raises(UserError, match="is refused: CLIP"):
        make((4, 400), processor)


def test_what_a_picture_would_be_enlarged_to_is_bounded():
    processor = QWEN2_VL.processor()
    processor.image_processor.size = SizeDict(shortest_edge=10**9, longest_edge=10**10)
    with pytest.raises(
        UserError, match="Qwen2VLImageProcessorPil would scale it to 1000000000 pixels; at most 64000000"
    ):
        tokens_at((30, 40), processor)


MEASURE = """
import resource, sys
from pathlib import Path
from transformers import CLIPImageProcessorPil
from data import images
from modeling.user_error import UserError
from tests.families.llava import LLAVA

processor = LLAVA[0].processor()
processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})

def growth(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        images.process_images([Path(sys.argv[1], name)], processor)
    except UserError as error:
        assert "too long" in str(error), error
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024

print(growth("refused.png"))
images.MAX_ASPECT = images.MAX_PIXELS = 10**9
print(growth("unlimited.png"))
"""


@pytest.mark.slow  # a process of its own
def test_the_memory_that_a_line_takes(tmp_path):
    """In MiB. Without limits it takes hundreds, even a quarter as long, so the measurement can fail."""
    Image.new("RGB", (8000, 4)).save(tmp_path / "refused.png")
    Image.new("RGB", (2000, 4)).save(tmp_path / "unlimited.png")
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, unlimited = map(int, process.stdout.split())
    assert refused < 20 and unlimited > 200, process.stdout

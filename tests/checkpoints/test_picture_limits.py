"""Limits of pictures: the image processor obeys them, the config counts by them, and a checkpoint carries both."""

import json
import random

import pytest
import torch
from PIL import Image

from checkpoints.build import build_student, dense_config, load_dense
from checkpoints.families import sparse_class
from checkpoints.load import load_checkpoint
from checkpoints.picture_limits import PictureLimits, limit_config, limit_processor, own_limits
from checkpoints.processor import load_processor
from data.images import tokens_at
from data.videos import _sampling, video_tokens_at
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.families.family import TinyFamily
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT, TILE
from tests.families.qwen2_vl import QWEN2_VL
from training.distillation.students import dense_processor, limited_config, load_model, untrained_student
from training.recipe.model import ModelSettings

TOKEN = 28**2
"""Pixels of one of Qwen2-VL's tokens."""
LIMITED = [
    (QWEN2_VL, PictureLimits(max_pixels=20 * TOKEN)),
    (QWEN2_VL, PictureLimits(min_pixels=30 * TOKEN)),
    (QWEN2_VL, PictureLimits(min_pixels=12 * TOKEN + 5, max_pixels=12 * TOKEN + 5)),
    (INTERNVL[0], PictureLimits(max_tiles=1)),
    (INTERNVL[0], PictureLimits(max_tiles=6)),
    (INTERNVL[0], PictureLimits(max_tiles=20)),
    (LLAVA_NEXT[0], PictureLimits(max_tiles=2)),
    (LLAVA_NEXT[0], PictureLimits(max_tiles=3)),
]
limited = pytest.mark.parametrize("family, limits", LIMITED, ids=lambda value: getattr(value, "name", None))


@limited
def test_grids_are_those_of_the_processor(family: TinyFamily, limits):
    config, processor, draw = family.config(), family.processor(), random.Random(1)
    limit_config(config, own_limits_of(family))
    sizes = [(draw.randint(1, 300), draw.randint(1, 300)) for _ in range(60)]
    sizes = [size for size in sizes if max(size) <= 200 * min(size)]

    def counts() -> list[int]:
        cls = sparse_class(config)
        counted = [len(cls.visual_rows(cls.image_grids(config, *size))) for size in sizes]
        made = [int((tokens_at(size, processor) == processor.image_token_id).sum()) for size in sizes]
        assert counted == made
        return counted

    before = counts()
    limit_config(config, limits)
    limit_processor(processor, config, limits)
    assert counts() != before
    image = Image.new("RGB", sizes[0][::-1])
    whole = processor(text=processor.image_token, images=[image], add_special_tokens=False)["input_ids"][0]
    assert len(whole) == len(tokens_at(sizes[0], processor))


def own_limits_of(family: TinyFamily) -> PictureLimits:
    """The limits of a tiny family's processor, which its config does not hold."""
    size = dict(family.processor().image_processor.size)
    return PictureLimits(size["shortest_edge"], size["longest_edge"]) if family is QWEN2_VL else PictureLimits()


def test_the_most_are_kept():
    config, processor = QWEN2_VL.config(), QWEN2_VL.processor()
    limits = PictureLimits(min_pixels=10 * TOKEN, max_pixels=20 * TOKEN)
    limit_config(config, limits)
    limit_processor(processor, config, limits)
    counts = [len(tokens_at(size, processor)) for size in [(1, 1), (30, 30), (100, 200), (3000, 4000)]]
    assert all(10 <= count <= 20 for count in counts)
    config, processor = INTERNVL[0].config(), INTERNVL[0].processor()
    limit_config(config, PictureLimits(max_tiles=4))
    limit_processor(processor, config, PictureLimits(max_tiles=4))
    assert len(sparse_class(config).image_grids(config, 900, 900)) == 5  # 2 x 2, and the whole picture
    config = LLAVA_NEXT[0].config()
    limit_config(config, PictureLimits(max_tiles=2))
    assert config.image_grid_pinpoints == [[TILE, 2 * TILE], [2 * TILE, TILE]]


@pytest.mark.parametrize(
    "family, limits, message",
    [
        (
            LLAVA[0],
            {"max_pixels": 9},
            "max_pixels: got 9, but 'llava' models have no such limit, they have none, as they",
        ),
        (LLAVA[0], {"max_tiles": 9}, "max_tiles: got 9, but 'llava' models have no such limit"),
        (LLAVA_NEXT[0], {"min_pixels": 9}, "'llava_next' models have no such limit, they have max_tiles"),
        (
            LLAVA_NEXT[0],
            {"max_tiles": 1},
            "max_tiles: got 1, allowed: from 2, the fewest in the model's image_grid_pin",
        ),
        (INTERNVL[0], {"max_pixels": 9}, "'internvl' models have no such limit, they have max_tiles"),
        (QWEN2_VL, {"max_tiles": 9}, "'qwen2_vl' models have no such limit, they have min_pixels and max_pixels"),
    ],
)
def test_limits_that_a_family_does_not_have(family: TinyFamily, limits, message):
    with pytest.raises(UserError, match=message):
        limit_config(family.config(), PictureLimits(**limits))


def test_limits_against_those_of_the_checkpoint():
    with pytest.raises(UserError, match="min_pixels: got 99999999, allowed: up to max_pixels, which is 3211264"):
        limit_processor(QWEN2_VL.processor(), QWEN2_VL.config(), PictureLimits(min_pixels=99_999_999))
    processor = INTERNVL[0].processor()
    processor.image_processor.min_patches = 4
    with pytest.raises(UserError, match="max_tiles: got 3, allowed: from 4, the checkpoint's min_patches"):
        limit_processor(processor, INTERNVL[0].config(), PictureLimits(max_tiles=3))


def saved(family: TinyFamily, folder) -> str:
    family.dense().save_pretrained(folder)
    family.processor().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "family, limits",
    [
        (QWEN2_VL, {"min_pixels": 4 * TOKEN, "max_pixels": 20 * TOKEN}),
        (INTERNVL[0], {"max_tiles": 3}),
        (LLAVA_NEXT[0], {"max_tiles": 2}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_checkpoint_carries_its_limits(family: TinyFamily, limits, tmp_path):
    """What is trained with the recipe's limits is saved with them, and comes back with them."""
    settings = ModelSettings(path=saved(family, tmp_path / "dense"), dtype="float32", **limits)
    dense, processor = load_model(settings)
    size, cls = (200, 300), sparse_class(dense.config)
    expected, grids = tokens_at(size, processor), cls.image_grids(dense.config, *size)
    assert len(expected) < len(tokens_at(size, family.processor()))
    assert torch.equal(tokens_at(size, dense_processor(settings)), expected)
    assert cls.image_grids(limited_config(settings), *size) == grids
    student = untrained_student(settings, VisualPlan.dense(3))
    student.save_pretrained(tmp_path / "sparse")
    processor.save_pretrained(tmp_path / "sparse")
    model, processor = load_checkpoint(tmp_path / "sparse", "auto")
    assert torch.equal(tokens_at(size, processor), expected) and model.image_grids(model.config, *size) == grids


def test_limits_of_the_checkpoints_own_processor_are_counted_by(tmp_path):
    processor = INTERNVL[0].processor()
    INTERNVL[0].dense().save_pretrained(tmp_path)
    processor.image_processor.max_patches = 5
    processor.save_pretrained(tmp_path)
    assert dense_config(tmp_path).max_tiles == 5
    dense, _ = load_dense(tmp_path, "auto")
    assert build_student(dense, VisualPlan.dense(3)).config.max_tiles == 5
    path = saved(QWEN2_VL, tmp_path / "qwen")
    assert (dense_config(path).min_pixels, dense_config(path).max_pixels) == (TOKEN, 64**2 * TOKEN)
    assert own_limits(saved(LLAVA[0], tmp_path / "llava"), LLAVA[0].config()) == PictureLimits()


@pytest.mark.parametrize("value", [10**9, 0, -1, "many", 2.5])
def test_a_processor_with_impossible_limits_is_refused(tmp_path, value):
    path = saved(INTERNVL[0], tmp_path)
    file = next(file for file in tmp_path.glob("*processor*.json") if "max_patches" in file.read_text())
    fields = json.loads(file.read_text())
    fields.get("image_processor", fields)["max_patches"] = value
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=f"its image processor has max_tiles {value!r}, allowed: integers from 1 to 64"):
        dense_config(path)


@pytest.mark.parametrize("content", ["[]", "{", '{"image_processor": []}', '{"image_processor": {"size": 3}}', "3"])
def test_a_processor_that_cannot_be_read_has_no_limits(tmp_path, content):
    """It is refused where it is loaded."""
    (tmp_path / "processor_config.json").write_text(content)
    for family in (QWEN2_VL, INTERNVL[0]):
        assert own_limits(tmp_path, family.config()) == PictureLimits()


def test_limits_of_videos(tmp_path):
    """A checkpoint carries them, and frames obey them."""
    path = saved(QWEN2_VL, tmp_path / "dense")

    def of(**limits) -> tuple:
        _, processor = load_model(ModelSettings(path=path, dtype="float32", **limits))
        processor.save_pretrained(tmp_path / "saved")
        QWEN2_VL.dense().save_pretrained(tmp_path / "saved")
        found = [
            (_sampling(one), len(video_tokens_at((8, 300, 200), one)))
            for one in (processor, load_processor(tmp_path / "saved"))
        ]
        assert found[0] == found[1]
        return found[0]

    sampling, tokens = of()
    assert sampling == (2.0, 4, 768) and tokens == 4 * round(300 / 28) * round(200 / 28)
    sampling, tokens = of(max_frames=16, frames_per_second=0.5, max_frame_pixels=20 * TOKEN, max_pixels=40 * TOKEN)
    assert sampling == (0.5, 4, 16) and 4 * 10 < tokens <= 4 * 20
    assert 120 < of(max_pixels=40 * TOKEN)[1] <= 4 * 40 < of(min_pixels=100 * TOKEN)[1]
    with pytest.raises(UserError, match=rf"max_frame_pixels: got 9, allowed: from the least .* {TOKEN}, on"):
        of(max_frame_pixels=9)
    for family in (LLAVA[0], LLAVA_NEXT[0], INTERNVL[0]):
        with pytest.raises(UserError, match="max_frames: got 8, but .* models have no such limit"):
            limit_config(family.config(), PictureLimits(max_frames=8))

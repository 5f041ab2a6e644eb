"""How large a picture may become to a model: in pixels where it keeps its resolution, in tiles where it is cut up. And
how many frames of a video are seen.

The image processor obeys these limits, so a checkpoint is served with those that it was trained with. The config holds
those of pictures too, because costs are counted for the grids that follow from it (`Family.image_grids`).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, ProcessorMixin
from transformers.image_utils import SizeDict

from checkpoints.checks.fields import MAX_TILES
from checkpoints.checks.folder import PICTURES, local_folder
from checkpoints.families import sparse_class
from modeling.json_file import read_json
from modeling.user_error import UserError

OF_VIDEOS = ("max_frames", "frames_per_second", "max_frame_pixels")
"""Limits that models have which take videos."""


@dataclass(frozen=True)
class PictureLimits:
    """Limits of pictures and videos. None leaves a limit as it is.

    Attributes:
        min_pixels: a picture of fewer pixels is enlarged to about as many.
        max_pixels: a picture of more pixels is reduced to about as many.
        max_tiles: the most tiles that a picture is cut into, not counting the whole picture beside them.
        max_frames: the most frames of a video that are seen.
        frames_per_second: how many frames of each second of a video are seen.
        max_frame_pixels: a frame of a video of more pixels is reduced to about as many. None means `max_pixels`.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    max_frames: int | None = None
    frames_per_second: float | None = None
    max_frame_pixels: int | None = None

    def given(self) -> dict[str, Any]:
        """Returns the limits that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def own_limits(path: str | os.PathLike, config: PreTrainedConfig) -> PictureLimits:
    """Returns the limits in a checkpoint's image processor that its config does not hold. There are none without one.

    Args:
        path: a model folder, or a model id on the Hub.
        config: the checkpoint's config.

    Raises:
        UserError: a limit is not a positive integer, or there are more than `MAX_TILES` tiles.
    """
    try:
        fields = _image_processor_fields(local_folder(path, PICTURES))
    except UserError:  # there is none, or it is refused where it is loaded
        return PictureLimits()
    size = fields.get("size") if isinstance(fields.get("size"), dict) else {}
    found = {
        "min_pixels": fields.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": fields.get("max_pixels") or size.get("longest_edge"),
        "max_tiles": fields.get("max_patches"),
    }
    limits = PictureLimits(**{name: value for name, value in found.items() if _has_field(config, name)})
    for name, value in limits.given().items():
        most = MAX_TILES if name == "max_tiles" else math.inf
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(f"{path}: its image processor has {name} {value!r}, allowed: integers from 1 to {most}")
    return limits


def _image_processor_fields(folder: Path) -> dict:
    """Returns the fields of a folder's image processor, as transformers finds them. There are none without one.

    Raises:
        UserError: a file cannot be read.
    """
    of_processor, of_pictures = folder / "processor_config.json", folder / "preprocessor_config.json"
    fields = read_json(of_processor).get("image_processor") if of_processor.exists() else None
    if fields is None and of_pictures.exists():
        fields = read_json(of_pictures)
    return fields if isinstance(fields, dict) else {}


def limit_config(config: PreTrainedConfig, limits: PictureLimits) -> None:
    """Writes limits of pictures into the config of a dense or a sparse model.

    Raises:
        UserError: models of this family have no such limit, or no layout of tiles is left.
    """
    allowed = [name for name in asdict(limits) if _has_field(config, name)]
    if hasattr(config, "image_grid_pinpoints"):
        allowed.append("max_tiles")
    if "video" in sparse_class(config).visual_tokens(config):
        allowed += OF_VIDEOS
    for name, value in limits.given().items():
        if name not in allowed:
            raise UserError(
                f"{name}: got {value}, but {config.model_type!r} models have no such limit, "
                f"they have {' and '.join(allowed) or 'none, as they scale each picture to the same size'}"
            )
        if name in OF_VIDEOS:
            continue
        if hasattr(config, "image_grid_pinpoints"):
            config.image_grid_pinpoints = _pinpoints_within(config, value)
        else:
            setattr(config, name, value)


def limit_processor(processor: ProcessorMixin, config: PreTrainedConfig, limits: PictureLimits) -> None:
    """Sets the image processor of a model, and its settings for videos, so that they obey limits.

    Args:
        processor: the model's processor.
        config: the model's config, after `limit_config`.
        limits: the limits.

    Raises:
        UserError: the least is above the most.
    """
    given, images = limits.given(), processor.image_processor
    if "min_pixels" in given or "max_pixels" in given:
        size = dict(images.size)
        least, most = given.get("min_pixels", size["shortest_edge"]), given.get("max_pixels", size["longest_edge"])
        if least > most:
            raise UserError(f"min_pixels: got {least}, allowed: up to max_pixels, which is {most}")
        images.size = SizeDict(shortest_edge=least, longest_edge=most)
    if "max_tiles" in given and hasattr(config, "image_grid_pinpoints"):
        images.image_grid_pinpoints = config.image_grid_pinpoints
    elif "max_tiles" in given:
        if given["max_tiles"] < images.min_patches:
            raise UserError(
                f"max_tiles: got {given['max_tiles']}, allowed: from {images.min_patches}, the checkpoint's min_patches"
            )
        images.max_patches = given["max_tiles"]
    if "video" in sparse_class(config).visual_tokens(config):
        _limit_videos(processor, given)


def _limit_videos(processor: ProcessorMixin, given: Mapping[str, Any]) -> None:
    """Sets how many frames of a video are seen, and how large they are.

    Without torchvision there is no video processor, and its settings alone are kept.
    """
    videos = processor.video_processor
    settings = videos if isinstance(videos, dict) else vars(videos)
    names = {"max_frames": "max_frames", "frames_per_second": "fps"}
    settings.update({theirs: given[ours] for ours, theirs in names.items() if ours in given})
    least, most = given.get("min_pixels"), given.get("max_frame_pixels", given.get("max_pixels"))
    if least is None and most is None:
        return
    size = dict(processor.image_processor.size) | dict(settings.get("size") or {})
    limited = {"shortest_edge": least or size["shortest_edge"], "longest_edge": most or size["longest_edge"]}
    if limited["shortest_edge"] > limited["longest_edge"]:
        raise UserError(
            f"max_frame_pixels: got {limited['longest_edge']}, allowed: from the least pixels of a frame, "
            f"{limited['shortest_edge']}, on"
        )
    for older in ("min_pixels", "max_pixels"):
        settings.pop(older, None)
    settings["size"] = limited if isinstance(videos, dict) else SizeDict(**limited)


def _has_field(config: PreTrainedConfig, name: str) -> bool:
    """Returns whether the sparse config of a model's family has a field of this name."""
    return hasattr(sparse_class(config).config_class, name)


def _pinpoints_within(config: PreTrainedConfig, max_tiles: int) -> list[list[int]]:
    """Returns the resolutions, in pixels, that a picture may be scaled to in at most `max_tiles` tiles."""
    side = config.vision_config.image_size
    tiles = {tuple(point): (point[0] // side) * (point[1] // side) for point in config.image_grid_pinpoints}
    if max_tiles < min(tiles.values()):
        raise UserError(
            f"max_tiles: got {max_tiles}, allowed: from {min(tiles.values())}, the fewest in the model's "
            "image_grid_pinpoints"
        )
    return [list(point) for point, count in tiles.items() if count <= max_tiles]

"""Reads videos from files that others made, and processes their frames as the model takes them.

PyAV decodes them. Frames are read one after another, and only the patches of those that the model sees are kept.
"""

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from PIL import Image
from transformers import ProcessorMixin

from data.images import MAX_ASPECT, MAX_PIXELS
from data.sample import File
from modeling.user_error import UserError

FRAMES_PER_SECOND = 2.0
LEAST_FRAMES, MOST_FRAMES = 4, 768
"""How many frames of a video are seen where the processor does not say it, as published for Qwen2-VL (arXiv 2409.12191,
section 2.1)."""
MAX_DECODED = 200_000
"""Frames that a file may hold. It is an hour of 50 frames a second."""
_ONLY_THIS_FILE = {"protocol_whitelist": ""}
"""With no protocol allowed, a playlist cannot make FFmpeg open other files or addresses."""


class Sampling(NamedTuple):
    """Which frames of a video the model sees."""

    frames_per_second: float
    least: int
    """Frames that are seen at least, if there are as many."""
    most: int
    """Frames that are seen at most."""


class _Seen(NamedTuple):
    """A frame that the model sees."""

    frame: Image.Image
    of: int
    """How many it sees of the video."""


def takes_videos(processor: ProcessorMixin) -> bool:
    """Returns whether the model takes videos, of which each patch holds several frames."""
    return hasattr(processor.image_processor, "temporal_patch_size") and hasattr(processor, "video_token_id")


def refuse_videos(processor: ProcessorMixin) -> None:
    """Raises UserError where the model takes no videos, or PyAV is not installed."""
    if not takes_videos(processor):
        raise UserError(f"a video is shown, {type(processor).__name__} takes none; of the families, Qwen2-VL does")
    if find_spec("av") is None:
        raise UserError("a video is shown, and none is read without PyAV: pip install av")


def size_of_video(video: File, processor: ProcessorMixin, max_pixels: int, decode: bool) -> tuple[int, ...]:
    """Returns (frames, height, width) of a video: how many frames the model sees, and how large they are in pixels.

    Args:
        video: a file, or the bytes of one that lie within a row.
        processor: says which frames are seen.
        max_pixels: as many pixels as a frame may have.
        decode: whether all these frames are decoded, to find whether the file is whole. If not, the first one is.

    Raises:
        UserError: as `process_videos`.
    """
    seen = _seen_frames(video, processor, max_pixels)
    first = next(seen)
    deque(seen if decode else (), maxlen=0)
    seen.close()
    return first.of, first.frame.height, first.frame.width


def video_tokens_at(size: tuple[int, ...], processor: ProcessorMixin) -> torch.Tensor:
    """Returns the tokens [N] int64 that the placeholder of a video of `size`, (frames, height, width), stands for.

    Raises:
        UserError: the processor refuses frames of this size, or would scale all of them to more than `MAX_PIXELS`
            pixels.
    """
    frames, height, width = size
    images, limits = processor.image_processor, _pixels_of_a_frame(processor)
    least, most = limits["shortest_edge"], limits["longest_edge"]
    pixels = frames * min(max(height * width, least), most)
    if pixels > MAX_PIXELS:
        raise UserError(
            f"a video of {frames} frames of {width} x {height} pixels is refused: they would be scaled to {pixels} "
            f"pixels; at most {MAX_PIXELS} pixels (see max_frames and max_frame_pixels)"
        )
    try:
        patches = images.get_number_of_image_patches(height, width, {"min_pixels": least, "max_pixels": most})
    except ValueError as error:
        raise _refused(size, error) from error
    groups = -(-frames // images.temporal_patch_size)
    return torch.full((groups * patches // images.merge_size**2,), processor.video_token_id)


def check_video_tokens_at(sizes: Iterable[tuple[int, ...]], processor: ProcessorMixin) -> None:
    """Processes blank frames of a few of `sizes`: the fewest and the most pixels, the narrowest and the widest.

    Raises:
        UserError: the processor makes other tokens of one of them than `video_tokens_at` says, or as it.
    """
    sides = sorted({size[1:] for size in sizes})
    if not sides:
        return
    by_area, by_shape = (lambda side: side[0] * side[1]), (lambda side: side[0] / side[1])
    for height, width in {choose(sides, key=key) for choose in (min, max) for key in (by_area, by_shape)}:
        counted = video_tokens_at((1, height, width), processor)
        _, rows, columns = _patches([Image.new("RGB", (width, height))], processor)
        made = rows * columns // processor.image_processor.merge_size**2
        if made != len(counted):
            raise UserError(
                f"{type(processor).__name__} is not supported: it makes {made} tokens of frames of {width} x {height} "
                f"pixels, but counts {len(counted)}"
            )


def process_videos(
    videos: Sequence[File], processor: ProcessorMixin, max_pixels: int = MAX_PIXELS
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Reads videos and processes the frames that the model sees, evenly spaced over the time of each.

    Args:
        max_pixels: as many pixels as a frame may have.

    Returns:
        pixel_values_videos [patches, 3 * temporal_patch_size * patch_size**2] float32, and video_grid_thw [videos, 3]
            int64. It is empty without videos.
        The tokens [N] int64 of each video, which its placeholder in a text stands for.

    Raises:
        UserError: PyAV is not installed, the model takes no videos, a file is not a video or is broken, it has more
            than `MAX_DECODED` frames, its frames are larger than `max_pixels` or longer than `MAX_ASPECT` times their
            width, or as `video_tokens_at`.
    """
    if not videos:
        return {}, []
    refuse_videos(processor)
    values, grids = zip(*(_process(video, processor, max_pixels) for video in videos), strict=True)
    merged = processor.image_processor.merge_size**2
    tokens = [torch.full((math.prod(grid) // merged,), processor.video_token_id) for grid in grids]
    return {"pixel_values_videos": torch.cat(values), "video_grid_thw": torch.tensor(grids)}, tokens


def frames_seen(total: int, rate: float, sampling: Sampling) -> list[int]:
    """Returns the numbers of the frames that the model sees, evenly spaced, an even count where there are two or more.

    Args:
        total: the video's number of frames.
        rate: its frames per second.
    """
    count = min(max(total / rate * sampling.frames_per_second, sampling.least), sampling.most, total)
    count = max(math.floor(count / 2) * 2, 1)
    return [int(index * total / count) for index in range(count)]


def _process(video: File, processor: ProcessorMixin, max_pixels: int) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Returns the patches of a video, and its grid: groups of frames, rows and columns of patches."""
    frames = _seen_frames(video, processor, max_pixels)
    groups: list[tuple[torch.Tensor, int, int]] = []
    while group := list(islice(frames, processor.image_processor.temporal_patch_size)):
        if not groups:
            first = group[0]
            video_tokens_at((first.of, first.frame.height, first.frame.width), processor)  # refuses what is too large
        groups.append(_patches([seen.frame for seen in group], processor))
    _, rows, columns = groups[0]
    return torch.cat([values for values, _, _ in groups]), (len(groups), rows, columns)


def _patches(frames: list[Image.Image], processor: ProcessorMixin) -> tuple[torch.Tensor, int, int]:
    """Returns the patches of as many frames as one patch holds, or fewer, and the rows and columns of patches.

    The image processor does all but one thing: a patch holds `temporal_patch_size` frames, where that of a picture
    holds the picture as often. The last frame is repeated to fill up the patches.
    """
    images = processor.image_processor
    time, side = images.temporal_patch_size, images.patch_size
    frames = frames + [frames[-1]] * (time - len(frames))
    try:
        encoded = images(frames, size=_pixels_of_a_frame(processor), return_tensors="pt")
    except ValueError as error:
        raise _refused((len(frames), frames[0].height, frames[0].width), error) from error
    _, rows, columns = encoded["image_grid_thw"][0].tolist()
    patches = encoded["pixel_values"].view(time, rows * columns, 3, time, side**2)
    # Of the frame that a patch has at a time, what it shows at that time.
    merged = torch.stack([patches[frame, :, :, frame] for frame in range(time)], dim=2)
    return merged.flatten(1), rows, columns


def _seen_frames(video: File, processor: ProcessorMixin, max_pixels: int) -> Generator[_Seen, None, None]:
    """Yields the frames that the model sees, as they are shown. Nothing is decoded behind the last of them."""
    refuse_videos(processor)
    import av  # is optional

    sampling = _sampling(processor)
    try:
        with video.open("rb") if isinstance(video, Path) else video.open() as file:
            total = _num_frames(file)
            file.seek(0)
            with av.open(file, mode="r", options=_ONLY_THIS_FILE) as container:
                stream = container.streams.video[0]
                numbers = frames_seen(total, _rate(stream), sampling)
                yield from (_Seen(frame, len(numbers)) for frame in _decoded(container, stream, numbers, max_pixels))
    except UserError as error:
        raise UserError(f"video {str(video)!r} {error}") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"video {str(video)!r} cannot be read ({error})") from error


def _num_frames(file: BinaryIO) -> int:
    """Returns how many frames a video has. Where the file does not say it, they are counted and none is decoded."""
    import av

    with av.open(file, mode="r", options=_ONLY_THIS_FILE) as container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise UserError("holds no pictures that can be decoded")
        stream = container.streams.video[0]
        packets = (packet for packet in container.demux(stream) if packet.size)
        total = stream.frames or sum(1 for _ in islice(packets, MAX_DECODED + 1))
    if not 0 < total <= MAX_DECODED:
        raise UserError(f"has {total} frames or more, allowed: 1 to {MAX_DECODED}")
    return total


def _rate(stream: Any) -> float:
    """Returns the frames per second of a stream."""
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UserError("does not say how many frames a second has")
    return float(rate)


def _decoded(container: Any, stream: Any, numbers: Sequence[int], max_pixels: int) -> Iterator[Image.Image]:
    """Yields the frames of these numbers, as they are shown."""
    _check_shape(stream.width, stream.height, max_pixels)
    stream.codec_context.thread_count = 1  # there is a process for each core
    stream.codec_context.options = {"max_pixels": str(max_pixels)}  # also of frames whose size the file does not say
    wanted, found = set(numbers), 0
    for number, frame in zip(range(numbers[-1] + 1), container.decode(stream), strict=False):
        if (frame.width, frame.height) != (stream.width, stream.height):
            raise UserError(f"changes its size at frame {number}")
        if number in wanted:
            found += 1
            # As phones write them, frames lie on their side and the file says how to turn them.
            yield frame.to_image().rotate(frame.rotation, expand=True)
    if found < len(numbers):
        raise UserError(f"is truncated: {found} of {len(numbers)} frames were found")


def _check_shape(width: int, height: int, max_pixels: int) -> None:
    """Raises UserError for frames that are too large, or too long."""
    if not width or not height or width * height > max_pixels:
        raise UserError(f"is too large ({width} x {height} pixels); at most {max_pixels} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"is too long ({width} x {height} pixels); at most {MAX_ASPECT} times as long as wide")


def _sampling(processor: ProcessorMixin) -> Sampling:
    """Returns which frames are seen, as the settings for videos say."""
    settings = _video_settings(processor)
    sampling = Sampling(
        settings.get("fps") or FRAMES_PER_SECOND,
        settings.get("min_frames") or LEAST_FRAMES,
        settings.get("max_frames") or MOST_FRAMES,
    )
    if not all(isinstance(value, (int, float)) and 0 < value < math.inf for value in sampling):
        raise UserError(f"the processor's settings for videos: got {sampling}, allowed: numbers above 0")
    return sampling


def _pixels_of_a_frame(processor: ProcessorMixin) -> dict[str, int]:
    """Returns the least and the most pixels of a frame, as the settings for videos say, else those of a picture."""
    settings = _video_settings(processor)
    given = dict(processor.image_processor.size) | dict(settings.get("size") or {})
    # Older checkpoints give them under other names.
    older = {"shortest_edge": settings.get("min_pixels"), "longest_edge": settings.get("max_pixels")}
    return {name: older[name] or given[name] for name in older}


def _video_settings(processor: ProcessorMixin) -> dict[str, Any]:
    """Returns the settings for videos. Without torchvision there is no video processor, and they alone are kept."""
    settings = processor.video_processor
    return settings if isinstance(settings, dict) else vars(settings)


def _refused(size: tuple[int, ...], error: ValueError) -> UserError:
    """Returns what is said of frames of a size that the processor refuses."""
    return UserError(f"a video of frames of {size[2]} x {size[1]} pixels is refused ({error})")

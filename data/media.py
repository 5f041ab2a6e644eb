"""Pictures and videos alike: the files of a sample are looked at, and become tokens and what the model is shown.

The tokens of a file follow from its size: (height, width) of a picture, (frames, height, width) of a video.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from transformers import ProcessorMixin

from data.images import check_tokens_at, process_images, size_of_image, tokens_at
from data.sample import File, Medium
from data.videos import check_video_tokens_at, process_videos, size_of_video, video_tokens_at

Size: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Reader:
    """What reads the files of a medium.

    Attributes:
        sides: what the numbers of a size are.
        size_of: a file, the processor, the most pixels of a picture or a frame, and whether the file is decoded to the
            end -> its size.
        tokens_at: a size and the processor -> the tokens [N] int64 that the file's placeholder stands for.
        check_tokens_at: raises UserError where the processor itself makes other tokens of some of these sizes.
        process: files, the processor, and the most pixels of a picture or a frame -> inputs of the model by name, and
            the tokens [N] int64 of each file.
    """

    sides: tuple[str, ...]
    size_of: Callable[[File, ProcessorMixin, int, bool], Size]
    tokens_at: Callable[[Size, ProcessorMixin], torch.Tensor]
    check_tokens_at: Callable[[Iterable[Size], ProcessorMixin], None]
    process: Callable[[Sequence[File], ProcessorMixin, int], tuple[dict[str, torch.Tensor], list[torch.Tensor]]]


READERS: dict[Medium, Reader] = {
    "image": Reader(("height", "width"), size_of_image, tokens_at, check_tokens_at, process_images),
    "video": Reader(
        ("frames", "height", "width"), size_of_video, video_tokens_at, check_video_tokens_at, process_videos
    ),
}

"""What the processors of all families have alike: they take empty lists, and do without torchvision.

`SparseProcessorMixin` is mixed in before the stock processor.
"""

from typing import Any

from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

from .user_error import UserError

VIDEOS = "video_processor"
INPUT_KINDS = ("images", "videos", "audio", "audios")
"""`audios` is an older name of `audio`, which most stock processors refuse."""


class SparseProcessorMixin(ProcessorMixin):
    """A processor to which an empty list of pictures, videos or sounds means that there are none.

    Evaluators hand over a list for each kind of input, also for those that a model does not have. Stock processors try
    to process such a list, or refuse its name.

    The part that processes videos needs torchvision. Where that is not installed, the others do without it.
    """

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Returns the names of the parts."""
        return [name for name in super().get_attributes() if name != VIDEOS or is_torchvision_available()]

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict, **kwargs: Any) -> Any:
        """Returns a processor with these parts and settings, as the stock class does.

        Settings of a part for videos that is left out are kept, so that they are saved with the others again.
        """
        made = super().from_args_and_dict(args, processor_dict, **kwargs)
        if VIDEOS in processor_dict and VIDEOS not in cls.get_attributes():
            processor = made[0] if isinstance(made, tuple) else made
            processor.video_processor = processor_dict[VIDEOS]
        return made

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """Returns what the stock processor returns without the empty lists.

        Raises:
            UserError: there are videos, and torchvision is not installed.
        """
        inputs = {"images": images, "videos": videos, **kwargs}
        given = {name: value for name, value in inputs.items() if not (name in INPUT_KINDS and is_empty(value))}
        if given.get("videos") is not None and isinstance(getattr(self, VIDEOS, None), dict):
            raise UserError("videos: processing them needs torchvision, which is not installed")
        return super().__call__(text=text, **given)


def is_empty(value: object) -> bool:
    """Returns whether a value is an empty list or tuple."""
    return isinstance(value, list | tuple) and not value

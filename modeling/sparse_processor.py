"""What the processors of all families have alike: an empty list of pictures, videos or sounds means none of them."""

from typing import Any

from transformers import ProcessorMixin

INPUT_KINDS = ("images", "videos", "audio", "audios")
"""`audios` is an older name of `audio`, which stock processors refuse."""


class SparseProcessorMixin(ProcessorMixin):
    """A processor that takes an empty list of any kind of input. It is mixed in before the stock processor.

    Evaluators hand over a list for each kind, also for those that a model does not have. Stock processors try to
    process such a list, or refuse its name.
    """

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """Returns what the stock processor returns without the empty lists."""
        inputs = {"images": images, "videos": videos, **kwargs}
        given = {name: value for name, value in inputs.items() if not (name in INPUT_KINDS and is_empty(value))}
        return super().__call__(text=text, **given)


def is_empty(value: object) -> bool:
    """Returns whether a value is an empty list or tuple."""
    return isinstance(value, list | tuple) and not value

"""A model's processor, also where torchvision is not installed."""

import os

from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from checkpoints.families import class_of_type
from modeling.user_error import UserError


def load_processor(path: str | os.PathLike, trust_remote_code: bool = False) -> ProcessorMixin:
    """The processor and tokenizer of a dense model or a sparse checkpoint of one of the families.

    Processors of families that take videos need torchvision. Without it they come without that part: pictures are processed as
    ever, and `save_pretrained` writes the settings for videos as they were read.

    Args:
        path: a folder or a model id on the Hub.
        trust_remote_code: lets a processor or tokenizer run code that comes with it.
    Raises:
        UserError: there is none.
    """
    values, _ = PreTrainedConfig.get_config_dict(path)
    kind = PROCESSOR_MAPPING[class_of_type(values["model_type"]).stock_class.config_class]
    try:
        if is_torchvision_available() or "video_processor" not in kind.get_attributes():
            return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        processor = without_videos(kind).from_pretrained(path)
        processor.video_processor, _ = BaseVideoProcessor.get_video_processor_dict(path)
        return processor
    except OSError as error:
        raise UserError(f"{path}: no readable processor and tokenizer ({error})") from None


def without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class with no video processor among its parts."""

    class Pictures(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != "video_processor"]

    Pictures.__name__ = kind.__name__  # under which it is saved
    return Pictures

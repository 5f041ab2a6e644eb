"""Loads a model's processor, also where torchvision is not installed."""

import os
from pathlib import Path

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from checkpoints.checks.chat_template import check_templates
from checkpoints.checks.folder import PICTURES, PROCESSOR, safe_folder
from checkpoints.config import read_config, said
from checkpoints.families import class_of_type
from modeling.user_error import UserError


def load_processor(path: str | os.PathLike, trust_remote_code: bool = False) -> ProcessorMixin:
    """Returns the processor, with its tokenizer, of a dense model or a sparse checkpoint of one of the families.

    Processors of families that take videos need torchvision. Without it they are loaded without their video processor.
    Pictures are processed as ever, and `save_pretrained` writes the settings for videos as they were read.

    Args:
        path: a folder or a model id on the Hub.
        trust_remote_code: lets a processor or tokenizer run code that comes with it.

    Raises:
        UserError: there is no processor, its files cannot be read, or as `checkpoints.checks.folder.safe_folder` or
            `checkpoints.checks.chat_template.check_templates`.
    """
    model_class = class_of_type(read_config(path)["model_type"]).stock_class
    processor_class = PROCESSOR_MAPPING[model_class.config_class]
    folder = safe_folder(path, PROCESSOR)
    try:
        if is_torchvision_available() or "video_processor" not in processor_class.get_attributes():
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:
            processor = without_videos(processor_class).from_pretrained(folder, trust_remote_code=trust_remote_code)
            processor.video_processor, _ = BaseVideoProcessor.get_video_processor_dict(folder)
    except Exception as error:  # tokenizers raises nothing narrower; only libraries run here
        raise UserError(
            f"{path}: {_broken_files(folder)}: no readable processor and tokenizer ({said(error)})"
        ) from None
    if not isinstance(processor, ProcessorMixin):  # what AutoProcessor gives for a class that it does not know
        raise UserError(
            f"{path}: no readable processor and tokenizer (got a {type(processor).__name__} alone, "
            f"expected a {processor_class.__name__})"
        )
    check_templates(path, processor)
    return processor


def _broken_files(folder: Path) -> str:
    """Returns the names of the files that hold what cannot be read: those of the tokenizer, or the processor's."""
    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # as above
        return "tokenizer.json, tokenizer_config.json"
    return " or ".join(name for name in PICTURES if (folder / name).exists()) or PICTURES[0]


def without_videos(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Returns a subclass of a processor class that has no video processor."""

    class WithoutVideos(processor_class):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in processor_class.get_attributes() if name != "video_processor"]

    WithoutVideos.__name__ = processor_class.__name__  # a processor is saved under the name of its class
    return WithoutVideos

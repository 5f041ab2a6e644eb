"""A tiny LLaVA of another language model and another tower than the demo's, and rows of several questions for it."""

import io

from PIL import Image
from transformers import LlavaProcessor

from data.sample import EmbeddedFile, Sample
from tests.families.llava import DINOV2, SIZE

TURNS = (("is there a cross ?", "yes"), ("what is left of the red circle ?", "a blue square"), ("how many ?", "two"))
TEMPLATE = (
    "{% for message in messages %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{{ message['role'] | upper + ' : ' }}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT :' }}{% endif %}"
)
"""All turns have the same form."""


def tiny_processor() -> LlavaProcessor:
    processor = DINOV2.processor()
    processor.chat_template = TEMPLATE
    return processor


def png(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    """A picture of this width and height."""
    written = io.BytesIO()
    Image.radial_gradient("L").rotate(90 * seed).resize(size).convert("RGB").save(written, "png")
    return written.getvalue()


def sample_of(turns) -> Sample:
    (question, answer), *others = turns
    shown = EmbeddedFile(png(0), "picture 0")
    return Sample("a", (shown,), ((f"<image>\n{question}", answer), *others))

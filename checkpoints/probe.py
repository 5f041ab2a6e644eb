"""A picture and a question, to compare two copies of a model by."""

from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin


def probe_batch(processor: ProcessorMixin) -> dict[str, Tensor]:
    """Returns one picture (a radial gradient) and a few words, as arguments of the model's forward."""
    picture = Image.radial_gradient("L").convert("RGB")
    return dict(processor(images=picture, text=f"{processor.image_token} what is this ?", return_tensors="pt"))

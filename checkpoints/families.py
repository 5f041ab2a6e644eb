"""The families of models that can be made sparse: whatever modeling/modeling_sparse_*.py holds."""

import importlib
import pkgutil
from functools import cache

from transformers import PreTrainedConfig, PreTrainedModel

import modeling
from modeling.visual_layout import Images

SPARSE = "sparse_"
"""Before the stock model's type: the sparse model's."""
PICTURE = (672, 672)
"""Height and width, in pixels, of the picture for which costs are counted; a model of fixed resolution scales any picture."""


@cache
def sparse_classes() -> dict[str, type[PreTrainedModel]]:
    """Model type of the stock model: its sparse class, with `stock_class`, `text_types`, `image_grids` and `vision_macs`."""
    found = {}
    for module in pkgutil.iter_modules(modeling.__path__, prefix="modeling."):
        if module.name.startswith("modeling.modeling_sparse_"):
            members = importlib.import_module(module.name)
            cls = getattr(members, members.__all__[0])
            found[cls.stock_class.config_class.model_type] = cls
    return found


def sparse_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The sparse class for a stock or a sparse config."""
    return class_of_type(config.model_type)


def class_of_type(model_type: str) -> type[PreTrainedModel]:
    """The sparse class for a stock or a sparse model type."""
    return sparse_classes()[model_type.removeprefix(SPARSE)]


def is_sparse(values: dict) -> bool:
    """Whether a config's values are a sparse model's of one of the families."""
    return values.get("model_type") in {SPARSE + kind for kind in sparse_classes()}


def supported() -> str:
    """In words, for messages."""
    return ", ".join(
        f"{kind!r} with a {' or '.join(map(repr, cls.text_types))} text model" for kind, cls in sparse_classes().items()
    )


def reference_images(config: PreTrainedConfig) -> Images:
    """The grids of one picture of PICTURE pixels: what costs are counted for."""
    return (sparse_class(config).image_grids(config, *PICTURE),)


def vision_macs(config: PreTrainedConfig, images: Images) -> int:
    """Multiply-accumulates of vision tower and projector for these images."""
    return sparse_class(config).vision_macs(config, images)

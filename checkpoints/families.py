"""The families of models that can be made sparse. Each file modeling/modeling_sparse_*.py holds one."""

import importlib
import pkgutil
from functools import cache
from typing import ClassVar, get_origin

from transformers import PreTrainedConfig, PreTrainedModel

import modeling
from modeling.family import Family, FamilyModel
from modeling.visual_layout import Images

SPARSE = "sparse_"
"""A sparse model's type is its stock model's with this before it."""
PICTURE = (672, 672)
"""Height and width, in pixels, of the picture for which costs are counted. A model of fixed resolution scales it."""


@cache
def sparse_classes() -> dict[str, type[PreTrainedModel]]:
    """Returns the sparse class of each family, by the model type of its stock model.

    Raises:
        TypeError: a family does not offer all of `modeling.family.Family`.
    """
    found = {}
    for module in pkgutil.iter_modules(modeling.__path__, prefix="modeling."):
        if module.name.startswith("modeling.modeling_sparse_"):
            members = importlib.import_module(module.name)
            cls = getattr(members, members.__all__[0])
            check_family(cls)
            found[cls.stock_class.config_class.model_type] = cls
    return found


def check_family(cls: type) -> None:
    """Raises TypeError if a family's class, or the class of the model in it, lacks a member. Names what is missing."""
    missing = _missing_members(cls, Family)
    if hasattr(cls, "model_class"):
        missing += _missing_members(cls.model_class, FamilyModel)
    if missing:
        raise TypeError(f"{cls.__module__}: {', '.join(missing)}: missing; modeling/family.py says what it must be")


def _missing_members(cls: type, protocol: type) -> list[str]:
    return [f"{cls.__name__}.{name}" for name in class_members(protocol) if not hasattr(cls, name)]


def class_members(protocol: type) -> list[str]:
    """Returns the members of a protocol that a class has without an instance: ClassVars, methods, properties."""
    variables = [name for name, hint in protocol.__annotations__.items() if get_origin(hint) is ClassVar]
    return variables + [name for name in vars(protocol) if not name.startswith("_")]


def sparse_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Returns the sparse class for a stock or a sparse config."""
    return class_of_type(config.model_type)


def class_of_type(model_type: str) -> type[PreTrainedModel]:
    """Returns the sparse class for a stock or a sparse model type."""
    return sparse_classes()[model_type.removeprefix(SPARSE)]


def is_sparse(values: dict) -> bool:
    """Returns whether a config's values are those of a sparse model of one of the families."""
    return values.get("model_type") in {SPARSE + model_type for model_type in sparse_classes()}


def supported() -> str:
    """Returns the families and their text models in words, for messages."""
    return ", ".join(
        f"{model_type!r} with a {' or '.join(map(repr, cls.text_types))} text model"
        for model_type, cls in sparse_classes().items()
    )


def reference_images(config: PreTrainedConfig) -> Images:
    """Returns the grids of one picture of PICTURE pixels, for which costs are counted."""
    return (sparse_class(config).image_grids(config, *PICTURE),)


def vision_macs(config: PreTrainedConfig, images: Images) -> int:
    """Returns the multiply-accumulates of vision tower and projector for these images."""
    return sparse_class(config).vision_macs(config, images)

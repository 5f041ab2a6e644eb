"""Configurations of sparse text decoders. They are the stock ones under another model type.

A stock multimodal class that meets a foreign `model_type` only warns, and would run a sparse checkpoint dense. But it
looks its text model up by type. It does not know the types here, so it refuses the checkpoint.
"""

from collections.abc import Iterable

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config

from .user_error import UserError


@strict
class SparseLlamaConfig(LlamaConfig):
    model_type = "sparse_llama"


@strict
class SparseMistralConfig(MistralConfig):
    model_type = "sparse_mistral"


@strict
class SparsePhi3Config(Phi3Config):
    model_type = "sparse_phi3"


@strict
class SparseQwen2Config(Qwen2Config):
    model_type = "sparse_qwen2"


CONFIG_OF_TYPE = {
    config.model_type.removeprefix("sparse_"): config
    for config in (SparseLlamaConfig, SparseMistralConfig, SparsePhi3Config, SparseQwen2Config)
}


def sparse_text_config(given: dict | PreTrainedConfig, allowed: Iterable[str], default: str) -> PreTrainedConfig:
    """Returns the sparse config of a text model.

    Args:
        given: its values, its stock config or its sparse config.
        allowed: stock types of the text models that a family has.
        default: the stock type if none is given.

    Raises:
        UserError: the type is not allowed.
    """
    values = given if isinstance(given, dict) else given.to_dict()
    model_type = (values.get("model_type") or default).removeprefix("sparse_")
    if model_type not in allowed:
        raise UserError(f"text_config.model_type: got {model_type!r}, allowed: {', '.join(allowed)}")
    return CONFIG_OF_TYPE[model_type](**{name: value for name, value in values.items() if name != "model_type"})

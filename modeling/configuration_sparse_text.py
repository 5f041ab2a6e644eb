"""Configurations of sparse text decoders: their own, under another model type.

Given a foreign `model_type`, a stock multimodal class only warns and would run a sparse checkpoint dense. But it resolves its
text model by type, and these it does not know: so it refuses.
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


OF_TYPE = {
    config.model_type.removeprefix("sparse_"): config
    for config in (SparseLlamaConfig, SparseMistralConfig, SparsePhi3Config, SparseQwen2Config)
}


def sparse_text_config(given: dict | PreTrainedConfig, allowed: Iterable[str], default: str) -> PreTrainedConfig:
    """The text model's config as a sparse one, whether it is given as its values, stock or sparse.

    Args:
        allowed: stock types of the text models that a family has. default: what it reads an absent type as.

    Raises:
        UserError: another type.
    """
    values = given if isinstance(given, dict) else given.to_dict()
    kind = (values.get("model_type") or default).removeprefix("sparse_")
    if kind not in allowed:
        raise UserError(f"text_config.model_type: got {kind!r}, allowed: {', '.join(allowed)}")
    return OF_TYPE[kind](**{name: value for name, value in values.items() if name != "model_type"})

"""From a dense LLaVA on disk to a sparse student in memory.

The dense model is loaded by its own stock class, which knows its files; its tensors then move, by name, into the sparse
class, which has the same parameters. Units that a plan serves are permuted to come first, so that what serves vision is a
contiguous slice of the dense weight. A permutation of heads or neurons leaves the dense function as it was.

Letters: U units (key/value groups), N query heads, H head_dim, D hidden_size, F intermediate_size.
"""

import dataclasses
import os
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import nn
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig, ProcessorMixin

from modeling.configuration_sparse_llava import SparseLlavaConfig
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.visual_plan import VisualPlan

SUPPORTED = "'llava' with a 'llama' text model"


def load_dense(
    path: str | os.PathLike, dtype: torch.dtype | str, trust_remote_code: bool = False
) -> tuple[LlavaForConditionalGeneration, ProcessorMixin]:
    """Loads a dense LLaVA and its processor with the stock classes.

    Args:
        path: a folder or a model id on the Hub.
        dtype: of the weights in memory; "auto": as stored.
        trust_remote_code: lets a processor or tokenizer run code that comes with it. The model never does.
    Raises:
        ValueError: no such model, an unsupported model type, weights that are incomplete or not safetensors, a tokenizer
            that does not fit the model.
    """
    config = dense_config(path)
    try:
        model, report = LlavaForConditionalGeneration.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: no readable safetensors weights, the only kind read here ({error})") from None
    # transformers fills what is missing with random numbers and says so only in a log line.
    absent = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if absent:
        raise ValueError(f"{path}: {len(absent)} weights are missing or of another shape than its config says, first {absent[0]}")
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(f"{path}: no readable processor and tokenizer ({error})") from None
    _check_vocabulary(path, config, processor)
    return model, processor


def dense_config(path: str | os.PathLike) -> LlavaConfig:
    """The config of a supported dense model: from a folder, a JSON file, or a model id on the Hub.

    Raises:
        ValueError: no config there, or a model that is not supported.
    """
    parent = Path(path).parent
    if parent != Path() and parent.is_dir() and not Path(path).exists():
        raise ValueError(f"{path}: no such model in the folder {parent}")  # and no name to ask the Hub for, minutes long
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"{path}: a folder without config.json is not a model")
    try:
        # Only reads JSON: whatever the model is, none of its code runs.
        values, _ = PreTrainedConfig.get_config_dict(path)
    except OSError:
        raise ValueError(f"{path}: neither a model folder, a config file, nor a model on the Hub within reach") from None
    model_type = values.get("model_type")
    text_type = values.get("text_config", {}).get("model_type", "llama")  # as LlavaConfig reads an absent type
    if (model_type, text_type) != ("llava", "llama"):
        raise ValueError(f"{path}: got a {model_type!r} model with a {text_type!r} text model, supported: {SUPPORTED}")
    return LlavaConfig.from_dict(values)


def dense_on_meta(config_path: str | os.PathLike) -> LlavaForConditionalGeneration:
    """The dense model without weights (meta device), from its config alone. Raises ValueError as `dense_config`."""
    config = dense_config(config_path)
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


def _check_vocabulary(path: str | os.PathLike, config: LlavaConfig, processor: ProcessorMixin) -> None:
    rows, words = config.text_config.vocab_size, len(processor.tokenizer)
    if words > rows:
        raise ValueError(f"{path}: the tokenizer has {words} tokens, the model's vocabulary only {rows}")
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"{path}: the processor marks pictures with token {processor.image_token_id}, the model with {config.image_token_id}"
        )


def build_student(dense: LlavaForConditionalGeneration, plan: VisualPlan) -> SparseLlavaForConditionalGeneration:
    """The sparse model with the dense model's weights, served units first, an integer plan in its config.

    The tensors are moved, not copied: `dense` shares them from here on and is to be let go.

    Raises:
        ValueError: the plan does not fit the model.
    """
    text = dense.config.text_config
    plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
    plan = permute_for_plan(dense, plan)
    values = {key: value for key, value in dense.config.to_dict().items() if key not in ("model_type", "architectures")}
    config = SparseLlavaConfig.from_dict({**values, "visual_plan": plan.to_dict()})
    # Parameters without memory, for they are replaced at once; buffers that no state dict holds (RoPE) are real.
    with init_empty_weights(include_buffers=False):
        student = SparseLlavaForConditionalGeneration(config)
    weights = dense.state_dict()
    assert weights.keys() == student.state_dict().keys(), weights.keys() ^ student.state_dict().keys()
    student.load_state_dict(weights, strict=True, assign=True)
    student.tie_weights()
    student.generation_config = dense.generation_config
    return student.train(dense.training)


@torch.no_grad()
def permute_for_plan(
    model: LlavaForConditionalGeneration | SparseLlavaForConditionalGeneration, plan: VisualPlan
) -> VisualPlan:
    """Permutes head units and FFN neurons, in place, so that those a plan lists come first; returns it with counts only.

    Served and unserved units each keep their order. Layers whose plan is an integer already are left alone.
    """
    text = model.config.text_config
    layers = []
    for layer, layer_plan in zip(model.model.language_model.layers, plan.layers, strict=True):
        if isinstance(layer_plan.heads, tuple):
            units = served_first(layer_plan.heads, text.num_key_value_heads)
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                _permute_rows(projection, units)
            _permute_columns(attention.o_proj, units)
            layer_plan = dataclasses.replace(layer_plan, heads=len(layer_plan.heads))
        if isinstance(layer_plan.ffn, tuple):
            neurons = served_first(layer_plan.ffn, text.intermediate_size)
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                _permute_rows(projection, neurons)
            _permute_columns(layer.mlp.down_proj, neurons)
            layer_plan = dataclasses.replace(layer_plan, ffn=len(layer_plan.ffn))
        layers.append(layer_plan)
    return dataclasses.replace(plan, layers=tuple(layers))


def served_first(served: tuple[int, ...], total: int) -> list[int]:
    """The order in which units or neurons stand in a student: served ones first, either part in its own order."""
    return sorted(served) + sorted(set(range(total)) - set(served))


def _permute_rows(projection: nn.Linear, order: list[int]) -> None:
    """Reorders equal blocks of outputs: U blocks of (N/U)·H rows (q), of H rows (k, v), or F of one row (FFN)."""
    blocks = projection.weight.unflatten(0, (len(order), -1))  # [U, rows per unit, in]
    projection.weight.copy_(blocks[order].flatten(0, 1))
    if projection.bias is not None:
        projection.bias.copy_(projection.bias.unflatten(0, (len(order), -1))[order].flatten())


def _permute_columns(projection: nn.Linear, order: list[int]) -> None:
    """Reorders equal blocks of inputs; the bias stands at the outputs and stays."""
    blocks = projection.weight.unflatten(1, (len(order), -1))  # [out, U, columns per unit]
    projection.weight.copy_(blocks[:, order].flatten(1, 2))

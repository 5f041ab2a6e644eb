"""From a dense model on disk to a sparse student in memory.

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
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from checkpoints.families import sparse_class, sparse_classes, supported
from checkpoints.processor import load_processor
from modeling.sparse_layer import Projection
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan


def load_dense(
    path: str | os.PathLike, dtype: torch.dtype | str, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Loads a dense model and its processor with the stock classes.

    Args:
        path: a folder or a model id on the Hub.
        dtype: of the weights in memory; "auto": as stored.
        trust_remote_code: lets a processor or tokenizer run code that comes with it. The model never does.
    Raises:
        UserError: no such model, an unsupported model type, weights that are incomplete or not safetensors, a tokenizer
            that does not fit the model.
    """
    config = dense_config(path)
    try:
        model, report = sparse_class(config).stock_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: no readable safetensors weights, the only kind read here ({error})") from None
    # transformers fills what is missing with random numbers and says so only in a log line.
    absent = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if absent:
        raise UserError(
            f"{path}: {len(absent)} weights are missing or of another shape than its config says, first {absent[0]}"
        )
    processor = load_processor(path, trust_remote_code)
    _check_vocabulary(path, config, processor)
    return model, processor


def dense_config(path: str | os.PathLike) -> PreTrainedConfig:
    """The config of a supported dense model: from a folder, a JSON file, or a model id on the Hub.

    Raises:
        UserError: no config there, or a model that is not supported.
    """
    parent = Path(path).parent
    if parent != Path() and parent.is_dir() and not Path(path).exists():
        raise UserError(f"{path}: no such model in the folder {parent}")  # and no name to ask the Hub for, minutes long
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise UserError(f"{path}: a folder without config.json is not a model")
    try:
        # Only reads JSON: whatever the model is, none of its code runs.
        values, _ = PreTrainedConfig.get_config_dict(path)
    except OSError:
        raise UserError(f"{path}: neither a model folder, a config file, nor a model on the Hub within reach") from None
    cls = sparse_classes().get(values.get("model_type"))
    if cls is None:
        raise UserError(f"{path}: got a {values.get('model_type')!r} model, supported: {supported()}")
    config = cls.stock_class.config_class.from_dict(values)
    if config.text_config.model_type not in cls.text_types:
        raise UserError(
            f"{path}: got a {config.model_type!r} model with a {config.text_config.model_type!r} text model, supported: {supported()}"
        )
    return config


def dense_on_meta(config_path: str | os.PathLike) -> PreTrainedModel:
    """The dense model without weights (meta device), from its config alone. Raises UserError as `dense_config`."""
    config = dense_config(config_path)
    with torch.device("meta"):
        return sparse_class(config).stock_class(config)


def _check_vocabulary(path: str | os.PathLike, config: PreTrainedConfig, processor: ProcessorMixin) -> None:
    rows, words = config.text_config.vocab_size, len(processor.tokenizer)
    if words > rows:
        raise UserError(f"{path}: the tokenizer has {words} tokens, the model's vocabulary only {rows}")
    if processor.image_token_id != config.image_token_id:
        raise UserError(
            f"{path}: the processor marks pictures with token {processor.image_token_id}, the model with {config.image_token_id}"
        )


def build_student(dense: PreTrainedModel, plan: VisualPlan) -> PreTrainedModel:
    """The sparse model with the dense model's weights, served units first, an integer plan in its config.

    The tensors are moved, not copied: `dense` shares them from here on and is to be let go.

    Raises:
        UserError: the plan does not fit the model.
    """
    text = dense.config.text_config
    plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
    values = {key: value for key, value in dense.config.to_dict().items() if key not in ("model_type", "architectures")}
    cls = sparse_class(dense.config)
    config = cls.config_class.from_dict(values)
    # Parameters without memory, for they are replaced at once; buffers that no state dict holds (RoPE) are real.
    with init_empty_weights(include_buffers=False):
        student = cls(config)
    weights = dense.state_dict()
    assert weights.keys() == student.state_dict().keys(), weights.keys() ^ student.state_dict().keys()
    student.load_state_dict(weights, strict=True, assign=True)
    student.tie_weights()
    student.set_visual_plan(permute_for_plan(student, plan))
    student.generation_config = dense.generation_config
    return student.train(dense.training)


@torch.no_grad()
def permute_for_plan(model: PreTrainedModel, plan: VisualPlan) -> VisualPlan:
    """Permutes head units and FFN neurons of a sparse model, in place, so that those a plan lists come first; returns the plan
    with counts only.

    Served and unserved units each keep their order. Layers whose plan is an integer already are left alone.
    """
    text = model.config.text_config
    totals = {"heads": text.num_key_value_heads, "ffn": text.intermediate_size}
    layers = []
    for layer, layer_plan in zip(model.model.language_model.layers, plan.layers, strict=True):
        for name, projection in layer.projections().items():
            served = getattr(layer_plan, projection.ordered_by)
            if isinstance(served, tuple):
                _permute(layer.get_submodule(name), projection, served_first(served, totals[projection.ordered_by]))
        counts = {name: len(served) for name in totals if isinstance(served := getattr(layer_plan, name), tuple)}
        layers.append(dataclasses.replace(layer_plan, **counts))
    return dataclasses.replace(plan, layers=tuple(layers))


def served_first(served: tuple[int, ...], total: int) -> list[int]:
    """The order in which units or neurons stand in a student: served ones first, either part in its own order."""
    return sorted(served) + sorted(set(range(total)) - set(served))


def permuted(values: torch.Tensor, parts: tuple[int, ...], order: list[int], dim: int) -> torch.Tensor:
    """Each part of `values` along `dim`, cut into as many equal blocks as `order` has, with its blocks in that order."""
    index = torch.tensor(order, device=values.device)
    moved = [
        part.unflatten(dim, (len(order), -1)).index_select(dim, index).flatten(dim, dim + 1)
        for part in values.split(parts, dim)
    ]
    return torch.cat(moved, dim)


def _permute(linear: nn.Linear, projection: Projection, order: list[int]) -> None:
    """Outputs with their biases, or inputs: the bias stands at the outputs and stays."""
    dim = 0 if projection.side == "rows" else 1
    linear.weight.copy_(permuted(linear.weight, projection.parts, order, dim))
    if dim == 0 and linear.bias is not None:
        linear.bias.copy_(permuted(linear.bias, projection.parts, order, 0))

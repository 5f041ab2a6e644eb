"""From a dense model on disk to a sparse student in memory.

The dense model is loaded by its own stock class, which knows its files. Its tensors then move, by name, into the sparse
class, which has the same parameters. Units that a plan serves are permuted to come first, so that what serves vision is
a contiguous slice of the dense weight. A permutation of heads or neurons leaves the dense function as it was.
"""

import dataclasses
import os

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.initialization import no_init_weights

from checkpoints.checks.folder import folder_with_weights
from checkpoints.checks.weights import refuse_more_than_weights
from checkpoints.config import LOADING_ERRORS, check_tower, read_config, said
from checkpoints.families import SPARSE, is_sparse, sparse_class, sparse_classes, supported
from checkpoints.generation import make_savable
from checkpoints.picture_limits import limit_config, own_limits
from checkpoints.processor import load_processor
from modeling.sparse_layer import Projection
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan


def load_dense(
    path: str | os.PathLike, dtype: torch.dtype | str, trust_remote_code: bool = False, or_sparse: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Loads a dense model and its processor with the stock classes.

    Args:
        path: a folder or a model id on the Hub.
        dtype: of the weights in memory. "auto" means as stored.
        trust_remote_code: lets a processor or tokenizer run code that comes with it. The model never does.
        or_sparse: takes a sparse checkpoint, too. Its weights under the full plan are a dense model.

    Raises:
        UserError: there is no such model, its type is not supported, its weights are incomplete or not safetensors, or
            its tokenizer does not fit.
    """
    config = dense_config(path, or_sparse)
    folder = folder_with_weights(path)
    processor = load_processor(path, trust_remote_code)  # before the weights, which take longer
    _check_tokenizer(path, config, processor)
    refuse_more_than_weights(sparse_class(config).stock_class, config, folder)
    try:
        model, report = sparse_class(config).stock_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise UserError(f"{path}: no readable safetensors weights, the only kind read here ({error})") from None
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: transformers cannot build this model ({said(error)})") from None
    # transformers fills what is missing with random numbers and says so only in a log line.
    absent = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if absent:
        raise UserError(
            f"{path}: {len(absent)} weights are missing or of another shape than its config says, first {absent[0]}"
        )
    make_savable(path, model.generation_config)
    return model, processor


def dense_config(path: str | os.PathLike, or_sparse: bool = False) -> PreTrainedConfig:
    """Returns the config of a supported dense model, with the limits of its image processor if there is one.

    Args:
        path: a model folder, a config's JSON file, or a model id on the Hub.
        or_sparse: takes that of a sparse checkpoint, too, as the config of its stock class. It keeps `visual_plan`.

    Raises:
        UserError: there is no config, transformers does not accept it, or the model is not supported.
    """
    fields = read_config(path)
    if or_sparse and is_sparse(fields):
        fields = _stock_fields(fields)
    cls = sparse_classes().get(fields.get("model_type"))
    if cls is None:
        raise UserError(f"{path}: got a {fields.get('model_type')!r} model, supported: {supported()}")
    try:
        config = cls.stock_class.config_class.from_dict(fields)
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: not a config that transformers accepts ({said(error)})") from None
    check_tower(path, config)
    text_type = config.text_config.model_type
    if text_type not in cls.text_types:
        raise UserError(
            f"{path}: got a {config.model_type!r} model with a {text_type!r} text model, supported: {supported()}"
        )
    if not os.path.isfile(path):
        limit_config(config, own_limits(path, config))
    return config


def _stock_fields(fields: dict) -> dict:
    """Returns the fields of a sparse checkpoint's config as the stock class takes them, and `visual_plan`."""
    stock = {name: value for name, value in fields.items() if name not in ("architectures", "auto_map")}
    stock["model_type"] = stock["model_type"].removeprefix(SPARSE)
    text = stock.get("text_config")
    if isinstance(text, dict):
        text = stock["text_config"] = dict(text)
        text["model_type"] = str(text.get("model_type")).removeprefix(SPARSE)
        if isinstance(text.get("layer_types"), list):  # Qwen2-VL's
            text["layer_types"] = [str(kind).removeprefix(SPARSE) for kind in text["layer_types"]]
    return stock


def starting_plan(path: str | os.PathLike) -> VisualPlan | None:
    """Returns the plan in force in a sparse checkpoint; None for a dense model. Units are in the checkpoint's order.

    Args:
        path: a model folder, a config's JSON file, or a model id on the Hub.

    Raises:
        UserError: as `dense_config`, or the checkpoint's plan is none or does not fit it.
    """
    if not is_sparse(read_config(path)):
        return None
    config = dense_config(path, or_sparse=True)
    text = config.text_config
    try:
        if config.visual_plan is None:
            return VisualPlan.dense(text.num_hidden_layers)
        plan = VisualPlan.from_dict(config.visual_plan)
        plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return plan


def dense_on_meta(config_path: str | os.PathLike) -> PreTrainedModel:
    """Returns the dense model without weights (on the meta device), built from its config alone.

    Raises:
        UserError: as `dense_config`, or transformers cannot build the model that the config describes.
    """
    config = dense_config(config_path)
    try:
        with torch.device("meta"):
            return sparse_class(config).stock_class(config)
    except LOADING_ERRORS as error:
        raise UserError(f"{config_path}: transformers cannot build this model ({said(error)})") from None


def _check_tokenizer(path: str | os.PathLike, config: PreTrainedConfig, processor: ProcessorMixin) -> None:
    """Raises UserError where the tokenizer has more tokens than the model, or another token for pictures or videos."""
    num_tokens, vocab_size = len(processor.tokenizer), config.text_config.vocab_size
    if num_tokens > vocab_size:
        raise UserError(f"{path}: the tokenizer has {num_tokens} tokens, the model's vocabulary only {vocab_size}")
    for kind, token in sparse_class(config).visual_tokens(config).items():
        marked = getattr(processor, f"{kind}_token_id")
        if marked != token:
            what = "pictures" if kind == "image" else f"{kind}s"
            raise UserError(f"{path}: the processor marks {what} with token {marked}, the model with {token}")


def build_student(dense: PreTrainedModel, plan: VisualPlan) -> PreTrainedModel:
    """Returns the sparse model with the dense model's weights, served units first, and an integer plan in its config.

    The tensors are moved, not copied. `dense` shares them from here on, so the caller should let go of it.

    Raises:
        UserError: the plan does not fit the model.
    """
    text = dense.config.text_config
    plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)
    cls = sparse_class(dense.config)
    dense_fields = dense.config.to_dict()
    config = cls.config_class.from_dict(
        {
            name: value
            for name, value in dense_fields.items()
            if name not in ("model_type", "architectures", "visual_plan")
        }
    )
    # Parameters need no memory, because they are replaced at once. Buffers that no state dict holds (RoPE) are real.
    with no_init_weights(), init_empty_weights(include_buffers=False):
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
    """Permutes head units and FFN neurons of a sparse model, in place, so that those a plan lists come first.

    Served and unserved units each keep their order. Layers whose plan is an integer already are left alone.

    Returns:
        The same plan with counts in place of lists.
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
    """Returns the order of units or neurons in a student: served ones first, then the others, each sorted by index."""
    return sorted(served) + sorted(set(range(total)) - set(served))


def permuted(values: torch.Tensor, parts: tuple[int, ...], order: list[int], dim: int) -> torch.Tensor:
    """Returns `values` with its blocks along `dim` in another order.

    Args:
        values: a tensor of any shape and dtype.
        parts: sizes of the parts that `values` consists of along `dim`. Each part is permuted by itself.
        order: index of the block that comes first, second, and so on. A part has as many equal blocks as `order` has
            entries.
        dim: the dimension that is cut into parts and blocks.
    """
    index = torch.tensor(order, device=values.device)
    moved = [
        part.unflatten(dim, (len(order), -1)).index_select(dim, index).flatten(dim, dim + 1)
        for part in values.split(parts, dim)
    ]
    return torch.cat(moved, dim)


def _permute(linear: nn.Linear, projection: Projection, order: list[int]) -> None:
    """Permutes the outputs of a linear layer together with its bias, or its inputs. A bias belongs to the outputs."""
    dim = 0 if projection.side == "rows" else 1
    linear.weight.copy_(permuted(linear.weight, projection.parts, order, dim))
    if dim == 0 and linear.bias is not None:
        linear.bias.copy_(permuted(linear.bias, projection.parts, order, 0))

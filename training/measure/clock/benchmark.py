"""Measures a sparse model against the stock model with the same weights, in one process.

Every figure is a median over repeats in which the two models run in turn, so a machine that slows down slows both. The
predicted costs of the plan stand beside the measured ones. The ratio of the prefill's FLOPs is the speed-up that
could be reached. This module needs torch and transformers alone.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
import transformers
from transformers import Cache, PreTrainedModel

from checkpoints.families import reference_images, sparse_class, vision_macs
from modeling.visual_cache import VisualCache
from modeling.visual_flops import (
    DecoderShape,
    dense_cost,
    dense_kv_bytes,
    kv_bytes,
    plan_cost,
)
from modeling.visual_layout import num_tokens
from training.measure.clock.captured import CapturedCall
from training.measure.clock.prompt import Prompt, prefill_decoder
from training.measure.clock.shapes import stock_config
from training.measure.clock.timing import interleaved_seconds, seconds_of, spread


def stock_twin(sparse: PreTrainedModel) -> PreTrainedModel:
    """Returns the stock model of a sparse one, in eval mode. Both share the same tensors.

    At no time do two copies of the weights lie in memory.
    """
    with torch.device("meta"):
        dense = sparse.stock_class._from_config(stock_config(sparse.config.to_dict()), dtype=sparse.dtype)
    dense.load_state_dict(sparse.state_dict(), assign=True)
    for name, buffer in sparse.named_buffers():  # those that no state dict holds, as of RoPE
        module, _, leaf = name.rpartition(".")
        setattr(dense.get_submodule(module), leaf, buffer)
    assert not any(tensor.is_meta for tensor in (*dense.parameters(), *dense.buffers()))
    return dense.eval()


def benchmark(
    sparse: PreTrainedModel,
    *,
    text_tokens: int,
    batch_sizes: Sequence[int],
    decode_tokens: int,
    repeats: int,
    print_line: Callable[[str], None],
) -> dict:
    """Measures a model under its plan against its stock twin.

    The result has the keys `environment`, `shape`, `plan`, `flops`, `kv_bytes` and `batches`. `batches` has one dict
    for each batch size, with the prefill of the decoder alone, the prefill with the vision tower, decoding, and, on a
    GPU, the decoder's prefill as a CUDA graph and peak memory, which are None elsewhere. Times are in seconds, memory
    is in bytes. FLOPs and key/value bytes are those of one sample.

    Args:
        sparse: put in eval mode.
        text_tokens: text tokens of each prompt.
        decode_tokens: greedy steps after the prefill that are timed.
        repeats: how often each figure is measured.
        print_line: is called with one line of text after each measurement.
    """
    sparse = sparse.eval()
    models = {"dense": stock_twin(sparse), "sparse": sparse}
    report = {"environment": _environment(sparse), **predicted_costs(sparse, text_tokens)}
    report["kv_bytes"]["measured"] = measured_kv_bytes(models, text_tokens)
    flops_ratio = report["flops"]["C"]["dense"] / report["flops"]["C"]["sparse"]
    print_line(
        f"prefill FLOPs: {1 / flops_ratio:.1%} of the dense decoder's, "
        f"a speed-up of {flops_ratio:.2f} if all of it is reached"
    )
    report["batches"] = []
    for batch_size in batch_sizes:
        prompt = Prompt.random(sparse, batch_size, text_tokens)
        row = {"batch_size": batch_size, **_measure_batch(models, prompt, decode_tokens, repeats)}
        prefill = row["prefill"]
        prefill["flops_ratio"] = flops_ratio
        prefill["speedup_over_flops_ratio"] = prefill["speedup"] / flops_ratio
        report["batches"].append(row)
        print_line(
            f"batch {batch_size}: prefill x {prefill['speedup']:.2f} "
            f"({prefill['speedup_over_flops_ratio']:.0%} of the FLOPs ratio), "
            f"with vision x {row['prefill_with_vision']['speedup']:.2f}, "
            f"decode x {row['decode']['speedup']:.2f}"
        )
    return report


def predicted_costs(sparse: PreTrainedModel, text_tokens: int) -> dict:
    """Returns what follows from the plan without measuring, for one sample with one picture.

    The keys are `shape`, `plan`, `flops` in the four conventions of modeling/visual_flops.py, and `kv_bytes`, the
    bytes of keys and values.
    """
    config, plan = sparse.config, sparse.visual_plan
    decoder, images = DecoderShape.from_config(config.text_config), reference_images(config)
    vision = vision_macs(config, images)
    text_tokens += int((~sparse.visual_rows(images[0])).sum())  # tokens that separate the picture's rows are text
    dense = asdict(dense_cost(decoder, images, text_tokens, vision_macs=vision))
    under_plan = asdict(plan_cost(plan, decoder, images, text_tokens, vision_macs=vision))
    conventions = {"A": "macs_visual", "B": "flops_visual", "C": "flops_prefill", "D": "flops_total"}
    bytes_per_value = sparse.dtype.itemsize
    return {
        "shape": {**asdict(decoder), "visual_tokens": sum(map(num_tokens, images)), "text_tokens": text_tokens},
        "plan": plan.to_dict(),
        "flops": {
            letter: {"dense": dense[name], "sparse": under_plan[name], "left": under_plan[name] / dense[name]}
            for letter, name in conventions.items()
        },
        "kv_bytes": {
            "predicted": {
                "dense": dense_kv_bytes(decoder, images, text_tokens, bytes_per_value),
                "sparse": kv_bytes(plan, decoder, images, text_tokens, bytes_per_value),
            }
        },
    }


def measured_kv_bytes(models: dict[str, PreTrainedModel], text_tokens: int) -> dict[str, int]:
    """Returns the bytes of memory that each model's cache keeps alive after the prefill of one sample, by name."""
    held = {}
    for name, model in models.items():
        cache = prefill_decoder(model, Prompt.random(model, 1, text_tokens))
        tensors = [tensor for layer in cache.layers for tensor in _cached_tensors(cache, layer)]
        # Storages are counted, not shapes: a slice keeps alive the whole tensor that it was cut from.
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        held[name] = sum(storages.values())
    return held


def _measure_batch(models: dict[str, PreTrainedModel], prompt: Prompt, decode_tokens: int, repeats: int) -> dict:
    """Returns the measured part of one dict of `batches`."""
    device = prompt.input_ids.device
    prefill = interleaved_seconds(
        {n: lambda m=m: prefill_decoder(m, prompt) for n, m in models.items()}, repeats, device
    )
    in_graph = _prefill_in_graph(models, prompt, repeats) if device.type == "cuda" else None
    with_vision = interleaved_seconds({n: lambda m=m: _prefill(m, prompt) for n, m in models.items()}, repeats, device)
    decode: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            cache = prefill_decoder(model, prompt)
            decode[name].append(seconds_of(lambda m=model, c=cache: _decode(m, c, prompt, decode_tokens), device))
    rate = {name: decode_tokens * len(prompt.input_ids) / statistics.median(times) for name, times in decode.items()}
    return {
        "prefill": _compared(prefill),
        "prefill_in_graph": in_graph,
        "prefill_with_vision": _compared(with_vision),
        "decode": {**_compared(decode), "tokens_per_second": rate},
        "peak_memory_bytes": {name: _peak_memory(m, prompt) for name, m in models.items()}
        if device.type == "cuda"
        else None,
    }


def _prefill_in_graph(models: dict[str, PreTrainedModel], prompt: Prompt, repeats: int) -> dict:
    """Returns what `_compared` gives for the decoder's prefill as a CUDA graph."""
    graphs = {name: CapturedCall(lambda m=model: prefill_decoder(m, prompt)) for name, model in models.items()}
    return _compared(interleaved_seconds(graphs, repeats, prompt.input_ids.device))


def _compared(times: dict[str, list[float]]) -> dict:
    """Returns the spread of each model's seconds, and the speed-up of the sparse model over the dense one."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**{name: spread(values) for name, values in times.items()}, "speedup": medians["dense"] / medians["sparse"]}


def _prefill(model: PreTrainedModel, prompt: Prompt) -> None:
    """Runs all that comes before the first answer token: vision tower, projector, decoder, head."""
    stock_inputs = sparse_class(model.config).stock_inputs(model.config, prompt.input_ids)
    model(input_ids=prompt.input_ids, **prompt.pictures, **stock_inputs, use_cache=True, logits_to_keep=1)


def _decode(model: PreTrainedModel, cache: Cache, prompt: Prompt, num_tokens: int) -> None:
    """Takes greedy steps on a filled cache."""
    token = prompt.input_ids[:, -1:]
    for _ in range(num_tokens):
        logits = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(-1)


def _peak_memory(model: PreTrainedModel, prompt: Prompt) -> int:
    """Returns the bytes that the prefill allocates at its highest point, without what was there before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    prefill_decoder(model, prompt)
    return torch.cuda.max_memory_allocated() - before


def _cached_tensors(cache: Cache, layer) -> tuple[torch.Tensor, ...]:
    """Returns the keys and values of one layer of a cache."""
    return layer.tensors() if isinstance(cache, VisualCache) else (layer.keys, layer.values)


def _environment(model: PreTrainedModel) -> dict:
    """Returns the versions, the device and the dtype under which the figures are measured."""
    device = model.device
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }

"""Dense against sparse on the clock: the same weights in one process, the stock model's sdpa against two streams.

Every figure is a median over repeats in which the two models take turns, so that a machine that slows down slows both.
What the plan promises stands beside what is measured: the prefill's FLOPs ratio is the speed-up that could be reached.
This module needs torch and transformers alone.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import transformers
from transformers import Cache, PreTrainedModel

from checkpoints.families import reference_images, sparse_class, vision_macs
from modeling.neighbor_attention import neighbor_attention, neighbor_tiles
from modeling.sparse_multimodal import SparseMultimodalMixin
from modeling.visual_cache import VisualCache
from modeling.visual_flops import (
    DecoderShape,
    dense_cost,
    dense_kv_bytes,
    kv_bytes,
    plan_cost,
)
from modeling.visual_layout import Images, num_tokens
from training.measure.benchmark_shapes import stock_config


@dataclass(frozen=True)
class Prompt:
    """One prompt, the same in every sample of the batch: text, a picture, text.

    Attributes: input_ids [B, S]; pictures, what the model takes beside them; inputs_embeds [B, S, D], what the decoder alone
        is given; visual_mask [B, S]; images, the grids of each picture.
    """

    input_ids: torch.Tensor
    pictures: dict[str, torch.Tensor]
    inputs_embeds: torch.Tensor
    visual_mask: torch.Tensor
    images: Images

    @classmethod
    def random(cls, model: PreTrainedModel, batch_size: int, text_tokens: int) -> "Prompt":
        """Half of the text stands before the picture; what separates rows within it comes on top."""
        config, weight = model.config, model.get_input_embeddings().weight
        model_class = sparse_class(config)
        generator = torch.Generator().manual_seed(0)
        images = tuple(reference_images(config)) * batch_size
        vocabulary, placeholders = (
            torch.arange(config.text_config.vocab_size),
            model_class.visual_tokens(config).values(),
        )
        words = vocabulary[~torch.isin(vocabulary, torch.tensor(list(placeholders)))]
        text = words[torch.randint(0, len(words), (batch_size, text_tokens), generator=generator)]
        visual = model_class.visual_rows(images[0])
        picture = torch.full((batch_size, len(visual)), config.image_token_id)
        half = text_tokens // 2
        input_ids = torch.cat([text[:, :half], picture, text[:, half:]], dim=1).to(weight.device)
        visual_mask = torch.zeros(input_ids.shape, dtype=torch.bool)
        visual_mask[:, half : half + len(visual)] = visual
        pictures = model_class.random_pictures(config, images, generator)
        embeds = torch.randn(*input_ids.shape, config.text_config.hidden_size, generator=generator)
        return cls(
            input_ids=input_ids,
            pictures={
                name: value.to(weight) if value.is_floating_point() else value for name, value in pictures.items()
            },
            inputs_embeds=embeds.to(weight),
            visual_mask=visual_mask.to(weight.device),
            images=images,
        )


def stock_twin(sparse: PreTrainedModel) -> PreTrainedModel:
    """The stock model over the very tensors of a sparse one."""
    with torch.device(sparse.device):
        dense = sparse.stock_class._from_config(stock_config(sparse.config.to_dict()), dtype=sparse.dtype)
    dense.load_state_dict(sparse.state_dict(), assign=True)
    return dense.eval()


def benchmark(
    sparse: PreTrainedModel,
    *,
    text_tokens: int,
    batch_sizes: Sequence[int],
    decode_tokens: int,
    repeats: int,
    say: Callable[[str], None],
) -> dict:
    """Measures the model under its plan against its stock twin.

    Args:
        decode_tokens: greedy steps after the prefill, of which the rate is taken.
        say: is told one line per finished measurement.

    Returns:
        What --json writes: environment, shape, plan, flops, kv_bytes and, per batch size, prefill (decoder alone, and
        with the vision tower), decode, peak memory. Seconds, bytes, FLOPs of one sample.
    """
    sparse = sparse.eval()
    models = {"dense": stock_twin(sparse), "sparse": sparse}
    report = {"environment": _environment(sparse), **promised(sparse, text_tokens)}
    report["kv_bytes"]["measured"] = measured_kv_bytes(models, text_tokens)
    promise = report["flops"]["C"]["dense"] / report["flops"]["C"]["sparse"]
    say(f"prefill FLOPs: {1 / promise:.1%} of the dense decoder's, a speed-up of {promise:.2f} if all of it is reached")
    report["batches"] = []
    for batch_size in batch_sizes:
        prompt = Prompt.random(sparse, batch_size, text_tokens)
        row = {"batch_size": batch_size, **_measure_batch(models, prompt, decode_tokens, repeats)}
        row["prefill"]["flops_ratio"] = promise
        row["prefill"]["speedup_over_flops_ratio"] = row["prefill"]["speedup"] / promise
        report["batches"].append(row)
        say(
            f"batch {batch_size}: prefill x {row['prefill']['speedup']:.2f} ({row['prefill']['speedup_over_flops_ratio']:.0%} "
            f"of the FLOPs ratio), with vision x {row['prefill_with_vision']['speedup']:.2f}, "
            f"decode x {row['decode']['speedup']:.2f}"
        )
    return report


def promised(sparse: PreTrainedModel, text_tokens: int) -> dict:
    """The analytic part: shape, plan, FLOPs in the four conventions, key/value bytes; one picture, one sample."""
    config, plan = sparse.config, sparse.visual_plan
    decoder, images = DecoderShape.from_config(config.text_config), reference_images(config)
    vision = vision_macs(config, images)
    text_tokens += int((~sparse.visual_rows(images[0])).sum())
    dense = dense_cost(decoder, images, text_tokens, vision_macs=vision)
    left = plan_cost(plan, decoder, images, text_tokens, vision_macs=vision)
    names = {"A": "macs_visual", "B": "flops_visual", "C": "flops_prefill", "D": "flops_total"}
    dense, left = asdict(dense), asdict(left)
    width = sparse.dtype.itemsize
    return {
        "shape": {**asdict(decoder), "visual_tokens": sum(map(num_tokens, images)), "text_tokens": text_tokens},
        "plan": plan.to_dict(),
        "flops": {
            letter: {"dense": dense[name], "sparse": left[name], "left": left[name] / dense[name]}
            for letter, name in names.items()
        },
        "kv_bytes": {
            "predicted": {
                "dense": dense_kv_bytes(decoder, images, text_tokens, width),
                "sparse": kv_bytes(plan, decoder, images, text_tokens, width),
            }
        },
    }


def measured_kv_bytes(models: dict[str, PreTrainedModel], text_tokens: int) -> dict[str, int]:
    """Bytes of memory that each model's cache keeps alive after the prefill of one sample."""
    found = {}
    for name, model in models.items():
        cache = prefill_decoder(model, Prompt.random(model, 1, text_tokens))
        tensors = [tensor for layer in cache.layers for tensor in _held(cache, layer)]
        # By storage, not by shape: a slice keeps alive the whole tensor that it was cut from.
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        found[name] = sum(storages.values())
    return found


def neighbours(
    sides: Sequence[int],
    *,
    radius: int,
    num_heads: int,
    head_dim: int,
    text_tokens: int,
    dtype: torch.dtype,
    device: str,
    repeats: int,
) -> list[dict]:
    """Times attention within a radius on square grids of these sides: tokens, seconds of a layer, seconds of tiling."""
    rows = []
    for side in sides:
        place = torch.arange(side**2, device=device)[None]
        where = (torch.zeros_like(place), place // side, place % side)
        query, key, value = (_heads(side**2, num_heads, head_dim, dtype, device) for _ in range(3))
        text_key, text_value = (_heads(text_tokens, num_heads, head_dim, dtype, device) for _ in range(2))
        text_mask = torch.ones(1, side**2, text_tokens, dtype=torch.bool, device=device)
        tiles = neighbor_tiles(*where, radius, False)
        states = (query, key, value, text_key, text_value, text_mask)
        times = take_turns(
            {
                "layer": lambda states=states, tiles=tiles: neighbor_attention(*states, tiles, head_dim**-0.5),
                "tiling": lambda where=where: neighbor_tiles(*where, radius, False),
            },
            repeats,
            torch.device(device),
        )
        rows.append({"tokens": side**2, "radius": radius, **{name: spread(values) for name, values in times.items()}})
    return rows


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of repeated measurements."""
    return {"median": statistics.median(seconds), "least": min(seconds), "greatest": max(seconds)}


def _measure_batch(models: dict[str, PreTrainedModel], prompt: Prompt, decode_tokens: int, repeats: int) -> dict:
    device = prompt.input_ids.device
    prefill = take_turns({n: lambda m=m: prefill_decoder(m, prompt) for n, m in models.items()}, repeats, device)
    whole = take_turns({n: lambda m=m: _prefill(m, prompt) for n, m in models.items()}, repeats, device)
    decode: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            cache = prefill_decoder(model, prompt)
            decode[name].append(_seconds(lambda m=model, c=cache: _decode(m, c, prompt, decode_tokens), device))
    rate = {name: decode_tokens * len(prompt.input_ids) / statistics.median(times) for name, times in decode.items()}
    return {
        "prefill": _compared(prefill),
        "prefill_with_vision": _compared(whole),
        "decode": {**_compared(decode), "tokens_per_second": rate},
        "peak_memory_bytes": {name: _peak_memory(m, prompt) for name, m in models.items()}
        if device.type == "cuda"
        else None,
    }


def _compared(times: dict[str, list[float]]) -> dict:
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**{name: spread(values) for name, values in times.items()}, "speedup": medians["dense"] / medians["sparse"]}


def take_turns(calls: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times in turn, after one call each that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            seconds = _seconds(call, device)
            if turn > 0:
                times[name].append(seconds)
    return times


@torch.inference_mode()
def _seconds(call: Callable, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def prefill_decoder(model: PreTrainedModel, prompt: Prompt) -> Cache:
    """The decoder alone over embeddings, and the head on the last row."""
    streams = {}
    if isinstance(model, SparseMultimodalMixin):
        # No tower runs: where its class token ranks, it ranks all alike.
        ranks = prompt.inputs_embeds.new_zeros(sum(map(num_tokens, prompt.images)), model.visual_plan.tower_layers)
        streams = {"visual_mask": prompt.visual_mask, "images": prompt.images, "class_attention": ranks}
    outputs = model.model.language_model(inputs_embeds=prompt.inputs_embeds, use_cache=True, **streams)
    model.lm_head(outputs.last_hidden_state[:, -1:])
    return outputs.past_key_values


def _prefill(model: PreTrainedModel, prompt: Prompt) -> None:
    """All that stands before the first answer token: vision tower, projector, decoder, head."""
    told = sparse_class(model.config).stock_inputs(model.config, prompt.input_ids)
    model(input_ids=prompt.input_ids, **prompt.pictures, **told, use_cache=True, logits_to_keep=1)


def _decode(model: PreTrainedModel, cache: Cache, prompt: Prompt, num_tokens: int) -> None:
    """Greedy steps on a filled cache."""
    token = prompt.input_ids[:, -1:]
    for _ in range(num_tokens):
        logits = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(-1)


def _peak_memory(model: PreTrainedModel, prompt: Prompt) -> int:
    """Bytes allocated at the prefill's highest point, above what stood before it (weights, prompt)."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    prefill_decoder(model, prompt)
    return torch.cuda.max_memory_allocated() - before


def _held(cache: Cache, layer) -> tuple[torch.Tensor, ...]:
    return layer.tensors() if isinstance(cache, VisualCache) else (layer.keys, layer.values)


def _heads(length: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """[1, heads, length, head_dim], laid out as a projection leaves it."""
    return torch.randn(1, length, num_heads, head_dim, dtype=dtype, device=device).transpose(1, 2)


def _environment(model: PreTrainedModel) -> dict:
    device = model.device
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }

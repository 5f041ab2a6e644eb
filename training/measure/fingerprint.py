"""The fingerprint of a model and its data, by which a cache knows what its values were measured on."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel

THREADS = 8
"""Tensors that are hashed at once. One thread alone needs a minute for the weights of 26 billion parameters."""


def fingerprint(model: PreTrainedModel, batches: Sequence[dict]) -> str:
    """Returns a hash of all weights, of the config that gives them meaning, and of all tensors of the data.

    Args:
        model: a sparse model. Its plan does not count.
        batches: dicts that `data.collator.Collator` returns.
    """
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in ("visual_plan", "transformers_version")
    }
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    tensors = [*model.state_dict().items(), *(item for batch in batches for item in sorted(batch.items()))]
    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(_digest, tensors):
            digest.update(part)
    return digest.hexdigest()


def _digest(named: tuple[str, Tensor]) -> bytes:
    """Returns a hash of a tensor and its name."""
    name, tensor = named
    digest = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.digest()

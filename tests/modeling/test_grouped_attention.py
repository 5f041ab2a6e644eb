"""Grouped attention against the definition with repeated keys, over every kind of mask."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling.grouped_attention import eager_attention, fused_attention

UNITS, HEAD_DIM, SCALE = 2, 8, 0.3


def states(group: int, num_queries: int, num_keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(group)
    sizes = ((UNITS * group, num_queries), (UNITS, num_keys), (UNITS, num_keys))
    return [torch.randn(3, *size, HEAD_DIM, generator=generator, dtype=torch.double).requires_grad_() for size in sizes]


def reference(queries, keys, values, mask):
    """Each query head by itself, with the keys of its unit."""
    group, outputs = queries.shape[1] // keys.shape[1], []
    for head in range(queries.shape[1]):
        logits = queries[:, head] @ keys[:, head // group].transpose(1, 2) * SCALE
        own = mask[:, head if mask.shape[1] > 1 else 0]
        logits = logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own
        outputs.append(logits.softmax(-1) @ values[:, head // group])
    return torch.stack(outputs, dim=1)


def masks(group: int, num_queries: int, num_keys: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    visible = torch.rand(3, 1, num_queries, num_keys, generator=generator) < 0.6
    visible[..., 0] = True
    by_head = torch.randn(1, UNITS * group, 1, num_keys, generator=generator, dtype=torch.double)
    return {"bool": visible, "of heads": by_head, "of heads and rows": torch.where(visible, by_head, -torch.inf)}


@pytest.mark.parametrize("attend", [fused_attention, eager_attention])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_it_is_attention_with_repeated_keys(attend, group, num_queries):
    tensors = states(group, num_queries, 5)
    everything = torch.ones(3, 1, num_queries, 5, dtype=torch.bool)
    plain = everything.tril() if num_queries > 1 else everything
    for mask, meaning in [(None, plain)] + [(mask, mask) for mask in masks(group, num_queries, 5).values()]:
        output, expected = attend(*tensors, mask, 0.0, SCALE), reference(*tensors, meaning)
        torch.testing.assert_close(output, expected)
        weight = torch.randn_like(output)
        gradients = [torch.autograd.grad((result * weight).sum(), tensors) for result in (output, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("attend", [fused_attention, eager_attention])
def test_heads_of_the_wrong_unit_are_noticed(attend):
    queries, keys, values = states(3, 5, 5)
    mask = masks(3, 5, 5)["bool"]
    mixed = queries.unflatten(1, (UNITS, 3)).transpose(1, 2).flatten(1, 2)  # heads by their place in the unit first
    assert (attend(mixed, keys, values, mask, 0.0, SCALE) - reference(queries, keys, values, mask)).abs().max() > 0.1


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes, views left out."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.size = max([self.size, *(out.numel() for out in tree_leaves(result) if isinstance(out, torch.Tensor))])
        return result


@pytest.mark.parametrize("attend", [fused_attention, eager_attention])
def test_keys_are_not_repeated(attend):
    group, num_keys = 4, 200
    queries, keys, values = (tensor.detach() for tensor in states(group, 1, num_keys))
    with Largest() as largest:
        attend(queries, keys, values, masks(group, 1, num_keys)["bool"], 0.0, SCALE)
    with Largest() as repeating:
        keys.repeat_interleave(group, dim=1)
    assert 0 < largest.size <= keys.numel() < repeating.size

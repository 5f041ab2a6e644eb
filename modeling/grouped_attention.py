"""Attention of groups of query heads that share keys and values, which are never repeated for them.

The heads of a unit stand side by side as more queries of one head. That suits every kernel. Kernels also take groups by
themselves (`enable_gqa`), but those of CUDA that take a mask do not: in torch 2.11 to 2.13 the flash kernel refuses
masks and the memory-efficient one refuses groups, so that torch would fall back on plain products in full precision.

Shapes: B batch, U units, G query heads of a unit, Q queries, L keys, H head_dim.
"""

import torch
import torch.nn.functional as F


def fused_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Returns [B, U * G, Q, H] by torch's fused attention.

    Args:
        queries: [B, U * G, Q, H].
        keys, values: [B, U, L, H].
        mask: [B or 1, U * G or 1, Q or 1, L], bool or what is added to the logits. None means that attention is causal,
            with as many queries as keys, or that there is one query.
    """
    group, num_queries = queries.shape[1] // keys.shape[1], queries.shape[2]
    if group > 1 and mask is None and num_queries > 1 and not _kernel_takes_groups(queries, keys, values, dropout):
        mask = _causal(num_queries, queries.device)
    if group == 1 or (mask is None and num_queries > 1):
        causal = mask is None and num_queries > 1
        return F.scaled_dot_product_attention(
            queries, keys, values, mask, dropout, is_causal=causal, scale=scale, enable_gqa=group > 1
        )
    grouped = queries.unflatten(1, (-1, group)).flatten(2, 3)  # [B, U, G * Q, H]
    if mask is not None:
        mask = _by_unit(mask, group).expand(-1, -1, group, num_queries, -1).flatten(2, 3)
    output = F.scaled_dot_product_attention(grouped, keys, values, mask, dropout, scale=scale)
    return output.unflatten(2, (group, num_queries)).flatten(1, 2)


def eager_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Returns what `fused_attention` does, from separate operations.

    On CPUs, and for as few rows as text has, their backward takes a fraction of the time of the fused one.
    """
    group, num_queries = queries.shape[1] // keys.shape[1], queries.shape[2]
    grouped = (queries * scale).unflatten(1, (-1, group)).flatten(2, 3)  # [B, U, G * Q, H]
    logits = (grouped @ keys.transpose(2, 3)).unflatten(2, (group, num_queries))  # [B, U, G, Q, L]
    if mask is None and num_queries > 1:
        mask = _causal(num_queries, queries.device)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=logits.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
        logits = logits + _by_unit(mask, group)
    weights = logits.softmax(dim=-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return (weights.flatten(2, 3) @ values).unflatten(2, (group, num_queries)).flatten(1, 2)


def _kernel_takes_groups(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, dropout: float) -> bool:
    """Returns whether causal attention without a mask has a kernel for groups, which on CUDA is the flash kernel."""
    if queries.device.type != "cuda":
        return True
    parameters = torch.backends.cuda.SDPAParams(queries, keys, values, None, dropout, True, True)
    return torch.backends.cuda.can_use_flash_attention(parameters)


def _causal(num_queries: int, device: torch.device) -> torch.Tensor:
    """Returns the mask [1, 1, Q, Q], bool, of as many queries as keys."""
    return torch.ones(1, 1, num_queries, num_queries, dtype=torch.bool, device=device).tril()


def _by_unit(mask: torch.Tensor, group: int) -> torch.Tensor:
    """Returns a mask [B, heads or 1, Q, L] as [B, U or 1, G or 1, Q, L]."""
    return mask.unsqueeze(2) if mask.shape[1] == 1 else mask.unflatten(1, (-1, group))

"""What a visual plan means, spelled out slowly: one sample, one stream, one head and one row at a time, masks only.

Nothing of the runtime is used but its modules, each called whole: no streams, no slices, no cache, no liveness, no
batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from modeling.layer_plan import LayerPlan
from modeling.visual_plan import VisualPlan


@dataclass
class Layout:
    """One sample as its decoder meets it.

    Attributes:
        states: [S, D].
        rope: cosine and sine, each [S, H].
        image, grid: [S] long, the numbers of the row's image and grid; -1 at text.
        places: [S, 2] long, the row's position (row, column) in its grid.
        class_attention: [S, tower layers], attention of the class token to the row, or None if the tower has none.
    """

    states: torch.Tensor
    rope: tuple[torch.Tensor, torch.Tensor]
    image: torch.Tensor
    grid: torch.Tensor
    places: torch.Tensor
    class_attention: torch.Tensor | None = None


def class_rows(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Returns [pictures, patches, tower layers], the class token's row of the eager tower's maps, mean over heads."""
    fused = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    maps = tower(pixels, output_attentions=True).attentions  # of each layer [pictures, heads, 1 + patches, 1 + patches]
    tower.set_attn_implementation(fused)
    return torch.stack([of_layer[:, :, 0, 1:].mean(1) for of_layer in maps], dim=-1).detach()


def llava_layout(model: nn.Module, sample: dict) -> Layout:
    ids = sample["input_ids"][0]
    decoder, config = model.model.language_model, model.config
    states = decoder.embed_tokens(ids)
    image, class_attention = torch.full_like(ids, -1), None
    places = torch.zeros(len(ids), 2, dtype=torch.long)
    if "pixel_values" in sample:
        # the layers that are run for what is read
        read = config.vision_config.num_hidden_layers + 1 + config.vision_feature_layer
        rows = class_rows(model.vision_tower, sample["pixel_values"])[..., :read].flatten(0, 1)
        at_pictures = (ids == config.image_token_id)[:, None]
        class_attention = torch.zeros(len(ids), read, dtype=rows.dtype).masked_scatter(at_pictures, rows)
        features = torch.cat(list(model.model.get_image_features(sample["pixel_values"]).pooler_output))
        states = states.masked_scatter((ids == config.image_token_id)[:, None], features)
        side = config.vision_config.image_size // config.vision_config.patch_size
        for number, row in enumerate(torch.where(ids == config.image_token_id)[0].tolist()):
            image[row] = number // side**2
            places[row] = torch.tensor(divmod(number % side**2, side))
    cos, sin = decoder.rotary_emb(states[None], torch.arange(len(ids))[None])
    return Layout(states, (cos[0], sin[0]), image, image, places, class_attention)


def reference_logits(
    model: nn.Module,
    plan: VisualPlan,
    sample: dict,
    supervised: torch.Tensor | None = None,
    layout: Callable[[nn.Module, dict], Layout] = llava_layout,
) -> torch.Tensor:
    """Logits [S, vocab] of one unpadded sample (batch of one) under `plan`; rows of image tokens mean nothing."""
    ids, laid_out = sample["input_ids"][0], layout(model, sample)
    decoder, states, image = model.model.language_model, laid_out.states, laid_out.image
    alive = image >= 0
    counts = {number: int((image == number).sum()) for number in image.unique().tolist() if number >= 0}
    probabilities = None
    for index, (layer, entry) in enumerate(zip(decoder.layers, plan.layers, strict=True)):
        before = plan.layers[index - 1].tokens if index else 1.0
        if entry.tokens < before and counts:
            alive = _survivors(
                alive,
                image,
                counts,
                entry,
                ids,
                probabilities,
                plan.layers[index - 1] if index else None,
                supervised,
                laid_out.class_attention,
            )
        states, probabilities = _layer(layer, entry, states, *laid_out.rope, laid_out.grid, laid_out.places, alive)
    return model.lm_head(decoder.norm(states))


def _units(chosen, total: int) -> list[int]:
    if chosen is None:
        return list(range(total))
    return list(range(chosen)) if isinstance(chosen, int) else list(chosen)


def _survivors(alive, image, counts, entry, ids, probabilities, above, supervised, class_attention) -> torch.Tensor:
    kept = torch.zeros_like(alive)
    if entry.tokens == 0:
        return kept
    for number, count in counts.items():
        of_image = [row for row in range(len(ids)) if image[row] == number]
        tokens = [row for row in of_image if alive[row]]
        num_kept = math.ceil(round(entry.tokens * count, 6))
        if entry.rank.by == "uniform":
            middles = [(2 * part + 1) * len(tokens) // (2 * num_kept) for part in range(num_kept)]
            kept[[tokens[middle] for middle in middles]] = True
            continue
        if entry.rank.by == "random":
            score = {row: _drawn(entry.rank.seed, number, of_image.index(row)) for row in tokens}
        elif entry.rank.by == "cls_attention":
            score = {row: sum(class_attention[row].tolist()[-entry.rank.tower_layers :]) for row in tokens}
        else:
            queries = (
                tokens if entry.rank.by == "image_attention" else _text_queries(image, entry.rank.rows, supervised)
            )
            heads, units = probabilities.shape[0], _units(above.heads, probabilities.num_units)
            served = [head for head in range(heads) if head // (heads // probabilities.num_units) in units]
            score = {
                row: sum(float(probabilities[head, query, row]) for head in served for query in queries)
                for row in tokens
            }
        best = sorted(tokens, key=lambda row: (-score[row], row))[:num_kept]
        kept[best] = True
    return kept


def _drawn(seed: int, image: int, token: int) -> int:
    """The plan's random number of a token, in Python's integers."""

    def mixed(value: int) -> int:
        for _ in range(2):
            value %= 2**32
            value = (value ^ value >> 16) * 73244475
        value %= 2**32
        return value ^ value >> 16

    return mixed(token + mixed(image + mixed(seed + 2654435769)))


def _text_queries(image, ranking_rows, supervised) -> list[int]:
    """The text rows by whose attention visual tokens are ranked."""
    is_text = image < 0
    length = len(image)
    rows = [row for row in range(length) if is_text[row]]
    if ranking_rows == "last":
        if supervised is None:
            return rows[-1:]
        return [row for row in rows if row + 1 < length and supervised[row + 1] and not supervised[row]]
    last_image = max(row for row in range(length) if not is_text[row])
    return [row for row in rows if row > last_image and (supervised is None or not supervised[row])]


class _Probabilities(torch.Tensor):
    num_units: int


def _projected(layer, normed):
    """Returns whole queries, keys and values of normed states. The projections may be fused or not."""
    attention = layer.self_attn
    if "qkv_proj" in dict(attention.named_children()):  # Phi-3
        units = attention.num_key_value_heads * attention.head_dim
        return attention.qkv_proj(normed).split((units * attention.num_key_value_groups, units, units), dim=-1)
    return attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)


def _neurons(mlp, normed):
    """Returns all FFN neurons of normed states."""
    if "gate_up_proj" in dict(mlp.named_children()):
        gate, up = mlp.gate_up_proj(normed).chunk(2, dim=-1)
        return mlp.activation_fn(gate) * up
    return mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)


def _layer(layer, entry: LayerPlan, states, cos, sin, grid, places, alive):
    attention, mlp = layer.self_attn, layer.mlp
    length, head_dim = len(states), attention.head_dim
    normed = layer.input_layernorm(states)
    queries, keys, values = (part.reshape(length, -1, head_dim) for part in _projected(layer, normed))
    num_heads, num_units = queries.shape[1], keys.shape[1]
    units = _units(entry.heads, num_units)

    def rotate(vectors):
        half = head_dim // 2
        turned = torch.cat([-vectors[..., half:], vectors[..., :half]], dim=-1)
        return vectors * cos[:, None] + turned * sin[:, None]

    queries, keys = rotate(queries), rotate(keys)
    is_text = grid < 0
    texts, carried, grids, at = is_text.tolist(), alive.tolist(), grid.tolist(), places.tolist()  # fast to read

    def visible(query: int, key: int, served: bool) -> bool:
        if texts[key]:
            return key <= query
        if not (carried[key] and served):
            return False
        if texts[query]:
            return entry.read and key <= query
        if entry.radius is None:
            return key <= query
        near = max(abs(at[query][0] - at[key][0]), abs(at[query][1] - at[key][1])) <= entry.radius
        return grids[query] == grids[key] and near and (entry.bidirectional or key <= query)

    rows = range(length)
    masks = {served: torch.tensor([[visible(q, k, served) for k in rows] for q in rows]) for served in (True, False)}
    outputs, all_weights = [], []
    for head in range(num_heads):
        unit = head // (num_heads // num_units)
        updated = [texts[row] or (carried[row] and entry.attend and unit in units) for row in range(length)]
        logits = queries[:, head] @ keys[:, unit].T * head_dim**-0.5
        logits = logits.masked_fill(~masks[unit in units], -torch.inf)
        logits = torch.where(torch.tensor(updated)[:, None], logits, torch.zeros_like(logits))
        weights = logits.softmax(-1)
        all_weights.append(weights.detach())
        outputs.append(torch.where(torch.tensor(updated)[:, None], weights @ values[:, unit], 0.0))
    update = attention.o_proj(torch.stack(outputs, dim=1).reshape(length, -1))
    touched = is_text | (alive & entry.attend & (len(units) > 0))
    states = torch.where(touched[:, None], states + update, states)

    normed = layer.post_attention_layernorm(states)
    hidden = _neurons(mlp, normed)
    neurons = torch.zeros(hidden.shape[1], dtype=torch.bool)
    neurons[_units(entry.ffn, hidden.shape[1])] = True
    hidden = torch.where(is_text[:, None] | neurons, hidden, 0.0)
    states = torch.where((is_text | alive)[:, None], states + mlp.down_proj(hidden), states)
    weights = torch.stack(all_weights).as_subclass(_Probabilities)
    weights.num_units = num_units
    return states, weights

"""Splits a padded batch into the two streams of a decoder forward.

All follows from where padding and image tokens are and from the grids of images. So it is found on the host, and no
step of it waits for the device.

Shapes: B batch, S sequence rows of this forward, T text rows, V visual rows, R ranking rows.
"""

from collections.abc import Sequence

import torch

from .host_memory import to_device, to_host
from .user_error import UserError
from .visual_layout import NO_SLOT, Images, TextTokens, VisualTokens, num_tokens


def split_streams(
    sequence: Sequence[int],
    attention_mask: torch.Tensor | None,
    visual_mask: torch.Tensor | None,
    images: Images,
    past_length: int,
    device: torch.device,
    supervised: torch.Tensor | None = None,
) -> tuple[TextTokens, VisualTokens | None]:
    """Returns the text rows and the visual rows of a forward, on the device.

    They are found on the host. Masks that lie on a device are copied there, which waits for the device.

    Args:
        sequence: (B, S) of this forward.
        attention_mask: [B, past_length + S], 0 at padding. None means that there is no padding.
        visual_mask: [B, S] bool, true at image tokens. None means that there are none.
        images: the grids of each image, in the order of the batch.
        past_length: number of cached slots.
        device: where the rows lie.
        supervised: [B, S] bool in training, true at answer tokens. They tell which text rows rank visual tokens.

    Raises:
        UserError: the attention mask is not two-dimensional or has another length, or the numbers of image tokens in
            the input and in the images differ.
    """
    batch, length = sequence
    present = _present(attention_mask, batch, length, past_length)
    present, visual_mask, supervised = to_host(present, visual_mask, supervised)
    if visual_mask is None and (present is None or bool(present.all())):
        slots = torch.arange(past_length, past_length + length, device=device).expand(batch, length)
        valid = torch.ones_like(slots, dtype=torch.bool)
        return TextTokens(index=None, valid=valid, slots=slots, full=True, num_last=length), None
    present = torch.ones(batch, length, dtype=torch.bool) if present is None else present
    visual_mask = torch.zeros_like(present) if visual_mask is None else visual_mask & present
    visual = _visual_tokens(visual_mask, past_length, images, device) if images or bool(visual_mask.any()) else None
    is_text = present & ~visual_mask
    index, valid = _packed(is_text)
    slots = torch.where(valid, index + past_length, NO_SLOT)
    last_visual = torch.where(visual_mask, torch.arange(length), -1).amax(1, keepdim=True)
    moved = to_device(torch.stack([index, valid.long(), slots]), device)
    text = TextTokens(
        index=moved[0],
        valid=moved[1].bool(),
        slots=moved[2],
        full=bool(valid.all()),
        num_last=int(is_text.all(0).flip(0).cumprod(0).sum()) if bool(valid.all()) else 0,
        source=to_device(_source(is_text, last_visual), device),
        before_visual=int((valid & (index < last_visual)).sum(1).max()),
        ranking={} if visual is None else _ranking(index, valid, last_visual, supervised),
    )
    return text, visual


def _present(attention_mask: torch.Tensor | None, batch: int, length: int, past_length: int) -> torch.Tensor | None:
    """Returns which rows of this forward are not padding, [B, S] bool. Raises UserError for a mask of another shape."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[1] != past_length + length:
        raise UserError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}, allowed: "
            f"[{batch}, {past_length + length}] (2-D, cached tokens included)"
        )
    return attention_mask[:, past_length:].bool()


def _packed(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices [B, T] of the true columns of mask [B, S], and which of them are real. All lie on the host.

    T is the greatest number of true columns.
    """
    counts = mask.sum(1, keepdim=True)
    valid = torch.arange(int(counts.max())) < counts
    return torch.zeros(valid.shape, dtype=torch.long).masked_scatter(valid, mask.nonzero()[:, 1]), valid


def _source(is_text: torch.Tensor, last_visual: torch.Tensor) -> torch.Tensor:
    """Returns `TextTokens.source`, [B, S].

    Args:
        is_text: [B, S] bool, on the host.
        last_visual: [B, 1], the last visual row; -1 without one.
    """
    number, column = is_text.cumsum(1) - 1, torch.arange(is_text.shape[1])
    last_text = torch.where(is_text, column, -1).amax(1, keepdim=True)
    has_state = is_text | ((column > last_text) & (last_text > last_visual))
    return torch.where(has_state, number, number.max() + 1)


def _visual_tokens(mask: torch.Tensor, past_length: int, images: Images, device: torch.device) -> VisualTokens:
    """Returns the visual rows at mask [B, S], which lies on the host.

    Raises:
        UserError: the images have another number of tokens.
    """
    of_samples = _images_of_samples(mask.sum(1).tolist(), images)
    index, valid = _packed(mask)
    sizes = torch.tensor([num_tokens(image) for image in images])
    shapes = torch.tensor([grid for image in images for grid in image])
    image, place = _numbered(sizes)
    grid, cell = _numbered(shapes.prod(1))
    columns = shapes[grid, 1]

    def padded(values: torch.Tensor) -> torch.Tensor:
        """Returns [B, V], the values of the batch's visual tokens in order, and 0 at invalid rows."""
        return torch.zeros(valid.shape, dtype=torch.long).masked_scatter(valid, values)

    def numbers(of_batch: torch.Tensor) -> torch.Tensor:
        """Returns [B, V], numbers that count anew in each sample, and -1 at invalid rows."""
        number = padded(of_batch)
        return torch.where(valid, number - number[:, :1], -1)

    values = {
        "index": index,
        "slots": torch.where(valid, index + past_length, NO_SLOT),
        "image": numbers(image),
        "grid": numbers(grid),
        "row": padded(cell // columns),
        "column": padded(cell % columns),
        "place": padded(place),
    }
    moved = to_device(torch.stack([valid.long(), *values.values()]), device)  # one copy for all
    return VisualTokens(
        valid=moved[0].bool(),
        **dict(zip(values, moved[1:], strict=True)),
        images=of_samples,
        full=bool(valid.all()),
    )


def _images_of_samples(counts: Sequence[int], images: Images) -> tuple[Images, ...]:
    """Returns each sample's images.

    Args:
        counts: each sample's number of image tokens.
        images: the images of the batch in order.

    Raises:
        UserError: they have another number of tokens, or an image would lie in two samples.
    """
    sizes = [num_tokens(image) for image in images]
    if sum(counts) != sum(sizes):
        raise UserError(f"image tokens: got {sum(counts)} in the input, the images have {sum(sizes)}")
    of_samples, begin = [], 0
    for sample, count in enumerate(counts):
        end = begin
        while sum(sizes[begin:end]) < count:
            end += 1
        if sum(sizes[begin:end]) > count:
            raise UserError(
                f"image tokens: got {count} in sample {sample}, which are not those of whole images of "
                f"{', '.join(map(str, sizes[begin:end]))} tokens"
            )
        of_samples.append(tuple(images[begin:end]))
        begin = end
    return tuple(of_samples)


def _numbered(sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns, for each item of groups of these sizes, the number of its group and its number in the group."""
    group = torch.arange(len(sizes)).repeat_interleave(sizes)
    return group, torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group]


def _ranking(
    index: torch.Tensor, valid: torch.Tensor, last_visual: torch.Tensor, supervised: torch.Tensor | None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns which text rows rank visual tokens, for each kind of ranking rows, as in `TextTokens`.

    Args:
        index, valid: [B, T], the text rows among the S rows.
        last_visual: [B, 1], the last visual row; -1 without one.
        supervised: [B, S] bool in training, or None. The last rows of prompts are then those before answers.
    """
    prompt = valid & (index > last_visual) & (last_visual >= 0)
    if supervised is None:
        last = torch.arange(valid.shape[1]) == valid.sum(1, keepdim=True) - 1
        return {"last": _packed(last & valid), "instruction": _packed(prompt)}
    answers, starts = (rows.gather(1, index) for rows in (supervised, answer_starts(supervised)))
    return {"last": _packed(starts & valid), "instruction": _packed(prompt & ~answers)}


def answer_starts(supervised: torch.Tensor) -> torch.Tensor:
    """Returns which rows precede an answer, [B, S] bool, given which rows are answer tokens, [B, S] bool."""
    starts = torch.zeros_like(supervised)
    starts[:, :-1] = supervised[:, 1:] & ~supervised[:, :-1]
    return starts

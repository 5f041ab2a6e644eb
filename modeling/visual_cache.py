"""Key/value cache of a two-stream decoder: a text part in every unit, a visual part only where text reads it.

A layer holds two groups of units. `joint` keys are those of the served units, visual and text rows side by side;
the rest hold text rows alone. A layer whose visual tokens nobody reads, or a conversation without pictures, has the
second group only. Withdrawn tokens and unserved units take no room.

Shapes: B batch, U units, L cached rows, H head_dim.
"""

from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .user_error import UserError
from .visual_layout import TextTokens, VisualTokens
from .visual_units import Units


@dataclass(frozen=True)
class KeySlots:
    """The slots [B, L] of a group's keys, which columns hold text [L], and whether every row of every sample is real."""

    slots: torch.Tensor
    is_text: torch.Tensor
    full: bool

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> "KeySlots":
        none = torch.zeros(batch, 0, dtype=torch.long, device=device)
        return cls(slots=none, is_text=none[0].bool(), full=True)

    @classmethod
    def of(cls, rows: TextTokens | VisualTokens) -> "KeySlots":
        is_text = torch.full_like(rows.slots[0], isinstance(rows, TextTokens), dtype=torch.bool)
        return cls(slots=rows.slots, is_text=is_text, full=rows.full)

    def extended(self, visual: VisualTokens | None, text: TextTokens) -> "KeySlots":
        """With the rows of one more forward: its visual rows first, then its text rows."""
        new = KeySlots.of(text) if visual is None else KeySlots.of(text).after(visual)
        return new.after(self)

    def after(self, first: "KeySlots | VisualTokens") -> "KeySlots":
        """These keys behind others."""
        first = first if isinstance(first, KeySlots) else KeySlots.of(first)
        return KeySlots(
            slots=torch.cat([first.slots, self.slots], dim=1),
            is_text=torch.cat([first.is_text, self.is_text]),
            full=first.full and self.full,
        )

    def select(self, index: torch.Tensor) -> "KeySlots":
        return KeySlots(
            slots=self.slots.index_select(0, index.to(self.slots.device)), is_text=self.is_text, full=self.full
        )


def _joined(parts: list[torch.Tensor | None]) -> torch.Tensor:
    parts = [part for part in parts if part is not None]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class VisualCacheLayer(CacheLayerMixin):
    """One layer's keys and values.

    Args:
        kept: whether it outlives the forward. One that does not holds views of what it is given, one that does its own
            rows alone: a view would keep the unserved part of its tensor alive.
    """

    is_croppable = False

    def __init__(self, kept: bool):
        super().__init__()
        self.kept = kept
        self.joint_keys: torch.Tensor | None = None
        self.joint_values: torch.Tensor | None = None

    def update(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        units: Units,
        visual: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Appends the rows of one forward.

        Args:
            keys, values: [B, U, T, H], text rows in all units.
            units: which of them serve visual tokens in this layer.
            visual: keys and values [B, served, V, H] that text reads, or None.
        """
        self.is_initialized = True
        if visual is not None and self.joint_keys is None and self.keys is not None:
            self.joint_keys, self.keys = units.split(self.keys)  # the conversation's first picture; copied below
            self.joint_values, self.values = units.split(self.values)
        if visual is not None or self.joint_keys is not None:
            joint_keys, keys = units.split(keys)
            joint_values, values = units.split(values)
            if self.kept:
                keys, values = keys.clone(), values.clone()
            visual_keys, visual_values = (None, None) if visual is None else visual
            self.joint_keys = _joined([self.joint_keys, visual_keys, joint_keys])
            self.joint_values = _joined([self.joint_values, visual_values, joint_values])
        self.keys = _joined([self.keys, keys])
        self.values = _joined([self.values, values])

    def tensors(self) -> tuple[torch.Tensor, ...]:
        held = (self.keys, self.values, self.joint_keys, self.joint_values)
        return tuple(tensor for tensor in held if tensor is not None)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            index = indices.to(self.keys.device)
            self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
            if self.joint_keys is not None:
                self.joint_keys = self.joint_keys.index_select(0, index)
                self.joint_values = self.joint_values.index_select(0, index)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            batch = torch.arange(self.keys.shape[0], device=self.keys.device)
            self.batch_select_indices(batch.repeat_interleave(repeats))

    def reset(self) -> None:
        self.__init__(self.kept)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise NotImplementedError("this cache is filled by its own update")

    def get_seq_length(self) -> int:
        raise NotImplementedError("layers hold different numbers of rows; ask the cache")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise NotImplementedError("masks follow from the slots of the cache")

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # its name before transformers 5.20
        return -1


@dataclass
class _Slots:
    """Slots of the text group, and of the joint group of each stage (layers that carry the same visual tokens)."""

    text: KeySlots
    joint: dict[int, KeySlots] = field(default_factory=dict)


class VisualCache(Cache):
    """The cache that a sparse model makes, and takes back for the next turn."""

    def __init__(self, num_layers: int):
        super().__init__(layers=[VisualCacheLayer(kept=True) for _ in range(num_layers)])
        self.seen = 0
        self.slots: _Slots | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots so far: text, visual tokens (withdrawn ones too) and padding."""
        return self.seen

    def start(self, batch: int, device: torch.device) -> _Slots:
        """The slots of the rows cached so far."""
        if self.slots is None:
            self.slots = _Slots(text=KeySlots.empty(batch, device))
        return self.slots

    def num_bytes(self) -> int:
        """Bytes of memory that keys and values keep alive."""
        storages = (tensor.untyped_storage() for layer in self.layers for tensor in layer.tensors())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.slots is not None:
            self.slots = _Slots(
                text=self.slots.text.select(indices),
                joint={stage: slots.select(indices) for stage, slots in self.slots.joint.items()},
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.slots is not None:
            batch = torch.arange(self.slots.text.slots.shape[0])
            self.batch_select_indices(batch.repeat_interleave(repeats))

    def reset(self) -> None:
        super().reset()
        self.seen, self.slots = 0, None

    def crop(self, tokens_to_remove: int) -> None:
        raise UserError("a visual cache cannot be cropped (assisted generation): generate without an assistant")

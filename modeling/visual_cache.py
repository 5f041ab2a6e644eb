"""Key/value cache of a two-stream decoder. Visual keys and values are held only where text reads them.

A layer has two groups of units (key/value heads). The units that serve visual tokens hold visual rows and text rows
together, which are the *joint* keys. The other units hold text rows alone. A layer whose visual tokens no text reads
has the second group only, and so has a conversation without pictures. Withdrawn tokens take no room, nor do visual
tokens in units that do not serve them.

Shapes: B batch, U units, L cached rows, T text rows and V visual rows of one forward, H head_dim.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .user_error import UserError
from .visual_layout import TextTokens, VisualTokens
from .visual_units import UnitSplit


@dataclass(frozen=True)
class KeySlots:
    """Where the keys of a group of units stand.

    Attributes:
        slots: [B, L] long.
        is_text: [L] bool, which of the keys are text.
        full: whether every key of every sample is valid.
    """

    slots: torch.Tensor
    is_text: torch.Tensor
    full: bool

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> "KeySlots":
        """Returns no keys."""
        none = torch.zeros(batch, 0, dtype=torch.long, device=device)
        return cls(slots=none, is_text=none[0].bool(), full=True)

    @classmethod
    def of(cls, rows: TextTokens | VisualTokens) -> "KeySlots":
        """Returns the keys of these rows."""
        is_text = torch.full_like(rows.slots[0], isinstance(rows, TextTokens), dtype=torch.bool)
        return cls(slots=rows.slots, is_text=is_text, full=rows.full)

    def extended(self, visual: VisualTokens | None, text: TextTokens) -> "KeySlots":
        """Returns these keys and those of one more forward, its visual rows first, then its text rows."""
        new = KeySlots.of(text) if visual is None else KeySlots.of(text).after(visual)
        return new.after(self)

    def after(self, first: "KeySlots | VisualTokens") -> "KeySlots":
        """Returns the keys `first`, then these."""
        first = first if isinstance(first, KeySlots) else KeySlots.of(first)
        return KeySlots(
            slots=torch.cat([first.slots, self.slots], dim=1),
            is_text=torch.cat([first.is_text, self.is_text]),
            full=first.full and self.full,
        )

    def select(self, index: torch.Tensor) -> "KeySlots":
        """Returns the keys of the samples at `index`."""
        return KeySlots(
            slots=self.slots.index_select(0, index.to(self.slots.device)), is_text=self.is_text, full=self.full
        )


def _joined(*parts: torch.Tensor | None) -> torch.Tensor:
    """Returns the given keys or values [B, U, rows, H] one after another."""
    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 else torch.cat(given, dim=2)


class VisualCacheLayer(CacheLayerMixin):
    """One layer's keys and values.

    Args:
        persistent: whether it outlives the forward. A layer that does copies the rows that it holds, because a view
            would keep the other rows of its tensor in memory. A layer that does not holds views.

    Attributes:
        keys, values: [B, U, L, H], text rows in the units that hold text alone, or in all units. None while it is
            empty.
        joint_keys, joint_values: [B, served units, L, H], visual and text rows. None if there are none.
    """

    is_croppable = False
    if TYPE_CHECKING:  # set by the base class
        keys: torch.Tensor | None
        values: torch.Tensor | None

    def __init__(self, persistent: bool):
        super().__init__()
        self.persistent = persistent
        self.joint_keys: torch.Tensor | None = None
        self.joint_values: torch.Tensor | None = None

    @property
    def text(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of text rows in the units that hold text alone, of a layer that is filled."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    @property
    def joint(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Joint keys and values, of a layer that has them."""
        assert self.joint_keys is not None and self.joint_values is not None
        return self.joint_keys, self.joint_values

    def update(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        units: UnitSplit,
        visual: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Appends the rows of one forward.

        Args:
            keys, values: [B, U, T, H], text rows in all units.
            units: says which of them serve visual tokens in this layer.
            visual: keys and values [B, served units, V, H] that text reads, or None.
        """
        self.is_initialized = True
        if visual is not None and self.joint_keys is None and self.keys is not None:
            text_keys, text_values = self.text
            self.joint_keys, self.keys = units.split(text_keys)  # the conversation's first picture; copied below
            self.joint_values, self.values = units.split(text_values)
        if visual is not None or self.joint_keys is not None:
            joint_keys, keys = units.split(keys)
            joint_values, values = units.split(values)
            if self.persistent:
                keys, values = keys.clone(), values.clone()
            visual_keys, visual_values = (None, None) if visual is None else visual
            self.joint_keys = _joined(self.joint_keys, visual_keys, joint_keys)
            self.joint_values = _joined(self.joint_values, visual_values, joint_values)
        self.keys = _joined(self.keys, keys)
        self.values = _joined(self.values, values)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Returns the tensors that it holds."""
        held = (self.keys, self.values, self.joint_keys, self.joint_values)
        return tuple(tensor for tensor in held if tensor is not None)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            keys, values = self.text
            index = indices.to(keys.device)
            self.keys, self.values = keys.index_select(0, index), values.index_select(0, index)
            if self.joint_keys is not None:
                joint_keys, joint_values = self.joint
                self.joint_keys = joint_keys.index_select(0, index)
                self.joint_values = joint_values.index_select(0, index)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            keys, _ = self.text
            batch = torch.arange(keys.shape[0], device=keys.device)
            self.batch_select_indices(batch.repeat_interleave(repeats))

    def reset(self) -> None:
        super().__init__()
        self.joint_keys = self.joint_values = None

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
class CachedSlots:
    """The slots of the rows that are cached.

    Attributes:
        text: slots of text rows.
        joint: for each stage, slots of its joint keys. A stage is a run of layers that carry the same visual tokens.
    """

    text: KeySlots
    joint: dict[int, KeySlots] = field(default_factory=dict)


class VisualCache(Cache):
    """The cache that a sparse model makes, and takes back for the next turn.

    Attributes:
        num_seen: number of slots so far. Text, visual tokens (withdrawn ones too) and padding count.
        slots: the slots of the rows that are cached, or None before the first forward.
    """

    def __init__(self, num_layers: int):
        super().__init__(layers=[VisualCacheLayer(persistent=True) for _ in range(num_layers)])
        self.num_seen = 0
        self.slots: CachedSlots | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_seen

    def cached_slots(self, batch: int, device: torch.device) -> CachedSlots:
        """Returns the slots of the rows cached so far. They are to be updated by the forward."""
        if self.slots is None:
            self.slots = CachedSlots(text=KeySlots.empty(batch, device))
        return self.slots

    def num_bytes(self) -> int:
        """Returns the bytes of memory that keys and values occupy."""
        storages = (tensor.untyped_storage() for layer in self.layers for tensor in layer.tensors())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.slots is not None:
            self.slots = CachedSlots(
                text=self.slots.text.select(indices),
                joint={stage: slots.select(indices) for stage, slots in self.slots.joint.items()},
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.slots is not None:
            batch = torch.arange(self.slots.text.slots.shape[0])
            self.batch_select_indices(batch.repeat_interleave(repeats))

    def reset(self) -> None:
        super().reset()
        self.num_seen, self.slots = 0, None

    def crop(self, tokens_to_remove: int) -> None:
        raise UserError("a visual cache cannot be cropped (assisted generation): generate without an assistant")

"""Key/value cache of a two-stream decoder. Visual keys and values are held only where text reads them.

A layer has two groups of units (key/value heads). The units that serve visual tokens hold visual rows and text rows
together, which are the *joint* keys. The other units hold text rows alone. A layer whose visual tokens no text reads
has the second group only, and so has a conversation without pictures. Withdrawn tokens take no room, nor do visual
tokens in units that do not serve them.

Shapes: B batch, U units, L cached rows, T text rows and V visual rows of one forward, H head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

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
        return replace(self, slots=self.slots.index_select(0, index.to(self.slots.device)))

    def without_last(self, rows: int) -> "KeySlots":
        """Returns all keys but so many last ones."""
        return replace(self, slots=self.slots[:, :-rows], is_text=self.is_text[:-rows])


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

    is_croppable = True
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

    def crop(self, tokens_to_remove: int) -> None:
        """Lets the last `-tokens_to_remove` rows go, which are text. The first layer of the cache refuses others."""
        if self.is_initialized and tokens_to_remove != 0:
            self.keys, self.values = (part[:, :, :tokens_to_remove] for part in self.text)
            if self.joint_keys is not None:
                self.joint_keys, self.joint_values = (part[:, :, :tokens_to_remove] for part in self.joint)

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

    def of_all(self, change: Callable[[KeySlots], KeySlots]) -> "CachedSlots":
        """Returns the slots after a change of each group."""
        return CachedSlots(change(self.text), {stage: change(slots) for stage, slots in self.joint.items()})


class FirstCacheLayer(VisualCacheLayer):
    """The first layer of a cache. It also holds what is true of all layers.

    A cache is a list of layers, and whatever is done to it is done to each of them. So a caller's own cache serves as
    well as `VisualCache`.

    Attributes:
        num_seen: number of slots so far. Text, visual tokens (withdrawn ones too) and padding count.
        num_croppable: how many of the last slots are text in every sample, and so can be let go again.
        slots: the slots of the rows that are cached, or None before the first forward.
        position_offset: [B, 1] long, the position of the next row less its slot, for models whose positions are not
            their slots. None means 0.
    """

    def __init__(self) -> None:
        super().__init__(persistent=True)
        self.num_seen, self.num_croppable = 0, 0
        self.slots: CachedSlots | None = None
        self.position_offset: torch.Tensor | None = None

    def grow(self, text: TextTokens, length: int) -> None:
        """Counts the slots of one forward, of which `text` are the text rows."""
        self.num_seen += length
        self.num_croppable = text.num_last + (self.num_croppable if text.num_last == length else 0)

    def get_seq_length(self) -> int:
        return self.num_seen

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.slots is not None:
            self.slots = self.slots.of_all(lambda slots: slots.select(indices))
        if self.position_offset is not None:
            self.position_offset = self.position_offset.index_select(0, indices.to(self.position_offset.device))

    def crop(self, tokens_to_remove: int) -> None:
        """Lets the last `-tokens_to_remove` slots go.

        Raises:
            UserError: they are not all text, or the number is positive.
        """
        if not -self.num_croppable <= tokens_to_remove <= 0:
            raise UserError(
                f"crop: got {tokens_to_remove}, allowed: {-self.num_croppable} to 0, the last text rows alone "
                "(pictures and padding cannot be let go)"
            )
        super().crop(tokens_to_remove)
        self.num_seen += tokens_to_remove
        self.num_croppable += tokens_to_remove
        if self.slots is not None and tokens_to_remove < 0:
            self.slots = self.slots.of_all(lambda slots: slots.without_last(-tokens_to_remove))

    def reset(self) -> None:
        super().reset()
        self.num_seen, self.num_croppable, self.slots, self.position_offset = 0, 0, None, None


def first_layer(cache: Cache | None) -> FirstCacheLayer | None:
    """Returns the first layer of a cache that a sparse model filled, or None of any other."""
    first = cache.layers[0] if cache is not None and len(cache.layers) > 0 else None
    return first if isinstance(first, FirstCacheLayer) else None


class VisualCache(Cache):
    """The cache that a sparse model makes, and takes back for the next turn."""

    def __init__(self, num_layers: int):
        rest = [VisualCacheLayer(persistent=True) for _ in range(num_layers - 1)]
        super().__init__(layers=[FirstCacheLayer(), *rest])

    def num_bytes(self) -> int:
        """Returns the bytes of memory that keys and values occupy."""
        storages = (tensor.untyped_storage() for layer in self.layers for tensor in layer.tensors())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def fillable(given: Cache, num_layers: int) -> Cache:
    """Returns a caller's cache, ready for a sparse model of so many layers. An empty DynamicCache gets its layers.

    Raises:
        UserError: the cache is of another kind, or holds what another model put there.
    """
    if first_layer(given) is None:
        if type(given) is not DynamicCache or given.offloading or given.get_seq_length() > 0:
            raise UserError(
                f"past_key_values: got a {type(given).__name__}, allowed: None, an empty DynamicCache without "
                "offloading, or a cache that this model filled"
            )
        given.layers = VisualCache(num_layers).layers
    if len(given.layers) != num_layers:
        raise UserError(f"past_key_values: got those of {len(given.layers)} layers, the model has {num_layers}")
    return given

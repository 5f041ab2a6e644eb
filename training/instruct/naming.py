"""Trains a projector to name what each patch of a picture shows, and where the patch is, before questions are trained.

The vision tower and the language model have never met. So the projector is trained first: the visual token of a patch
should be the word embedding of the thing that covers it, plus that of the patch's place. The language model then has
little to learn about pictures, as they look to it like words (as LLaVA's first stage, arXiv 2304.08485, section 4.2).

B pictures, P patches in reading order, D hidden_size of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from modeling.user_error import UserError
from training.instruct.features import Features

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
NO_NAME = -100
SIDES = ("x", "y", "width", "height")
"""Of a box, as rows name them."""
_MOST_PIXELS = 1e6  # from the corner of a picture, and of a side
_SCORE_SCALE = 8.0  # of a patch's scores, which are 1 for its own word and about 0 for others
_PLACE_CLASSES = 0.2  # weight of telling places apart, beside names
_SQUARED = 0.3  # weight of the distance from the target, beside names


@dataclass(frozen=True)
class Thing:
    """A thing in a picture: its name, and its box in pixels. x and y are those of the upper left corner."""

    name: str
    x: float
    y: float
    width: float
    height: float


def read_things(value: object, where: str) -> list[Thing]:
    """Returns the things that a row lists.

    Args:
        value: what stands in the row's column.
        where: the row, which messages begin with.

    Raises:
        UserError: the value is no list of names and boxes, or a name is blank, or a box no area.
    """
    if not isinstance(value, list):
        raise _no_thing(value, where)
    return [_thing(thing, where) for thing in value]


def _thing(value: object, where: str) -> Thing:
    if not isinstance(value, dict) or not {"name", *SIDES} <= value.keys():
        raise _no_thing(value, where)
    name, box = value["name"], [value[side] for side in SIDES]
    if not (isinstance(name, str) and name.strip()):
        raise _no_thing(value, where)
    if not all(type(number) in (int, float) and -_MOST_PIXELS <= number <= _MOST_PIXELS for number in box):
        raise _no_thing(value, where)
    if min(box[2:]) <= 0:
        raise _no_thing(value, where)
    return Thing(name, *map(float, box))


def _no_thing(value: object, where: str) -> UserError:
    return UserError(
        f"{where}: got {value!r:.150}, allowed: a list of objects with a name, and {', '.join(SIDES)} in pixels, of "
        "which the last two are above 0"
    )


def patch_names(things: Sequence[Thing], names: dict[str, int], size: tuple[int, int], side: int) -> np.ndarray:
    """Returns the name of the thing whose box the middle of each patch is in, [P] int64, NO_NAME where there is none.

    Of two boxes the one that comes last counts.

    Args:
        things: in a picture of `size`.
        names: name of each thing -> its number.
        size: height and width of the picture in pixels.
        side: patches in a row and in a column.
    """
    height, width = size
    y, x = np.meshgrid(*((np.arange(side) + 0.5) / side * length for length in (height, width)), indexing="ij")
    found = np.full((side, side), NO_NAME, dtype=np.int64)
    for thing in things:
        across, down = x - thing.x, y - thing.y
        found[(across >= 0) & (across < thing.width) & (down >= 0) & (down < thing.height)] = names[thing.name]
    return found.flatten()


class PatchNamer(nn.Module):
    """A projector with the loss of naming patches. It is trained in place. The word embeddings are not trained.

    Features of towers are of any size. So the projector is trained on features of mean 0 and deviation 1, and `fold`
    makes it one for the features as they are.

    Args:
        projector: a LLaVA's, which makes visual tokens [B, P, D] of features.
        mean, deviation: of the features, [W] fp32.
        embeddings: [vocab, D], the word embeddings.
        tokenizer: makes tokens of names.
        names: of all things.
        side: patches in a row and in a column.
        place_weight: length of a place in a visual token, beside that of a name.
    """

    def __init__(
        self,
        projector: LlavaMultiModalProjector,
        mean: torch.Tensor,
        deviation: torch.Tensor,
        embeddings: torch.Tensor,
        tokenizer: PreTrainedTokenizerBase,
        names: Sequence[str],
        side: int,
        place_weight: float,
    ):
        super().__init__()
        self.projector = projector
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)
        length = embeddings.float().norm(dim=-1).mean()

        def words(texts: Sequence[str]) -> torch.Tensor:
            """Returns the mean embedding of each text's tokens behind a space, [texts, D]."""
            tokens = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
            for text, ids in zip(texts, tokens, strict=True):
                if not ids:
                    raise UserError(f"the tokenizer makes no token of the name {text!r:.100}")
            return torch.stack([embeddings[ids].float().mean(dim=0) for ids in tokens]) / length

        third = torch.arange(side) * 3 // side
        rows, columns = words(ROWS), words(COLUMNS)
        places = torch.stack([(row + column) / 2 for row in rows for column in columns])
        self.register_buffer("names", words(names), persistent=False)
        self.register_buffer("places", place_weight * places, persistent=False)
        self.register_buffer("place", (3 * third[:, None] + third).flatten(), persistent=False)  # [P]
        self.length = length.item()

    def forward(self, features: torch.Tensor, named: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the loss, and how often patches are named rightly.

        The loss is the cross entropy among all names, at patches that show a thing, and among all places, plus the
        squared distance of each visual token from its target.

        Args:
            features: [B, P, W] of the vision tower.
            named: [B, P] int64, from `patch_names`.

        Returns:
            `loss`, an fp32 scalar. `right` [1] fp32, the share of patches with a thing that are named rightly.
        """
        standard = (features.float() - self.get_buffer("mean")) / self.get_buffer("deviation")
        tokens = self.projector(standard).float() / self.length
        name, place = self.get_buffer("names"), self.get_buffer("places")[self.get_buffer("place")]
        has_name = named != NO_NAME
        scores = self._scores(tokens - place, name)
        place_scores = self._scores(
            tokens - (name[named.clamp(min=0)] * has_name[..., None]), self.get_buffer("places")
        )
        target = place + name[named.clamp(min=0)] * has_name[..., None]
        of_places = F.cross_entropy(place_scores.flatten(0, 1), self.get_buffer("place").repeat(len(tokens)))
        of_names = F.cross_entropy(scores.mT, named, ignore_index=NO_NAME, reduction="sum") / has_name.sum().clamp(
            min=1
        )
        distance = (tokens - target).square().sum(dim=-1).mean()
        right = ((scores.argmax(dim=-1) == named) & has_name).sum() / has_name.sum().clamp(min=1)
        loss = of_names + _PLACE_CLASSES * of_places + _SQUARED * distance
        return {"loss": loss, "right": right.detach()[None]}

    @torch.no_grad()
    def fold(self) -> None:
        """Puts mean and deviation into the projector's first layer. It then takes features as they are."""
        first = self.projector.linear_1
        first.weight.div_(self.get_buffer("deviation"))
        first.bias.sub_(first.weight @ self.get_buffer("mean"))

    @staticmethod
    def _scores(tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Returns how much each token is like each word, [B, P, words]. What all words share does not count."""
        centre = words.mean(dim=0)
        return (tokens - centre) @ F.normalize(words - centre, dim=-1).T * _SCORE_SCALE


class NamedPatches(Dataset):
    """Features of pictures with the names of their patches.

    Args:
        features: those of all pictures.
        named: [N, P] int64.
    """

    def __init__(self, features: Features, named: np.ndarray):
        self._features, self._named = features, named

    def __len__(self) -> int:
        return len(self._named)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "features": self._features[index],
            "named": torch.from_numpy(self._named[index]),
        }

"""What a vision tower makes of pictures, kept on the disk: the tower is not trained, so it runs once on each picture.

A folder has parts of `PART` pictures, `00000000.npy` and so on. A part is there whole or not at all, so ranks share
the parts, and a killed run goes on with those that are missing.

N samples of one picture each, P patches of a picture, W the width of what the projector takes.
"""

from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import LlavaForConditionalGeneration

from data.dataset import ConversationDataset
from modeling.user_error import UserError
from modeling.whole_file import whole_file
from training.files import reading
from training.progress import Progress
from training.ranks import own_share, wait_for_rank_0

FEATURES = "features"
"""Their key in a batch."""
PART = 500
"""Pictures of a part."""
FEATURES_AGAIN = "delete it and the result of `features` in stages/, and it is made again"
"""What can be done about a damaged part."""
_HEADER = 200  # bytes of a numpy header that are read at most; those of parts have 118


class Features(Dataset):
    """The features of all pictures, [P, W] float16 of each, which lie on the disk until they are asked for.

    Args:
        folder: the folder that `write_features` filled.
        num_pictures: how many pictures have features there.
        shape: of the features of a picture, [P, W].

    Raises:
        UserError: a part is damaged, or is another one.
    """

    def __init__(self, folder: Path, num_pictures: int, shape: tuple[int, int]):
        starts = range(0, num_pictures, PART)
        self._parts = [
            _read_part(folder / _file_name(start), (min(PART, num_pictures - start), *shape)) for start in starts
        ]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._parts[index // PART][index % PART].copy())


class KeptFeatures(Dataset):
    """The samples of a dataset with the features of their pictures, which are not opened.

    An item has input_ids and labels [S] as the dataset's, and features [1, P, W] float16.

    Args:
        dataset: samples of one picture each.
        features: those of its pictures, in its order.
    """

    def __init__(self, dataset: ConversationDataset, features: Features):
        self._dataset, self._features = dataset, features
        assert len(features) == len(dataset), (len(features), len(dataset))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self._dataset.tokens(index), FEATURES: self._features[index][None]}


@torch.no_grad()
def write_features(
    model: LlavaForConditionalGeneration, dataset: ConversationDataset, folder: Path, batch_size: int
) -> None:
    """Writes the features of a dataset's pictures. Every rank calls this and writes its share of the parts.

    Args:
        model: its tower runs on the device that it is on.
        dataset: samples of one picture each.
        batch_size: pictures that the tower sees together.

    Raises:
        UserError: a feature is too large for float16.
    """
    starts = range(0, len(dataset), PART)
    missing = [start for start in starts if not (folder / _file_name(start)).exists()]
    own = {start: range(start, min(start + PART, len(dataset))) for _, start in own_share(missing)}
    progress = Progress(None, desc="features", unit="picture", total=sum(map(len, own.values())))
    for start, numbers in own.items():
        features = []
        for pixels in DataLoader(Subset(dataset, numbers), batch_size, collate_fn=_pictures):
            features.append(tower_features(model, pixels.to(model.device)).to("cpu", torch.float16))
            progress.update(len(pixels))
        part = torch.cat(features)
        if not part.isfinite().all():
            raise UserError(f"{folder}: the vision tower's features go beyond float16, in which they are kept")
        with whole_file(folder / _file_name(start)) as partial, partial.open("wb") as file:
            np.save(file, part.numpy())
    progress.close()
    wait_for_rank_0()  # until all parts are written


def _read_part(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns a part, mapped into memory. Raises UserError unless it is float16 of this shape."""
    with reading(path, FEATURES_AGAIN):
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            # Headers of later versions say how long they are in four bytes, and numpy would read all of it.
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not of the version that was written")
        try:
            part = np.load(path, mmap_mode="r", max_header_size=_HEADER)
        except (SyntaxError, TokenError) as error:
            raise ValueError(f"no header of numpy: {error}") from error
        if (part.dtype, part.shape) != (np.float16, shape):
            raise ValueError(f"got {part.dtype} of shape {part.shape}, expected float16 of {shape}")
        return part


def _file_name(start: int) -> str:
    """Returns the name of the part that begins with a picture. Sorted, parts are in the order of pictures."""
    return f"{start // PART:08d}.npy"


def tower_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Returns what the projector takes [B, P, W] of pictures [B, 3, H, W], as LLaVA's own forward selects it."""
    projector, caught = model.model.multi_modal_projector, []
    handle = projector.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        model.model.get_image_features(pixels.to(model.dtype))
    finally:
        handle.remove()
    return caught[0]


def _pictures(samples: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Returns the pictures [B, 3, H, W] of samples of one picture each."""
    return torch.cat([sample["pixel_values"] for sample in samples])

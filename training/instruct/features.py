"""What a vision tower makes of pictures, kept on the disk: the tower is not trained, so it runs once on each picture.

N samples of one picture each, P patches of a picture, W the width of what the projector takes.
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import LlavaForConditionalGeneration

from data.dataset import ConversationDataset
from modeling.user_error import UserError
from modeling.whole_file import whole_file
from training.progress import Progress

FEATURES = "features"
"""Their key in a batch."""


class KeptFeatures(Dataset):
    """The samples of a dataset with the features of their pictures, which are not opened.

    An item has input_ids and labels [S] as the dataset's, and features [1, P, W] float16.

    Args:
        dataset: samples of one picture each.
        path: the file that `write_features` made of them.
    """

    def __init__(self, dataset: ConversationDataset, path: Path):
        self._dataset, self.values = dataset, np.load(path, mmap_mode="r")
        assert len(self.values) == len(dataset), (self.values.shape, len(dataset))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self._dataset.tokens(index), FEATURES: torch.from_numpy(self.values[index][None].copy())}


@torch.no_grad()
def write_features(
    model: LlavaForConditionalGeneration, dataset: ConversationDataset, path: Path, batch_size: int
) -> None:
    """Writes features [N, P, W] float16 of a dataset's pictures to an .npy file, which is there whole or not at all.

    Args:
        model: its tower runs on the device that it is on.
        dataset: samples of one picture each.
        batch_size: pictures that the tower sees together.

    Raises:
        UserError: a sample has no picture, or several, or a feature is too large for float16.
    """
    loader = DataLoader(dataset, batch_size, collate_fn=_pictures)
    progress = Progress(None, desc="features", unit="picture", total=len(dataset))
    with whole_file(path) as partial:
        values, start = None, 0
        for pixels in loader:
            features = tower_features(model, pixels.to(model.device)).to("cpu", torch.float16)
            if not features.isfinite().all():
                raise UserError(f"{path}: the vision tower's features go beyond float16, in which they are kept")
            if values is None:
                shape = (len(dataset), *features.shape[1:])
                values = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            values[start : start + len(features)] = features.numpy()
            start += len(features)
            progress.update(len(features))
        if values is not None:
            values.flush()
    progress.close()


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
    for sample in samples:
        count = len(sample.get("pixel_values", ()))
        if count != 1:
            raise UserError(f"task instruct: a sample has {count} pictures, allowed: one")
    return torch.cat([sample["pixel_values"] for sample in samples])

"""A vision tower that sees before a language model looks through it: trained to say what covers each patch.

From raw pixels with questions alone, binding a colour to a shape stays on a plateau for thousands of steps; behind a
tower trained like this for a few minutes it is learnt at once. Linear heads read the targets of
`data.shapes_patches` from the features that the projector will get; the heads are then thrown away.

B pictures, P patches, D hidden_size of the tower.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from data.shapes_patches import TARGETS, patch_targets
from data.shapes_scenes import Scene, draw_scene

_EMPTY_WEIGHT = 0.15  # most patches are background and soon told


class PatchReader(nn.Module):
    """The vision tower of a LLaVA model with one linear head per target.

    Args:
        model: its tower is trained in place, and read as the model reads it (layer, class token).
    """

    def __init__(self, model: LlavaForConditionalGeneration):
        super().__init__()
        self.tower = model.model.vision_tower
        self.layer = model.config.vision_feature_layer
        assert isinstance(self.layer, int) and model.config.vision_feature_select_strategy == "default"
        hidden_size = model.config.vision_config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, classes) for name, classes in TARGETS.items()})

    def forward(self, pixel_values: torch.Tensor, **targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean cross entropy over patches, summed over targets; patches that show nothing weigh less.

        Args:
            pixel_values: [B, 3, H, W] float.
            targets: each of TARGETS, [B, P] int64.

        Returns:
            loss: scalar fp32; accuracy: scalar in [0, 1], the share of patches of things whose `thing` is told right.
        """
        features = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]  # [B, P, D]
        shown = sum(targets[name] for name in ("thing", "word", "tens", "units")) > 0  # [B, P]
        weights = torch.where(shown, 1.0, _EMPTY_WEIGHT)
        logits = {name: head(features).float() for name, head in self.heads.items()}  # [B, P, classes]
        losses = [F.cross_entropy(logits[name].mT, targets[name], reduction="none") for name in TARGETS]
        thing = targets["thing"] > 0
        right = logits["thing"].argmax(dim=-1) == targets["thing"]
        return {
            "loss": (sum(losses) * weights).sum() / weights.sum(),
            "accuracy": (right & thing).sum() / thing.sum().clamp(min=1),
        }


class PatchDataset(Dataset):
    """Scenes as pictures and patch targets, drawn when fetched."""

    def __init__(self, scenes: list[Scene], processor: LlavaProcessor):
        self.scenes = scenes
        self._processor = processor

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """pixel_values [3, H, W] float32 and each of TARGETS [P] int64."""
        image = draw_scene(self.scenes[index])
        pixel_values = self._processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, **patch_targets(self.scenes[index], image, self._processor.patch_size)}

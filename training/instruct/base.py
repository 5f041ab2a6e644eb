"""What the model must be that `task: instruct` teaches: a dense LLaVA with a visual token for each patch."""

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from checkpoints.build import dense_config
from modeling.user_error import UserError
from training.instruct.features import FEATURES, Features, tower_features


def check_config(path: str) -> None:
    """Raises UserError unless a model's config is that of a dense LLaVA."""
    model_type = dense_config(path).model_type
    if model_type != "llava":
        raise UserError(f"{path}: got a {model_type!r} model, allowed: 'llava'")


def side_of(model: LlavaForConditionalGeneration) -> int:
    """Returns how many patches the vision tower sees in a row and in a column."""
    return model.config.vision_config.image_size // model.config.vision_config.patch_size


@torch.no_grad()
def check_tower(path: str, model: LlavaForConditionalGeneration) -> None:
    """Raises UserError unless the vision tower of the model at `path` gives one feature for each patch."""
    size, allowed = model.config.vision_config.image_size, side_of(model) ** 2
    made = tower_features(model, torch.zeros(1, 3, size, size)).shape[1]
    if made != allowed:
        raise UserError(
            f"{path}: the vision tower gives {made} features of a picture, allowed: {allowed}, one for each patch "
            "(vision_feature_select_strategy in config.json)"
        )


def kept_features(run_folder: Path, model: LlavaForConditionalGeneration, num_pictures: int) -> Features:
    """Returns the features of the pictures that are trained on. Raises UserError as `Features`."""
    width = model.model.multi_modal_projector.linear_1.in_features
    return Features(run_folder / FEATURES, num_pictures, (side_of(model) ** 2, width))

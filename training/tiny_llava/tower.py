"""Trains vision tower and projector to name what each patch of a picture shows, before questions are trained.

A model that is trained on questions alone needs thousands of steps before it knows which colour belongs to which shape.
So tower and projector are trained first, with a target for each patch: its visual token should equal the sum of the
embeddings of the words for what covers it (red + cross + small + top + left). The language model then has little to
learn about pictures, as they look to it like words. LLaVA likewise trains its projector first, to align features with
word embeddings (arXiv 2304.08485, section 4.2).

B pictures, P patches, G groups of words, D hidden_size of the language model.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from data.shapes.patches import GROUPS, NO_WORD, patch_words
from data.shapes.scenes import Scene, draw_scene

_SCORE_SCALE = 10.0  # of a patch's scores, which are 1 for a word that is there and 0 for others
_EMPTY_WEIGHT = 0.15  # most patches show only background, which is soon learnt


class PatchReader(nn.Module):
    """The vision tower and projector of a LLaVA model, with the loss of naming patches.

    They are trained in place. The word embeddings are not trained.

    Args:
        model: the LLaVA model.
        processor: its processor. Its tokenizer has one token for every word of GROUPS.
    """

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor):
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.layer = model.config.vision_feature_layer
        assert isinstance(self.layer, int) and model.config.vision_feature_select_strategy == "default"
        embeddings = model.get_input_embeddings().weight.detach()
        for name, words in GROUPS.items():
            tokens = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
            assert all(len(token) == 1 and token[0] != processor.tokenizer.unk_token_id for token in tokens), name
            self.register_buffer(
                name, embeddings[torch.tensor(tokens).flatten()].clone(), persistent=False
            )  # [words, D]
        self.word_length = embeddings.norm(dim=-1).mean().item()

    def forward(self, pixel_values: torch.Tensor, words: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the loss, and how often patches are named rightly.

        The loss of a patch is the squared distance of its token from the sum of embeddings, plus the cross entropy
        among the words of each group that has a word for the patch.

        Args:
            pixel_values: [B, 3, H, W] float.
            words: [B, P, G] int64, from `data.shapes.patches.patch_words`.

        Returns:
            `loss` is an fp32 scalar, the mean over patches. Patches that show nothing have a smaller weight. `right`
            [G] fp32 is the share of patches that are named rightly, among those that have a word of the group.
        """
        features = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        tokens = self.projector(features).float() / self.word_length  # [B, P, D]
        target = torch.zeros_like(tokens)
        loss = torch.zeros(tokens.shape[:2], device=tokens.device)
        right = []
        for group, name in enumerate(GROUPS):
            embeddings = self.get_buffer(name) / self.word_length
            has_word = words[..., group] != NO_WORD
            word = words[..., group].clamp(min=0)
            target = target + embeddings[word] * has_word[..., None]
            scores = tokens @ embeddings.T * _SCORE_SCALE  # [B, P, words]
            loss = loss + F.cross_entropy(scores.mT, words[..., group], ignore_index=NO_WORD, reduction="none")
            right.append(((scores.argmax(dim=-1) == word) & has_word).sum() / has_word.sum().clamp(min=1))
        loss = loss + (tokens - target).square().sum(dim=-1)
        covered = words[..., list(GROUPS).index("empty")] == NO_WORD
        weights = torch.where(covered, 1.0, _EMPTY_WEIGHT)
        return {"loss": (loss * weights).sum() / weights.sum(), "right": torch.stack(right)}


class PatchDataset(Dataset):
    """Pictures of scenes, with the words for their patches. A picture is drawn when its item is read.

    Args:
        scenes: what the pictures show.
        processor: prepares the pictures.
    """

    def __init__(self, scenes: list[Scene], processor: LlavaProcessor):
        self.scenes = scenes
        self._processor = processor

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns pixel_values [3, H, W] float32 and words [P, G] int64."""
        image = draw_scene(self.scenes[index])
        pixel_values = self._processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        words = torch.from_numpy(patch_words(self.scenes[index], image, self._processor.patch_size))
        return {"pixel_values": pixel_values, "words": words}

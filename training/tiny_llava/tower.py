"""A vision tower that sees, and says so in words, before a language model looks through it.

From raw pixels with questions alone, binding a colour to a shape stays on a plateau for thousands of steps. So tower
and projector are trained first on a dense objective: the visual token of a patch shall be the sum of the word
embeddings of what covers it (red + cross + small + top + left). Then the language model, which sees words, has little
left to learn about pictures. This is the place of LLaVA's first stage (arXiv 2304.08485, section 4.2).

B pictures, P patches, G groups of words, D hidden_size of the language model.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from data.shapes.patches import GROUPS, NO_WORD, patch_words
from data.shapes.scenes import Scene, draw_scene

_SHARPNESS = 10.0  # a word that is there scores 1 on its own embedding, one that is not 0
_EMPTY_WEIGHT = 0.15  # most patches are background and soon told


class PatchReader(nn.Module):
    """Vision tower and projector of a LLaVA model, trained in place against its word embeddings, which stay as they are.

    Args:
        model: the whole model.
        processor: its processor, to which every word of GROUPS is one token.
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
        """Squared distance to the sum of embeddings, and cross entropy among the words of each group that applies.

        Args:
            pixel_values: [B, 3, H, W] float.
            words: [B, P, G] int64, of `data.shapes.patches.patch_words`.

        Returns:
            loss: scalar fp32, mean over patches; those that show nothing weigh less.
            right: [G] fp32, share of patches with a word of the group that are told right.
        """
        features = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        tokens = self.projector(features).float() / self.word_length  # [B, P, D]
        target = torch.zeros_like(tokens)
        loss = torch.zeros(tokens.shape[:2], device=tokens.device)
        right = []
        for group, name in enumerate(GROUPS):
            embeddings = self.get_buffer(name) / self.word_length
            there = words[..., group] != NO_WORD
            word = words[..., group].clamp(min=0)
            target = target + embeddings[word] * there[..., None]
            scores = tokens @ embeddings.T * _SHARPNESS  # [B, P, words]
            loss = loss + F.cross_entropy(scores.mT, words[..., group], ignore_index=NO_WORD, reduction="none")
            right.append(((scores.argmax(dim=-1) == word) & there).sum() / there.sum().clamp(min=1))
        loss = loss + (tokens - target).square().sum(dim=-1)
        covered = words[..., list(GROUPS).index("empty")] == NO_WORD
        weights = torch.where(covered, 1.0, _EMPTY_WEIGHT)
        return {"loss": (loss * weights).sum() / weights.sum(), "right": torch.stack(right)}


class PatchDataset(Dataset):
    """Scenes as pictures and the words for their patches, drawn when fetched."""

    def __init__(self, scenes: list[Scene], processor: LlavaProcessor):
        self.scenes = scenes
        self._processor = processor

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """pixel_values [3, H, W] float32 and words [P, G] int64."""
        image = draw_scene(self.scenes[index])
        pixel_values = self._processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        words = torch.from_numpy(patch_words(self.scenes[index], image, self._processor.patch_size))
        return {"pixel_values": pixel_values, "words": words}

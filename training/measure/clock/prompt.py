"""A random prompt with one picture, and the decoder's prefill of it.

Shape legend: B batch, S prompt tokens, D hidden size.
"""

from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedModel

from checkpoints.families import reference_images, sparse_class
from modeling.sparse_multimodal import SparseMultimodalMixin
from modeling.visual_layout import Images, num_tokens


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts that consist of text, a picture, and text. The picture lies at the same rows in all of them.

    Attributes:
        input_ids: [B, S] int64.
        pictures: the inputs, by name, that the model takes for its pictures.
        inputs_embeds: [B, S, D] random embeddings in the model's dtype, for a decoder that runs alone.
        visual_mask: [B, S] bool, true at visual rows. It lies on the host, as it does in a whole forward.
        images: the grids of each picture.
    """

    input_ids: torch.Tensor
    pictures: dict[str, torch.Tensor]
    inputs_embeds: torch.Tensor
    visual_mask: torch.Tensor
    images: Images

    @classmethod
    def random(cls, model: PreTrainedModel, batch_size: int, text_tokens: int) -> "Prompt":
        """Returns random prompts for a model, on its device.

        Args:
            text_tokens: text tokens of each prompt. Half of them stand before the picture. Tokens that separate the
                rows of the picture are not counted.
        """
        config, weight = model.config, model.get_input_embeddings().weight
        model_class = sparse_class(config)
        generator = torch.Generator().manual_seed(0)
        images = tuple(reference_images(config)) * batch_size
        vocabulary = torch.arange(config.text_config.vocab_size)
        placeholders = torch.tensor(list(model_class.visual_tokens(config).values()))
        words = vocabulary[~torch.isin(vocabulary, placeholders)]
        text = words[torch.randint(0, len(words), (batch_size, text_tokens), generator=generator)]
        visual = model_class.visual_rows(images[0])
        picture = torch.full((batch_size, len(visual)), config.image_token_id)
        half = text_tokens // 2
        input_ids = torch.cat([text[:, :half], picture, text[:, half:]], dim=1).to(weight.device)
        visual_mask = torch.zeros(input_ids.shape, dtype=torch.bool)
        visual_mask[:, half : half + len(visual)] = visual
        pictures = model_class.random_pictures(config, images, generator)
        embeds = torch.randn(*input_ids.shape, config.text_config.hidden_size, generator=generator)
        return cls(
            input_ids=input_ids,
            pictures={
                name: value.to(weight) if value.is_floating_point() else value for name, value in pictures.items()
            },
            inputs_embeds=embeds.to(weight),
            visual_mask=visual_mask,
            images=images,
        )


@torch.inference_mode()
def prefill_decoder(model: PreTrainedModel, prompt: Prompt) -> Cache:
    """Runs the decoder alone over the prompt's embeddings, and the head on the last row. Returns the filled cache."""
    streams = {}
    if isinstance(model, SparseMultimodalMixin):
        # No vision tower runs here. Where its class token ranks visual tokens, all of them get the same score.
        class_attention = prompt.inputs_embeds.new_zeros(
            sum(map(num_tokens, prompt.images)), model.visual_plan.tower_layers
        )
        streams = {"visual_mask": prompt.visual_mask, "images": prompt.images, "class_attention": class_attention}
    outputs = model.model.language_model(inputs_embeds=prompt.inputs_embeds, use_cache=True, **streams)
    model.lm_head(outputs.last_hidden_state[:, -1:])
    return outputs.past_key_values

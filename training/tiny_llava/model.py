"""The embedded teacher before training: an ordinary LLaVA in small, and its processor.

A CLIP vision tower of a few layers, a Llama of narrow ones, and a tokenizer of whole words whose digits stand alone.
Its conversations are LLaVA-1.5's with an end token after each answer; pictures come before the first "USER:", so that
every turn of a conversation reads the same.

The Llama starts where looking things up is nearly there (`_align`): the head is the embedding, queries are keys, and
what is attended to is copied. It is an initialisation and nothing more: the model stays an ordinary LLaVA.

V vocab, D hidden_size.
"""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from training.recipe.dense import TinyLlavaSettings

_SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
_WORD = 0.5  # length of a word embedding
_CONFIDENCE = 2.0  # words are short: without it no answer can be near certain
_COPY = 0.3  # length of what attention copies
_LOOK = 0.9  # with 1.5 tokens look at nothing but themselves, and learn nothing
_TEMPLATE_WORDS = ("USER: ", " ASSISTANT: ")
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_processor(settings: TinyLlavaSettings, texts: Iterable[str]) -> LlavaProcessor:
    """A processor whose vocabulary is the words of `texts` (questions and answers) and of the chat template."""
    side = {"height": settings.image_size, "width": settings.image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=_build_tokenizer(texts),
        patch_size=settings.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, dropped by the strategy
        chat_template=_TEMPLATE,
    )


def _build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word, digit or mark; a token that follows a space carries it, so decoding restores the text."""
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
            pre_tokenizers.Split(Regex(r"▁?\d|▁?\p{L}+|▁?[^\d\p{L}▁]|▁"), "isolated"),
        ]
    )
    spaced = [f" {text}" for text in texts]  # the template puts a space before questions and answers
    digits = [f" {digit}{digit}" for digit in range(10)]  # first and later in a number
    words = {word for text in (*_TEMPLATE_WORDS, *spaced, *digits) for word, _ in pre_tokenizer.pre_tokenize_str(text)}
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL_TOKENS, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(
    settings: TinyLlavaSettings, processor: LlavaProcessor, max_length: int
) -> LlavaForConditionalGeneration:
    """The model with random weights, for sequences of up to `max_length` tokens."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        hidden_size=settings.tower_hidden_size,
        projection_dim=settings.tower_hidden_size,
        intermediate_size=settings.tower_intermediate_size,
        num_hidden_layers=settings.tower_layers,
        num_attention_heads=settings.tower_hidden_size // 32,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden_size // 32,
        num_key_value_heads=settings.hidden_size // 32,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e5,
        },  # most of a head tells words apart over any distance
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=processor.image_token_id,
            image_seq_length=(settings.image_size // settings.patch_size) ** 2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
        )
    )
    _align(model)
    return model


@torch.no_grad()
def _align(model: LlavaForConditionalGeneration) -> None:
    """Start the Llama as one that looks at tokens like its own and copies what they say.

    Words are orthogonal directions (as far as V <= D) and the head reads the same directions. In every layer the query
    of a token is its key, so it attends to tokens that share its words, and output is the transpose of value, so it takes
    their other words over. One circuit then serves all words; from a random start there is one to be found for each.
    """
    text = model.model.language_model
    nn.init.orthogonal_(text.embed_tokens.weight, gain=_WORD)
    nn.init.constant_(text.norm.weight, _CONFIDENCE)
    for layer in text.layers:
        attention = layer.self_attn
        nn.init.orthogonal_(attention.q_proj.weight, gain=_LOOK)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        nn.init.orthogonal_(attention.v_proj.weight)
        # A normalised token is D**0.5 long: a copy must not drown what is there.
        attention.o_proj.weight.copy_(_COPY * text.config.hidden_size**-0.5 * attention.v_proj.weight.T)

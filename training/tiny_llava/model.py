"""The tiny dense model before training: a small LLaVA, and its processor.

It has a CLIP vision tower of a few layers and a Llama of narrow layers. A token is a whole word, a digit or a
punctuation mark. A conversation has the form of LLaVA-1.5's, with an end token after each answer. Pictures come before
the first "USER:", so that all turns of a conversation have the same form.

The first weights of the Llama make it easy to learn to look things up (`_align`). The class and the forward pass are
those of any LLaVA.

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
_WORD_LENGTH = 0.5  # length of a word embedding
_FINAL_NORM = 2.0  # weight of the last norm. Word embeddings are short: with 1.0 no answer could be nearly certain
_COPY_LENGTH = 0.3  # length of what attention copies
_QUERY_GAIN = 0.9  # with 1.5, tokens attend only to themselves and learn nothing
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
    """Returns a processor whose vocabulary is the words of `texts` and of the chat template.

    Args:
        settings: sizes of pictures and patches.
        texts: all questions and answers.
    """
    side = {"height": settings.image_size, "width": settings.image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=_build_tokenizer(texts),
        patch_size=settings.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy drops
        chat_template=_TEMPLATE,
    )


def _build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each word, digit or punctuation mark.

    A token that follows a space includes the space. So decoding gives back the text.
    """
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
            pre_tokenizers.Split(Regex(r"▁?\d|▁?\p{L}+|▁?[^\d\p{L}▁]|▁"), "isolated"),
        ]
    )
    spaced = [f" {text}" for text in texts]  # the template puts a space before questions and answers
    digits = [f" {digit}{digit}" for digit in range(10)]  # as the first and as a later digit of a number
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
    """Returns the model with random weights, except for those that `_align` sets.

    Args:
        settings: sizes of the model.
        processor: its processor, from `build_processor`.
        max_length: longest sequence in tokens.
    """
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
        # With this base, most of a head's values hardly depend on distance, and can tell words apart.
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
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
    """Sets the first weights so that a token attends to tokens with the same words, and copies their other words.

    Word embeddings are orthogonal if V <= D, and the head has the same weights. In every layer the query of a token
    equals its key, so a token attends to tokens that share words with it. The output projection is the transpose of the
    value projection, so the token takes over their other words. Such a circuit works for all words at once. From random
    weights, a model must find one for each word.
    """
    text = model.model.language_model
    nn.init.orthogonal_(text.embed_tokens.weight, gain=_WORD_LENGTH)
    nn.init.constant_(text.norm.weight, _FINAL_NORM)
    for layer in text.layers:
        attention = layer.self_attn
        nn.init.orthogonal_(attention.q_proj.weight, gain=_QUERY_GAIN)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        nn.init.orthogonal_(attention.v_proj.weight)
        # A normalised token has length D**0.5. What is copied must be short beside what the token holds already.
        attention.o_proj.weight.copy_(_COPY_LENGTH * text.config.hidden_size**-0.5 * attention.v_proj.weight.T)

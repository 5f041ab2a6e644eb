"""A LlavaProcessor small enough to be built in every test. Its tokens are words, and nothing is downloaded."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = [
    "USER",
    "ASSISTANT",
    ":",
    "?",
    ".",
    ",",
    "yes",
    "no",
    "is",
    "are",
    "there",
    "a",
    "an",
    "the",
    "what",
    "which",
    "how",
    "many",
    "colour",
    "shape",
    "of",
    "in",
    "to",
    "left",
    "right",
    "above",
    "below",
    "red",
    "green",
    "blue",
    "yellow",
    "square",
    "circle",
    "cross",
    "triangle",
    "word",
    "says",
    "picture",
    "one",
    "two",
    "three",
    "A",
    "B",
    "C",
    "D",
    "and",
    "with",
    "describe",
]

# LLaVA-1.5's conversation, with the end token that its training put after each answer.
TINY_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] + (eos_token if message['role'] == 'assistant' else ' ') }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_processor(
    vocab_words: tuple[str, ...] | None = None,
    image_size: int = 24,
    patch_size: int = 8,
    chat_template: str = TINY_TEMPLATE,
) -> LlavaProcessor:
    """A processor that turns each picture into (image_size / patch_size)² placeholder tokens.

    Args:
        vocab_words: the words known besides the special tokens; others become `<unk>`. Default: `WORDS`.
        image_size, patch_size: pixels; pictures are resized and cropped to image_size x image_size.

    For the model: `len(processor.tokenizer)` is the vocabulary size, `processor.image_token_id` the placeholder;
    the tower has no class token to drop (`vision_feature_select_strategy` is "full").
    """
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *(vocab_words or WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=patch_size,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )

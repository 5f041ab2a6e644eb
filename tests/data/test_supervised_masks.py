"""Which tokens are supervised: exactly the answers and their end tokens, whatever the chat template."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from data.conversations import IGNORE_INDEX, check_expansion, encode, encode_prompt
from data.sample import Sample, SampleTooLong
from modeling.user_error import UserError
from tests.tiny_processor import TINY_TEMPLATE, tiny_processor

# The template that llava-hf/llava-1.5-7b-hf ships: a space, and no end token, after an answer.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama_tokenizer():
    """Byte-fallback BPE with Llama's normalizer: a space before each text, spaces as part of the words they precede."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for the training only
    words = "USER: ASSISTANT: is there a cross? yes no what colour red blue-green"
    tokenizer.train_from_iterator(
        [words] * 3, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens])
    )
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def llava_processor():
    """As the processor of llava-1.5: its tokenizer's ways, its template, a class token that is not used."""
    processor = tiny_processor(chat_template=LLAVA_TEMPLATE)
    processor.tokenizer = llama_tokenizer()
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    processor.num_additional_image_tokens, processor.vision_feature_select_strategy = 1, "default"
    return processor


def chatml_processor():
    processor = tiny_processor(chat_template=CHATML_TEMPLATE)
    processor.tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<image>", "<|im_start|>"]}
    )
    return processor


@pytest.fixture
def pictures(tmp_path):
    paths = tmp_path / "red.png", tmp_path / "blue.png"
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (30, 24), colour).save(path)
    return paths


def show(processor, encoded):
    """The tokens as one text, supervised ones in brackets, each picture's placeholders counted."""
    tokens = processor.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    for place, label in enumerate(encoded["labels"].tolist()):
        if label != IGNORE_INDEX:
            assert label == encoded["input_ids"][place]
            tokens[place] = f"[{tokens[place]}]"
    return " ".join(tokens).replace(" ".join(["<image>"] * 9), "<image>*9")


def test_one_turn(pictures):
    processor = tiny_processor()
    sample = Sample("s", pictures[:1], (("<image>\nis there a cross?", "yes , red"),))
    encoded = encode(sample, processor, 99)
    assert show(processor, encoded) == "USER : <image>*9 is there a cross ? ASSISTANT : [yes] [,] [red] [</s>]"
    assert encoded["pixel_values"].shape == (1, 3, 24, 24)
    assert {key: value.dtype for key, value in encoded.items()} == {
        "input_ids": torch.int64,
        "labels": torch.int64,
        "pixel_values": torch.float32,
    }


def test_supervised_ids_are_the_expected_list(pictures):
    """Ids, not tokens: a vocabulary of which every id is known."""
    processor = tiny_processor(vocab_words=("USER", "ASSISTANT", ":", "is", "it", "yes", "no"))  # ids 5 to 11
    image, end = [4] * 9, [2]
    sample = Sample("s", pictures[:1], (("<image> is it", "no"), ("is it", "yes no")))
    encoded = encode(sample, processor, 99)
    assert encoded["input_ids"].tolist() == [5, 7, *image, 8, 9, 6, 7, 11, *end, 5, 7, 8, 9, 6, 7, 10, 11, *end]
    assert encoded["labels"].tolist() == [-100] * 15 + [11, *end] + [-100] * 6 + [10, 11, *end]


TURNS = (("<image>\nis there a cross?", "yes"), ("what colour?", "blue-green"), ("red?", "no"))


def test_every_turn_is_supervised(pictures):
    processor = tiny_processor()
    assert show(processor, encode(Sample("s", pictures[:1], TURNS), processor, 99)) == (
        "USER : <image>*9 is there a cross ? ASSISTANT : [yes] [</s>] "
        "USER : what colour ? ASSISTANT : [blue] [<unk>] [green] [</s>] "
        "USER : red ? ASSISTANT : [no] [</s>]"
    )


def test_llava_template_gets_an_end_token_after_every_answer(pictures):
    processor = llava_processor()
    assert show(processor, encode(Sample("s", pictures[:1], TURNS), processor, 99)) == (
        "<s> ▁USER: ▁ <image>*9 ▁ <0x0A> is ▁there ▁a ▁cross? ▁ASSISTANT: [▁yes] [</s>] "
        "▁USER: ▁what ▁colour ? ▁ASSISTANT: [▁blue-green] [</s>] "
        "▁USER: ▁red ? ▁ASSISTANT: [▁no] [</s>]"
    )


def test_chatml_is_supervised_up_to_the_end_token_and_not_the_line_break():
    processor = chatml_processor()
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    # <unk> stands for the roles and the line breaks
    assert show(processor, encode(Sample("s", (), (("a", "red"), ("is", "no"))), processor, 99)) == (
        "<|im_start|> <unk> <unk> a <|im_end|> <unk> <|im_start|> <unk> <unk> [red] [<|im_end|>] <unk> "
        "<|im_start|> <unk> <unk> is <|im_end|> <unk> <|im_start|> <unk> <unk> [no] [<|im_end|>] <unk>"
    )


def test_byte_fallback_is_supervised_whole():
    processor = llava_processor()
    assert show(processor, encode(Sample("s", (), (("red?", "é 中"),)), processor, 99)).endswith(
        "▁ASSISTANT: [▁] [<0xC3>] [<0xA9>] [▁] [<0xE4>] [<0xB8>] [<0xAD>] [</s>]"
    )


def test_answer_that_repeats_the_prompt(pictures):
    """Answers are found by their place, not by their text."""
    processor = tiny_processor()
    encoded = encode(Sample("s", (), (("yes", "yes"), ("yes ASSISTANT: yes", "yes"))), processor, 99)
    assert show(processor, encoded) == (
        "USER : yes ASSISTANT : [yes] [</s>] USER : yes ASSISTANT : yes ASSISTANT : [yes] [</s>]"
    )


@pytest.mark.parametrize("make_processor", [tiny_processor, llava_processor, chatml_processor])
def test_prompt_is_the_sample_up_to_the_last_answer(pictures, make_processor):
    processor = make_processor()
    sample = Sample("s", pictures[:1], TURNS)
    encoded, prompt = encode(sample, processor, 99), encode_prompt(sample, processor)
    length = len(prompt["input_ids"])
    assert prompt.keys() == {"input_ids", "pixel_values"}
    assert torch.equal(prompt["input_ids"], encoded["input_ids"][:length])
    last_answer = encoded["labels"][length:]
    assert last_answer[0] != IGNORE_INDEX
    assert (last_answer != IGNORE_INDEX).sum() == 2  # "no" and the end token
    assert torch.equal(prompt["pixel_values"], encoded["pixel_values"])


@pytest.mark.parametrize("make_processor", [tiny_processor, llava_processor, chatml_processor])
def test_prompt_is_what_the_processor_itself_makes(pictures, make_processor):
    processor = make_processor()
    content = [{"type": "image"}, {"type": "text", "text": "is there a cross?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = processor(text=text, images=[Image.open(pictures[0])], return_tensors="pt")
    prompt = encode_prompt(Sample("s", pictures[:1], TURNS[:1]), processor)
    assert torch.equal(prompt["input_ids"], expected["input_ids"][0])
    assert torch.equal(prompt["pixel_values"], expected["pixel_values"])


def test_whole_sample_is_what_the_processor_itself_makes(pictures):
    for processor in (tiny_processor(), llava_processor(), chatml_processor()):
        check_expansion(Sample("s", pictures, (("<image><image> red?", "no"), *TURNS[1:])), [(24, 30)] * 2, processor)


def test_processor_that_expands_otherwise_is_refused(pictures):
    processor = tiny_processor()

    class OtherProcessor(LlavaProcessor):
        def __call__(self, text, **options):
            return super().__call__(text=text + " yes", **options)

    processor.__class__ = OtherProcessor
    with pytest.raises(UserError, match="OtherProcessor is not supported: it makes .* where one placeholder per image"):
        check_expansion(Sample("s", pictures[:1], TURNS), [(24, 30)], processor)


def test_start_token_is_written_once(pictures):
    """By the tokenizer (Llama's way), or by the template, never by both."""
    processor = llava_processor()
    sample = Sample("s", (), (("red?", "no"),))
    expected = encode(sample, processor, 99)["input_ids"]
    processor.chat_template = "{{ bos_token }}" + LLAVA_TEMPLATE
    encoded = encode(sample, processor, 99)["input_ids"]
    assert torch.equal(encoded, expected)
    assert (encoded == processor.tokenizer.bos_token_id).sum() == 1


def test_images_keep_their_order(pictures):
    processor = tiny_processor()
    red, blue = pictures
    turns = (("<image> a", "no"), ("<image> the", "yes"))
    encoded = encode(Sample("s", (blue, red), turns), processor, 99)
    assert encoded["pixel_values"].mean((2, 3)).argmax(1).tolist() == [2, 0]
    assert (encoded["input_ids"] == processor.image_token_id).sum() == 18


def test_text_alone_has_no_pictures():
    assert encode(Sample("s", (), (("is", "no"),)), tiny_processor(), 99).keys() == {"input_ids", "labels"}


def test_length_limit_counts_placeholders_and_is_inclusive(pictures):
    sample = Sample("long", pictures[:1], (("<image>\nis there a cross?", "yes"),))
    processor = tiny_processor()
    length = 2 + 9 + 5 + 2 + 2  # USER : · image · question · ASSISTANT : · yes </s>
    assert len(encode(sample, processor, length)["input_ids"]) == length
    with pytest.raises(SampleTooLong, match="sample 'long': 20 tokens, at most 19 are allowed"):
        encode(sample, processor, length - 1)


def test_sample_without_an_answer():
    for call in (
        lambda sample: encode(sample, tiny_processor(), 99),
        lambda sample: encode_prompt(sample, tiny_processor()),
    ):
        with pytest.raises(UserError, match="sample 'none': no supervised token"):
            call(Sample("none", (), ()))


def test_text_with_the_image_token(pictures):
    """A loaded row has no stray mark; a processor may have another image token, which a text can spell."""
    processor = tiny_processor()
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<pic>"]})
    processor.image_token, processor.image_token_id = "<pic>", processor.tokenizer.convert_tokens_to_ids("<pic>")
    processor.chat_template = TINY_TEMPLATE.replace("<image>", "<pic>")
    assert len(encode(Sample("s", pictures[:1], TURNS), processor, 99)["pixel_values"]) == 1
    with pytest.raises(UserError, match="sample 's': a text holds '<pic>', which stands for what the model is shown"):
        encode(Sample("s", pictures[:1], (("<image> <pic>", "no"),)), processor, 99)


def test_template_that_drops_images(pictures):
    processor = tiny_processor(chat_template=TINY_TEMPLATE.replace("<image>", ""))
    with pytest.raises(UserError, match="0 image tokens for 1 images; .* the chat template must show every image"):
        encode(Sample("s", pictures[:1], TURNS), processor, 99)


def test_template_that_changes_answers():
    template = TINY_TEMPLATE.replace("part['text'] +", "part['text'] | upper +")
    with pytest.raises(
        UserError, match="sample 's': the chat template does not continue its own prompt with the answer 'no'"
    ):
        encode(Sample("s", (), (("is", "no"),)), tiny_processor(chat_template=template), 99)


def test_template_whose_prompt_is_not_its_own():
    template = TINY_TEMPLATE.replace("'ASSISTANT:'", "'BOT:'")
    with pytest.raises(UserError, match="the chat template does not continue its own prompt"):
        encode(Sample("s", (), (("is", "no"),)), tiny_processor(chat_template=template), 99)


def test_tokenizer_that_merges_prompt_and_answer():
    processor = tiny_processor()
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor.chat_template = TINY_TEMPLATE.replace("message['role'] | upper + ': '", "message['role'] | upper + ':'")
    with pytest.raises(UserError, match="the tokenizer merges the end of a prompt with the beginning of its answer"):
        encode(Sample("s", (), (("is", "no"),)), processor, 99)


def test_tokenizer_without_end_token():
    processor = tiny_processor()
    processor.tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos token"):
        encode(Sample("s", (), (("is", "no"),)), processor, 99)


def test_broken_picture_names_the_sample(pictures):
    pictures[0].write_bytes(pictures[0].read_bytes()[:60])
    with pytest.raises(UserError, match="sample 's': image '.*red.png' is truncated or corrupt"):
        encode(Sample("s", pictures[:1], TURNS), tiny_processor(), 99)


def test_a_processor_without_a_chat_template_is_refused():
    processor = tiny_processor()
    processor.chat_template = None
    with pytest.raises(UserError, match="sample 's': the chat template of LlavaProcessor cannot be applied .*template"):
        encode(Sample("s", (), (("is", "no"),)), processor, 99)


@pytest.mark.parametrize("template", ["{% for", "{{ raise_exception('a system turn is needed') }}"])
def test_a_chat_template_that_raises_is_refused(template):
    processor = tiny_processor(chat_template=template)
    with pytest.raises(UserError, match="sample 's': the chat template of LlavaProcessor cannot be applied"):
        encode(Sample("s", (), (("is", "no"),)), processor, 99)


def test_a_processor_that_refuses_the_whole_sample_is_not_supported(pictures):
    """Two pictures that are fine one by one, but of shapes that the image processor does not put together."""
    processor = tiny_processor()
    processor.image_processor.do_center_crop = False
    with pytest.raises(UserError, match="LlavaProcessor is not supported: it refuses"):
        check_expansion(Sample("s", pictures, (("<image><image> red?", "no"),)), [(48, 24), (24, 30)], processor)

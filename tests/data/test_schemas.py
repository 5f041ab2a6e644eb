"""The same conversations in every schema are the same samples; what a schema cannot hold is refused by name."""

import json

import pytest
import torch
from PIL import Image

from data.conversations import encode
from data.sample import Sample
from data.sources.reading import load_samples
from data.sources.schemas import SCHEMAS, schema_of
from data.sources.source import Source
from modeling.user_error import UserError
from tests.data.sources.layouts import LAYOUTS, rows_in
from tests.families.qwen2_vl import QWEN2_VL
from tests.tiny_processor import tiny_processor


@pytest.fixture
def load(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def load(rows, suffix="json", **options):
        path = tmp_path / f"rows.{suffix}"
        lines = "\n".join(map(json.dumps, rows)) + "\n"
        path.write_text(json.dumps(rows) if suffix == "json" else lines, encoding="utf-8")
        return load_samples(Source(path=path, images=tmp_path), **options)

    return load


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_conversations_are_the_same_samples(load, layout, suffix):
    processor = tiny_processor()
    samples, bad = load(rows_in(layout), suffix)
    expected, _ = load(rows_in("llava"))
    assert bad == [] and [sample.id for sample in samples] == ["0", "1", "2"]
    for sample, like in zip(samples, expected, strict=True):
        assert sample.images == like.images
        encoded, wanted = (encode(one, processor, max_length=200) for one in (sample, like))
        assert encoded.keys() == wanted.keys()
        assert all(torch.equal(encoded[name], wanted[name]) for name in wanted), layout
    assert (encode(samples[0], processor, max_length=200)["labels"] != -100).sum() > 2


def test_a_prompt_and_its_completion_may_be_texts(load):
    samples, _ = load([{"prompt": "<image> what shape ?", "completion": "circle", "image": "a.png"}])
    assert samples[0].turns == (("<image> what shape ?", "circle"),) and samples[0].id == "row 0"


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BAD_ROWS = {
    "unknown role": (
        {"messages": [{"role": "tool", "content": "a"}, CHAT[1]]},
        "turn 0 is from 'tool', allowed are 'system'",
    ),
    "a call of a tool": (
        {"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{}]}]},
        "turn 1 has 'tool_calls', which are not read",
    ),
    "tools": ({"messages": CHAT, "tools": [{"name": "x"}]}, "'tools' is given, which is not read"),
    "sounds": ({"messages": CHAT, "audios": ["a.wav"]}, "'audios' is given, which is not read"),
    "a typed sound": (
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}, CHAT[1]]},
        r"turn 0: a part is \{'type': 'audio'\}, allowed: ",
    ),
    "a typed video without a file": (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}, CHAT[1]]},
        "1 <video> marks for 0 videos",
    ),
    "a part of a video": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", "video_end": 3.0}]}, CHAT[1]]},
        r"turn 0: a part is .*'video_end': 3.0\}, allowed: ",
    ),
    "a list of frames": (
        {"messages": CHAT, "videos": [["a.png", "a.png"]]},
        r"'videos' is \[\['a.png', 'a.png'\]\], a video or a list of videos is expected",
    ),
    "a video outside": ({"messages": CHAT, "video": "../a.mp4"}, "video '../a.mp4' lies outside its root"),
    "no video": ({"messages": CHAT, "videos": ["b.mp4"]}, "video 'b.mp4' is not a file under"),
    "video and videos": (
        {"messages": CHAT, "videos": ["a.mp4"], "video": "a.mp4"},
        "both 'video' and 'videos' are given",
    ),
    "a part with a picture of its own": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "http://x/a.png"}]}, CHAT[1]]},
        "turn 0: a part is .*allowed: ",
    ),
    "more marks than pictures": (
        {"messages": [{"role": "user", "content": "<image><image>"}, CHAT[1]], "images": ["a.png"]},
        "2 <image> marks for 1 images",
    ),
    "an empty answer": ({"texts": [{"user": "a", "assistant": " "}]}, "turn 1 is an empty answer"),
    "half a surrogate pair": ({"texts": [{"user": "a", "assistant": "\ud83d"}]}, "turn 1 is not text"),
    "texts without an answer": (
        {"texts": [{"user": "a"}]},
        "turn 0 is .*, an object with texts 'user' and 'assistant'",
    ),
    "a rejected answer": (
        {"prompt": "a", "completion": "b", "rejected": "c"},
        "'rejected' is given, which is not read",
    ),
    "a system message that is none": ({"messages": CHAT, "system": ["a"]}, "'system' is list, a text is expected"),
    "a video in a system message": (
        {"messages": CHAT, "system": "a <video>"},
        "'system' holds the mark <video>, only questions",
    ),
    "half a character in one": ({"messages": CHAT, "system": "\ud83d"}, "'system' is not text"),
    "a completion of another type": ({"prompt": "a", "completion": 3}, "'completion' is int, a list is expected"),
    "a picture in bytes": (
        {"messages": CHAT, "images": [{"bytes": "x", "path": None}]},
        "picture 0 is .*, a path or bytes are expected",
    ),
}


@pytest.mark.parametrize("row, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_what_cannot_be_read_is_bad_by_name(load, row, message):
    good = {name: value for name, value in row.items() if name in ("messages", "texts", "prompt", "completion")}
    good = {"prompt": "a", "completion": "b"} if "prompt" in good else {"messages": CHAT} if "messages" in good else {
        "texts": [{"user": "a", "assistant": "b"}]
    }  # fmt: skip
    with pytest.raises(UserError, match=rf"rows.json: row 1 \(id None\): {message}"):
        load([good, row])
    samples, bad = load([good, row], on_bad_sample="skip", max_bad_share=0.5)
    assert len(samples) == 1 and [entry.index for entry in bad] == [1]


def test_columns_of_no_schema_and_of_two_are_refused():
    with pytest.raises(
        UserError, match="columns: got answer, question, which fit none of the schemas, allowed: llava: "
    ):
        schema_of({"question", "answer"})
    with pytest.raises(UserError, match="got conversations, messages, which fit llava and messages of the schemas"):
        schema_of({"conversations", "messages"})
    assert [schema_of(schema.columns).name for schema in SCHEMAS] == [schema.name for schema in SCHEMAS]


def system_rows() -> list[dict]:
    turns = [{"role": "user", "content": "what shape ?"}, {"role": "assistant", "content": "circle"}]
    return [
        {"messages": [{"role": "system", "content": "is there a cross ?"}, *turns]},
        {"messages": turns, "system": "is there a cross ?"},
    ]


def test_a_system_message_is_read_and_is_not_supervised(load):
    processor = QWEN2_VL.processor()
    for row in system_rows():
        (sample,), _ = load([row])
        assert sample == Sample("row 0", (), (("what shape ?", "circle"),), system="is there a cross ?")
        encoded = encode(sample, processor, max_length=200)
        supervised = encoded["labels"] != -100
        assert "is there a cross ?" in processor.tokenizer.decode(encoded["input_ids"])
        assert "cross" not in processor.tokenizer.decode(encoded["input_ids"][supervised])


def test_a_system_message_that_the_chat_template_leaves_out_is_refused(load):
    processor = QWEN2_VL.processor()
    processor.chat_template = (
        "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content[0].text + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (sample,), _ = load([system_rows()[0]])
    with pytest.raises(UserError, match="has a system message, which the chat template leaves out"):
        encode(sample, processor, max_length=200)


@pytest.mark.parametrize("token", ["<|video_pad|>", "<|image_pad|>"])
def test_a_text_with_a_placeholder_of_the_model_is_bad(load, token):
    """It passed, and the batch died in the middle of training."""
    (sample,), _ = load([{"prompt": f"what is {token} ?", "completion": "circle"}])
    with pytest.raises(UserError, match=rf"a text holds '{token}'".replace("|", r"\|")):
        encode(sample, QWEN2_VL.processor(), max_length=200)

"""LLaVA JSON in, samples out: every kind of bad row is refused with its own message."""

import json

import pytest
from PIL import Image

from data.sample import BadSample, Sample
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.user_error import UserError


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(root / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    return root


@pytest.fixture
def load(root):
    """load(rows, …) writes the rows to rows.json and loads them; a text is written as it is."""

    def load(rows, **options):
        path = root.parent / "rows.json"
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
        return load_samples(Source(path=path, images=root), **options)

    return load


def human(value):
    return {"from": "human", "value": value}


def gpt(value):
    return {"from": "gpt", "value": value}


def row(*turns, **keys):
    return {"id": "r", "conversations": list(turns), **keys}


GOOD = row(human("<image>\nis there a cross?"), gpt("yes"), image="a.png")


def test_good_rows(load, root):
    rows = [
        {"id": "one", "image": "a.png", "family": "existence", "model": "", "conversations": GOOD["conversations"]},
        {
            "id": 2,
            "image": ["b.png", "a.png"],
            "conversations": [human("<image> and <image>: same? "), gpt(" no "), human("sure?"), gpt("yes\n")],
        },
        {"id": "text", "conversations": [human("hello"), gpt("good day")]},
    ]
    samples, bad = load(rows)
    assert samples == [
        Sample("one", (root / "a.png",), (("<image>\nis there a cross?", "yes"),), "existence"),
        Sample("2", (root / "b.png", root / "a.png"), (("<image> and <image>: same?", "no"), ("sure?", "yes"))),
        Sample("text", (), (("hello", "good day"),)),
    ]
    assert bad == []


BAD_ROWS = {
    "not an object": (["r"], "got list, a row is an object"),
    "id of another type": (row(human("a"), gpt("b"), id=[1]), "'id' is list, a text is expected"),
    "no conversations": ({"id": "r", "image": "a.png"}, r"no key 'conversations'; got \['id', 'image'\]"),
    "conversations of another type": (
        {"id": "r", "conversations": "hello"},
        "'conversations' is str, a list is expected",
    ),
    "family of another type": (row(human("a"), gpt("b"), family=3), "'family' is int, a text is expected"),
    "turn of another type": (row("hello", gpt("b")), "turn 0 is 'hello', an object with texts 'from' and 'value'"),
    "turn without value": (row({"from": "human"}, gpt("b")), r"turn 0 is \{'from': 'human'\}, an object with"),
    "turn without from": (row(human("a"), {"value": "b"}), r"turn 1 is \{'value': 'b'\}, an object with"),
    "value of another type": (row(human("a"), gpt(7)), "turn 1 is .*7.*, an object with texts"),
    "unknown speaker": (
        row(human("a"), {"from": "bot", "value": "b"}),
        "turn 1 is from 'bot', allowed are 'system', 'human'",
    ),
    "system turn alone": (row({"from": "system", "value": "a"}, gpt("b")), "starts with an answer"),
    "late system turn": (
        row(human("a"), gpt("b"), {"from": "system", "value": "c"}, human("d"), gpt("e")),
        "a system message stands behind the first message",
    ),
    "two human turns": (
        row(human("a"), human("b"), gpt("c")),
        r"two turns in a row are from the user \(turns 0 and 1\)",
    ),
    "two gpt turns": (
        row(human("a"), gpt("b"), gpt("c")),
        r"two turns in a row are from the assistant \(turns 1 and 2\)",
    ),
    "starts with gpt": (row(gpt("a"), human("b")), "starts with an answer, it must start with a question"),
    "ends with human": (row(human("a"), gpt("b"), human("c")), "ends with a question, it must end with an answer"),
    "no turns": (row(), "the conversation is empty, it must end with an answer"),
    "empty answer": (row(human("a"), gpt("b"), human("c"), gpt(" \n")), "turn 3 is an empty answer"),
    "mark in an answer": (
        row(human("a"), gpt("<image>"), image="a.png"),
        "turn 1 holds the mark <image>, only questions",
    ),
    "broken Unicode": (row(human("a"), gpt("\ud83d")), "surrogates not allowed"),
    "more marks than images": (row(human("<image> <image>"), gpt("b"), image="a.png"), "2 <image> marks for 1 images"),
    "mark without image": (row(human("<image>"), gpt("b")), "1 <image> marks for 0 images"),
    "fewer marks than images": (
        row(human("<image>"), gpt("b"), image=["a.png", "b.png"]),
        "1 <image> marks for 2 images",
    ),
    "image without mark": (row(human("a"), gpt("b"), image="a.png"), "0 <image> marks for 1 images"),
    "a number as image": (
        row(human("<image>"), gpt("b"), image=3),
        "'image' is 3, a picture or a list of pictures is expected",
    ),
    "both image and images": (
        row(human("<image>"), gpt("b"), image="a.png", images=["b.png"]),
        "both 'image' and 'images' are given",
    ),
    "missing video": (row(human("<video>"), gpt("b"), video="a.mp4"), "video 'a.mp4' is not a file under"),
    "video mark": (row(human("<video> what?"), gpt("b")), "1 <video> marks for 0 videos"),
    "video without mark": (row(human("a"), gpt("b"), video="a.mp4"), "0 <video> marks for 1 videos"),
    "audio": (row(human("a"), gpt("b"), audios=["a.wav"]), "'audios' is given, which is not read"),
    "tools": (row(human("a"), gpt("b"), tools="[]"), "'tools' is given, which is not read"),
    "image list of numbers": (
        row(human("<image>"), gpt("b"), image=[1]),
        r"'image' is \[1\], a picture or a list of pictures",
    ),
    "missing image": (row(human("<image>"), gpt("b"), image="c.png"), "image 'c.png' is not a file under"),
    "image outside": (row(human("<image>"), gpt("b"), image="../secret.png"), "'../secret.png' lies outside its root"),
    "path with a null byte": (row(human("<image>"), gpt("b"), image="a\0.png"), "null"),
}


@pytest.mark.parametrize("bad, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row(load, bad, message):
    with pytest.raises(UserError, match=rf"rows.json: row 1 \(id .*{message}"):
        load([GOOD, bad])


def test_image_by_absolute_path_and_by_link_outside(load, root):
    (root / "link.png").symlink_to(root.parent / "secret.png")
    for name in (str(root.parent / "secret.png"), "link.png"):
        with pytest.raises(UserError, match=r"row 0 \(id 'r'\): image '.*' lies outside its root"):
            load([row(human("<image>"), gpt("b"), image=name)])


@pytest.mark.parametrize("bad, _", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row_skipped(load, bad, _):
    samples, left_out = load([GOOD, bad, GOOD], on_bad_sample="skip", max_bad_share=0.5)
    assert len(samples) == 2
    assert [(entry.index, entry.reason.count("rows.json: row 1")) for entry in left_out] == [(1, 1)]


def test_bad_samples_carry_their_id(load):
    _, bad = load([GOOD, row(gpt("a"), id="x7"), "nothing"], on_bad_sample="skip", max_bad_share=0.9)
    assert [entry.id for entry in bad] == ["x7", None]
    assert isinstance(bad[0], BadSample)


def test_share_of_bad_rows(load):
    rows = [GOOD, row(gpt("a")), GOOD, row(human("a"))]
    assert len(load(rows, on_bad_sample="skip", max_bad_share=0.5)[1]) == 2
    with pytest.raises(
        UserError, match=r"2 of 4 samples are bad, at most a share of 0.49 .* the first: .*row 1 .*starts with"
    ):
        load(rows, on_bad_sample="skip", max_bad_share=0.49)


@pytest.mark.parametrize(
    "content, message",
    {
        "broken": ('[{"id": 1,', r"rows.json: not JSON \(.*line 1 column"),
        "deep": ("[" * 100_000, r"rows.json: not JSON \(.*recursion"),
        "lines": ('{"id": 1}\n{"id": 2}', "rows.json: not JSON"),
        "object": ('{"id": 1}', "rows.json: got dict, a list of rows is expected"),
        "empty list": ("[]", "rows.json: got no rows, at least one is expected"),
        "empty file": ("", "rows.json: not JSON"),
    }.values(),
)
def test_not_a_list_of_rows(load, content, message):
    with pytest.raises(UserError, match=message):
        load(content)


def test_not_text(root):
    path = root.parent / "rows.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="rows.json: not JSON .*utf-8"):
        load_samples(Source(path=path, images=root))


def test_missing_file(root):
    with pytest.raises(UserError, match="nowhere.json: there is no such file or folder"):
        load_samples(Source(path=root / "nowhere.json", images=root))

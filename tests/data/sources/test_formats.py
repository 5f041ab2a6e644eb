"""The same conversations are the same samples in every schema and every format; what a row may not hold is named."""

import json
import pickle

import datasets
import pytest
from PIL import Image

from data.sample import EmbeddedFile, Sample
from data.shapes.world import SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples, open_source
from data.sources.source import Source
from modeling.user_error import UserError
from tests.data.sources.layouts import LAYOUTS, SCHEMA_OF, WITH_BYTES, WITH_PATHS, part, rows_in, write_rows


@pytest.fixture
def picture(tmp_path):
    """The bytes of the picture a.png, which stands in tmp_path."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


def expected(images) -> list[Sample]:
    return [
        Sample("0", images, (("<image>\nwhat shape ?", "circle"), ("what colour ?", "red"))),
        Sample("1", images, (("<image>\nis there a cross ?", "no"),)),
        Sample("2", (), (("is there a cross ?", "no"),)),
    ]


@pytest.mark.parametrize("form", WITH_PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_with_paths(tmp_path, picture, layout, form):
    path = write_rows(rows_in(layout), tmp_path, form)
    samples, bad = load_samples(Source(path=path, images=tmp_path))
    assert samples == expected((tmp_path / "a.png",)) and bad == []
    assert open_source(Source(path=path, images=tmp_path)).schema.name == SCHEMA_OF[layout]


@pytest.mark.parametrize("form", WITH_BYTES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_with_bytes(tmp_path, picture, layout, form):
    path = write_rows(rows_in(layout), tmp_path, form, picture)
    samples, bad = load_samples(Source(path=path))
    names = {"tar": ["0000.0.png", "0001.0.png"]}.get(form, ["picture 0"] * 2)
    wanted = [
        Sample(like.id, (EmbeddedFile(picture, name),) if like.images else (), like.turns)
        for like, name in zip(expected((tmp_path,)), [*names, None], strict=True)
    ]
    assert samples == wanted and bad == []


def bad_rows(layout: str) -> dict[str, tuple[dict, str]]:
    """What is wrong: a row of a layout, and what the message says."""

    def with_texts(question=None, answer=None, role=None):
        row = json.loads(json.dumps(rows_in(layout)[1]))
        turns = row.get("conversations") or row.get("messages") or row.get("texts") or row["prompt"] + row["completion"]
        if layout == "texts":
            given = {"user": question, "assistant": answer}
            turns[0] |= {name: text for name, text in given.items() if text is not None}
            return row
        who, what = ("from", "value") if layout == "llava" else ("role", "content")
        for turn, text in zip(turns, (question, answer), strict=True):
            if text is not None:
                turn[what] = [{"type": "text", "text": text, "index": None}] if layout == "typed messages" else text
        turns[0][who] = role or turns[0][who]
        return row

    good = rows_in(layout)[1]
    found = {
        "sounds": (good | {"audios": ["a.wav"]}, "'audios' is given, which is not read"),
        "audio": (good | {"audio": "a.wav"}, "'audio' is given, which is not read"),
        "tools": (good | {"tools": '[{"name": "x"}]'}, "'tools' is given, which is not read"),
        "a video's mark": (with_texts("<image><video> what ?"), "1 <video> marks for 0 videos"),
        "a sound's mark": (with_texts("<image> what ?", "a <audio>"), "turn 1 holds the mark <audio>"),
        "too many marks": (with_texts("<image><image> what ?"), "2 <image> marks for 1 images"),
        "an empty answer": (with_texts(answer=" \n"), "turn 1 is an empty answer"),
        "half a surrogate pair": (with_texts(answer="a \ud83d"), "turn 1 is not text"),
    }
    if layout != "texts":  # it has no roles
        found["unknown role"] = (with_texts(role="tool"), "turn 0 is from 'tool', allowed are 'system'")
    return found


@pytest.mark.parametrize("form", ["json", "jsonl.gz", "parquet", "tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bad_rows_are_named_and_never_become_text(tmp_path, picture, layout, form):
    kinds = bad_rows(layout)
    if form == "parquet":  # it holds no text that is none
        del kinds["half a surrogate pair"]
    bad = [row for row, _ in kinds.values()]
    path = write_rows([rows_in(layout)[1], *bad], tmp_path, form, picture if form in WITH_BYTES else None)
    rows = open_source(Source(path=path, images=tmp_path))
    assert rows.sample(rows.table[0], 0).turns == expected(())[1].turns
    for number, (kind, (_, message)) in enumerate(kinds.items(), start=1):
        with pytest.raises(UserError) as refused:
            rows.sample(rows.table[number], number)
        assert str(refused.value).startswith(message), kind
    samples, left_out = load_samples(Source(path=path, images=tmp_path), on_bad_sample="skip", max_bad_share=0.99)
    assert len(samples) == 1 and [entry.index for entry in left_out] == list(range(1, len(bad) + 1))
    with pytest.raises(UserError, match=rf"rows.{form}: row 1 \(id '1'\): 'audios' is given"):
        load_samples(Source(path=path, images=tmp_path))


def test_the_embedded_world_through_parquet(tmp_path):
    world = WorldSettings(
        seed=0,
        splits={
            "train": SplitSettings(part="train", rows=12, questions=6),
            "test": SplitSettings(part="test", rows=12),
        },
    )
    for name, path in write_world(tmp_path, world).items():
        like, _ = load_samples(Source(path=path, images=path.parent))
        rows = json.loads(path.read_text())
        for row in rows:
            row["image"] = {"bytes": (path.parent / row["image"]).read_bytes(), "path": row["image"]}
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"{name}.parquet")
        samples, bad = load_samples(Source(path=tmp_path / f"{name}.parquet"))
        assert bad == [] and len(samples) == 12
        for sample, wanted in zip(samples, like, strict=True):
            assert [one.data for one in sample.images] == [one.read_bytes() for one in wanted.images]
            assert (sample.id, sample.turns, sample.family) == (wanted.id, wanted.turns, wanted.family)


def test_pictures_are_not_decoded(tmp_path):
    table = datasets.Dataset.from_list([{"prompt": "a", "completion": "b", "images": [{"bytes": b"no", "path": "x"}]}])
    table.cast_column("images", datasets.List(datasets.Image())).to_parquet(tmp_path / "rows.parquet")
    ((sample,), _) = load_samples(Source(path=tmp_path / "rows.parquet"))
    assert sample.images == (EmbeddedFile(b"no", "x"),)


def test_several_pictures_and_pictures_as_mere_bytes(tmp_path):
    table = datasets.Dataset.from_list([{"prompt": "<image> or <image>", "completion": "b", "images": [b"1", b"2"]}])
    table.to_parquet(tmp_path / "rows.parquet")
    ((sample,), _) = load_samples(Source(path=tmp_path / "rows.parquet"))
    assert [(one.data, str(one)) for one in sample.images] == [(b"1", "picture 0"), (b"2", "picture 1")]


def test_several_files_are_read_in_the_order_of_their_names(tmp_path):
    for number in (2, 0, 1):
        row = {"id": number, "prompt": "a", "completion": "b"}
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps(row))
        datasets.Dataset.from_list([row]).to_parquet(tmp_path / f"part-{number}.parquet")
    for ending in ("jsonl", "parquet"):
        samples, _ = load_samples(Source(path=tmp_path / f"part-*.{ending}"))
        assert [sample.id for sample in samples] == ["0", "1", "2"]


def test_pictures_in_typed_parts(tmp_path, picture):
    def rows(image):
        nothing = None if isinstance(image, str) else {"bytes": None, "path": None}
        content = [part("image") | {"image": image}, part("text", "what shape ?") | {"image": nothing}]
        answer = [part("text", "circle") | {"image": nothing}]
        return [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}]

    for form, image, wanted in (
        ("jsonl", "a.png", tmp_path / "a.png"),
        ("parquet", {"bytes": picture, "path": "x.png"}, EmbeddedFile(picture, "x.png")),
    ):
        path = write_rows(rows(image), tmp_path, form)
        ((sample,), _) = load_samples(Source(path=path, images=tmp_path))
        assert sample == Sample("row 0", (wanted,), (("<image>\nwhat shape ?", "circle"),))
    bad = [
        (rows("a.png")[0] | {"images": ["a.png"]}, "both 'images' and parts of messages hold pictures"),
        (rows("b.png")[0], "image 'b.png' is not a file under"),
        (rows(None)[0], "1 <image> marks for 0 images"),
        (rows(["a.png"])[0], "picture 0 is ['a.png'], a path or bytes are expected"),
    ]
    path = write_rows([row for row, _ in bad], tmp_path, "jsonl")
    _, left_out = load_samples(Source(path=path, images=tmp_path), on_bad_sample="skip", max_bad_share=1.0)
    assert [message in entry.reason for entry, (_, message) in zip(left_out, bad, strict=True)] == [True] * 4


def test_rows_of_json_may_have_values_of_different_types(tmp_path):
    """A typed table would refuse them, or take the types of its first rows for all."""
    texts = [{"id": 1, "prompt": "a", "completion": "b", "more": {"x": 1}}] * 7
    odd = {"id": "x", "prompt": [{"role": "user", "content": "a"}], "completion": "b", "more": [2, "y"]}
    sound = {"prompt": "a", "completion": "b", "audio": "a.wav"}
    for form in ("json", "jsonl", "tar"):
        write_rows([*texts, odd, sound], tmp_path, form)
        samples, bad = load_samples(Source(path=tmp_path / f"rows.{form}"), on_bad_sample="skip", max_bad_share=0.2)
        assert [sample.id for sample in samples] == ["1"] * 7 + ["x"]
        assert len(bad) == 1 and "row 8 (id None): 'audio' is given" in bad[0].reason


def test_rows_can_be_sent_to_other_processes_and_mapped(tmp_path, picture):
    for form in ("jsonl", "parquet", "tar"):
        path = write_rows(rows_in("texts"), tmp_path, form, picture if form != "jsonl" else None)
        rows = open_source(Source(path=path, images=tmp_path))
        sent = pickle.loads(pickle.dumps(rows))
        assert sent.fingerprint == rows.fingerprint and len(sent) == 3
        assert [sent.sample(row, 0) for row in sent.table] == [rows.sample(row, 0) for row in rows.table]
        ids = sent.table.map(lambda row, number, sent=sent: {"name": sent.sample(row, number).id}, with_indices=True)
        assert ids["name"][:] == ["0", "1", "2"]

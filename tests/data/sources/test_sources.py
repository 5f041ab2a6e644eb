"""What a source says: which rows are taken, how they are named, and what is refused before any row is read."""

import gzip
import json
import re
from pathlib import Path

import datasets
import pytest
import yaml
from pydantic import ValidationError

from data.sources import json_rows, row_table, shards
from data.sources.reading import load_samples, open_source
from data.sources.source import Source
from modeling.user_error import UserError
from tests.data.sources.layouts import rows_in, write_rows, write_tar

ROW = {"prompt": "a", "completion": "b"}
RATED = [
    {"texts": [{"user": f"{i} {turn}", "assistant": "x"} for turn in range(3)], "topic": topic, "ratings": ratings}
    for i, (topic, ratings) in enumerate([("maps", [5, 1, 3]), ("maps", [1, None, 2]), ("art", [4, 4, 4])])
]


def refused(**settings) -> str:
    with pytest.raises(UserError) as error:
        open_source(Source(**settings))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "tar"])
def test_rows_are_left_out_by_value_and_turns_by_rating(tmp_path, form):
    path = write_rows(RATED, tmp_path, form)

    def questions(**settings):
        samples, bad = load_samples(Source(path=path, **settings))
        assert bad == []
        return [[question for question, _ in sample.turns] for sample in samples]

    whole = [[f"{i} {turn}" for turn in range(3)] for i in range(3)]
    assert questions() == whole
    assert questions(where={"topic": "maps"}) == whole[:2]
    assert questions(where={"topic": ["art", "maps"]}) == whole
    assert questions(where={"topic": "music"}) == []
    assert questions(min_ratings={"ratings": 3}) == [["0 0", "0 2"], whole[2]]
    assert questions(min_ratings={"ratings": 1}) == [whole[0], ["1 0", "1 2"], whole[2]]
    assert questions(min_ratings={"ratings": 3}, where={"topic": "maps"}) == [["0 0", "0 2"]]


@pytest.mark.parametrize(
    "ratings, message",
    [
        ([1, 2], "'ratings' has 2 ratings for 3 turns"),
        ("good", "'ratings' is 'good', a list of ratings is expected"),
        (["good"] * 3, "'ratings' is .*, a list of ratings is expected"),
        (None, "'ratings' is None, a list of ratings is expected"),
    ],
)
def test_ratings_that_do_not_fit_the_turns(tmp_path, ratings, message):
    path = write_rows([RATED[0], RATED[1] | {"ratings": ratings}], tmp_path, "jsonl")
    with pytest.raises(UserError, match=rf"row 1 \(id None\): {message}"):
        load_samples(Source(path=path, min_ratings={"ratings": 1}))


def test_a_picture_moves_to_the_first_turn_that_is_left(tmp_path):
    row = {"texts": [{"user": "a", "assistant": "x"}, {"user": "b", "assistant": "y"}], "images": ["a.png"]}
    (tmp_path / "a.png").touch()
    path = write_rows([row | {"ratings": [1, 2]}], tmp_path, "jsonl")
    ((sample,), _) = load_samples(Source(path=path, images=tmp_path, min_ratings={"ratings": 2}))
    assert sample.turns == (("<image>\nb", "y"),) and len(sample.images) == 1


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_columns_with_other_names(tmp_path, form):
    (tmp_path / "a.png").touch()
    rows = [
        {
            "key": 7,
            "dialogue": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "pic": "a.png",
        }
    ]
    path = write_rows(rows, tmp_path, form)
    columns = {"messages": "dialogue", "id": "key", "image": "pic"}
    ((sample,), _) = load_samples(Source(path=path, images=tmp_path, columns=columns))
    assert (sample.id, sample.images) == ("7", (tmp_path / "a.png",)) and sample.turns == (("<image>\na", "b"),)
    assert "columns: got dialogue, key, pic, which fit none of the schemas" in refused(path=path)
    assert "columns.messages: no column is called 'talk'; they are dialogue, key, pic" in refused(
        path=path, columns={"messages": "talk"}
    )
    with pytest.raises(ValidationError, match="columns.chat"):
        Source(path=path, columns={"chat": "dialogue"})


def test_columns_of_two_schemas(tmp_path):
    path = write_rows([rows_in("llava")[2] | rows_in("messages")[2]], tmp_path, "json")
    assert "which fit llava and messages of the schemas, allowed: llava: conversations; messages:" in refused(path=path)
    assert open_source(Source(path=path, schema_name="messages")).schema.name == "messages"
    assert "schema texts: no column is called 'texts'; they are conversations, id, images, messages" in refused(
        path=path, schema_name="texts"
    )


@pytest.mark.parametrize("setting", [{"where": {"topc": "x"}}, {"min_ratings": {"topc": 1}}])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_column_that_is_missing(tmp_path, form, setting):
    path = write_rows(RATED, tmp_path, form)
    assert f"{next(iter(setting))}.topc: no column is called 'topc'; they are" in refused(path=path, **setting)


@pytest.mark.parametrize("form", ["json", "jsonl", "jsonl.gz", "tar"])
def test_columns_are_those_of_every_row(tmp_path, monkeypatch, form):
    """However few rows are in memory at once, and whatever a name is made of."""
    kind = shards.ShardRows if form == "tar" else json_rows.JsonRows
    monkeypatch.setattr(kind, "ROWS_AT_ONCE", 2)
    path = write_rows([ROW, ROW | {"\ud800": 1}, ROW, ROW, ROW | {"topic": "maps"}], tmp_path, form)
    for _ in range(2):  # the second time from the cache
        table, columns = row_table.open_table(kind, [path], "rows")
        assert columns == ["?", "completion", "prompt", "topic"]
        assert table.column_names == list(kind.FEATURES) and len(table) == 5
    samples, bad = load_samples(Source(path=path, where={"topic": "maps"}))
    assert [sample.turns for sample in samples] == [(("a", "b"),)] and bad == []


def test_pictures_by_path_need_their_folder(tmp_path):
    (tmp_path / "secret.png").touch()
    (tmp_path / "images").mkdir()
    path = write_rows([ROW | {"image": "../secret.png"}], tmp_path, "parquet")
    with pytest.raises(UserError, match=r"row 0 .*: image '../secret.png' is a path; give `images`, the folder"):
        load_samples(Source(path=path))
    with pytest.raises(UserError, match=r"row 0 .*: image '../secret.png' lies outside its root"):
        load_samples(Source(path=path, images=tmp_path / "images"))


def test_what_changes_the_meaning_of_rows_changes_the_fingerprint(tmp_path):
    path = write_rows(RATED, tmp_path, "jsonl")

    def fingerprint(**settings):
        return open_source(Source(**{"path": path, **settings})).fingerprint

    whole = fingerprint()
    assert {fingerprint(), fingerprint(weight=2.0), fingerprint(num_samples=1)} == {whole}
    others = [
        fingerprint(images=tmp_path),
        fingerprint(columns={"family": "topic"}),
        fingerprint(where={"topic": "maps"}),
        fingerprint(min_ratings={"ratings": 2}),
        fingerprint(path=write_rows(RATED, tmp_path, "json")),
    ]
    write_rows([*RATED[:2], RATED[2] | {"topic": "sea"}], tmp_path, "jsonl")  # as long as before
    others.append(fingerprint())
    assert len({whole, *others}) == len(others) + 1
    assert [row["row"].count("sea") for row in open_source(Source(path=path)).table] == [0, 0, 1]


def test_a_line_that_is_not_json_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{json.dumps(ROW)}\n\n{{"prompt": \n[1]\n{json.dumps(ROW)}')
    samples, bad = load_samples(Source(path=path), on_bad_sample="skip", max_bad_share=0.5)
    assert [sample.id for sample in samples] == ["row 0", "row 3"]
    assert [entry.index for entry in bad] == [1, 2]
    assert "row 1 (id None): not JSON (Expecting value" in bad[0].reason
    assert "row 2 (id None): got list, a row is an object" in bad[1].reason


OTHER_FILES = {
    "not gzip": ("rows.json.gz", b"[]", "cannot be read (Not a gzipped file"),
    "gzip that breaks off": ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "cannot be read (Compressed"),
    "not UTF-8": ("rows.jsonl", b"\xff\xfe\x00", "not JSON ('utf-8' codec"),
    "no lines": ("rows.jsonl", b"\n", "got no rows, at least one is expected"),
    "not parquet": ("rows.parquet", b"PAR1 PAR1", "cannot be read (Parquet"),
    "not arrow": ("rows.arrow", b"nothing", "cannot be read ("),
    "not tar": ("rows.tar", b"nothing", "cannot be read (truncated header"),
    "no members": ("rows.tar", b"", "cannot be read (empty file"),
    "another ending": ("rows.csv", b"a,b", "files end in .csv, allowed is one of .json, .json.gz, .jsonl"),
    "a folder without data": ("rows", None, "cannot be read (The directory at"),
}


@pytest.mark.parametrize("file, content, message", OTHER_FILES.values(), ids=OTHER_FILES)
def test_files_that_are_something_else(tmp_path, file, content, message):
    path = tmp_path / file
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert refused(path=path).startswith(f"{path}: {message}")


def test_a_parquet_file_that_breaks_off(tmp_path):
    path = write_rows([ROW] * 50, tmp_path, "parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert "rows.parquet: cannot be read (Parquet magic bytes not found in footer" in refused(path=path)
    path.write_bytes(whole[:20] + b"\0" * 40 + whole[60:])
    assert "rows.parquet: cannot be read (" in refused(path=path)


def test_files_of_several_kinds_and_no_files(tmp_path):
    for form in ("json", "parquet"):
        write_rows([ROW], tmp_path, form)
    assert "rows.*: files end in .json, .parquet, allowed is one of" in refused(path=tmp_path / "rows.*")
    assert "*.arrow: there is no such file or folder, and no file that fits" in refused(path=tmp_path / "*.arrow")


def test_splits_of_folders(tmp_path):
    one, two = (datasets.Dataset.from_list([ROW | {"id": name}]) for name in ("one", "two"))
    datasets.DatasetDict(train=one, test=two).save_to_disk(tmp_path / "saved")
    (tmp_path / "laid out" / "data").mkdir(parents=True)
    for name, table in (("train", one), ("test", two)):
        table.to_parquet(tmp_path / "laid out" / "data" / f"{name}-00000-of-00001.parquet")
    for folder in ("saved", "laid out"):
        for split, wanted in ((None, "one"), ("train", "one"), ("test", "two")):
            samples, _ = load_samples(Source(path=tmp_path / folder, split=split))
            assert [sample.id for sample in samples] == [wanted]
        assert "split: got 'exam', allowed: train, test" in refused(path=tmp_path / folder, split="exam")
    path = write_rows([ROW], tmp_path, "json")
    assert "split: got 'test', files have no splits" in refused(path=path, split="test")
    for file in (tmp_path / "saved" / "train").glob("*.arrow"):
        file.unlink()
    assert refused(path=tmp_path / "saved")


def test_no_code_of_a_data_set_is_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('it ran')")
    assert "Dataset scripts are no longer supported, but found scripted.py" in refused(path=folder)


def test_sizes_are_bounded_before_memory_is_taken(tmp_path, monkeypatch):
    for setting in ("MAX_LIST", "MAX_LINE"):
        monkeypatch.setattr(json_rows, setting, 100)
    monkeypatch.setattr(shards, "MAX_MEMBER", 100)
    for form in ("json", "jsonl", "json.gz", "jsonl.gz", "tar"):
        path = write_rows([ROW], tmp_path, form)
        assert len(open_source(Source(path=path))) == 1
        path = write_rows([ROW | {"prompt": "a" * 100}], tmp_path, form)
        assert "100" in refused(path=path)


@pytest.mark.parametrize(
    "members, message",
    {
        "a video": (["0.mp4", "0.json"], "a member is called '0.mp4', allowed: .json, .jpg, .jpeg"),
        "no row": (["0.png"], "it has no .json member, which holds the row"),
        "fewer pictures than are named": (["0.json", "0.1.png"], "'images' names 2 pictures, the shard holds 1"),
        "a row that stands apart": (["0.json", "1.json", "0.1.png", "0.2.png"], "it has no .json member"),
    }.values(),
)
def test_rows_of_shards_that_cannot_be_used(tmp_path, members, message):
    row = json.dumps(ROW | {"images": ["x.png", "y.png"]}).encode()
    whole = ["a/9.json", "a/9.0.png", "a/9.1.jpg"]
    write_tar(tmp_path / "rows.tar", [(name, row if name.endswith("json") else b"x") for name in [*whole, *members]])
    rows = open_source(Source(path=tmp_path / "rows.tar", images=tmp_path))
    sample = rows.sample(rows.table[0], 0)
    assert [str(picture) for picture in sample.images] == ["a/9.0.png", "a/9.1.jpg"]
    told = []
    for number in range(1, len(rows)):
        with pytest.raises(UserError) as error:
            rows.sample(rows.table[number], number)
        told.append(str(error.value))
    assert any(message in one for one in told), told


def test_the_examples_of_the_docs_are_sources():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    lists = [block for block in map(yaml.safe_load, blocks) if isinstance(block, list)]  # others show other sections
    sources = [Source(**settings) for block in lists for settings in block]
    assert len(sources) >= 8 and {source.hub is None for source in sources} == {True, False}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "give either path .* or hub"),
        ({"path": "a", "hub": "b/c"}, "give either path .* or hub"),
        ({"path": "a", "weight": 1.0, "num_samples": 3}, "give weight or num_samples, not both"),
        ({"path": "a", "schema_name": "alpaca"}, "schema_name"),
        ({"path": "a", "decode": True}, "Extra inputs"),
        ({"path": "a", "streaming": True, "num_samples": 3}, "num_samples goes without streaming"),
        ({"path": "a", "min_ratings": {"x": "good"}}, "min_ratings.x"),
        ({"path": "a", "where": {"x": None}}, "where.x"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValidationError, match=message):
        Source(**settings)

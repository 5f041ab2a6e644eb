"""Samples with videos: read in every schema, encoded, indexed, put together with others, and learned from.

A model or an environment that takes none refuses them by name.
"""

import json
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from data.collator import AllMediaInEveryBatch, Collator
from data.conversations import encode, encode_prompt
from data.index.build import build_indexes
from data.index.index import Index, open_indexes
from data.mixture import build_mixture
from data.sample import EmbeddedFile, Sample
from data.sources.reading import load_samples
from data.sources.source import Source
from data.streaming import StreamedDataset
from modeling.user_error import UserError
from tests.data.index.test_index import assert_items_are_encoded, opened  # noqa: F401 - a fixture
from tests.families.family import relative_error, text_rows
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import QWEN2_VL, VIDEO
from tests.films import film
from tests.indexed import indexed, written
from training.evaluation.asking import evaluate
from training.evaluation.questions import asked_of
from training.tasks.answers_size import answers_size

VIDEO_KEYS = {"pixel_values_videos", "video_grid_thw"}


@pytest.fixture
def folder(tmp_path):
    """Two videos, of 4 and of 6 frames that are seen, and a picture."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.mp4").write_bytes(film(range(0, 240, 12)))
    (pictures / "b.mp4").write_bytes(film(range(0, 240, 8), size=(90, 30)))
    Image.effect_noise((70, 33), 50).convert("RGB").save(pictures / "c.png")
    return pictures


@pytest.fixture
def samples(folder) -> list[Sample]:
    """Of each modality, and a video that two samples show."""
    a, b, c = (folder / name for name in ("a.mp4", "b.mp4", "c.png"))
    return [
        Sample("video", (), (("<video>\nis it red?", "yes"),), videos=(a,)),
        Sample("text", (), (("is it?", "no"), ("red?", "yes"))),
        Sample("picture", (c,), (("<image> is it red?", "no"),)),
        Sample("all", (c, c), (("<image> or <video>?", "no"), ("<video> <image> red?", "yes")), videos=(b, a)),
    ]


def layouts() -> dict[str, dict]:
    """The same conversation about a.mp4 and b.mp4 in every schema."""
    question, answer = "<video><video>\nis it red?", "yes"
    typed = [
        {"type": "video", "video": "a.mp4"},
        {"type": "video", "path": "b.mp4"},
        {"type": "text", "text": "is it red?"},
    ]
    chat = [{"role": "user", "content": "is it red?"}, {"role": "assistant", "content": answer}]
    videos = {"videos": ["a.mp4", "b.mp4"]}
    return {
        "llava": {
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
            "video": ["a.mp4", "b.mp4"],
        },
        "llava with marks of pictures": {
            "conversations": [
                {"from": "human", "value": question.replace("video", "image")},
                {"from": "gpt", "value": answer},
            ],
            **videos,
        },
        "messages": {"messages": [{"role": "user", "content": question}, chat[1]], **videos},
        "unmarked messages": {"messages": chat, **videos},
        "typed messages": {"messages": [{"role": "user", "content": typed}, chat[1]]},
        "texts": {"texts": [{"user": "is it red?", "assistant": answer}], **videos},
        "prompt": {"prompt": "is it red?", "completion": answer, **videos},
    }


@pytest.mark.parametrize("layout", layouts())
def test_the_same_conversation_is_the_same_sample_in_every_schema(folder, layout):
    (folder / "rows.jsonl").write_text(json.dumps(layouts()[layout]))
    (sample,), _ = load_samples(Source(path=folder / "rows.jsonl", images=folder))
    assert sample.videos == (folder / "a.mp4", folder / "b.mp4") and sample.images == ()
    like = Sample("x", (), (("<video><video>\nis it red?", "yes"),), videos=sample.videos)
    processor = QWEN2_VL.processor()
    found, expected = (encode(one, processor, 999) for one in (sample, like))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert int((found["input_ids"] == VIDEO).sum()) == int(found["video_grid_thw"].prod(1).sum()) // 4
    assert found["video_grid_thw"][:, 0].tolist() == [2, 3] and found.keys() > VIDEO_KEYS


def test_pictures_and_videos_without_marks_stand_first(folder):
    row = {"prompt": "is it?", "completion": "no", "images": ["c.png"], "videos": ["a.mp4"]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": "is <image> it?"}) + "\n")
    (neither, one), _ = load_samples(Source(path=folder / "rows.jsonl", images=folder))
    assert neither.turns == (("<image><video>\nis it?", "no"),) and one.turns == (("<video>\nis <image> it?", "no"),)


def test_items_are_the_encoded_samples(samples, tmp_path):
    processor = QWEN2_VL.processor()
    dataset = indexed(samples, processor, tmp_path)
    assert list(dataset.samples) == samples
    assert_items_are_encoded(dataset, samples, processor)
    assert_items_are_encoded(dataset.subset([3, 0]), [samples[3], samples[0]], processor)
    assert dataset.has_video.tolist() == [True, False, False, True] and dataset.modality.tolist() == [2, 0, 1, 3]
    sizes, counts = dataset.sizes("video")
    assert sizes.tolist() == [[4, 48, 64], [6, 90, 30]] and counts.tolist() == [2, 1]
    features = sum(
        int((encode(one, processor, 999)["input_ids"][:, None] == torch.tensor([3, 4])).sum()) for one in samples
    )
    config = QWEN2_VL.config()
    size = answers_size(dataset, processor, config, [3, 4], 4)
    assert size == 4 * (int(dataset.supervised.sum()) * 60 + features * 32)


def test_embedded_videos_are_those_in_files(samples, folder, tmp_path):
    def stored(file):
        return {"bytes": file.read_bytes(), "path": file.name}

    rows = [
        {
            "id": sample.id,
            "images": [stored(file) for file in sample.images],
            "videos": [stored(file) for file in sample.videos],
            "messages": [
                {"role": role, "content": text}
                for turn in sample.turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ],
        }
        for sample in samples
    ]
    table = datasets.Dataset.from_list(rows)
    table.cast_column("videos", datasets.List(datasets.Video())).to_parquet(tmp_path / "rows.parquet")
    source, processor = Source(path=tmp_path / "rows.parquet"), QWEN2_VL.processor()
    (path,) = build_indexes([source], processor, tmp_path / "embedded", decode=True)
    dataset, _ = build_mixture([Index(path, source)], processor, max_length=999, seed=0)
    order = [[sample.id for sample in samples].index(sample.id) for sample in dataset.samples]
    assert_items_are_encoded(dataset, [samples[number] for number in order], processor)
    assert all(isinstance(file, EmbeddedFile) for sample in dataset.samples for file in sample.videos)
    assert path.stat().st_size < 10_000, "no video is copied"


@pytest.mark.parametrize("decode", [True, False])
def test_each_video_is_opened_once(samples, opened, tmp_path, monkeypatch, decode):  # noqa: F811
    train, test = written(samples, tmp_path / "train.json"), written(samples[::-1], tmp_path / "test.json")
    processor = QWEN2_VL.processor()
    for _ in range(2):
        paths = build_indexes([train, test], processor, tmp_path / "data", decode=decode)
        dataset, _ = build_mixture(open_indexes([train, test], paths), processor, max_length=999, seed=0)
        assert len(dataset) == 8 and all(len(dataset.tokens(index)["labels"]) for index in range(8))
        assert opened() == ["a.mp4", "b.mp4", "c.png"]
    assert dataset[int(np.flatnonzero(dataset.has_video)[0])] and len(opened()) > 3, "the negative control"


def test_bad_videos_are_bad_rows(samples, folder, tmp_path):
    whole = (folder / "b.mp4").read_bytes()
    (folder / "a.mp4").write_bytes(whole[: len(whole) // 2])
    source = written(samples, tmp_path / "rows.json")
    index = Index(build_indexes([source], QWEN2_VL.processor(), tmp_path / "data", decode=True)[0], source)
    assert index.is_bad.tolist() == [True, False, False, True]
    assert all("a.mp4' " in reason for _, reason in index.ids_and_reasons([0, 3]))


def test_settings_for_videos_make_another_index(samples, tmp_path):
    source, few = written(samples, tmp_path / "rows.json"), QWEN2_VL.processor()
    few.video_processor["max_frames"] = 2
    one, other = (
        Index(build_indexes([source], processor, tmp_path / "data", decode=False)[0], source)
        for processor in (QWEN2_VL.processor(), few)
    )
    assert one.path != other.path and other.sizes(0, "video") == [(2, 48, 64)]
    assert other.lengths[0] < one.lengths[0] and other.lengths[1] == one.lengths[1]


def test_a_video_that_is_too_long_is_left_out(samples, tmp_path):
    source, processor = written(samples, tmp_path / "rows.json"), QWEN2_VL.processor()
    indexes = open_indexes([source], build_indexes([source], processor, tmp_path / "data", decode=False))
    limit = int(indexes[0].lengths[0])
    dataset, left_out = build_mixture(indexes, processor, max_length=limit, seed=0, max_too_long_share=0.5)
    assert {sample.id for sample in dataset.samples} == {"video", "text", "picture"}
    assert left_out.counts() == {f"more than {limit} tokens": 1}
    encode(samples[0], processor, limit)
    with pytest.raises(UserError, match=f"sample 'video': {limit} tokens, at most {limit - 1} are allowed"):
        encode(samples[0], processor, limit - 1)


@pytest.mark.parametrize("family", [LLAVA[0], LLAVA_NEXT[0], INTERNVL[0]], ids=lambda family: family.name)
def test_other_families_refuse_such_rows_by_name(family, samples, tmp_path):
    source, processor = written(samples, tmp_path / "rows.json"), family.processor()
    index = Index(build_indexes([source], processor, tmp_path / "data", decode=False)[0], source)
    assert index.is_bad.tolist() == [True, False, False, True]
    said = f"a video is shown, {type(processor).__name__} takes none"
    assert all(said in reason for _, reason in index.ids_and_reasons([0, 3]))
    with pytest.raises(UserError, match="2 of 4 samples are bad"):
        build_mixture([index], processor, max_length=999, seed=0)
    for one in (samples[0], Sample("mark", (), (("<video> is it?", "no"),))):
        with pytest.raises(UserError, match=f"sample '{one.id}': {said}"):
            encode(one, processor, 999)


def test_without_pyav_such_rows_are_refused_by_name(samples, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    source = written(samples, tmp_path / "rows.json")
    index = Index(build_indexes([source], QWEN2_VL.processor(), tmp_path / "data", decode=False)[0], source)
    assert index.is_bad.tolist() == [True, False, False, True]
    assert all("pip install av" in reason for _, reason in index.ids_and_reasons([0, 3]))


@pytest.mark.parametrize(
    "turns, message",
    [
        ((("is it?", "no"),), "0 video tokens for 1 videos"),
        ((("<video><video> is it?", "no"),), "2 video tokens for 1 videos"),
        (
            (("<video> is it?", "<|video_pad|>"),),
            "a text holds '<|video_pad|>', which stands for what the model is shown",
        ),
    ],
)
def test_each_placeholder_has_its_video(folder, turns, message):
    with pytest.raises(UserError, match="sample 'x': .*") as fault:
        encode(Sample("x", (), turns, videos=(folder / "a.mp4",)), QWEN2_VL.processor(), 999)
    assert message in str(fault.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_dense_plan_is_the_stock_model_on_a_batch_with_videos(samples, side):
    processor, dense, sparse = QWEN2_VL.processor(), QWEN2_VL.dense(), QWEN2_VL.sparse()
    batch = Collator(processor, side)([encode(sample, processor, 999) for sample in samples])
    assert batch["video_grid_thw"][:, 0].tolist() == [2, 3, 2] and len(batch["image_grid_thw"]) == 3
    assert len(batch["pixel_values_videos"]) == int(batch["video_grid_thw"].prod(1).sum())
    rows = text_rows(sparse, batch)
    outputs = [dense(**QWEN2_VL.stock_inputs(batch)), sparse(**batch)]
    assert relative_error(outputs[1].logits[rows], outputs[0].logits[rows]) < 1e-5
    for output in outputs:
        output.loss.backward()
    gradients = {name: value.grad for name, value in dense.named_parameters() if value.grad is not None}
    assert any("visual" in name for name in gradients), "gradients reach the tower"
    mine = dict(sparse.named_parameters())
    whole = [
        torch.cat([of[name].flatten() for name in gradients])
        for of in ({n: p.grad for n, p in mine.items()}, gradients)
    ]
    assert float((whole[0] - whole[1]).norm() / whole[1].norm()) < 1e-5
    # The negative control: the model sees the videos.
    other = sparse(**batch | {"pixel_values_videos": batch["pixel_values_videos"].flip(0)})
    assert relative_error(other.logits[rows], outputs[0].logits[rows]) > 1e-3


def test_a_batch_that_lacks_a_medium_gets_one_more_row(samples):
    processor = QWEN2_VL.processor()
    video, text, picture, both = (encode(sample, processor, 999) for sample in samples)
    collate, plain = AllMediaInEveryBatch(Collator(processor), [picture, video]), Collator(processor)
    for given, added in (([text], 2), ([video, text], 1), ([picture], 1), ([both, text], 0), ([picture, video], 0)):
        batch, alone = collate(given), plain(given)
        assert len(batch["input_ids"]) == len(given) + added
        assert batch.keys() > VIDEO_KEYS and "pixel_values" in batch
        assert (batch["labels"][len(given) :] == -100).all()
        assert torch.equal(batch["labels"][: len(given), : alone["labels"].shape[1]], alone["labels"])
    assert len(AllMediaInEveryBatch(Collator(processor), [both])([video, picture])["input_ids"]) == 2
    model = QWEN2_VL.sparse()
    losses = [model(**collator([video, text])).loss for collator in (collate, plain)]
    torch.testing.assert_close(*losses)


def test_a_stream_with_videos(samples, tmp_path):
    source = written(samples, tmp_path / "rows.json").model_copy(update={"streaming": True})
    processor = QWEN2_VL.processor()
    options = {"max_length": 999, "seed": 0, "on_bad_sample": "error", "max_bad_share": 0.0, "max_too_long_share": 0.0}
    stream = StreamedDataset([source], processor, part=(0, 1), **options)
    expected = [encode(sample, processor, 999) for sample in samples]
    found = [item for item, _ in zip(stream, samples, strict=False)]
    for item in found:
        assert any(
            item.keys() == one.keys() and all(torch.equal(item[name], one[name]) for name in one) for one in expected
        )
    shown = set().union(*(filler.keys() for filler in stream.first_of_each_medium()))
    assert shown > VIDEO_KEYS and "pixel_values" in shown


def test_questions_about_videos_are_asked(samples):
    processor, model = QWEN2_VL.processor(), QWEN2_VL.sparse()
    prompt = encode_prompt(samples[0], processor)
    assert prompt.keys() == {"input_ids", *VIDEO_KEYS}
    asked = [Sample(one.id, one.images, one.turns, "attribute", videos=one.videos) for one in samples]
    seeing, blind = (
        evaluate(model, processor, [asked_of(asked)], batch_size=2, pixel_transform=how) for how in (None, "grey")
    )
    assert [record.id for record in seeing.records] == [sample.id for sample in samples]
    differs = [one.prediction != other.prediction for one, other in zip(seeing.records, blind.records, strict=True)]
    assert differs[0] and not differs[1], "without a video the answer is another"

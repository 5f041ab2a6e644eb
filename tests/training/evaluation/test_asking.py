"""Which questions are asked, what is kept of a killed evaluation, and which pictures may be asked about."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.benchmarks.benchmark import Question
from data.index.build import build_indexes
from data.index.index import open_indexes
from data.mixture import build_mixture
from data.sample import Sample
from data.sources.source import Source
from modeling.user_error import UserError
from tests.benchmark_files.pictures import png, stored
from tests.processes import run_processes
from tests.tiny_processor import tiny_processor
from training.evaluation import asking
from training.evaluation.asking import check_prompts, evaluate
from training.evaluation.held_out import refuse_shared_files, refuse_shared_samples
from training.evaluation.kept_answers import KeptAnswers
from training.evaluation.questions import asked_of, digest, limited


def question(number: int, unit: str) -> Question:
    return Question(str(number), f"what ? {number}", (), ("red",), unit)


def test_a_limit_takes_no_unit_in_part():
    questions = [question(i, unit) for i, unit in enumerate(("a", "b", "a", "c", "b"))]
    assert [q.id for q in limited(questions, 3)] == ["0", "1", "2", "4"]
    assert [q.id for q in limited(questions, 1)] == ["0", "2"]
    assert limited(questions, None) is questions
    assert list(limited(questions, 9)) == questions


def test_the_digest_tells_questions_and_pictures_apart(tmp_path):
    one = asked_of([Sample("a", (), (("what ?", "red"),), "attribute")])
    others = [
        asked_of([Sample("b", (), (("what ?", "red"),), "attribute")]),
        asked_of([Sample("a", (), (("which ?", "red"),), "attribute")]),
        asked_of([Sample("a", (), (("what ?", "blue"),), "attribute")]),
        asked_of([Sample("a", (tmp_path / "a.png",), (("what ?", "red"),), "attribute")]),
    ]
    assert len({digest([part]) for part in (one, *others)}) == 5
    assert digest([one]) == digest([asked_of([Sample("a", (), (("what ?", "red"),), "attribute")])])


class Killed(Exception):
    pass


def asked(count: int = 7):
    return [asked_of([Sample(str(i), (), ((f"what is {i} ?", "red"),), "attribute") for i in range(count)])]


class FakeModel:
    """Counts what it is asked, and stops after some batches as if it were killed."""

    training = False

    def __init__(self, batches: int | None = None):
        self.batches, self.asked = batches, []

    def eval(self):
        pass

    def train(self, mode):
        pass

    def generate(self, _, __, inputs, limit, transform) -> list[str]:
        if self.batches is not None and len(self.asked) == self.batches:
            raise Killed
        self.asked.append(inputs)
        return [f"answer to {name}" for name in inputs]


@pytest.fixture
def model(monkeypatch):
    """Makes models that answer with the id of what they are asked."""
    from types import SimpleNamespace

    monkeypatch.setattr(asking, "Collator", lambda *_, **__: list)
    monkeypatch.setattr(asking, "encode_prompt", lambda sample, _: sample.id)
    monkeypatch.setattr(asking, "generate", lambda model, *rest: model.generate(model, *rest))
    processor = SimpleNamespace(tokenizer=lambda texts, **_: {"input_ids": [[0] for _ in texts]})
    return FakeModel, processor


def test_a_killed_evaluation_asks_nothing_twice_and_ends_alike(model, tmp_path):
    make, processor = model
    whole = evaluate(make(), processor, asked(), batch_size=2)
    killed, rest = make(batches=2), make()
    with pytest.raises(Killed):
        evaluate(killed, processor, asked(), batch_size=2, kept=KeptAnswers(tmp_path / "kept", "these"))
    found = evaluate(rest, processor, asked(), batch_size=2, kept=(kept := KeptAnswers(tmp_path / "kept", "these")))
    assert found == whole
    assert [record.prediction for record in found.records] == [f"answer to {i}" for i in range(7)]
    assert len(killed.asked) == 2
    assert sorted(name for batch in killed.asked + rest.asked for name in batch) == [str(i) for i in range(7)]
    kept.remove()
    assert not (tmp_path / "kept").exists()


def test_answers_of_another_subject_are_not_used(model, tmp_path):
    make, processor = model
    first, second = make(), make()
    evaluate(first, processor, asked(), batch_size=2, kept=KeptAnswers(tmp_path, "these weights"))
    evaluate(second, processor, asked(), batch_size=2, kept=KeptAnswers(tmp_path, "others"))
    assert len(first.asked) == len(second.asked) == 4


def test_what_is_left_is_divided_anew_among_the_ranks(model, tmp_path, monkeypatch):
    """Rank 0 of an earlier start was done with its share, batches 0 and 2. It must not wait for rank 1 now."""
    make, processor = model
    earlier = KeptAnswers(tmp_path, "these")
    for number in (0, 2):
        earlier.keep(number, ["one", "two"])
    monkeypatch.setattr(asking, "own_share_by_cost", lambda items, _: list(enumerate(items))[::2])  # rank 0 of two
    monkeypatch.setattr(asking, "of_all_ranks", lambda own: [own, {3: ["seven"]}])
    rank_0 = make()
    found = evaluate(rank_0, processor, asked(), batch_size=2, kept=KeptAnswers(tmp_path, "these"))
    assert rank_0.asked == [["2", "3"]]
    assert [record.prediction for record in found.records][4:] == ["one", "two", "seven"]


def test_a_question_that_cannot_be_shown_names_its_benchmark(tmp_path):
    processor = tiny_processor(chat_template="{{ messages[0]['content'][-1]['text'] }}")  # it shows no picture
    (tmp_path / "a.png").write_bytes(png("red"))
    shown = [asked_of([Sample("7", (tmp_path / "a.png",), (("<image>\nwhat ?", "red"),), "attribute")])]
    check_prompts(shown, tiny_processor())
    with pytest.raises(UserError, match="shapes: sample '7': the chat template"):
        check_prompts(shown, processor)


def keep_on_both(folder):
    from training.ranks import rank

    kept = KeptAnswers(folder, "these")
    kept.keep(rank(), [f"of rank {rank()}"])
    return kept.known()


def test_every_rank_knows_what_all_ranks_have_kept(tmp_path):
    run_processes(2, keep_on_both, tmp_path)
    assert KeptAnswers(tmp_path, "these").known() == {0: ["of rank 0"], 1: ["of rank 1"]}


def test_questions_about_pictures_that_are_trained_on_are_refused(tmp_path):
    for folder, color in (("test", "red"), ("train", "red"), ("other", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), color).save(tmp_path / folder / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "other" / "b.png")
    part = asked_of([Sample("q7", (tmp_path / "test" / "a.png",), (("what ?", "red"),), "attribute")])
    refuse_shared_files([part], [tmp_path / "other" / "a.png", tmp_path / "other" / "b.png"], "train")
    for shared in ("train", "test"):
        with pytest.raises(ValueError, match=r"data.evaluation: shapes, question q7 shows .*data.train shows too"):
            refuse_shared_files([part], [tmp_path / shared / "a.png"], "train")


def test_samples_that_are_trained_on_are_refused(tmp_path):
    """Pictures lie in the rows, so that their bytes tell whether they are the same."""
    processor = tiny_processor()

    def dataset(name: str, **colors: str):
        rows = [
            {"id": row, "images": [stored(color)], "texts": [{"user": "what ?", "assistant": "red"}]}
            for row, color in colors.items()
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        sources = [Source(path=tmp_path / f"{name}.parquet")]
        paths = build_indexes(sources, processor, tmp_path / name, decode=False)
        return build_mixture(open_indexes(sources, paths), processor, max_length=999, seed=0)[0]

    asked = dataset("asked", a="red", b="blue")
    refuse_shared_samples(asked, dataset("apart", a="green", c="blue"), "train")
    with pytest.raises(UserError, match=r"data.evaluation: 1 of 2 samples are in data.train too, first 'b'"):
        refuse_shared_samples(asked, dataset("shared", a="green", b="blue"), "train")

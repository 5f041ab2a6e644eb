"""Stored answers of the teacher: students learn the same as from a teacher that computes them in every step."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from data.collator import predicts_answer
from data.sample import Sample
from modeling.user_error import UserError
from tests.indexed import indexed
from tests.processes import run_processes
from tests.tiny_processor import tiny_processor
from tests.tiny_student import tiny_student
from tests.training.distillation.test_trainer import COLLATOR, DATASET, gradients
from training.distillation.teacher_answers import AnsweredDataset, write_teacher_answers
from training.recipe.distillation import DistillationSettings
from training.tasks.answers_size import answers_size, refuse_too_many_answers


class Conversations(list):
    """Samples that can be had without their pictures."""

    def tokens(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self[index].items() if name != "pixel_values"}


CONVERSATIONS = Conversations(DATASET)
LOSSES = DistillationSettings(cross_entropy_weight=0.5, forward_kl_weight=1.0)
STORED = LOSSES.model_copy(update={"keep_answers": True})


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.safetensors"
    write_teacher_answers(tiny_student(), DATASET, COLLATOR, path, batch_size=3, autocast=None)
    return path


def test_a_student_learns_the_same_from_stored_answers(tmp_path, answers):
    computed, logged = gradients(tmp_path / "computed", losses=LOSSES)
    stored, logged_stored = gradients(
        tmp_path / "stored", losses=STORED, dataset=AnsweredDataset(CONVERSATIONS, answers)
    )
    assert logged_stored["forward_kl"] == pytest.approx(logged["forward_kl"], rel=1e-5)
    for name in computed:
        torch.testing.assert_close(stored[name], computed[name], rtol=1e-4, atol=1e-6)


def test_other_answers_teach_something_else(tmp_path, answers):
    """Negative control: answers of another model."""
    other = tmp_path / "other.safetensors"
    write_teacher_answers(tiny_student(seed=1), DATASET, COLLATOR, other, batch_size=3, autocast=None)
    losses = [
        gradients(tmp_path / path.stem, losses=STORED, dataset=AnsweredDataset(CONVERSATIONS, path))[1]["forward_kl"]
        for path in (answers, other)
    ]
    assert abs(losses[0] - losses[1]) > 1e-2


def test_answers_to_other_data_are_refused(answers):
    with pytest.raises(ValueError, match="answers to 8 samples, the data has 7"):
        AnsweredDataset(Conversations(DATASET[1:]), answers)


def test_what_is_not_stored_cannot_be_learnt_from():
    for wrong in ({"hidden_cosine_weight": 0.1, "forward_kl_weight": 1.0}, {"forward_kl_weight": 0.0}):
        with pytest.raises(ValidationError, match="keep_answers"):
            DistillationSettings(**{"cross_entropy_weight": 0.5, "keep_answers": True} | wrong)


def write(folder) -> None:
    write_teacher_answers(tiny_student(), DATASET, COLLATOR, folder / "a.safetensors", batch_size=3, autocast=None)


@pytest.mark.slow  # five processes
def test_several_processes_write_what_one_writes(tmp_path):
    """There are three batches, so that one process of four has none."""
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    write(tmp_path / "alone")
    run_processes(4, write, tmp_path / "together")
    one, several = (load_file(tmp_path / name / "a.safetensors") for name in ("alone", "together"))
    assert one.keys() == several.keys() and all(torch.equal(one[name], several[name]) for name in one)
    assert [path.name for path in (tmp_path / "together").iterdir()] == ["a.safetensors"]


def counted_size(conversations, config, visual) -> int:
    """The slow reference: bytes of the answers, token by token."""
    items = [conversations.tokens(index) for index in range(len(conversations))]
    supervised = sum(int(predicts_answer(item["labels"][None]).sum()) for item in items)
    features = sum(int((item["input_ids"] == token).sum()) for item in items for token in visual)
    return 4 * (supervised * config.text_config.vocab_size + features * config.text_config.hidden_size)


def test_their_size_is_known_from_the_index(tmp_path):
    Image.new("RGB", (24, 24)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 24)).save(tmp_path / "b.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    samples = [
        Sample("one", (a,), (("<image> red?", "yes"),)),
        Sample("two", (b, a), (("<image> <image> red?", "yes , yes"), ("is it?", "no"))),
        Sample("none", (), (("red?", "no"),)),
    ]
    dataset, processor = indexed(samples, tiny_processor(), tmp_path), tiny_processor()
    config = tiny_student().config
    part = dataset.subset([1, 1, 2])
    for one in (dataset, part, dataset.subset([2])):
        size = answers_size(one, processor, config, [processor.image_token_id], itemsize=4)
        assert size == counted_size(one, config, [processor.image_token_id])
    assert answers_size(part, processor, config, [], itemsize=4) < answers_size(
        part, processor, config, [4], itemsize=4
    )


def test_their_size_is_known_before_and_refused_above_the_free_space(answers, tmp_path, monkeypatch):
    model = tiny_student()
    visual = list(model.visual_tokens(model.config).values())
    size = counted_size(CONVERSATIONS, model.config, visual)
    stored = load_file(answers)
    logits, features = stored["teacher_logits"], stored["features_image"]
    assert size == logits.numel() * 4 + features.numel() * 4
    free = 2 * size
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    refuse_too_many_answers(size, tmp_path)
    with pytest.raises(UserError, match=r"keep_answers: the teacher's answers need 4.0 GiB .* it has 0.0 GiB left"):
        refuse_too_many_answers(2 * 2**30, tmp_path)

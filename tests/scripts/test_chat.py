"""A conversation: its answers are those of `generate` on all that was said, and mistakes are one line."""

import io
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from checkpoints.build import build_student, load_dense
from checkpoints.export import export_checkpoint
from checkpoints.load import load_checkpoint
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "chat.py"
QUESTIONS = ("Is there a red circle ?", "What colour is the square ?", "What do you see ?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `dense`, the embedded model, `sparse`, which says other words, and two pictures."""
    root = tmp_path_factory.mktemp("chat")
    dense, processor = load_dense(Path(__file__).resolve().parents[2] / "checkpoints" / "tiny-llava", "float32")
    dense.save_pretrained(root / "dense"), processor.save_pretrained(root / "dense")
    with pytest.MonkeyPatch.context() as patched:  # tests of the export show it
        patched.setattr("checkpoints.export.verify", lambda *arguments: None)
        plan = VisualPlan.dense(8).replace(2, ffn=0).replace(3, attend=False, ffn=32).replace(5, tokens=0.3)
        with torch.no_grad():
            dense.lm_head.weight.copy_(dense.lm_head.weight.roll(5, dims=0))
        export_checkpoint(build_student(dense, plan), processor, root / "sparse", card="", probe={})
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        picture = Image.new("RGB", (64, 48), "white")
        picture.paste(colour, (10, 10, 40, 40))
        picture.save(root / name)
    return root


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def chat(run, monkeypatch):
    """Runs chat.py on lines of input."""

    def call(lines: list[str], *arguments: object, stdin: type[io.StringIO] = io.StringIO):
        monkeypatch.setattr("sys.stdin", stdin("\n".join(lines)))
        return run(*arguments, "--max-new-tokens", 12)

    return call


def expected(checkpoint: Path, turns: list[tuple[str, list[str]]]) -> list[str]:
    """The answers to questions, each with its pictures, by `generate` on the whole conversation each time."""
    model, processor = load_checkpoint(checkpoint, "auto")
    messages, answers = [], []
    for question, pictures in turns:
        content = [{"type": "image", "path": str(checkpoint.parent / name)} for name in pictures]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(ids, skip_special_tokens=True).strip())
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[-1]}]})
    return answers


def test_turns_and_pictures(chat, folder):
    lines = [QUESTIONS[0], "", QUESTIONS[1], f"/image {folder / 'blue.png'}", QUESTIONS[2], "/quit", "never asked"]
    done = chat(lines, folder / "sparse", "--image", folder / "red.png")
    turns = [(QUESTIONS[0], ["red.png"]), (QUESTIONS[1], []), (QUESTIONS[2], ["blue.png"])]
    assert done.returncode == 0, done.stderr
    assert [line.strip() for line in done.stdout.splitlines()] == expected(folder / "sparse", turns)
    assert done.stderr.count(" s to the first token") == 3


@pytest.mark.slow
def test_a_conversation_begins_anew_and_the_dense_model_answers_beside(chat, folder):
    lines = [QUESTIONS[1], "/reset", f"/image {folder / 'blue.png'}", QUESTIONS[2]]
    done = chat(lines, folder / "sparse", "--dense", folder / "dense", "--image", folder / "red.png")
    turns = [(QUESTIONS[1], ["red.png"])], [(QUESTIONS[2], ["blue.png"])]
    answers = {name: [expected(folder / name, turn)[0] for turn in turns] for name in ("dense", "sparse")}
    said = [f"{name}: {answers[name][turn]}" for turn in (0, 1) for name in ("dense", "sparse")]
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == said
    assert answers["dense"] != answers["sparse"], "two models that answer alike prove nothing"


@pytest.mark.parametrize(
    "lines, message",
    [
        (["/picture a.png"], "/picture: no such command, allowed: /image PATH, /reset, /quit"),
        (["/image absent.png"], "absent.png"),
        (["/image"], "/image: got no path, expected /image PATH"),
        (["What is <image> ?"], "a question holds <image>, which stands for a picture here"),
        (["what \udcff"], "the input is not UTF-8 text"),
        ([" ".join(["what"] * 5000)], r"the conversation has 5,"),
    ],
)
def test_a_mistake_ends_a_script(chat, folder, lines, message):
    done = chat([*lines, "Is there a circle ?"], folder / "sparse")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def test_at_a_terminal_a_mistake_is_told_and_the_conversation_goes_on(chat, folder):
    done = chat(["/picture", QUESTIONS[0]], folder / "sparse", "--image", folder / "red.png", stdin=Terminal)
    assert done.returncode == 0 and "error: /picture: no such command" in done.stderr
    (answer,) = expected(folder / "sparse", [(QUESTIONS[0], ["red.png"])])
    assert done.stdout.startswith("> > ") and answer in done.stdout


def test_input_that_is_no_text_or_closed(run, folder, monkeypatch):
    for stdin, message in (
        (io.TextIOWrapper(io.BytesIO(b"what \xff\n"), encoding="utf-8"), "the input is not UTF-8 text"),
        (None, "the input is closed"),
    ):
        monkeypatch.setattr("sys.stdin", stdin)
        done = run(folder / "sparse")
        assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_a_path_may_have_spaces(folder):
    (folder / "a red one.png").write_bytes((folder / "red.png").read_bytes())
    take = runpy.run_path(str(SCRIPT))["take"]
    (picture,) = take(f"/image\t{folder / 'a red one.png'}", [], {}, 12)
    assert picture.size == (64, 48)


def test_a_template_that_refuses_is_one_line(folder):
    model, processor = load_checkpoint(folder / "sparse", "auto")
    processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    conversation = runpy.run_path(str(SCRIPT))["Conversation"](model, processor)
    with pytest.raises(UserError, match=r"refuses this conversation \(roles must alternate\)"):
        conversation.ask("what", [], 12)

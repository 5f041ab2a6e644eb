"""scripts/serve.py answers requests about pictures as `generate` does."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from checkpoints.build import build_student, load_dense
from checkpoints.export import export_checkpoint
from checkpoints.load import load_checkpoint
from data.shapes.world import SplitSettings, WorldSettings, write_world
from data.sources.reading import load_samples
from data.sources.source import Source
from modeling.visual_plan import VisualPlan
from scripts.sparsify import probe_batch
from tests.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
TINY_LLAVA = ROOT / "checkpoints" / "tiny-llava"
PLAN = VisualPlan.dense(8).replace(2, ffn=0).replace(3, attend=False, ffn=32).replace(5, tokens=0.3)
START_SECONDS = 120


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A sparse checkpoint."""
    dense, processor = load_dense(TINY_LLAVA, "float32")
    folder = tmp_path_factory.mktemp("serve") / "checkpoint"
    export_checkpoint(build_student(dense, PLAN), processor, folder, card="", probe=probe_batch(processor))
    return folder


@pytest.fixture
def served(checkpoint, tmp_path):
    """The address of a server of the checkpoint."""
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, ROOT / "scripts" / "serve.py", checkpoint, "--port", port, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    with log.open("w") as output:
        server = subprocess.Popen(list(map(str, command)), env=environment, stdout=output, stderr=output)
    try:
        while not answers(address):
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health").status == 200
    except urllib.error.URLError:
        return False


def ask(address: str, question: str, picture: Path) -> str:
    """The answer to a question about a picture, which is sent in the request."""
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def generate(model, processor, question: str, picture: Path) -> str:
    """The same by `generate`."""
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(answer, skip_special_tokens=True)


@pytest.mark.slow
def test_questions_about_pictures_are_answered_over_http(served, checkpoint, tmp_path):
    world = WorldSettings(seed=9, splits={"test": SplitSettings(part="test", rows=24)})
    path = write_world(tmp_path, world)["test"]
    samples, _ = load_samples(Source(path=path, images=path.parent))
    asked = [(sample.turns[0][0].removeprefix("<image>\n"), sample.images[0]) for sample in samples]
    answered = [ask(served, *question) for question in asked]
    model, processor = load_checkpoint(checkpoint, "auto")
    assert answered == [generate(model, processor, *question) for question in asked]
    assert len(set(answered)) > 6


def test_missing_packages_are_named(run_script, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    done = run_script("serve.py", "checkpoint")
    assert done.returncode == 2
    assert done.stderr == "error: serving needs FastAPI, uvicorn and openai: pip install 'squint[serve]'\n"

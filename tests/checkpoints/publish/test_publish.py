"""A checkpoint is published on a small Hub, and comes back as the same model in a fresh process."""

import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from checkpoints.build import build_student
from checkpoints.card import Licence, model_card
from checkpoints.export import export_checkpoint
from checkpoints.publish import publish as publishing
from checkpoints.publish.hub import Destination
from checkpoints.publish.publish import Origin, publish
from modeling.layer_plan import LayerPlan
from modeling.user_error import UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.tiny_dense import tiny_batch, tiny_dense
from tests.hub_server import Repo, hub_server
from training.recipe.publish import PublishSettings

ROOT = Path(__file__).resolve().parents[3]
PLAN = VisualPlan(layers=(LayerPlan(heads=(1,), ffn=(5, 60)), LayerPlan(ffn=0), LayerPlan(tokens=0.5)))
CPU = torch.device("cpu")
LICENCE = Licence("apache-2.0")
LICENSED = Origin(LICENCE, base_model="llava-hf/tiny")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, model, probe) of one checkpoint, whose licence its card does not say. Tests do not write there."""
    folder = tmp_path_factory.mktemp("publish") / "checkpoint"
    dense, processor = tiny_dense()
    model, probe = build_student(dense, PLAN), tiny_batch(processor)
    card = model_card("tiny", model.visual_plan, model.config, base_model=str(folder.parent))
    with pytest.MonkeyPatch.context() as patched:  # tests of the export show it
        patched.setattr("checkpoints.export.verify", lambda *arguments: None)
        export_checkpoint(model, processor, folder, card=card, probe=probe)
    return folder, model, probe


@pytest.fixture
def checkpoint(exported, tmp_path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(exported[0], tmp_path / "checkpoint")


def send(folder: Path, destination: Destination | None = None, origin: Origin = LICENSED, **more) -> str | None:
    return publish(folder, destination or Destination("me/tiny"), origin, CPU, print_line=lambda line: None, **more)


def test_a_checkpoint_is_published_whole_and_once(exported, hub):
    folder, *_ = exported
    url = send(folder, Destination("me/tiny", private=True, tag="v1"))
    files = hub.files("me/tiny", "v1")
    assert set(files) == {path.name for path in folder.iterdir()} | {".gitattributes"}
    assert {name for name in files if name in os.listdir(folder) and files[name] != (folder / name).read_bytes()} == {
        "README.md"
    }
    repo = hub.repo("me/tiny")
    assert repo.private and url == f"{hub.address}/me/tiny/commit/{repo.tags['v1']}"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "llava-hf/tiny")
    assert card.data.base_model_relation == "finetune"
    assert 'checkpoint = "me/tiny"' in card.text and "[llava-hf/tiny](https" in card.text

    # The second time nothing is sent but what asks whether anything is to be sent.
    commits, sent = len(repo.commits), len(hub.log)
    assert send(folder, Destination("me/tiny", tag="v1")) == url
    assert len(repo.commits) == commits
    written = [line for line in hub.log[sent:] if line.startswith(("POST", "PUT"))]
    asks = {"/api/validate-yaml", "/api/models/me/tiny/preupload/main", "/me/tiny.git/info/lfs/objects/batch"}
    assert set(written) <= {f"POST {path}" for path in asks}


def test_weights_of_an_earlier_upload_go(checkpoint, hub):
    send(checkpoint)
    hub.repo("me/tiny").commits[hub.repo("me/tiny").branches["main"]]["model-00001-of-00002.safetensors"] = b"old"
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + "\n")
    send(checkpoint)
    assert "model-00001-of-00002.safetensors" not in hub.files("me/tiny") and "model.safetensors" in hub.files(
        "me/tiny"
    )


def test_an_upload_that_broke_is_repeated(exported, hub):
    hub.break_commit = True
    with pytest.raises(UserError, match=r"^me/tiny: the Hub answered 500 \(.*on fire.*\); the same command goes on$"):
        send(exported[0])
    assert set(hub.files("me/tiny")) == {".gitattributes"}, "nothing by halves"
    hub.break_commit = False
    send(exported[0])
    assert "model.safetensors" in hub.files("me/tiny")
    assert sum(line.startswith("PUT") for line in hub.log) == 1, "the weights were there"


def test_a_pull_request_leaves_the_branch(exported, hub):
    hub.repos["models", "other/tiny"] = Repo()
    hub.repo("other/tiny").commit("main", {})
    assert send(exported[0], Destination("other/tiny", pull_request=True)).endswith("/discussions/1")
    assert hub.files("other/tiny") == {} and "config.json" in hub.files("other/tiny", "refs/pr/1")


def test_a_dry_run_sends_nothing(exported, hub):
    assert send(exported[0], dry_run=True) is None
    assert hub.repos == {} and [line for line in hub.log if not line.startswith("GET")] == ["POST /api/validate-yaml"]


# ---- what is refused, each in one line and before anything is sent ----


def as_reader(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")


def with_wrong_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")


def without_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def with_data_set(hub, monkeypatch):
    hub.repos["datasets", "me/tiny"] = Repo()


def with_model(hub, monkeypatch):
    hub.repos["models", "me/tiny"] = repo = Repo()
    repo.tags["v1"] = repo.commit("main", {})
    repo.commit("main", {"config.json": b"{}"})


def with_public_model(hub, monkeypatch):
    hub.repos["models", "me/tiny"] = repo = Repo()
    repo.commit("main", {})


def as_reader_of_model(hub, monkeypatch):
    with_model(hub, monkeypatch)
    as_reader(hub, monkeypatch)


def offline(hub, monkeypatch):
    hub.server_close()


def nothing(hub, monkeypatch):
    pass


TINY = Destination("me/tiny")


@pytest.mark.parametrize(
    "destination, prepare, message",
    [
        (TINY, without_token, r"no token of the Hub: run `hf auth login`, or set HF_TOKEN"),
        (TINY, with_wrong_token, r"the Hub does not know this token \(.*\): run `hf auth login`"),
        (TINY, as_reader_of_model, r"me/tiny: this token has no right to write there \(.*\)"),
        (TINY, as_reader, r"me/tiny: got owner me, allowed for this token: reader; or there is such a model"),
        (TINY, with_data_set, r"me/tiny: is a data set, and a checkpoint is a model"),
        (TINY, offline, r"me/tiny: the Hub at http\S+ does not answer \(.*\)"),
        (Destination("me/tiny", revision="v2"), with_model, r"me/tiny: no such revision"),
        (Destination("me/tiny", revision="v2"), nothing, r"me/tiny: no such model, so it has no revision v2"),
        (Destination("me/tiny", pull_request=True), nothing, r"me/tiny: no such model, so there is nothing to open"),
        (Destination("me/tiny", tag="v1"), with_model, r"me/tiny: tag v1 is taken by commit \w{8}"),
        (Destination("tiny"), nothing, r"tiny: got no owner, expected OWNER/NAME"),
        (Destination("me/t!"), nothing, r"me/t!: not a name on the Hub"),
        (Destination("me/tiny", revision="a", pull_request=True), nothing, r"got a pull request and revision a"),
        (Destination("me/tiny", tag="v1", pull_request=True), nothing, r"me/tiny: got a tag and a pull request"),
        (Destination("me/tiny", private=True), with_public_model, r"me/tiny: is public, and was to be private"),
        (Destination("me/tiny", revision=""), nothing, r"me/tiny: got an empty revision"),
        (Destination("me/tiny", tag="v1..2"), nothing, r"me/tiny: got tag 'v1..2', allowed:"),
        (Destination("me/tiny", tag="v1.lock"), nothing, r"me/tiny: got tag 'v1.lock', allowed:"),
        (Destination("me/tiny", tag="v 1"), nothing, r"me/tiny: got tag 'v 1', allowed:"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:40],
)  # fmt: skip
def test_a_destination_is_refused(exported, hub, monkeypatch, destination, prepare, message):
    prepare(hub, monkeypatch)
    before = {key: dict(repo.branches) for key, repo in hub.repos.items()}
    with pytest.raises(UserError, match=message):
        send(exported[0], destination)
    assert {key: dict(repo.branches) for key, repo in hub.repos.items()} == before


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def write_png(note: str, before: bool = False, size: int = 1):
    """A picture with a note before or behind its pixels."""

    def spoil(folder: Path) -> None:
        note_chunk = (b"tEXt", b"Source\0" + note.encode())
        pixels = (b"IDAT", zlib.compress(b"\0" * 4))
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))]
        chunks += [note_chunk, pixels] if before else [pixels, note_chunk]
        data = b"\x89PNG\r\n\x1a\n"
        for kind, content in (*chunks, (b"IEND", b"")):
            data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        (folder / "picture.png").write_bytes(data)

    return spoil


def hidden(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config.json").write_text("{}")


def header_with_path(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"from": "/home/alice/run"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (write("config.json", '{"model_type": "llava"}'), r"checkpoint: not a sparse checkpoint"),
        (write("optimizer.bin", ""), r"optimizer.bin: is not of a checkpoint, allowed: .safetensors"),
        (write("tokenizer_config.json", '{"a": {"name_or_path": "/data/llm/base"}}'),
         r"tokenizer_config.json: a.name_or_path: got '/data/llm/base', a path"),
        (write("notes.md", "one\nsee ~/runs/7"), r"notes.md: line 2: got '~/runs'"),
        (write("notes.md", "C:\\Users\\alice"), r"notes.md: line 1: got 'C:"),
        (write("notes.md", "by carol-the-user."), r"notes.md: line 1: got 'carol-the-user'"),
        (write("notes.md", "by hf_" + "a" * 34), r"notes.md: line 1: got what looks like a secret, 'hf_aa\.\.\.'"),
        (write("a.py", "'AKIA" + "A" * 16 + "'"), r"a.py: line 1: got what looks like a secret, 'AKIAA\.\.\.'"),
        (write("key.txt", "-----BEGIN OPENSSH PRIVATE KEY-----"), r"key.txt: line 1: got what looks like a secret"),
        (write("carol-the-user.md", ""), r"carol-the-user.md: its name: got 'carol-the-user'"),
        (write("a\nb.md", ""), r"got 'a\\nb.md', allowed: names that can be printed"),
        (hidden, r"got '.git', allowed: names that can be printed and are not hidden"),
        (write_png("/home/alice/run", before=True), r"picture.png: Source: got '/home/alice/run'"),
        (write_png("/home/alice/run"), r"picture.png: Source: got '/home/alice/run'"),
        (write_png("", size=100_000), r"picture.png: is not what its name says \(Image size"),
        (write("picture.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"),
         r"picture.png: is not what its name says"),
        (write("README.md", "---\ntags: 3\n---\n"), r"README.md: not a model card that can be read"),
        (write("other.json", "{"), r"other.json: is not what its name says"),
        (header_with_path, r"model.safetensors: __metadata__.from: got '/home/alice/run'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 16), r"model.safetensors: is not what"),
        (lambda folder: (folder / "a.txt").symlink_to("/etc/passwd"), r"a.txt: is a link"),
        (lambda folder: (folder / "README.md").unlink(), r"README.md: no such model card"),
    ],
)  # fmt: skip
def test_a_folder_is_refused(checkpoint, hub, monkeypatch, spoil, message):
    monkeypatch.setenv("LOGNAME", "carol-the-user")
    spoil(checkpoint)
    with pytest.raises(UserError, match=message):
        send(checkpoint)
    assert hub.log == []


def test_an_unknown_licence_is_refused(exported, hub):
    with pytest.raises(UserError, match=r"README.md: the licence is unknown; name it \(--license"):
        send(exported[0], origin=Origin())
    with pytest.raises(UserError, match=r"got licence 'other' without its name, expected --license-name"):
        send(exported[0], origin=Origin(Licence("other")))
    with pytest.raises(UserError, match=r"got licence 'mit' with a name or a link of its own, which go with 'other'"):
        send(exported[0], origin=Origin(Licence("mit", "mine")))


@pytest.mark.parametrize("origin", [Origin(LICENCE, base_model="./base"), Origin(LICENCE, datasets=("a b",))])
def test_an_origin_that_cannot_be_on_the_hub_is_refused(exported, hub, origin):
    with pytest.raises(UserError, match=r"(\./base|a b): not a name on the Hub"):
        send(exported[0], origin=origin)
    assert hub.log == []


def test_a_name_without_a_licence_is_refused_in_a_recipe():
    assert PublishSettings(repo_id="me/tiny", license="other", license_name="mine").license_name == "mine"
    with pytest.raises(ValueError, match="license_name, license_link: go with license other"):
        PublishSettings(repo_id="me/tiny", license_name="mine")


def test_metadata_that_the_hub_refuses_are_told_before_anything_is_sent(exported, hub):
    with pytest.raises(UserError, match=r"me/tiny: the Hub refuses the card's metadata \(.*must be one of"):
        send(exported[0], origin=Origin(Licence("no-such-licence")))
    assert hub.repos == {}


# ---- in processes of their own ----

LOAD = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    save_file({"logits": model(**load_file(sys.argv[2])).logits}, sys.argv[3])
"""


@pytest.mark.slow
def test_a_killed_upload_is_repeated_and_loads_in_a_fresh_process(exported, tmp_path):
    """The real command line with the reload test, the real client, and a stranger's process at the end."""
    folder, model, probe = exported
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    with hub_server() as server:
        stranger = {**kept, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.address}
        stranger |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        user = {**stranger, "HF_TOKEN": "hf_me", "PYTHONPATH": str(ROOT)}
        command = [
            sys.executable,
            ROOT / "scripts" / "publish.py",
            folder,
            "me/tiny",
            "--license",
            "mit",
            "--tag",
            "v1",
        ]
        command = list(map(str, command))

        server.hang_at_weights = True
        killed = subprocess.Popen(command, env=user, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert server.weights_arrived.wait(120), killed.communicate(timeout=10)[0].decode()
        killed.kill()
        killed.wait()
        assert set(server.files("me/tiny")) == {".gitattributes"}

        server.hang_at_weights = False
        done = subprocess.run(command, env=user, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0 and "published: " in done.stdout, done.stderr
        assert server.files("me/tiny")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        commits = len(server.repo("me/tiny").commits)
        again = subprocess.run(command, env=user, cwd=tmp_path, capture_output=True, text=True)
        assert again.returncode == 0 and len(server.repo("me/tiny").commits) == commits, again.stderr

        save_file({name: value.contiguous() for name, value in probe.items()}, tmp_path / "probe")
        arguments = [sys.executable, "-I", "-c", LOAD, "me/tiny", str(tmp_path / "probe"), str(tmp_path / "logits")]
        loaded = subprocess.run(arguments, env=stranger, cwd=tmp_path, capture_output=True, text=True)
        assert loaded.returncode == 0, loaded.stderr
    with torch.no_grad():
        expected = model(**probe).logits
    torch.testing.assert_close(load_file(tmp_path / "logits")["logits"], expected)


@pytest.mark.slow
def test_a_checkpoint_that_computes_something_else_is_refused(checkpoint):
    """The code in the folder is what strangers run. Here it is not the code that the weights were made for."""
    layer = checkpoint / "sparse_layer.py"
    publishing._check_reload(checkpoint, checkpoint, CPU)
    layer.write_text(layer.read_text().replace("import torch\n", "import nothing_like_this\n", 1))
    with pytest.raises(UserError, match=r"does not pass the reload test: .*nothing_like_this"):
        publishing._check_reload(checkpoint, checkpoint, CPU)

"""The command as users type it, under the deepspeed launcher: ZeRO-2 and ZeRO-3, one process and two, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.load import load_checkpoint
from tests.families.family import TinyFamily
from tests.families.test_families import families
from tests.hub_server import hub_server
from tests.processes import free_port
from training.distillation.callbacks import read_metrics
from training.recipe.file import RECIPES

ROOT = RECIPES.parent
LAUNCHER = Path(sys.executable).with_name("deepspeed")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train(dense_folder, tmp_path_factory):
    """Runs the debug recipe on a random model: train(name, processes, overrides...) gives the run's folder."""
    folder = tmp_path_factory.mktemp("deepspeed")

    def run(name: str, processes: int | None, *overrides: str, env: dict[str, str] | None = None) -> Path:
        launcher = [sys.executable]
        if processes is not None:
            launcher = [LAUNCHER, "--num_gpus", str(processes), "--master_port", str(free_port())]
        command = [
            *launcher,
            ROOT / "train.py",
            "--recipe",
            "debug",
            f"name={name}",
            f"model.path={dense_folder}",
            *overrides,
        ]
        environment = {**os.environ, **(env or {})}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert "Traceback" not in done.stderr, "a rank died on its way out"
        return folder / "runs" / name

    return run


@pytest.fixture(scope="module")
def alone(train) -> Path:
    """The reference: no DeepSpeed, one process."""
    return train("alone", None)


def losses(run: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_metrics(run / "metrics.jsonl") if name in row]


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_zero_trains_like_one_process(train, alone, stage, processes):
    run = train(
        f"zero{stage}_{processes}",
        processes,
        f"training.deepspeed={RECIPES}/deepspeed/zero{stage}.json",
        f"training.micro_batch_size={4 // processes}",
    )
    for name in ("loss", "cross_entropy", "forward_kl"):
        assert losses(run, name) == pytest.approx(losses(alone, name), rel=1e-4, abs=1e-7), name
    exported, expected = (json.loads((one / "result.json").read_text()) for one in (run, alone))
    assert exported["visual_flops"] == expected["visual_flops"]


@pytest.mark.parametrize(("processes", "config"), [(None, f"{RECIPES}/deepspeed/zero2.json"), (1, "null")])
def test_neither_launcher_nor_deepspeed_needs_the_other(train, alone, processes, config):
    run = train(f"apart_{processes}", processes, f"training.deepspeed={config}")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)


@pytest.fixture(scope="module")
def validated_alone(train) -> Path:
    """The reference of a run with held-out samples."""
    return train("validated_alone", None, "validation={num_samples: 5, steps: 2}", "compare=[]")


@pytest.mark.parametrize("stage", [2, 3])
def test_held_out_samples_are_measured_as_by_one_process(train, validated_alone, stage):
    """Three batches of two on two ranks, so that one rank has a batch that does not count."""
    run = train(
        f"validated_{stage}",
        2,
        "validation={num_samples: 5, steps: 2}",
        "compare=[]",
        f"training.deepspeed={RECIPES}/deepspeed/zero{stage}.json",
        "training.micro_batch_size=2",
        f"distillation.keep_answers={'true' if stage == 2 else 'false'}",
    )
    for name in ("loss", "eval_loss", "eval_cross_entropy", "eval_forward_kl"):
        assert losses(run, name) == pytest.approx(losses(validated_alone, name), rel=1e-4, abs=1e-7), name
    assert losses(run, "eval_agreement") == pytest.approx(losses(validated_alone, "eval_agreement"), abs=0.05)
    assert len(losses(run, "eval_loss")) == 2


@pytest.mark.parametrize("stage", [2, 3])
def test_a_sparse_checkpoint_is_taught_by_a_named_dense_model_as_by_one_process(train, alone, dense_folder, stage):
    settings = [f"model.path={alone / 'checkpoint'}", f"model.teacher={dense_folder}", "plan={planner: keep}"]
    one = train(f"taught_alone_{stage}", None, *settings, "compare=[]")
    zero = f"training.deepspeed={RECIPES}/deepspeed/zero{stage}.json"
    two = train(f"taught_{stage}", 2, *settings, "compare=[]", zero, "training.micro_batch_size=2")
    for name in ("loss", "cross_entropy", "forward_kl"):
        assert losses(two, name) == pytest.approx(losses(one, name), rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_races_as_one_process_does(train, stage):
    budget = "budget: {visual_flops: 0.5}"
    candidates = f"{{random: {{planner: random, {budget}, seed: 0}}, yopo: {{planner: yopo, {budget}}}}}"
    settings = [
        f"plan={{planner: race, {budget}, steps: 1, candidates: {candidates}}}",
        "validation={num_samples: 5, steps: 2}",
        "compare=[]",
    ]
    one = train(f"raced_alone_{stage}", None, *settings)
    zero = f"training.deepspeed={RECIPES}/deepspeed/zero{stage}.json"
    two = train(f"raced_{stage}", 2, *settings, zero, "training.micro_batch_size=2")
    found, expected = (json.loads((run / "result.json").read_text())["race"] for run in (two, one))
    assert (found["winner"], found["extra_steps"]) == (expected["winner"], 1)
    for row, other in zip(found["candidates"], expected["candidates"], strict=True):
        assert row["losses"] == pytest.approx(other["losses"], rel=1e-4)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_two_processes_publish_once(train, tmp_path):
    with hub_server() as server:
        hub = {"HF_ENDPOINT": server.address, "HF_TOKEN": "hf_me", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        publish = "publish={repo_id: me/tiny, license: mit, base_model: llava-hf/tiny}"
        run = train("published", 2, publish, "compare=[]", "training.micro_batch_size=2", env=hub)
        assert sum("/commit/" in line for line in server.log) == 1
        weights = (run / "checkpoint" / "model.safetensors").read_bytes()
        assert server.files("me/tiny")["model.safetensors"] == weights


def test_adapters_are_saved_without_a_copy_of_the_frozen_weights(dense_folder, tmp_path):
    """transformers would copy the whole state dict here."""
    script = tmp_path / "train_without_copies.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import deepspeed.checkpoint.utils as utils\n"
        "def refuse(*arguments, **kwargs): raise SystemExit('a copy of the whole state dict')\n"
        "utils.clone_tensors_for_torch_save = refuse\n"
        "import train\n"
        "train.main()\n",
        encoding="utf-8",
    )
    command = [sys.executable, script, "--recipe", "debug", f"model.path={dense_folder}", "compare=[]"]
    command += [f"training.deepspeed={RECIPES}/deepspeed/zero2.json", "training.max_steps=2", "training.save_steps=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    weights = load_file(tmp_path / "runs" / "debug" / "students" / "student" / "weights" / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)
    assert any(value.any() for name, value in weights.items() if "lora_B" in name), "trained adapters"


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16(train, alone, stage):
    run = train(
        f"bf16_{stage}", 1, f"training.deepspeed={RECIPES}/deepspeed/zero{stage}.json", "training.precision=bfloat16"
    )
    assert losses(run) == pytest.approx(losses(alone), rel=0.05)
    assert all(torch.isfinite(torch.tensor(losses(run))))


@pytest.mark.parametrize("processes", [1, 2])
def test_gates_are_learned_by_any_number_of_processes(train, processes):
    plan = {"planner": "gates", "budget": {"visual_flops": 0.3}, "steps": 3, "ffn_blocks": 4, "draws": 2}
    run = train(f"gates_{processes}", processes, f"plan={json.dumps(plan)}", "compare=[]", "training.max_steps=6",
                f"training.micro_batch_size={4 // processes}")  # fmt: skip
    learned = [row for row in read_metrics(run / "gates" / "student" / "trainer" / "metrics.jsonl") if "cost" in row]
    assert [row["step"] for row in learned] == [1, 2, 3]
    # The first step's cost is that of fresh gates, however many processes share the batch.
    assert learned[0]["cost"] == pytest.approx(learned[0]["target"], rel=1e-4)
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in learned)
    assert json.loads((run / "gates" / "student" / "hardening.json").read_text())["cost"] <= 0.3


@families
def test_every_family_goes_from_gates_to_a_checkpoint(train, family: TinyFamily, tmp_path):
    family.dense().save_pretrained(tmp_path / "dense")
    family.processor().save_pretrained(tmp_path / "dense")
    plan = {"planner": "gates", "budget": {"visual_flops": 0.5}, "steps": 2, "ffn_blocks": 4, "draws": 2}
    run = train(
        family.name,
        1,
        f"model.path={tmp_path / 'dense'}",
        f"plan={json.dumps(plan)}",
        "compare=[]",
        "training.max_steps=4",
        f"training.deepspeed={RECIPES}/deepspeed/zero2.json",
    )
    assert len(losses(run)) == 2 and all(torch.isfinite(torch.tensor(losses(run))))
    assert 0 < json.loads((run / "result.json").read_text())["visual_flops"] <= 0.5
    model, _ = load_checkpoint(run / "checkpoint", torch.float32)
    assert model.visual_plan.is_integer

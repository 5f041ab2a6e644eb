"""Writes a sparse checkpoint that stands on its own, and proves it.

A checkpoint is a Hugging Face folder. It holds a config with its own model type and the visual plan, safetensors, the
processor, a model card, and the modelling files, which import nothing but each other, torch and transformers. The
folder is written beside its final place. A fresh process that cannot import this repository loads it and computes
logits. Only if these agree with the logits of the model in memory is the folder renamed into place.

The stock class refuses such a checkpoint. transformers only warns about a foreign `model_type` and would run the model
dense. But it looks up the text model by the type in `text_config`, and it knows no type such as `sparse_llama`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from checkpoints.config import read_config
from checkpoints.families import is_sparse
from checkpoints.whole_folder import whole_folder
from modeling.user_error import UserError

# Largest difference of a logit, relative to the largest logit. The fresh process runs the same code on the same
# weights, so only the order of sums may differ. In half precision, that is one unit in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}

AUTO_CLASSES = ("AutoModel", "AutoModelForMultimodalLM", "AutoModelForPreTraining")
"""Auto classes of transformers that load a checkpoint, beside AutoModelForImageTextToText and AutoConfig."""

SHARD_SIZE = "5GB"
"""Largest weights file. Of larger ones, a download that breaks off loses much, and machines with little memory fail."""
RELOAD = Path(__file__).with_name("reload.py")


def export_checkpoint(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    output_dir: str | os.PathLike,
    *,
    card: str,
    probe: dict[str, Tensor],
    picture: Path | None = None,
) -> None:
    """Writes `model` to `output_dir`, whole and verified, or not at all. Only one process may call it.

    Args:
        model: a sparse model with merged weights and an integer plan. It is put in eval mode.
        output_dir: a folder that is absent, empty, or a sparse checkpoint. A checkpoint is replaced.
        card: text of README.md.
        probe: arguments of the model's forward. The logits for it must be the same here and in the fresh process, which
            uses the same device.
        picture: a file that the card shows. It is copied beside the card.

    Raises:
        UserError: something else stands at `output_dir`.
        RuntimeError: the checkpoint did not load, or gave other logits.
    """
    output_dir = Path(output_dir)
    assert model.visual_plan.is_integer, "served units come first in a checkpoint: permute before export"
    check_output(output_dir)
    model.eval()
    with whole_folder(output_dir) as folder:
        stop_at_end_token(model, processor)
        write_model(model, folder)
        write_processor(processor, type(model).processor_class, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if picture is not None:
            shutil.copyfile(picture, folder / picture.name)
        verify(model, folder, probe)


def check_output(output_dir: Path) -> None:
    """Raises UserError where `output_dir` holds anything but a sparse checkpoint."""
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise UserError(f"{output_dir}: is a file, expected a folder to write a checkpoint to")
    if any(output_dir.iterdir()) and not is_sparse_checkpoint(output_dir):
        raise UserError(f"{output_dir}: not empty and not a sparse checkpoint; choose another folder or empty it")


def is_sparse_checkpoint(folder: Path) -> bool:
    """Returns whether the config in a folder is that of a sparse model."""
    return (folder / "config.json").is_file() and is_sparse(read_config(folder))


def write_model(model: PreTrainedModel, folder: Path) -> None:
    """Writes config, safetensors and modelling files.

    All auto classes load the class that generates. Generic evaluators know only AutoModel, and a base class without a
    head would be of no use to an engine that cannot run two streams.
    """
    cls = type(model)
    cls.config_class.register_for_auto_class()
    cls.register_for_auto_class("AutoModelForImageTextToText")
    model.config.auto_map = dict.fromkeys(AUTO_CLASSES, _auto_name(cls))
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)


def stop_at_end_token(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Adds the tokenizer's end token to those that end a generation: answers end with it in training."""
    settings, tokenizer = model.generation_config, processor.tokenizer
    found = settings.eos_token_id
    end_tokens = [] if found is None else found if isinstance(found, list) else [found]
    if tokenizer.eos_token_id not in (None, *end_tokens):
        settings.eos_token_id = [*end_tokens, tokenizer.eos_token_id]
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id


def write_processor(processor: ProcessorMixin, carried_class: type[ProcessorMixin], folder: Path) -> None:
    """Writes a processor as a checkpoint carries it. It pads prompts on the left, so that rows end where answers begin.

    Args:
        processor: a stock processor. Its tokenizer pads on the left from here on.
        carried_class: what its class is for those who trust the checkpoint's code. The file lies beside the model's.
        folder: the folder of the checkpoint.
    """
    processor.auto_map = {"AutoProcessor": _auto_name(carried_class)}
    tokenizer = processor.tokenizer
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # init_kwargs are what is saved
    processor.save_pretrained(folder)


def _auto_name(cls: type) -> str:
    """Returns a class as an auto_map names it: its file and its name."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def verify(model: PreTrainedModel, folder: Path, probe: dict[str, Tensor]) -> None:
    """Loads `folder` in a fresh process and compares logits.

    Args:
        model: gives the logits that are expected. It is in eval mode.
        probe: arguments of the model's forward.

    Raises:
        RuntimeError: the checkpoint did not load, or gave other logits.
    """
    with torch.no_grad():
        expected = model(**{name: value.to(model.device) for name, value in probe.items()}).logits.float().cpu()
    device = model.device
    with off_accelerator(model):  # which may not hold two copies
        reloaded = fresh_process_logits(folder, probe, device)
    if reloaded.shape != expected.shape:
        raise RuntimeError(
            f"the exported model gives logits of shape {tuple(reloaded.shape)}, the model here {tuple(expected.shape)}"
        )
    difference = ((reloaded - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE[model.dtype]:
        raise RuntimeError(
            f"the exported model gives other logits than the model here: relative difference {difference:.1e}, "
            f"allowed in {model.dtype}: {TOLERANCE[model.dtype]:.0e}"
        )


@contextmanager
def off_accelerator(model: nn.Module) -> Iterator[None]:
    """Inside this context the model is on the CPU, and its memory on an accelerator is free for other processes."""
    device = next(model.parameters()).device
    model.to("cpu")
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
    try:
        yield
    finally:
        model.to(device)


def fresh_process_logits(folder: Path, probe: dict[str, Tensor], device: torch.device) -> Tensor:
    """Returns a checkpoint's logits [B, S, V], float32, on `probe`, computed by a fresh process.

    The process starts in an empty folder and cannot import this repository.

    Raises:
        RuntimeError: the process failed. The message ends with its own error output.
    """
    # The environment is a stranger's. It has no module cache, which could answer with older files, no network, and none
    # of a launcher's variables.
    kept_variables = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SYSTEMROOT")
    environment = {name: os.environ[name] for name in kept_variables if name in os.environ}
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as cwd:
        environment |= {"HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        probe_file, logits_file = Path(home) / "probe.safetensors", Path(home) / "logits.safetensors"
        save_file({name: value.cpu().contiguous() for name, value in probe.items()}, probe_file)
        command = [sys.executable, "-I", RELOAD, folder.resolve(), probe_file, logits_file, device]
        process = subprocess.run(
            list(map(str, command)), cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if process.returncode != 0:
            raise RuntimeError(f"{folder} does not load in a fresh process:\n{process.stderr[-4000:]}")
        return load_file(logits_file)["logits"].float()

"""Measures whole training steps of a sparse student against those of the dense model, in one process.

    python scripts/benchmark_training.py --hidden-size 512 --layers 8 --plan-of runs/tiny_sparse/checkpoint
    python scripts/benchmark_training.py --config recipes/shapes/llava-1.5-7b.json --plan plan.json --dtype bfloat16

All have the same weights, the same batch and the same LoRA, and each step encodes the pictures and ends with AdamW's:

- dense: LoRA on the stock model in `transformers.Trainer`, by its own loss, cross entropy.
- distil: a student in Squint's `DistillationTrainer`, by cross entropy and KL on the answers. The teacher, which is the
  dense model, is run in every step.
- distil_kept: the same with the teacher's answers and the pictures' features kept (`distillation.keep_answers`).

Figures are medians over repeats in which the steps take turns. A speed-up is the median of the ratios of the rounds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from data.collator import pictures_of, predicts_answer
from data.conversations import IGNORE_INDEX
from modeling.class_attention import class_attention_of
from modeling.user_error import UserError
from modeling.visual_flops import DecoderShape, visual_fraction
from modeling.visual_plan import VisualPlan
from training.cli import run
from training.distillation.lora import add_lora
from training.distillation.teacher_answers import CLASS_ATTENTION, FEATURES
from training.distillation.trainer import DistillationTrainer
from training.files import write_json
from training.measure.clock.benchmark import stock_twin
from training.measure.clock.prompt import Prompt
from training.measure.clock.shapes import carried_plan, random_model, shape_of_file, shape_of_sizes
from training.measure.clock.timing import spread
from training.recipe.distillation import DistillationSettings
from training.recipe.lora import LoraSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"]
ANSWER_TOKENS = 16


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--config", type=Path, help="random weights in the shape of this config JSON")
    shape.add_argument("--hidden-size", type=int, help="random weights in a shape of this width; see --layers")
    parser.add_argument("--layers", type=int, default=8, help="decoder layers, with --hidden-size (default 8)")
    parser.add_argument(
        "--visual-tokens", type=int, default=576, help="a square number, with --hidden-size (default 576)"
    )
    plan = parser.add_mutually_exclusive_group(required=True)
    plan.add_argument("--plan", type=Path, help="plan file for the shape")
    plan.add_argument(
        "--plan-of", type=Path, help="folder of a sparse checkpoint whose plan's fractions the shape takes"
    )
    parser.add_argument("--text-tokens", type=int, default=64, help="per sample, answer included (default 64)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples per step, one picture each (default 4)")
    parser.add_argument("--rank", type=int, default=64, help="of LoRA (default 64)")
    parser.add_argument("--repeats", type=int, default=5, help="steps timed of each (default 5)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: a GPU if there is one",
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for name in ("batch_size", "rank", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, allowed: 1 or more")
    if arguments.text_tokens <= ANSWER_TOKENS:
        raise UserError(
            f"--text-tokens: got {arguments.text_tokens}, allowed: more than the {ANSWER_TOKENS} of the answer"
        )
    if arguments.config:
        shape = shape_of_file(arguments.config)
    else:
        shape = shape_of_sizes(arguments.hidden_size, arguments.layers, arguments.visual_tokens)
    plan = VisualPlan.load(arguments.plan) if arguments.plan else carried_plan(arguments.plan_of, shape)
    sparse = random_model(shape, plan, DTYPES[arguments.dtype], arguments.device)
    prompt = Prompt.random(sparse, arguments.batch_size, arguments.text_tokens)
    num_tokens = prompt.input_ids.numel()
    fraction = visual_fraction(plan, DecoderShape.from_config(shape.text_config), prompt.images[:1])
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(sparse, prompt, arguments.rank, training_arguments(arguments, Path(folder)))
        seconds, memory = interleaved(steps, arguments.repeats, torch.device(arguments.device))
    report = {
        "visual_flops": fraction,
        "batch_size": arguments.batch_size,
        "tokens": num_tokens,
        "step_seconds": {name: spread(values) for name, values in seconds.items()},
        "step_memory_bytes": memory,
        "speedup": {
            name: spread([dense / own for dense, own in zip(seconds["dense"], values, strict=True)])
            for name, values in seconds.items()
            if name != "dense"
        },
    }
    print(f"{report['visual_flops']:.1%} of the visual FLOPs, {num_tokens} tokens a step")
    for name, values in report["step_seconds"].items():
        print(f"{name}: {summary(values)} s per step, {num_tokens / values['median']:.0f} tokens per second", end="")
        print(f", {memory[name] / 2**30:.2f} GiB above the weights" if memory[name] else "")
    for name, values in report["speedup"].items():
        print(f"{name}: {summary(values)} times as fast as dense")
    if arguments.json:
        write_json(arguments.json, report)


def summary(values: dict[str, float]) -> str:
    return f"{values['median']:.3f} ({values['least']:.3f} to {values['greatest']:.3f})"


def training_arguments(arguments: argparse.Namespace, folder: Path) -> TrainingArguments:
    """Returns the arguments of both trainers. No step saves or logs."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=1e-4,
        bf16=arguments.dtype == "bfloat16",
        use_cpu=arguments.device == "cpu",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )


def make_steps(
    sparse: PreTrainedModel, prompt: Prompt, rank: int, arguments: TrainingArguments
) -> dict[str, Callable[[], None]]:
    """Returns one whole training step of each kind by name, over the same base weights."""
    labels = torch.full_like(prompt.input_ids, IGNORE_INDEX)
    labels[:, -ANSWER_TOKENS:] = prompt.input_ids[:, -ANSWER_TOKENS:]
    text = {"input_ids": prompt.input_ids, "attention_mask": torch.ones_like(prompt.input_ids), "labels": labels}
    batch = {**text, **prompt.pictures}
    dense = get_peft_model(
        stock_twin(sparse), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=decoder_projections())
    )
    kept = {**text, **kept_answers(sparse, batch)}
    student = add_lora(sparse, LoraSettings(rank=rank, alpha=2 * rank))
    losses = {"cross_entropy_weight": 0.5, "forward_kl_weight": 1.0}
    distil = DistillationTrainer(model=student, args=arguments, distillation=DistillationSettings(**losses))
    distil_kept = DistillationTrainer(
        model=student, args=arguments, distillation=DistillationSettings(**losses, keep_answers=True)
    )
    stock_batch = {**batch, **sparse.stock_inputs(sparse.config, prompt.input_ids)}
    return {
        "dense": whole_step(Trainer(model=dense, args=arguments), stock_batch),
        "distil": whole_step(distil, batch),
        "distil_kept": whole_step(distil_kept, kept),
    }


@torch.no_grad()
def kept_answers(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what a batch has in place of pictures where answers are kept. The teacher's logits are random."""
    encoded = model.encode_pictures(pictures_of(batch))
    kept = {name: value for name, value in encoded.items() if name != "mm_encoder_outputs"}
    for kind, output in encoded["mm_encoder_outputs"].items():
        kept[FEATURES + kind] = torch.cat([features.flatten(0, -2) for features in output.pooler_output])
        if (scores := class_attention_of(output)) is not None:
            kept[CLASS_ATTENTION + kind] = scores
    num_answers = int(predicts_answer(batch["labels"]).sum())
    vocab_size = model.config.text_config.vocab_size
    return {**kept, "teacher_logits": torch.randn(num_answers, vocab_size, dtype=model.dtype, device=model.device)}


def decoder_projections() -> str:
    """Returns a pattern, as peft takes it, for the projections of the stock model's text decoder."""
    return rf".*language_model.*\.({'|'.join(PROJECTIONS)})"


def whole_step(trainer: Trainer, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Returns a function that takes one step of a trainer: forward and backward passes, clipping and AdamW.

    The trainer's model computes in the trainer's precision from then on, as in a training.
    """
    model, optimizer = trainer.accelerator.prepare_model(trainer.model), trainer.create_optimizer()
    trained: list[nn.Parameter] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_answers = (batch["labels"] != IGNORE_INDEX).sum()

    def step() -> None:
        trainer.training_step(model, batch, num_answers)
        nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def interleaved(
    steps: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Returns the seconds of each step, `repeats` times in turn, and the bytes that it needs above what is there.

    A first round is not counted. A CPU does not tell its memory.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    memory: dict[str, int | None] = dict.fromkeys(steps)
    for turn in range(repeats + 1):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                memory[name] = torch.cuda.max_memory_allocated(device) - before
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds, memory


if __name__ == "__main__":
    run(main)

"""Measures a training step of a sparse student against one of the dense model, in one process.

Both have the same weights, the same batch and the same LoRA.

    python scripts/benchmark_training.py --hidden-size 512 --layers 8 --plan-of runs/tiny_sparse/checkpoint
    python scripts/benchmark_training.py --config recipes/shapes/llava-1.5-7b.json --plan plan.json --dtype bfloat16

The sparse step is that of distillation: cross entropy and KL on the answers. The teacher's logits are given, as they
would be by a cache, so its forward is left out. The dense step trains LoRA on the stock model by cross entropy. Both
compute logits on the answers alone. Figures are medians over repeats in which the two steps alternate.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from modeling.user_error import UserError
from modeling.visual_flops import DecoderShape, visual_fraction
from modeling.visual_plan import VisualPlan
from training.cli import run
from training.distillation.lora import add_lora
from training.distillation.losses import cross_entropy, forward_kl
from training.files import write_json
from training.measure.benchmark import stock_twin
from training.measure.benchmark_prompt import Prompt
from training.measure.benchmark_shapes import carried_plan, random_model, shape_of_file, shape_of_sizes
from training.measure.timing import spread
from training.recipe.lora import LoraSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ANSWER_TOKENS = 16


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--config", type=Path, help="random weights in the shape of this LLaVA config JSON")
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
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU if there is one"
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
    steps = make_steps(sparse, prompt, arguments.rank)

    seconds = interleaved_seconds(steps, arguments.repeats, torch.device(arguments.device))
    speedup = statistics.median(seconds["dense"]) / statistics.median(seconds["sparse"])
    decoder = DecoderShape.from_config(shape.text_config)
    report = {
        "visual_flops": visual_fraction(plan, decoder, prompt.images[:1]),
        "batch_size": arguments.batch_size,
        "step_seconds": {name: spread(values) for name, values in seconds.items()},
        "speedup": speedup,
    }
    for name, values in report["step_seconds"].items():
        print(f"{name}: {values['median']:.3f} s per step ({values['least']:.3f} to {values['greatest']:.3f})")
    print(f"{report['visual_flops']:.1%} of the visual FLOPs: a training step is {speedup:.2f} times as fast")
    if arguments.json:
        write_json(arguments.json, report)


def make_steps(sparse: nn.Module, prompt: Prompt, rank: int) -> dict[str, Callable[[], None]]:
    """Returns one optimizer step for each model, "dense" and "sparse", over the same base weights."""
    dense = get_peft_model(
        stock_twin(sparse), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=decoder_projections())
    )
    student = add_lora(sparse, LoraSettings(rank=rank, alpha=2 * rank))
    supervised = torch.zeros_like(prompt.visual_mask)
    supervised[:, -ANSWER_TOKENS - 1 : -1] = True
    targets = prompt.input_ids[:, -ANSWER_TOKENS:].flatten()
    inputs = {"input_ids": prompt.input_ids, **prompt.pictures, "use_cache": False}
    vocab_size = sparse.config.text_config.vocab_size
    teacher_logits = torch.randn(len(targets), vocab_size, dtype=sparse.dtype, device=sparse.device)

    def dense_loss() -> torch.Tensor:
        model = dense.get_base_model()
        return cross_entropy(model.lm_head(model.model(**inputs).last_hidden_state[supervised]), targets)

    def sparse_loss() -> torch.Tensor:
        logits = student(**inputs, logits_mask=supervised).logits
        return cross_entropy(logits, targets) + forward_kl(logits, teacher_logits, distill_temperature=1.0)

    return {"dense": optimizer_step(dense, dense_loss), "sparse": optimizer_step(student, sparse_loss)}


def decoder_projections() -> str:
    """Returns a pattern, as peft takes it, for the projections of the stock model's text decoder."""
    return rf".*language_model.*\.({'|'.join(PROJECTIONS)})"


def optimizer_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Returns a function that takes one step of AdamW on the parameters of `model` that are trained."""
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def interleaved_seconds(
    steps: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Returns the seconds of each step, `repeats` times in turn. A first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    run(main)

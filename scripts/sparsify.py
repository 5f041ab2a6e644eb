"""Applies a visual plan to a dense model, without training, and writes the sparse checkpoint.

python scripts/sparsify.py --model DENSE --plan PLAN.json --output DIR
"""

import argparse
from pathlib import Path

from checkpoints.build import build_student, dense_config, load_dense
from checkpoints.card import base_license, cost_table, model_card
from checkpoints.export import check_output, export_checkpoint
from checkpoints.probe import probe_batch
from modeling.visual_plan import VisualPlan
from training import cli
from training.files import writing


def main() -> None:
    args = parse_args()
    plan = VisualPlan.load(args.plan)
    # Everything that can be refused without the weights is refused before they are read.
    check_output(args.output)
    text = dense_config(args.model).text_config
    plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)

    dense, processor = load_dense(args.model, args.dtype, trust_remote_code=args.trust_remote_code)
    student = build_student(dense, plan)
    card = model_card(
        args.output.name,
        student.visual_plan,
        student.config,
        base_model=args.model,
        base_license=base_license(args.model),
    )
    with writing(args.output):
        export_checkpoint(student, processor, args.output, card=card, probe=probe_batch(processor))
    print(cost_table(student.visual_plan, student.config))
    print(f"\nwritten and verified: {args.output}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="dense model: a folder or a model id on the Hub")
    parser.add_argument("--plan", required=True, type=Path, help="plan file (JSON)")
    parser.add_argument(
        "--output", required=True, type=Path, help="folder to write; absent, empty, or a sparse checkpoint"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: as stored"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="lets the processor run code that comes with it"
    )
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)

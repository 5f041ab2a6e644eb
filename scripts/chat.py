"""A conversation about pictures with a checkpoint, dense or sparse.

    python scripts/chat.py runs/tiny_sparse/checkpoint --image picture.png
    python scripts/chat.py DIR --dense DENSE                       # each question is answered by both
    printf '/image picture.png\\nIs there a red circle?\\n' | python scripts/chat.py DIR > answers.txt

A line is a question. `/image PATH` shows a picture with the next question, `/reset` begins anew, `/quit` ends. Answers
are greedy and come as they are made. After each, stderr has the time to its first token and the tokens per second.
Every turn reads the whole conversation again. Where input is no terminal, the first mistake ends it with code 2.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin, TextStreamer

from checkpoints.export import stop_at_end_token
from checkpoints.families import sparse_class
from checkpoints.load import load_checkpoint
from data.images import open_image
from modeling.user_error import UserError
from training.cli import run
from training.run import device


class TimedStreamer(TextStreamer):
    """Prints an answer as it is made, and notes when its tokens came."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.start = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, then token by token."""
        is_prompt = self.next_tokens_are_prompt
        super().put(value)
        if not is_prompt:
            self.times.append(time.perf_counter())

    def in_words(self) -> str:
        """Returns how fast the answer came."""
        count, first = len(self.times), self.times[0]
        rate = f", {(count - 1) / (self.times[-1] - first):.1f} tokens/s" if count > 1 else ""
        return f"{first - self.start:.2f} s to the first token{rate}, {count} tokens"


@dataclass
class Conversation:
    """What was said with one model. Its answers are its own, so each model has its own conversation."""

    model: PreTrainedModel
    processor: ProcessorMixin
    messages: list[dict] = field(default_factory=list)

    def ask(self, question: str, pictures: list[Image.Image], max_new_tokens: int) -> TimedStreamer:
        """Prints the answer as it is made, and keeps both.

        Raises:
            UserError: the question holds the token that stands for a picture, the processor refuses the conversation,
                or it and the longest answer are longer than the model can read.
        """
        for kind in sparse_class(self.model.config).visual_tokens(self.model.config):
            token = getattr(self.processor, f"{kind}_token")
            if token in question:
                raise UserError(f"a question holds {token}, which stands for a picture here; /image PATH shows one")
        content = [{"type": "image", "image": picture} for picture in pictures]
        asked = [*self.messages, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        try:
            inputs = self.processor.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device, self.model.dtype)
        except (ValueError, TemplateError) as error:
            raise UserError(f"the model's processor refuses this conversation ({error})") from None
        length, config = inputs["input_ids"].shape[1], self.model.config
        longest = config.text_config.max_position_embeddings
        if length + max_new_tokens > longest:
            raise UserError(
                f"the conversation has {length:,} tokens and the answer up to {max_new_tokens:,}, allowed: "
                f"{longest:,} together; /reset begins anew"
            )
        stock_inputs = sparse_class(config).stock_inputs(config, inputs["input_ids"])
        streamer = TimedStreamer(self.processor.tokenizer)
        generated = self.model.generate(
            **{**inputs, **stock_inputs}, do_sample=False, max_new_tokens=max_new_tokens, streamer=streamer
        )
        answer = self.processor.decode(generated[0, length:], skip_special_tokens=True).strip()
        self.messages = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        return streamer


def main() -> None:
    arguments = parse_arguments()
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: got {arguments.max_new_tokens}, allowed: 1 or more")
    if sys.stdin is None:
        raise UserError("the input is closed, expected a terminal, a file or a pipe with questions")
    pictures = [open_image(path) for path in arguments.image]
    paths = (
        {"dense": arguments.dense, "sparse": arguments.checkpoint} if arguments.dense else {"": arguments.checkpoint}
    )
    models = {name: load(path, arguments) for name, path in paths.items()}
    at_terminal = sys.stdin.isatty()
    while (line := next_line(at_terminal)) is not None:
        try:
            pictures = take(line.strip(), pictures, models, arguments.max_new_tokens)
        except UserError as error:
            if not at_terminal:
                raise
            print(f"error: {error}", file=sys.stderr)
        except EOFError:
            return


def load(path: str, arguments: argparse.Namespace) -> Conversation:
    """Loads a model for a conversation. Raises UserError as `load_checkpoint`, or if it has no chat template."""
    model, processor = load_checkpoint(path, arguments.dtype, arguments.trust_remote_code)
    if processor.chat_template is None and processor.tokenizer.chat_template is None:
        raise UserError(f"{path}: has no chat template, which says how a conversation is written for it")
    stop_at_end_token(model, processor)
    return Conversation(model.to(device()).eval(), processor)


def next_line(at_terminal: bool) -> str | None:
    """Returns the next line; None at the end of the input. Raises UserError if it is not UTF-8."""
    if at_terminal:
        print("> ", end="", flush=True)
    try:
        line = sys.stdin.readline()
        line.encode()  # in some locales Python reads other bytes as lone surrogates
    except UnicodeError as error:
        raise UserError(f"the input is not UTF-8 text ({error.reason})") from None
    return line or None


def take(
    line: str, pictures: list[Image.Image], models: dict[str, Conversation], max_new_tokens: int
) -> list[Image.Image]:
    """Does what a line says, and returns the pictures that wait for the next question.

    Raises:
        UserError: there is no such command or picture, or the conversation is too long.
        EOFError: the line ends the conversation.
    """
    command, rest = (*line.split(maxsplit=1), "", "")[:2]
    if command == "/quit":
        raise EOFError
    if command == "/reset":
        for conversation in models.values():
            conversation.messages = []
        return []
    if command == "/image":
        if not rest:
            raise UserError("/image: got no path, expected /image PATH")
        return [*pictures, open_image(Path(rest))]
    if command.startswith("/"):
        raise UserError(f"{command}: no such command, allowed: /image PATH, /reset, /quit")
    if not line:
        return pictures
    for name, conversation in models.items():
        if name:
            print(f"{name}: ", end="")
        answered = conversation.ask(line, pictures, max_new_tokens)
        print(f"({answered.in_words()})", file=sys.stderr, flush=True)
    return []


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="DIR", help="folder of a checkpoint, or its name on the Hub")
    parser.add_argument("--image", type=Path, action="append", default=[], help="picture of the first question")
    parser.add_argument("--dense", help="folder of the dense model, which answers each question as well")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: as stored"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the modelling code in the folder")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)

"""A chat template is a program that comes with a checkpoint. It is tried here in a bounded number of steps.

transformers runs templates in Jinja's sandbox, which keeps them from files and from Python. But it lets them run, and
grow their text, without end.
"""

import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.environment import Environment, Template
from jinja2.visitor import NodeTransformer
from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import _compile_jinja_template

from checkpoints.checks.folder import MOST_TEMPLATE
from modeling.user_error import UserError

MOST_STEPS = 20_000
"""Steps of a template on a short conversation: passes of loops, calls, and numbers in a range."""
MOST_SIZE = 2**15
"""Longest text or list, and most bits of a number, that a template may make on its way."""
TOO_LARGE = f"makes a text, a list or a number larger than {MOST_SIZE:,}"
TEXTS = ("a question", "an answer", "another question")
_WIDTH = re.compile(r"[%:][^\s%:]{0,9}\d{5}")
"""In a text that is a format: a width of 10,000 and more."""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def check_templates(path: str | os.PathLike, processor: ProcessorMixin) -> None:
    """Raises UserError where a chat template of a processor or its tokenizer is none, or does not come to an end.

    A template that refuses the conversations tried here is left to those who apply it.

    Args:
        path: where the processor was read, which messages begin with.
    """
    for owner in (processor, processor.tokenizer):
        found = getattr(owner, "chat_template", None)
        for name, text in found.items() if isinstance(found, dict) else [("", found)]:
            complaint = None if text is None else _complaint(text)
            if complaint is not None:
                raise UserError(f"{path}: chat template {name}: {complaint}")


@lru_cache(maxsize=64)
def _complaint(text: str) -> str | None:
    """Returns what is wrong with a template; None if nothing is."""
    if not isinstance(text, str) or len(text) > MOST_TEMPLATE:
        return f"got {str(text)[:40]!r}, allowed: a text of up to {MOST_TEMPLATE:,} characters"
    try:
        for messages in _conversations():
            _render(text, messages)
    except UserError as error:
        return str(error)
    except TemplateSyntaxError as error:
        return f"is no Jinja ({error})"
    except RecursionError:
        return "is nested too deep, or calls itself without end"
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
        return None  # it refuses this conversation
    return None


def _conversations() -> Iterator[list[dict]]:
    """Yields a conversation with a picture, and one of plain texts with a system message."""
    roles = ("user", "assistant", "user")
    parts = [[{"type": "text", "text": text}] for text in TEXTS]
    parts[0].insert(0, {"type": "image"})
    yield [{"role": role, "content": content} for role, content in zip(roles, parts, strict=True)]
    yield [
        {"role": "system", "content": "a rule"},
        *({"role": role, "content": text} for role, text in zip(roles, TEXTS, strict=True)),
    ]


def _render(text: str, messages: list[dict]) -> None:
    """Renders a template as transformers does, and counts.

    Raises:
        UserError: it takes more than MOST_STEPS steps, or makes something larger than MOST_SIZE.
        TemplateError and others: as the template does.
    """
    environment = _counting_environment()
    tree = _Bounded().visit(environment.parse(text))
    # Constants are not worked out ahead: that would be steps that nobody counts.
    code = environment.compile(tree)
    template = Template.from_code(environment, code, environment.globals)  # type: ignore[arg-type]
    template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **TOKENS)


def _counting_environment() -> Environment:
    """Returns transformers' environment of templates. In it, loops, calls, filters and operators are bounded."""
    steps = 0

    def count(number: int = 1) -> None:
        nonlocal steps
        steps += number
        if steps > MOST_STEPS:
            raise UserError(f"takes more than {MOST_STEPS:,} steps for {len(TEXTS)} short turns")

    def bounded(function: Callable) -> Callable:
        @wraps(function)  # which keeps what Jinja notes of a function
        def counted(*arguments: Any, **named: Any) -> Any:
            count()
            _refuse_wide(arguments, named.values())
            return _small(function(*arguments, **named))

        return counted

    def loop_over(items: Iterable) -> Iterator:
        for item in items:
            count()
            yield item

    def counting_range(*arguments: int) -> range:
        numbers = range(*arguments)
        count(len(numbers))
        return numbers

    theirs = _compile_jinja_template("").environment
    environment = theirs.overlay(optimized=False)
    environment.filters = {name: bounded(function) for name, function in theirs.filters.items()}
    environment.filters |= {_Bounded.LOOP: loop_over, _Bounded.JOIN: bounded(_joined), _Bounded.BLOCK: bounded(str)}
    environment.globals = {**theirs.globals, "range": counting_range}
    environment.intercepted_binops = frozenset(_OPERATORS)
    environment.binop_table = {name: bounded(function) for name, function in _OPERATORS.items()}

    def call(context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        count()
        _refuse_wide((getattr(function, "__self__", None), *arguments), named.values())
        return _small(theirs.call(context, function, *arguments, **named))

    environment.call = call
    return environment


class _Bounded(NodeTransformer):
    """Puts filters into a template: around what loops go over, around blocks that are set, and in the place of `~`."""

    LOOP, BLOCK, JOIN = "_loop_over", "_block", "_joined"

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, self.LOOP)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        self.generic_visit(node)
        node.filter = _filtered(node.filter, self.BLOCK)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), self.JOIN)

    def visit_Name(self, node: nodes.Name) -> nodes.Name:
        if node.name == "lipsum":
            raise UserError("calls lipsum, allowed: what is given to it")
        return node


def _filtered(node: nodes.Expr | None, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=0 if node is None else node.lineno)


def _joined(parts: list) -> str:
    return "".join(map(str, parts))


def _times(left: Any, right: Any) -> Any:
    for sequence, number in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(number, int) and len(sequence) * number > MOST_SIZE:
            raise UserError(TOO_LARGE)
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MOST_SIZE:
        raise UserError(TOO_LARGE)
    return left**right


_OPERATORS = {"+": operator.add, "*": _times, "**": _power, "%": operator.mod}


def _refuse_wide(arguments: Iterable, named: Iterable) -> None:
    """Raises UserError where a call is given a number, or a format with a width, that could make a text too large."""
    for value in (*arguments, *named):
        for part in value if isinstance(value, tuple) else (value,):
            if (isinstance(part, int) and abs(part) > MOST_SIZE) or (isinstance(part, str) and _WIDTH.search(part)):
                raise UserError(TOO_LARGE)


def _small(value: Any) -> Any:
    """Returns what a template has made. Raises UserError if it is larger than MOST_SIZE."""
    size = value.bit_length() if isinstance(value, int) else len(value) if isinstance(value, str | list | tuple) else 0
    if size > MOST_SIZE:
        raise UserError(TOO_LARGE)
    return value

"""Reads YAML that a stranger may have written: texts, numbers, booleans, null, lists and mappings.

Nothing is read that one would have to know YAML well to see: a key that stands twice, a tag, a merge of mappings, a
date. An alias stands for a copy. All that is read is bounded before memory is taken for it.
"""

from typing import Any

import yaml

from modeling.user_error import UserError

MOST_CHARACTERS = 2**16
"""Characters of a text."""
MOST_VALUES = 5_000
"""Keys and values in a text, aliases written out."""
MOST_LEVELS = 24
"""Depth of sections within sections, aliases written out."""
_TYPED = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")}
_TEXT = "tag:yaml.org,2002:str"


def read_yaml(text: str) -> Any:
    """Returns what a YAML text says. Equal parts of it are objects of their own.

    Raises:
        UserError: it is no YAML, holds something that is not read here, or is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"more than {MOST_CHARACTERS} characters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        loader.values = 0
        return None if node is None else loader.value(node)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str):
        super().__init__(text)
        self._levels = self.values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag} is not read", problem_mark=event.start_mark)
        self._count(self._levels, event.start_mark)
        self._levels += 1
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node

    def value(self, node: yaml.Node, level: int = 0) -> Any:
        """Returns what a node says."""
        self._count(level, node.start_mark)
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key, child in node.value:
                mapping[self._new_key(key, mapping)] = self.value(child, level + 1)
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, level + 1) for child in node.value]
        return self._scalar(node)

    def _new_key(self, node: yaml.Node, mapping: dict) -> str:
        if node.tag != _TEXT:
            problem = f"a key is {str(node.value)[:40]!r}, allowed: a text (put quotes around it)"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if node.value in mapping:
            problem = f"the key {node.value!r} stands twice in one section"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node.value

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag not in _TYPED:
            return node.value
        try:
            value = self.construct_object(node)
            fits = not isinstance(value, int) or -(2**63) <= value < 2**63
        except (ValueError, OverflowError):  # it has too many digits, or none
            fits = False
        if not fits:
            problem = f"got {node.value[:40]!r}, allowed: numbers of 64 bits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def _count(self, level: int, mark: yaml.Mark) -> None:
        """Counts a value at a level. It is called for each value as it is written, and again as it is read."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES} values", problem_mark=mark)
        if level > MOST_LEVELS:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_LEVELS} sections in each other", problem_mark=mark)

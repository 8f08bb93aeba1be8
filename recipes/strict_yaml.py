"""A small, strict YAML: because YAML 1.1 reads `no` as false and `12:30` as 750, and aliases can explode.

Mappings, lists, text and integers of YAML 1.2 only. Anchors, aliases, merge keys, tags, directives, tabs, duplicate
keys, several documents and empty values are refused. Every error shows line, column and a caret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import yaml

from ..runtime.errors import RecipeError, nearest

_MAX_DEPTH = 8
_MAX_SHOWN = 100
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_EMPTY = ("", "~", "null", "Null", "NULL")


class _Refused(yaml.MarkedYAMLError):
    """A construct of YAML that this dialect leaves out."""


class _Loader(yaml.SafeLoader):
    """Composes nodes only: nothing is ever constructed from them by PyYAML."""

    depth = 0

    def compose_document(self) -> yaml.Node | None:
        event = self.peek_event()
        if event.version or event.tags:
            raise _Refused(problem="directives are not used here: remove the line", problem_mark=event.start_mark)
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _Refused(problem="anchors and aliases are not used here: write the value out", problem_mark=mark)
        if event.tag is not None:
            raise _Refused(problem=f"tags are not used here: remove {event.tag!r}", problem_mark=mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Refused(problem=f"nested more than {_MAX_DEPTH} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Document:
    """One YAML text; `shown` is how messages name it, `schema` the schema that a message refers to."""

    def __init__(self, shown: str, data: bytes, *, schema: str) -> None:
        self.shown, self.schema = shown, schema
        try:
            self.lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{shown} is not UTF-8 text", found=f"byte {error.start}: {error.reason}") from error
        for row, line in enumerate(self.lines):
            if "\t" in line:
                raise self.error(row, line.index("\t"), "a tab: use spaces")
        self._root = self._compose("\n".join(self.lines))

    def mapping(self) -> Mapping:
        """The document as a mapping."""
        return Node(self, self._root).mapping()

    def error(self, row: int, column: int, problem: str) -> RecipeError:
        """A refusal that points at a place; `row` and `column` count from 0."""
        line = self.lines[row] if row < len(self.lines) else ""
        first = max(0, column - _MAX_SHOWN // 2)
        shown = "".join(c if c.isprintable() else "?" for c in line[first : first + _MAX_SHOWN])
        caret = " " * (column - first) + "^"
        return RecipeError(
            f"{self.shown}:{row + 1}:{column + 1}: {problem}\n    {shown}\n    {caret}",
            fix=f"the keys and values of {self.schema}",
        )

    def _compose(self, text: str) -> yaml.Node:
        try:
            root = yaml.compose(text, _Loader)
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            row = before.count("\n")
            raise self.error(row, len(before) - before.rfind("\n") - 1, "a control character") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            row, column = (mark.line, mark.column) if mark else (0, 0)
            raise self.error(row, column, error.problem or "not YAML") from error
        if root is None:
            raise self.error(0, 0, "the file is empty")
        return root


class Node:
    """A value with its place in the text."""

    def __init__(self, document: Document, node: yaml.Node) -> None:
        self._document, self._node = document, node

    def error(self, problem: str) -> RecipeError:
        """A refusal that points at this value."""
        mark = self._node.start_mark
        return self._document.error(mark.line, mark.column, problem)

    def mapping(self) -> Mapping:
        """This value as a mapping."""
        if not isinstance(self._node, yaml.MappingNode):
            raise self.error(f"expected keys and values, found {self._kind()}")
        return Mapping(self._document, self._node)

    def items(self) -> tuple[Node, ...]:
        """This value as a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            raise self.error(f"expected a list, found {self._kind()}")
        return tuple(Node(self._document, node) for node in self._node.value)

    def text(self, wrong: Callable[[str], str]) -> str:
        """This value as text; `wrong` gives the reason to refuse it, or ""."""
        if not isinstance(self._node, yaml.ScalarNode) or self._is_integer() or self._is_empty():
            raise self.error(f"expected text, found {self._kind()}")
        if reason := wrong(self._node.value):
            raise self.error(reason)
        return self._node.value

    def integer(self, wrong: Callable[[int], str]) -> int:
        """This value as an integer; `wrong` gives the reason to refuse it, or ""."""
        if not self._is_integer():
            raise self.error(f"expected an integer, found {self._kind()}")
        digits = self._node.value.lstrip("+-")
        if len(digits) > 1 and digits.startswith("0"):
            raise self.error(f"a leading zero is octal to some readers: write {int(digits)}")
        value = int(self._node.value)
        if reason := wrong(value):
            raise self.error(reason)
        return value

    def _plain(self) -> bool:
        return isinstance(self._node, yaml.ScalarNode) and self._node.style is None

    def _is_integer(self) -> bool:
        return self._plain() and _INTEGER.fullmatch(self._node.value) is not None

    def _is_empty(self) -> bool:
        return self._plain() and self._node.value in _EMPTY

    def _kind(self) -> str:
        if isinstance(self._node, yaml.MappingNode):
            return "keys and values"
        if isinstance(self._node, yaml.SequenceNode):
            return "a list"
        if self._is_empty():
            return "nothing (leave the key out)"
        return f"the {'integer' if self._is_integer() else 'text'} {self._node.value[:_MAX_SHOWN]!r}"


class Mapping(Node):
    """A mapping with text keys, each of them once."""

    def __init__(self, document: Document, node: yaml.MappingNode) -> None:
        super().__init__(document, node)
        self._keys: dict[str, Node] = {}
        self._values: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = Node(document, key_node)
            name = key.text(_wrong_key)
            if name in self._keys:
                raise key.error(f"the key {name!r} stands here a second time")
            self._keys[name], self._values[name] = key, Node(document, value_node)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Node:
        return self._values[key]

    def error_at(self, key: str, problem: str) -> RecipeError:
        """A refusal that points at a key."""
        return self._keys[key].error(problem)

    def only(self, known: Collection[str]) -> None:
        """Refuse keys that are not among the known ones, with the nearest known name."""
        for name, key in self._keys.items():
            if name not in known:
                raise key.error(f"unknown key {name!r}{nearest(name, known)}")


def _wrong_key(name: str) -> str:
    return "merge keys are not used here: write the values out" if name == "<<" else ""

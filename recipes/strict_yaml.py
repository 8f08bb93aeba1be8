"""A small, strict YAML: because YAML 1.1 reads `no` as false and `12:30` as 750, and aliases can explode.

Mappings, lists, text and integers of YAML 1.2 only. Anchors, aliases, merge keys, tags, directives, tabs, duplicate
keys, several documents and empty values are refused. Every error shows line, column and a caret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import yaml

from ..runtime.errors import RecipeError, Wrong, nearest

T = TypeVar("T")
Judge = Callable[[T], Wrong | str | None]
"""Gives the reason to refuse a value, if there is one."""
_MAX_DEPTH = 8
_MAX_SHOWN = 100
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_EMPTY = ("", "~", "null", "Null", "NULL")


class _Refused(yaml.MarkedYAMLError):
    """A construct of YAML that this dialect refuses."""


class _Loader(yaml.SafeLoader):
    """Composes nodes only; PyYAML constructs no Python objects."""

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
            raise RecipeError(f"expected UTF-8 text in {shown}", found=f"byte {error.start}: {error.reason}") from error
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
            f"cannot read {self.shown}:{row + 1}:{column + 1}: {problem}\n    {shown}\n    {caret}",
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
        return Mapping(self._document, self._need("keys and values"))

    def items(self) -> tuple[Node, ...]:
        """This value as a list."""
        return tuple(Node(self._document, node) for node in self._need("a list").value)

    def text(self, wrong: Judge[str]) -> str:
        """This value as text."""
        return self._judged(self._need("text").value, wrong)

    def integer(self, wrong: Judge[int]) -> int:
        """This value as an integer."""
        text = self._need("an integer").value
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits.startswith("0"):
            raise self.error(f"a leading zero is octal to some readers: write {int(digits)}")
        return self._judged(int(text), wrong)

    def _judged(self, value: T, wrong: Judge[T]) -> T:
        if reason := wrong(value):
            raise self.error(str(reason))
        return value

    def _need(self, kind: str) -> Any:
        """The node, if it is of this kind."""
        found, value = self._kind(), self._node.value
        if found != kind:
            shown = {"text": f"the text {value[:_MAX_SHOWN]!r}", "an integer": f"the integer {value[:_MAX_SHOWN]!r}"}
            raise self.error(f"expected {kind}, found {shown.get(found, found)}")
        return self._node

    def _kind(self) -> str:
        if not isinstance(self._node, yaml.ScalarNode):
            return "keys and values" if isinstance(self._node, yaml.MappingNode) else "a list"
        if self._node.style is None and self._node.value in _EMPTY:
            return "nothing (leave the key out)"
        return "an integer" if self._node.style is None and _INTEGER.fullmatch(self._node.value) else "text"


class Mapping(Node):
    """A mapping with text keys, each of them once."""

    def __init__(self, document: Document, node: yaml.MappingNode) -> None:
        super().__init__(document, node)
        self._entries: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            key = Node(document, key_node)
            name = key.text(_wrong_key)
            if name in self._entries:
                raise key.error(f"the key {name!r} stands here a second time")
            self._entries[name] = key, Node(document, value_node)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Node:
        return self._entries[key][1]

    def error_at(self, key: str, problem: str) -> RecipeError:
        """A refusal that points at a key."""
        return self._entries[key][0].error(problem)

    def only(self, known: Collection[str]) -> None:
        """Check that all keys are known.

        Raises:
            RecipeError: one is not; the message names the nearest known key.
        """
        for name in self._entries:
            if name not in known:
                raise self.error_at(name, f"unknown key {name!r}{nearest(name, known)}")


def _wrong_key(name: str) -> str:
    return "merge keys are not used here: write the values out" if name == "<<" else ""

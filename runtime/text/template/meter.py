"""The budget of one rendering: steps and sizes are paid before they are taken, so that time and memory are bounded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.utils import Namespace, missing
from markupsafe import Markup

from .names import CONSTANT, PRODUCT, QUADRATIC, SHALLOW, SIZED, TEXTUAL

CHARS_LOG2 = 4
"""16 characters cost one unit."""
ELEMENTS_LOG2 = 2
"""4 elements of a new list cost one unit: an element that is a character takes 80 bytes."""
MAX_SIZE = 10_000
"""The largest integer for a width, a precision, a number of columns or of digits."""
MAX_BITS = 64 * 1024
"""The largest integer. Python's division takes quadratic time."""
MAX_NESTING = 100
"""Lists in lists; beyond that, json and repr would recurse too deep."""
MAX_INDENT = 16
MAX_DATE_FORMAT = 1000
_WIDTH = re.compile(r"(?<!\d)\d++(?=[.*A-Za-z%])")
"""A width or precision of a `%` format, or a number of its text that looks like one."""
_NUMBER = re.compile(r"\d+")
_ATOMS = (bool, float, complex, type(None), range, type(missing), Undefined, LoopContext, Macro)
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


class Exhausted(Exception):
    """The budget is used up, or one value is larger than any may be."""


class Refused(Exception):
    """Valid in Jinja2, but not supported here: it is named."""


class Meter:
    """What is left of a budget, and the line of the template that is being evaluated."""

    __slots__ = ("left", "line")

    def __init__(self, fuel: int) -> None:
        self.left, self.line = fuel, 1

    def charge(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise Exhausted("the template needs more steps than its budget has")

    def step(self, line: int) -> None:
        """One node of the template is evaluated."""
        self.line = line
        self.left -= 1
        if self.left < 0:
            raise Exhausted("the template needs more steps than its budget has")

    def made(self, value: Any) -> Any:
        """Pays for a new value and returns it."""
        if isinstance(value, str):
            self.charge(len(value) >> CHARS_LOG2)
        elif isinstance(value, list | tuple | dict):
            self.charge(len(value) >> ELEMENTS_LOG2)
        elif isinstance(value, int):
            bits(value)
        elif isinstance(value, bytes | bytearray | set | frozenset):
            raise Refused(f"a value of type {type(value).__name__}")
        return value

    def text(self, value: Any) -> str:
        """`str(value)`, paid before it is made.

        Raises:
            Refused: the text would hold an address.
        """
        if type(value) is str:
            self.charge(len(value) >> CHARS_LOG2)
            return value
        self.charge(self.weigh(value, text=True))
        return str(value)

    def weigh(self, value: Any, *, text: bool = False) -> int:
        """What it costs to look at all of a value; lists that share a part pay for it each time.

        Raises:
            Refused: `text` is wanted, and a part of the value has none.
        """
        return self.measure(value, text=text)[0]

    def measure(self, value: Any, *, text: bool = False) -> tuple[int, int]:
        """The cost of looking at all of a value, and how deep it nests."""
        if isinstance(value, str):
            return len(value) >> CHARS_LOG2, 0
        units, depth = 0, 0
        levels: list[Iterator[Any]] = [iter((value,))]
        while levels:
            for one in levels[-1]:
                units += 1
                if isinstance(one, str):
                    units += len(one) >> CHARS_LOG2
                elif isinstance(one, list | tuple | _VIEWS[0] | _VIEWS[1]):
                    levels.append(iter(one))
                    break
                elif isinstance(one, dict):
                    levels.append(chain.from_iterable(one.items()))
                    break
                elif isinstance(one, _VIEWS[2]):
                    levels.append(chain.from_iterable(one))
                    break
                elif isinstance(one, range):
                    units += len(one) >> ELEMENTS_LOG2
                elif type(one) is int:
                    units += bits(one) >> 7
                elif isinstance(one, Namespace):
                    levels.append(iter((object.__getattribute__(one, "_Namespace__attrs"),)))
                    break
                elif text and not isinstance(one, _ATOMS):
                    raise Refused(f"the text of a {type(one).__name__}: it is an address")
            else:
                levels.pop()
            if units > self.left:
                raise Exhausted("the template needs more steps than its budget has")
            depth = max(depth, len(levels))
            if depth > MAX_NESTING:
                raise Exhausted(f"values nest deeper than {MAX_NESTING} levels")
        return units, depth

    def items(self, values: Iterable[Any], *, each: int = 0, text: bool = False) -> Iterator[Any]:
        """The items of an iterator, paid one by one."""
        for value in values:
            self.charge(1 + each + self.weigh(value, text=text))
            yield value

    def arguments(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Pays for a filter or `.method`, whose first argument is its value, and for what it is going to make.

        Returns the positional arguments, with iterators replaced by such that pay for each item.
        """
        if name.lstrip(".") in SIZED:
            for size in (*args[1:], *kwargs.values()):
                if isinstance(size, int) and abs(size) > MAX_SIZE:
                    raise Exhausted(f"{name}({size}): at most {MAX_SIZE}")
        if name in SHALLOW:
            if name not in CONSTANT:
                self.charge(_size(args[0]) >> ELEMENTS_LOG2)
            return tuple(args)
        text, each, cost, paid = name in TEXTUAL, 0, 0, []
        if name == "join":
            each = _length(_argument(args, kwargs, 1, "d"))
        elif name == ".join":
            each = len(args[0])
        for index, one in enumerate(args):
            if _is_iterator(one) and (not text or (name, index) == ("join", 0)):
                one = self.items(one, each=each >> CHARS_LOG2, text=text or name == ".join")
            else:
                cost += self.weigh(one, text=text)
            paid.append(one)
        cost += sum(self.weigh(one, text=text) for one in kwargs.values())
        self.charge(cost)
        self._charge_growth(name, args, kwargs, cost)
        return tuple(paid)

    def _charge_growth(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], cost: int) -> None:
        """Pays for a result that may be much larger than its arguments."""
        value = args[0]
        if name in QUADRATIC:
            self.charge(cost * cost)
            self.charge(cost * max(map(_length, (*args[1:], *kwargs.values())), default=0))
        elif name in PRODUCT:
            self.charge(
                (_length(value) >> CHARS_LOG2) * (_length(_argument(args, kwargs, 1, "chars", "sep")) >> CHARS_LOG2)
            )
        elif name == "join":
            self.charge(_size(value) * _length(_argument(args, kwargs, 1, "d")) >> CHARS_LOG2)
        elif name == ".join":
            self.charge(_size(_argument(args, kwargs, 1)) * len(value) >> CHARS_LOG2)
        elif name in ("replace", ".replace"):
            old, new = _argument(args, kwargs, 1, "old"), _argument(args, kwargs, 2, "new")
            self.charge(_string(value).count(_string(old)) * _length(_string(new)) >> CHARS_LOG2)
        elif name == "tojson":
            indent, separators = _argument(args, kwargs, 2, "indent"), _argument(args, kwargs, 3, "separators")
            wide = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
            if abs(wide) > MAX_INDENT:
                raise Exhausted(f"tojson(indent={indent!r}): at most {MAX_INDENT}"[:80])
            between = sum(map(_length, separators)) if isinstance(separators, list | tuple) else 0
            self.charge(cost * (wide * self.measure(value)[1] + between) >> CHARS_LOG2)
        elif name in ("indent", ".expandtabs"):
            width = _argument(args, kwargs, 1, "width", "tabsize")
            wide = len(width) if isinstance(width, str) else width if isinstance(width, int) else 8
            breaks = len(value.splitlines()) + value.count("\t") if isinstance(value, str) else 0
            self.charge(wide * (breaks + 1) >> CHARS_LOG2)
        elif name == ".translate":
            table = _argument(args, kwargs, 1, "table")
            longest = max(map(_length, table.values()), default=0) if isinstance(table, dict) else 0
            self.charge(_length(value) * longest >> CHARS_LOG2)
        elif name == "sum" and isinstance(_argument(args, kwargs, 2, "start"), list | tuple):
            # every `+` copies what came before
            self.charge(cost * _size(value) if hasattr(type(value), "__len__") else self.left + 1)
        elif name == "format" and isinstance(value, str):
            self.formatted(value, kwargs or tuple(args[1:]))

    def product(self, left: Any, right: Any) -> None:
        """Pays for `left * right`."""
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MAX_BITS:
                raise Exhausted(f"an integer of more than {MAX_BITS} bits")
        else:
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    self.charge(len(many) * max(times, 0) >> (CHARS_LOG2 if isinstance(many, str) else ELEMENTS_LOG2))

    def power(self, left: Any, right: Any) -> None:
        """Pays for `left ** right`."""
        integers = isinstance(left, int) and isinstance(right, int)
        if integers and abs(left) > 1 and right > 0 and left.bit_length() * right > MAX_BITS:
            raise Exhausted(f"an integer of more than {MAX_BITS} bits")

    def formatted(self, form: str, values: Any) -> None:
        """Pays for `form % values`."""
        widths = [int(one[-10:]) if len(one.lstrip("0")) <= 10 else MAX_SIZE + 1 for one in _WIDTH.findall(form)]
        if "*" in form:
            widths += [abs(one) for one in (values if isinstance(values, tuple) else ()) if isinstance(one, int)]
        if "%" in form and any(width > MAX_SIZE for width in widths):
            raise Exhausted(f"a width in a format: at most {MAX_SIZE}")
        conversions = form.count("%") if isinstance(values, Mapping) else 1
        markup = 6 if isinstance(form, Markup) else 1
        self.charge(sum(widths) + len(form) * markup >> CHARS_LOG2)
        self.charge(markup * conversions * self.weigh(values, text=True))

    def spec(self, value: Any, spec: str) -> None:
        """Pays for `format(value, spec)`."""
        widths = [int(one[-10:]) if len(one.lstrip("0")) <= 10 else MAX_SIZE + 1 for one in _NUMBER.findall(spec)]
        if any(width > MAX_SIZE for width in widths):
            raise Exhausted(f"a width in a format: at most {MAX_SIZE}")
        self.charge(1 + (sum(widths) >> CHARS_LOG2) + self.weigh(value, text=True))


def bits(value: int) -> int:
    """The length of an integer, which is limited."""
    length = value.bit_length()
    if length > MAX_BITS:
        raise Exhausted(f"an integer of more than {MAX_BITS} bits")
    return length


def _is_iterator(value: Any) -> bool:
    return hasattr(type(value), "__next__") and not isinstance(value, Undefined)


def _size(value: Any) -> int:
    return len(value) if hasattr(type(value), "__len__") else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], index: int, *names: str) -> Any:
    return args[index] if index < len(args) else next((kwargs[name] for name in names if name in kwargs), "")

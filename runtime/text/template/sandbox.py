"""What a template can reach: attributes from a table, functions from a list, and a budget that each call pays from."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Never

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
)
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace, missing
from markupsafe import Markup

from ...errors import RecipeError
from .meter import CHARS_LOG2, ELEMENTS_LOG2, MAX_DATE_FORMAT, Exhausted, Meter, Refused
from .names import FLAT_TESTS, OF_DICT, OF_FLOAT, OF_INT, OF_LOOP, OF_STR, words

MAX_RANGE = 100_000
"""jinja2.sandbox.MAX_RANGE."""
MAX_MESSAGE = 500
"""Characters of an error's message, which a template may have made."""


_GROUP = type(FILTERS["groupby"](ImmutableSandboxedEnvironment(), [{"a": 1}], "a")[0])


class TemplateDict:
    """The `dict` of templates (transformers): a function with `fromkeys`."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(Namespace):
    """The `namespace` of templates (transformers): no name begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        given = dict(*args, **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"cannot store an attribute that begins with an underscore on a namespace: {name!r}")


ATTRIBUTES: dict[type, frozenset[str]] = {
    str: OF_STR,
    Markup: OF_STR | words("escape striptags unescape"),
    **dict.fromkeys((int, bool), OF_INT),
    float: OF_FLOAT,
    complex: words("conjugate imag real"),
    dict: OF_DICT,
    **dict.fromkeys((type({}.keys()), type({}.values()), type({}.items())), words("isdisjoint mapping")),
    list: words("copy count index"),
    tuple: words("count index"),
    range: words("count index start step stop"),
    _GROUP: words("count grouper index list"),
    LoopContext: OF_LOOP,
    Macro: words("arguments caller catch_kwargs catch_varargs explicit_caller name"),
    Cycler: words("current items next pos reset"),
    Joiner: words("sep used"),
    TemplateDict: words("fromkeys"),
}
"""The attributes of every type that a template can hold. What Python has beyond them is refused by name."""


class Generation(Extension):
    """The tag `generation`, which marks answers for training (transformers, AssistantTracker): its body's text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

    def text(self, caller: Macro) -> str:
        return caller()


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers 5.23 (`_cached_compile_jinja_template`), with attributes from a table."""

    meter: Meter

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.filters |= {"tojson": _tojson, "random": _random}
        self.globals |= {
            "range": _range,
            "lipsum": _lipsum,
            "dict": TemplateDict(),
            "namespace": TemplateNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def paying(self, meter: Meter) -> Sandbox:
        """This environment for one rendering."""
        one = copy.copy(self)
        one.meter = meter
        return one

    def getattr(self, obj: Any, attribute: str) -> Any:
        value = self._attribute(obj, attribute)
        if value is not missing:
            return value
        try:
            return obj[attribute]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self.meter.charge(self.meter.weigh(argument))
        try:
            return obj[argument]
        except (TypeError, LookupError):
            value = self._attribute(obj, str(argument)) if isinstance(argument, str) else missing
            # Undefined has another message for a name that is no text
            return self.undefined(obj=obj, name=argument) if value is missing else value  # type: ignore[arg-type]

    def _attribute(self, obj: Any, name: str) -> Any:
        """A value, `missing`, or an Undefined that says what is unsafe."""
        if name in ATTRIBUTES.get(type(obj), ()):
            return _Format(self, obj, name) if name in ("format", "format_map") else getattr(obj, name)
        if isinstance(obj, Namespace | Undefined) and not name.startswith("_"):
            try:
                return getattr(obj, name)
            except AttributeError:
                return missing
        if not hasattr(obj, name):
            return missing
        if not self.is_safe_attribute(obj, name, None):
            return self.unsafe_undefined(obj, name)
        raise Refused(f"{type(obj).__name__}.{name}")

    def invoke(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Calls what a template has got hold of, and pays for it."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str | dict | list | tuple | TemplateDict | LoopContext | range):
            paid = self.meter.arguments(f".{function.__name__}", (owner, *args), kwargs)[1:]
        elif function is _raise_exception:
            paid = tuple(map(self.meter.text, args))
        else:
            for one in (*args, *kwargs.values()):
                self.meter.charge(len(one) >> ELEMENTS_LOG2 if isinstance(one, str | list | tuple | dict) else 0)
            paid = args
        try:
            return self.meter.made(function(*paid, **kwargs))
        except StopIteration:
            return self.undefined("value was undefined because a callable raised a StopIteration exception")

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.invoke(obj, args, kwargs)

    def call_filter(self, name: str, value: Any, args: Any = None, kwargs: Any = None, *rest: Any, **named: Any) -> Any:
        if name not in FILTERS and not isinstance(name, Undefined):
            raise Refused(f"unknown filter: No filter named {name!r}.")
        self.meter.charge(1)
        value, *args = self.meter.arguments(name, (value, *(args or ())), kwargs or {})
        return self.meter.made(super().call_filter(name, value, args, kwargs, *rest, **named))

    def call_test(self, name: str, value: Any, args: Any = None, kwargs: Any = None, *rest: Any, **named: Any) -> Any:
        if name not in TESTS and not isinstance(name, Undefined):
            raise Refused(f"unknown test: No test named {name!r}.")
        self.meter.charge(1)
        if name not in FLAT_TESTS:
            self.meter.charge(self.meter.weigh(value) + sum(map(self.meter.weigh, args or ())))
        return super().call_test(name, value, args, kwargs, *rest, **named)


class _Format:
    """`str.format` and `str.format_map`: fields are read as the template reads attributes, widths are paid."""

    def __init__(self, sandbox: Sandbox, text: str, name: str) -> None:
        self._sandbox, self._text, self._name = sandbox, text, name

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if self._name == "format_map":
            if kwargs or len(args) != 1:
                raise TypeError(f"format_map() takes exactly one argument ({len(args) + len(kwargs)} given)")
            args, kwargs = (), args[0]
        self._sandbox.meter.charge(len(self._text) >> CHARS_LOG2)
        if isinstance(self._text, Markup):
            formatter: SandboxedFormatter = _PaidEscapes(self._sandbox, escape=self._text.escape)
        else:
            formatter = _Paid(self._sandbox)
        return type(self._text)(formatter.vformat(self._text, args, kwargs))


class _Paid(SandboxedFormatter):
    _env: Sandbox

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._env.meter.spec(value, format_spec)
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            self._env.meter.charge(self._env.meter.weigh(value, text=True))
        return super().convert_field(value, conversion)


class _PaidEscapes(_Paid, SandboxedEscapeFormatter):
    pass


def _range(*args: int) -> range:
    found = range(*args)
    if (found.stop - found.start) // found.step > MAX_RANGE:
        raise Exhausted(f"a range of more than {MAX_RANGE} numbers")
    return found


def _raise_exception(message: Any) -> Never:
    fix = "messages that this model's template accepts"
    found = str(message)
    found = found if len(found) <= MAX_MESSAGE else f"{found[:MAX_MESSAGE]}..."
    raise RecipeError("cannot render the chat template", found=found, fix=fix)


def _strftime_now(form: str) -> str:
    if isinstance(form, str) and len(form) > MAX_DATE_FORMAT:
        raise Exhausted(f"strftime_now with {len(form)} characters: at most {MAX_DATE_FORMAT}")
    return datetime.datetime.now().strftime(form)


def _lipsum(*_: Any, **__: Any) -> Never:
    raise Refused("lipsum: its text is random")


def _random(*_: Any, **__: Any) -> Never:
    raise Refused("the filter random: it would not give the same prompt twice")


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter of transformers: json.dumps, without escapes for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

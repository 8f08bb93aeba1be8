"""Structured damage: JSON, protobuf, templates and bytes that are almost right, the same for equal random numbers."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Damage = Callable[[random.Random, bytes], bytes]
"""Makes a case from a seed input."""

_RAW = (
    *("1e999", "-0", "-1", "1E400", "0.1e-999", "1e5", "{}", "[]", "007", "+1", ".5", "NaN", "-Infinity", "nul", "tru"),
    *('"\\ud800"', '"\\u0000"', '"\\x"', "'a'", "//", ",", ":", "]", '{"a":1,"a":2}', '"', "\x00", "\ufeff"),
    *("9" * 400, "9" * 5000, "[" * 2000, '{"a":' * 2000, '"' + "k" * 70_000 + '"'),
)
"""JSON, or almost, that no value of Python becomes."""
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        255,
        256,
        65536,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        10**40,
    ),
    *(
        0.0,
        -0.0,
        0.5,
        1e-310,
        1e308,
        3.0,
        "",
        " ",
        "a",
        "A",
        "\x00",
        "\x1b[31m",
        "\r\n",
        "\u202e",
        "é",
        "日",
        "\U0001f642",
        "\udc80",
    ),
    *(
        "../../x",
        "/etc/passwd",
        "a" * 300,
        "0" * 64,
        "BF16",
        "U8",
        "F32",
        "2.0",
        "__proto__",
        "(?:a+)+$",
        "\\",
        "[",
        "cpu",
    ),
    *([], {}, [[]], [None], [0, 0], {"": ""}, {"type": "Sequence"}, [[0] * 40], {"a": {"a": {"a": {}}}}),
)
_MARK = "\ue000"
"""Stands around the number of a raw text while a document is values."""


def of_json(random: random.Random, seed: bytes) -> bytes:
    """A JSON document after a few edits of its values, and sometimes of its text."""
    box = [json.loads(seed)]
    for _ in range(1 + int(random.expovariate(0.9))):
        _edit_json(random, box)
    text = json.dumps(box[0], ensure_ascii=random.random() < 0.5, separators=(",", ":"))
    text = re.sub(f'"{_MARK}(\\d+){_MARK}"', _raw, text)
    text = re.sub(r'"(?:\\ue000)(\d+)(?:\\ue000)"', _raw, text)
    data = text.encode("utf-8", "surrogatepass")
    return of_bytes(random, data) if random.random() < 0.1 else data


def _raw(found: re.Match[str]) -> str:
    return _RAW[int(found[1]) % len(_RAW)]  # a later edit may have changed the number


def _edit_json(random: random.Random, box: list[Any]) -> None:
    places: list[tuple[Any, Any]] = [(box, 0), *_places(box[0])]
    holder, key = random.choice(places)
    value = holder[key]
    kind = random.randrange(9)
    if kind == 0:
        holder[key] = deepcopy(random.choice(_VALUES))  # the next edits change it
    elif kind == 1:
        holder[key] = f"{_MARK}{random.randrange(len(_RAW))}{_MARK}"
    elif kind == 2 and holder is not box:
        del holder[key]
    elif kind == 3 and isinstance(holder, dict):
        new = random.choice([key + "s", key[:-1], key.upper(), "", "type", "\u202e", *map(str, list(holder)[:3])])
        holder[new] = holder.pop(key)
    elif kind == 4:
        other, at = random.choice(places)
        holder[key] = json.loads(json.dumps(other[at]))
    elif kind == 5 and isinstance(holder, list):
        holder[key:key] = [deepcopy(value) for _ in range(random.choice((1, 1, 2, 40)))]
    elif kind == 6:
        for _ in range(random.choice((1, 3, 70, 300))):
            value = [value] if random.random() < 0.5 else {random.choice(("a", "type", "children")): value}
        holder[key] = value
    elif kind == 7:
        holder[key] = _near(random, value)
    else:
        other, at = random.choice(places)
        other[at], holder[key] = _near(random, value), _near(random, other[at])


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    found, open_ = [], [value]
    while open_:
        one = open_.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], dict | list):
                open_.append(one[key])
    return found


def _near(random: random.Random, value: Any) -> Any:
    """A value of the same type that is a little off; of containers a copy."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return random.choice(
            (value + 1, value - 1, -value, value * 2, value * 10**9, float(value) if abs(value) < 2**60 else 0)
        )
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        piece = random.choice(("", "", " ", "\x00", "\n", "%", "{", "0", "é", "\u0301", "."))
        return value[:at] + piece + value[at + random.randrange(2) :]
    if isinstance(value, list) and value:
        return random.choice((value[::-1], value[1:], value[:-1], value * 2, sorted(map(str, value))))
    return json.loads(json.dumps(value))


def of_bytes(random: random.Random, seed: bytes) -> bytes:
    """Bytes after a few edits: flips, cuts, doublings, insertions."""
    data = bytearray(seed)
    for _ in range(1 + int(random.expovariate(0.7))):
        at = random.randrange(len(data) + 1)
        kind, size = random.randrange(6), 1 + int(random.expovariate(0.1))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + size] = b""
        elif kind == 2:
            data[at:at] = random.randbytes(size)
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            data[at : at + 1] = bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF))])
        elif random.random() < 0.2:
            del data[at:]
    return bytes(data)


def of_onnx(random: random.Random, seed: bytes) -> bytes:
    """A ModelProto after a few edits of any field of any message in it, known or not, and sometimes of its bytes."""
    import onnx

    model = onnx.ModelProto.FromString(seed)
    for _ in range(1 + int(random.expovariate(0.9))):
        _edit_message(random, random.choice(_messages(model)))
    data = model.SerializeToString()
    if random.random() < 0.2:  # a field that onnx does not know, at the end of the outermost message
        number, wire = random.choice((0, 1, 7, 15, 20, 25, 1000, 2**28)), random.randrange(8)
        data += _varint(number << 3 | wire) + _varint(random.choice((0, 1, 2**31, 2**64 - 1))) + random.randbytes(3)
    return of_bytes(random, data) if random.random() < 0.3 else data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _messages(message: Any) -> list[Any]:
    found = [message]
    for one in found:
        for field, value in one.ListFields():
            if field.message_type is not None:
                found += [value] if hasattr(value, "ListFields") else list(value)
    return found


def _edit_message(random: random.Random, message: Any) -> None:
    field = random.choice(message.DESCRIPTOR.fields)
    held = getattr(message, field.name)
    several = hasattr(held, "extend")
    kind = random.randrange(3)
    if kind == 0:
        message.ClearField(field.name)
    elif field.message_type is not None:
        made = held.add() if several else held
        made.SetInParent()
        if several and len(held) > 1:
            made.CopyFrom(random.choice(list(held)[:-1]))
    else:
        value = _scalar(random, field)
        if not several:
            setattr(message, field.name, value)
        elif kind == 1 and held:
            held[random.randrange(len(held))] = value
        else:
            held.extend([value] * random.choice((1, 2, 50)))


def _scalar(random: random.Random, field: Any) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        text = random.choice(
            ("", "x", "Loop", "If", "MatMul", "com.evil", "location", "../../etc/passwd", "\x00", "é", "a" * 9999)
        )
        return text.encode() if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return random.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    if kind == field.CPPTYPE_ENUM:
        return random.choice(field.enum_type.values).number
    number = random.choice((0, 1, 2, 7, 2**31 - 1, 2**40, 2**63 - 1))
    if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32):
        return number % 2**31
    return -number if kind == field.CPPTYPE_INT64 and random.random() < 0.3 else number


_WORD = re.compile(r"\{%-?|-?%\}|\{\{-?|-?\}\}|\w+|\s+|.", re.DOTALL)
_WORDS = re.findall(
    r"\S+",
    """
{% {%- %} -%} {{ }} {# #} if else elif endif for endfor in set endset macro endmacro call filter break
continue raw endraw include import do namespace() ns.x loop.index loop.last loop.previtem messages messages[0]
message.content ['role'] [-1] [::2] [::0] |trim |tojson |length |join(',') |map(attribute='x')
|selectattr('x') |list |string |int |float |replace('a','b') .strip() .split() .format(1) .title() .items()
.__class__ ~ + - * ** / // % and or not is defined none true sequence range(3) range(999999999) 'a'*99999999
9**9999 raise_exception('no') strftime_now('%Y') bos_token 1e999 'é' '\\n' ( ) [ ] { } , : =
""",
)


def of_template(random: random.Random, seed: bytes) -> bytes:
    """A chat template with words dropped, doubled, exchanged and put in."""
    words = _WORD.findall(seed.decode())
    for _ in range(1 + int(random.expovariate(0.5))):
        at, kind = random.randrange(len(words) + 1), random.randrange(4)
        if kind == 0:
            words[at : at + random.choice((1, 1, 5))] = []
        elif kind == 1:
            words[at:at] = [random.choice(_WORDS)]
        elif kind == 2:
            words[at : at + 1] = [random.choice(_WORDS)]
        else:
            start = random.randrange(len(words) + 1)
            words[at:at] = words[start : start + random.choice((1, 3, 9))]
    data = "".join(words).encode()
    return of_bytes(random, data) if random.random() < 0.05 else data

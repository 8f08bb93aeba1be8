"""Reads JSON of untrusted files: refuses duplicate keys, NaN and deep nesting, which the standard reader accepts."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..errors import LlmcError

MIB = 1 << 20
PLACEHOLDERS = (
    (b"version https://git-lfs", "a Git LFS pointer", "git lfs pull (in the folder it came from)"),
    (b"<!doctype", "an HTML page", "download the file again: the server sent a web page"),
    (b"<html", "an HTML page", "download the file again: the server sent a web page"),
    (b"<?xml", "an XML message", "download the file again: the server sent an error"),
)
"""Files that a failed download leaves in place of the real one: first bytes in lower case, description, fix."""
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_ONE_KIND_OF_BRACKET = bytes.maketrans(b"{}", b"[]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LARGEST_DIGITS = 308
"""Digits of integers that every double holds; json.loads alone takes 4300, and a division or `math` of them fails."""
_LONG = b"0" * (_LARGEST_DIGITS + 1)
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_BEYOND = 10**4299
"""The longest integer that Python writes as digits, above every range."""


class _Refused(ValueError):
    """Carries a reason out of the standard reader's hooks."""


def _refuse_large(digits: str) -> Any:
    raise _Refused(f"the number {digits[:40]}{'...' * (len(digits) > 40)}, which is too large")


def clipped(digits: str) -> int | float:
    """The number of these digits, or one above (below) every range in its place, if Python or a double cannot hold it.

    For documents whose values are judged one by one, so that a number which is too large ends its own line only.
    """
    return clipped_int(digits) if digits.lstrip("-").isdecimal() else float(digits)


def clipped_int(digits: str) -> int:
    """The same of the digits of a whole number."""
    try:
        return int(digits)
    except ValueError:
        return -_BEYOND if digits.startswith("-") else _BEYOND


def loads(
    data: bytes | str,
    *,
    what: str,
    error: type[LlmcError],
    max_bytes: int = 16 * MIB,
    max_depth: int = 32,
    max_values: int = 4_000_000,
    large: Callable[[str], Any] = _refuse_large,
) -> Any:
    """The value of a JSON document; `what` names it in errors.

    Size, count and depth are checked before any value is built, so a refusal costs little memory. A value takes about
    100 bytes.

    `large` makes the value of a number that is too large for a double, or refuses it.

    Raises:
        error: more than `max_bytes` bytes, more than `max_values` values, nesting deeper than `max_depth`; not UTF-8, a
            byte order mark, duplicate keys, NaN, infinities, numbers too large, lone surrogates.
    """
    try:
        raw = data.encode() if isinstance(data, str) else bytes(data)
    except UnicodeEncodeError as problem:
        raise error(f"expected text with a UTF-8 form in {what}", found=str(problem)) from None
    if len(raw) > max_bytes:
        raise error(f"expected JSON of at most {max_bytes} bytes in {what}", found=f"{len(raw)} bytes")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise error(f"expected JSON without a byte order mark in {what}", found="the bytes EF BB BF at the start")
    values = max(sum(raw.count(mark) for mark in (b",", b":", b"[", b"{")) + 1, raw.count(b'"') // 4)
    if values > max_values:
        raise error(f"expected JSON of at most {max_values} values in {what}", found=f"about {values}")
    if _too_deep(raw, max_depth):
        raise error(f"expected JSON nested at most {max_depth} levels deep in {what}", found="deeper nesting")
    try:
        text = raw.decode()
        long = _LONG in raw.translate(_DIGITS)  # a hook for every integer would cost a call for each
        whole = _judging(int, lambda digits: len(digits.lstrip("-")) > _LARGEST_DIGITS, large) if long else None
        real = _judging(float, lambda digits: math.isinf(float(digits)), large)
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=real, parse_int=whole)
        if _SURROGATE.search(raw):
            canonical(value)
    except UnicodeDecodeError as problem:
        raise error(f"expected JSON in UTF-8 in {what}", found=f"{problem.reason} at byte {problem.start}") from None
    except UnicodeEncodeError:
        raise error(
            f"expected JSON strings of whole characters in {what}", found="a lone surrogate (\\ud800 to \\udfff)"
        ) from None
    except json.JSONDecodeError as problem:
        start = raw[:64].lstrip().lower()
        for mark, is_a, fix in PLACEHOLDERS:
            if start.startswith(mark):
                raise error(f"expected JSON in {what}", found=f"{is_a}, not the file itself", fix=fix) from None
        found = f"{problem.msg} at line {problem.lineno} column {problem.colno}"
        raise error(f"expected well-formed JSON in {what}", found=found) from None
    except _Refused as problem:
        raise error(f"expected unambiguous JSON in {what}", found=str(problem)) from None
    return value


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value, for digests: sorted keys, no spaces, UTF-8, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _too_deep(raw: bytes, max_depth: int) -> bool:
    """True if brackets outside strings nest deeper than `max_depth`; computed without recursion.

    Backslashes are removed from the left in pairs, so each quote that remains delimits a string. Each round removes the
    innermost pairs of brackets. Unbalanced brackets remain: json.loads reports them better, unless there are more than
    `max_depth`, which would make it recurse.
    """
    flat = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_ONE_KIND_OF_BRACKET, _NOT_STRUCTURE)
    flat = b"".join(flat.split(b'"')[::2])
    for _ in range(max_depth):
        if b"[]" not in flat:
            break
        flat = flat.replace(b"[]", b"")
    return b"[]" in flat or flat.count(b"[") > max_depth


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _Refused(f"the key {twice!r} twice in one object")
    return made


def _constant(name: str) -> Any:
    raise _Refused(f"{name}, which is not a JSON number")


def _judging(
    kind: Callable[[str], Any], too_large: Callable[[str], bool], large: Callable[[str], Any]
) -> Callable[[str], Any]:
    return lambda digits: large(digits) if too_large(digits) else kind(digits)

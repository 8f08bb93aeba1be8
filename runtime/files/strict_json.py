"""Reads JSON that strangers wrote: the standard reader takes duplicate keys, NaN and any depth, this one does not."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from ..errors import LlmcError

MIB = 1 << 20
PLACEHOLDERS = (
    (b"version https://git-lfs", "a Git LFS pointer", "git lfs pull (in the folder it came from)"),
    (b"<!doctype", "an HTML page", "download the file again: the server sent a web page"),
    (b"<html", "an HTML page", "download the file again: the server sent a web page"),
    (b"<?xml", "an XML message", "download the file again: the server sent an error"),
)
"""How the files begin, in lower case, that downloads leave in place of others: start, what it is, what to do."""
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_ONE_KIND_OF_BRACKET = bytes.maketrans(b"{}", b"[]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class _Refused(ValueError):
    """Carries a reason out of the standard reader's hooks."""


def loads(
    data: bytes | str,
    *,
    what: str,
    error: type[LlmcError],
    max_bytes: int = 16 * MIB,
    max_depth: int = 32,
    max_values: int = 4_000_000,
) -> Any:
    """The value of a JSON document, or `error` whose message starts with `what`.

    Refuses: more than `max_bytes` of UTF-8, a byte order mark, other encodings, more than `max_values` values (about
    100 bytes of memory each), nesting over `max_depth`, duplicate keys, NaN, infinities, numbers too large, lone
    surrogates. Size, count and depth are judged before anything is built, so a refusal costs little memory.
    """
    try:
        raw = data.encode() if isinstance(data, str) else bytes(data)
    except UnicodeEncodeError as problem:
        raise error(f"{what}: text that has no UTF-8 form", found=str(problem)) from None
    if len(raw) > max_bytes:
        raise error(f"{what}: JSON of at most {max_bytes} bytes", found=f"{len(raw)} bytes")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise error(f"{what}: JSON without a byte order mark", found="the bytes EF BB BF at the start")
    values = max(sum(raw.count(mark) for mark in (b",", b":", b"[", b"{")) + 1, raw.count(b'"') // 4)
    if values > max_values:
        raise error(f"{what}: JSON of at most {max_values} values", found=f"about {values}")
    if _too_deep(raw, max_depth):
        raise error(f"{what}: JSON nested at most {max_depth} levels deep", found="deeper nesting")
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        if _SURROGATE.search(raw):
            canonical(value)
    except UnicodeDecodeError as problem:
        raise error(f"{what}: JSON in UTF-8", found=f"{problem.reason} at byte {problem.start}") from None
    except UnicodeEncodeError:
        raise error(
            f"{what}: JSON strings of whole characters", found="a lone surrogate (\\ud800 to \\udfff)"
        ) from None
    except json.JSONDecodeError as problem:
        start = raw[:64].lstrip().lower()
        for mark, is_a, fix in PLACEHOLDERS:
            if start.startswith(mark):
                raise error(f"{what}: JSON", found=f"{is_a}, not the file itself", fix=fix) from None
        found = f"{problem.msg} at line {problem.lineno} column {problem.colno}"
        raise error(f"{what}: well-formed JSON", found=found) from None
    except _Refused as problem:
        raise error(f"{what}: unambiguous JSON", found=str(problem)) from None
    except ValueError:  # the interpreter's own limit on digits
        raise error(f"{what}: JSON numbers of sensible length", found="an integer of thousands of digits") from None
    return value


def canonical(value: Any) -> bytes:
    """The one spelling of a value that digests are taken of: sorted keys, no spaces, UTF-8, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _too_deep(raw: bytes, max_depth: int) -> bool:
    """Whether brackets outside strings nest deeper than max_depth, found without recursion.

    Runs of backslashes are read from the left in pairs, so after both replacements every quote left is a string's end.
    Each round removes the innermost brackets. What is left without a pair is unbalanced, which the reader reports
    better, unless there is so much of it that it would recurse.
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
    raise _Refused(f"{name}, which is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {digits[:40]}, which is too large")
    return value

"""Messages are read strictly: what no rank would send is refused before memory is taken for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.errors import ResourceError
from llmc.runtime.parallel.frames import LARGEST_ARRAYS, LARGEST_HEADER, Connection, Frame


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    one, other = (Connection(end, rank) for rank, end in enumerate(socket.socketpair()))
    other.reader.trusted = True
    yield one, other
    one.close()
    other.close()


def read(one: Connection, count: int, sender: Connection | None = None) -> list[Frame | None]:
    found: list[Frame | None] = []
    while len(found) < count:
        if sender is not None:
            sender.flush()
        found += one.reader.fill(one.socket)
    return found


def test_messages_arrive_as_they_were_sent(pair: tuple[Connection, Connection]):
    one, other = pair
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.empty((0, 4), np.int64),
        np.array(True),
        np.zeros(0, "i1"),
    ]
    one.send(Frame("step", {"tokens": [1, 2], "text": "ü"}, arrays))
    one.beat()
    one.send(Frame("next"))
    step, beat, after = read(other, 3)
    assert step is not None and (step.kind, step.header) == ("step", {"tokens": [1, 2], "text": "ü"})
    for array, sent in zip(step.arrays, arrays, strict=True):
        assert array.dtype == sent.dtype and array.shape == sent.shape and (array == sent).all()
    assert beat is None and after == Frame("next")


def test_a_message_larger_than_the_sockets_buffer_waits_and_may_be_written_to(pair: tuple[Connection, Connection]):
    one, other = pair
    array = np.ones(3_000_000, np.float32)
    one.send(Frame("large", {}, [array]))
    array[...] = 2
    assert one.waiting > 0
    one.beat()  # not behind a message
    one.send(Frame("small"))
    large, small = read(other, 2, one)
    assert large is not None and large.arrays[0].sum() == 3_000_000 and small == Frame("small")


def header(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(data).to_bytes(4, "little") + data


GOOD = {"kind": "x", "header": {}, "arrays": []}


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ((LARGEST_HEADER + 1).to_bytes(4, "little"), f"a header of {LARGEST_HEADER + 1} bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "a header of 542393671 bytes"),
        (header(b"{"), "Expecting property name"),
        (header(b"[" * 100), "deeper nesting"),
        (header([]), "[]"),
        (header({**GOOD, "more": 1}), "'more': 1"),
        (header({**GOOD, "kind": 3}), "'kind': 3"),
        (header({**GOOD, "arrays": [["|O8", [1]]]}), "the array ['|O8', [1]]"),
        (header({**GOOD, "arrays": [["<f4", [-1]]]}), "the array ['<f4', [-1]]"),
        (header({**GOOD, "arrays": [["<f4", [True]]]}), "the array ['<f4', [True]]"),
        (header({**GOOD, "arrays": [["<f4", [1] * 9]]}), "the array ['<f4', [1, 1"),
        (header({**GOOD, "arrays": [["<f4", [LARGEST_ARRAYS // 4 + 1]]]}), f"{LARGEST_ARRAYS + 4} bytes of arrays"),
        (header({**GOOD, "arrays": [["<f4", [0]]] * 257}), "257 arrays"),
    ],
)
def test_refuses(pair: tuple[Connection, Connection], sent: bytes, found: str):
    one, other = pair
    one.socket.send(sent)
    with pytest.raises(ResourceError) as caught:
        read(other, 1)
    assert str(caught.value).startswith("expected ") and found in str(caught.value)


def test_a_stranger_may_say_little(pair: tuple[Connection, Connection]):
    one, other = pair
    other.reader.trusted = False
    one.send(Frame("x", {}, [np.ones(1)]))
    with pytest.raises(ResourceError, match="found: arrays"):
        read(other, 1)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_messages_an_end_or_refused(data: bytes, framed: bool):
    ends = socket.socketpair()
    one = Connection(ends[0], 0)
    ends[1].send(header(data) if framed else data)
    ends[1].close()
    with pytest.raises((EOFError, ResourceError)):
        while True:
            one.reader.fill(one.socket)
    one.close()

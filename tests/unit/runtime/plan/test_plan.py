"""Plans read back as they were written; what a forged one says is refused by name before anything is allocated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.plans import plan

from llmc.runtime.errors import EngineError
from llmc.runtime.plan.plan import Argument, Plan

Json = dict[str, Any]


def forged(change: Callable[[Json], object]) -> bytes:
    document = json.loads(plan().to_json())
    change(document)
    return json.dumps(document).encode()


def test_a_plan_is_the_same_after_writing_and_reading():
    made = plan()
    read = Plan.from_json(made.to_json(), what="p")
    assert read == made
    assert read.to_json() == made.to_json()


def test_tensors_have_the_step_sizes():
    made = plan()
    buffer = made.tensor(made.programs[2], "y")
    assert (buffer.dims({"tokens": 5}), buffer.bytes({"tokens": 5})) == ((5, 8), 160)
    cache = made.tensor(made.programs[0], "key.0")
    assert (cache.dims({"blocks": 3}), cache.bytes({"blocks": 3})) == ((3, 2, 64, 16), 12288)
    assert made.programs[2].limits == {"tokens": 36, "sequences": 4, "rows": 36}


@pytest.mark.parametrize(
    ("decode", "tokens", "sequences", "rows", "index"),
    [(True, 1, 1, 1, 0), (True, 2, 2, 2, 1), (True, 4, 4, 4, 1), (False, 1, 1, 0, 2), (False, 36, 4, 36, 2)],
)
def test_a_step_gets_the_smallest_program_that_holds_it(
    decode: bool, tokens: int, sequences: int, rows: int, index: int
):
    made = plan()
    found = made.program_for(decode=decode, tokens=tokens, sequences=sequences, rows=rows)
    assert made.programs.index(found) == index


@pytest.mark.parametrize(("decode", "tokens", "sequences"), [(True, 5, 5), (False, 37, 1), (False, 5, 5)])
def test_a_step_too_large_has_no_program(decode: bool, tokens: int, sequences: int):
    with pytest.raises(EngineError, match=f"a program for {tokens} tokens of {sequences} sequences\n  found: none"):
        plan().program_for(decode=decode, tokens=tokens, sequences=sequences, rows=1)


def _program(document: Json) -> Json:
    return document["programs"][0]


def _launch(document: Json) -> Json:
    return _program(document)["launches"][0]


def _argument(document: Json, **given: Any) -> None:
    _launch(document)["arguments"][0] = {**dict.fromkeys(("tensor", "size", "integer", "real")), **given}


LINEAR = "launch 'model.layers.0.down_proj_40' of program 0 of p"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=1), "expected plan version 3 or 4 in p\n  found: 1\n  try: build the engine again"),
        (
            lambda d: d["caches"].append({"blocks": 8}),
            "expected distinct kinds of cache in p, each of 1 to 8 blocks\n  found: ",
        ),
        (lambda d: d.update(caches=[{"blocks": 9, "window": 100}]), "each of 1 to 8 blocks\n  found: blocks_100 9"),
        (lambda d: d["tensors"]["key.0"].update(shape=["blocks_7", "1", "64", "1"]), "formula 'blocks_7' of the plan"),
        (lambda d: d.update(tiles=3), "expected only known keys in p\n  found: 'tiles'"),
        (lambda d: d.pop("modules"), "expected the key 'modules' in p\n  found: no such key"),
        (
            lambda d: d["tensors"]["w"].update(kind="heap"),
            "expected a known kind and dtype of tensor 'w' of program 0 of p\n  found: heap, u8",
        ),
        (
            lambda d: d["tensors"]["w"].update(dtype="f64"),
            "dtype of tensor 'w' of program 0 of p\n  found: weight, f64",
        ),
        (lambda d: d["tensors"]["w"].update(shape=["bytes"]), "formula 'bytes' of the plan\n  found: KeyError"),
        (
            lambda d: _program(d)["buffers"]["y"].update(offset=257),
            "buffer 'y' inside the arena of program 0 of p\n  found: offset 257",
        ),
        (
            lambda d: _program(d)["buffers"]["y"].update(kind="weight"),
            "expected buffer 'y' inside the arena of program 0 of p",
        ),
        (
            lambda d: _program(d).update(arena=0),
            "expected buffer 'y' inside the arena of program 0 of p\n  found: offset 256",
        ),
        (
            lambda d: _launch(d).update(module=2),
            f"expected one of 2 modules and a grid of 3 in {LINEAR}\n  found: module 2",
        ),
        (lambda d: _launch(d).update(grid=["1", "1"]), f"and a grid of 3 in {LINEAR}\n  found: module 0"),
        (lambda d: _launch(d).update(grid=["1", "1", "x"]), "formula 'x' of the plan"),
        (lambda d: _launch(d).update(bytes="0 - tokens"), "formula '0 - tokens' of the plan\n  found: the value -1"),
        (lambda d: _launch(d).update(operations="tokens**9"), "formula 'tokens**9' of the plan\n  found: BinOp"),
        (lambda d: _argument(d), f"expected one value per argument in {LINEAR}\n  found: []"),
        (
            lambda d: _argument(d, tensor="w", integer=3),
            f"expected one value per argument in {LINEAR}\n  found: ['w', 3]",
        ),
        (
            lambda d: _argument(d, tensor="key.7"),
            f"expected a known tensor in {LINEAR}\n  found: 'key.7' (did you mean 'key.",
        ),
        (
            lambda d: _argument(d, size="token"),
            f"expected a known size in {LINEAR}\n  found: 'token' (did you mean 'tokens'?)",
        ),
    ],
)
def test_a_forged_plan_is_refused_by_name(change: Callable[[Json], object], message: str):
    with pytest.raises(EngineError) as caught:
        Plan.from_json(forged(change), what="p")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "number"), [(Argument(integer=0), 0), (Argument(real=0.0), 0.0), (Argument(real=1.5), 1.5)]
)
def test_an_argument_that_is_a_number_gives_it(argument: Argument, number: float):
    assert argument.resolve({}, {}) == number
    assert type(argument.resolve({}, {})) is type(number)

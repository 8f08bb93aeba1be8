"""The inputs of a step: filled by array operations, held against loops; plans with other inputs are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plans import plan, windowed_plan

from llmc.runtime.engine_file.rope import LengthRope
from llmc.runtime.errors import EngineError
from llmc.runtime.plan.inputs import INPUTS, PlacedSequence, Slots, check_inputs, idle_inputs
from llmc.runtime.plan.plan import BLOCK_TOKENS, Tensor
from llmc.runtime.sampling.params import SamplingParams

PARAMS = (
    SamplingParams(),
    SamplingParams(temperature=0.7, top_k=3, top_p=0.5, min_p=0.1, seed=2**63 + 1, logprobs=2),
    SamplingParams(repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5, logit_bias=((4, 2.0),)),
)


@st.composite
def parts(draw: st.DrawFn) -> list[PlacedSequence]:
    """A step of at most four sequences, each at some place of its eight blocks."""
    made = []
    for slot in draw(st.permutations(range(4)))[: draw(st.integers(1, 4))]:
        start = draw(st.integers(0, 6 * BLOCK_TOKENS))
        ids = draw(st.lists(st.integers(-4, 500), min_size=1, max_size=70))
        rows = draw(st.integers(0, len(ids)))
        sampled = rows > 0 and draw(st.booleans())
        made.append(PlacedSequence(slot, tuple(ids), start, rows, sampled, draw(st.booleans()), draw(st.booleans())))
    return made


@settings(max_examples=60, deadline=None)
@given(parts(), st.integers(0, 3))
def test_a_step_is_what_loops_would_fill_in(step: list[PlacedSequence], padding: int):
    slots = Slots(windowed_plan(), 4)
    random = np.random.default_rng(1)
    tables, rings = random.permutation(32).reshape(4, 8), random.permutation(12).reshape(4, 3)
    for _ in range(4):
        slots.take([(), ()])
    for slot in range(4):
        slots.give(slot)
        assert slots.take([tables[slot].tolist(), rings[slot].tolist()]) == slot
        slots.set_sampling(slot, PARAMS[1])  # what was there before must not show
        slots.set_sampling(slot, PARAMS[slot % 3])
    tokens, wanted = sum(len(part.ids) for part in step), sum(part.rows for part in step)
    sizes = {"tokens": tokens + padding, "sequences": len(step) + padding, "rows": wanted + padding}
    arrays, expected = idle_inputs(windowed_plan(), sizes), idle_inputs(windowed_plan(), sizes)
    rows_of = slots.fill(arrays, step)
    token = row = 0
    for index, part in enumerate(step):
        if part.new:
            expected["reset_slots"][index] = part.slot
        expected["block_tables"][index] = tables[part.slot]
        expected["block_tables.100"][index] = [rings[part.slot][block % 3] for block in range(8)]
        expected["seq_lens"][index] = part.start + len(part.ids)
        for offset, one in enumerate(part.ids):
            position = part.start + offset
            expected["token_ids"][token], expected["positions"][token] = one, position
            slot = tables[part.slot][position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
            expected["slot_mapping"][token], expected["prompt_slots"][token] = slot, part.slot if part.prompt else -1
            block = rings[part.slot][position // BLOCK_TOKENS % 3]
            expected["slot_mapping.100"][token] = block * BLOCK_TOKENS + position % BLOCK_TOKENS
            if offset >= len(part.ids) - part.rows:
                expected["logits_indices"][row] = token
                row += 1
            token += 1
        expected["query_start_loc"][index + 1 :] = token
        assert rows_of[index] == range(row - part.rows, row)
        if part.sampled:
            choose(expected, row - 1, part, PARAMS[part.slot % 3])
    assert expected.keys() == INPUTS.keys() | {"block_tables.100", "slot_mapping.100"}
    for name in expected:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)
        assert arrays[name].dtype == expected[name].dtype


def choose(arrays: dict[str, np.ndarray], row: int, part: PlacedSequence, params: SamplingParams) -> None:
    arrays["sample_positions"][row], arrays["sample_slots"][row] = part.start + len(part.ids), part.slot
    for name in ("temperature", "top_k", "top_p", "min_p", "logprobs"):
        arrays[name][row] = getattr(params, name)
    arrays["seed"][row] = (params.seed or 0) - (2**64 if (params.seed or 0) >= 2**63 else 0)
    if params is PARAMS[2]:
        arrays["penalty_slots"][row] = part.slot
        arrays["repetition_penalty"][row], arrays["presence_penalty"][row], arrays["frequency_penalty"][row] = (
            1.5,
            0.25,
            0.5,
        )
        arrays["logit_bias_ids"][row, 0], arrays["logit_bias"][row, 0] = 4, 2.0


def test_lanes_are_taken_while_there_are_any_and_forget_their_blocks():
    slots = Slots(plan(), 2)
    first, second = slots.take([[1, 2, 3]]), slots.take([[4]])
    assert {first, second} == {0, 1} and slots.take([[5]]) is None
    assert first is not None
    slots.give(first)
    again = slots.take([[6, 5]])
    assert again == first
    arrays = idle_inputs(plan(), {"tokens": 1, "sequences": 1, "rows": 1})
    slots.fill(arrays, [PlacedSequence(first, (7,), 0, 1, False, True, True)])
    assert arrays["block_tables"].tolist() == [[6, 5] * 4]


def _input(dtype: str, *shape: str) -> Tensor:
    return Tensor("input", dtype, shape)


REFUSALS = [
    ("slot_mapping", None, r"expected an input 'slot_mapping' in what\n  found: none\n  try: build the engine again"),
    (
        "slot_mappings",
        _input("i32", "tokens"),
        r"cannot fill in input 'slot_mappings' of what\n  found: no such input \(did you mean 'slot_mapping'\?\)",
    ),
    ("seed", _input("i32", "rows"), r"expected input 'seed' as i64 \[rows\] in what\n  found: i32 \[rows\]"),
    (
        "sample_positions",
        _input("i32", "tokens"),
        r"input 'sample_positions' as i32 \[rows\] in what\n  found: i32 \[tokens\]",
    ),
    ("top_k", _input("i32", "rows", "4"), r"input 'top_k' as i32 \[rows\] in what\n  found: i32 \[rows, 4\]"),
    (
        "logit_bias",
        _input("f32", "rows", "rows"),
        r"'logit_bias' as f32 \[rows, a number\] in what\n  found: f32 \[rows, rows\]",
    ),
    (
        "logit_bias",
        _input("f32", "rows", "3"),
        r"every biased token, in what\n  found: .*logit_bias_ids \[rows, 2\], logit_bias \[rows, 3\]",
    ),
    ("block_tables", _input("i32", "sequences", "7"), r"tables of 8 blocks.*\n  found: block_tables \[sequences, 7\]"),
]


@pytest.mark.parametrize(("name", "tensor", "text"), REFUSALS)
def test_a_plan_with_other_inputs_is_refused(name: str, tensor: Tensor | None, text: str):
    made = plan()
    tensors = {key: one for key, one in made.tensors.items() if key != name}
    if tensor is not None:
        tensors[name] = tensor
    check_inputs(made, "what")
    with pytest.raises(EngineError, match=text):
        check_inputs(replace(made, tensors=tensors), "what")


def test_every_kind_of_cache_has_its_own_tables():
    made = windowed_plan()
    check_inputs(made, "what")
    with pytest.raises(EngineError, match=r"cannot fill in input 'slot_mapping.100' of what\n  found: no such input"):
        check_inputs(replace(made, caches=plan().caches), "what")
    narrow = {**made.tensors, "block_tables.100": _input("i32", "sequences", "3")}
    with pytest.raises(EngineError, match=r"tables of 8 blocks.*\n.*block_tables.100 \[sequences, 3\]"):
        check_inputs(replace(made, tensors=narrow), "what")


def test_rotary_tables_are_inputs_if_the_plan_says_so():
    tables = {"rope_cos": _input("f32", "tokens", "8"), "rope_sin": _input("f32", "tokens", "8")}
    made = replace(plan(), rotary=(8,), tensors={**plan().tensors, **tables})
    check_inputs(made, "what")
    with pytest.raises(EngineError, match=r"cannot fill in input 'rope_cos' of what\n  found: no such input"):
        check_inputs(replace(made, rotary=None), "what")
    with pytest.raises(EngineError, match=r"expected 4 pairs a token in input 'rope_cos' of what\n  found: .*8"):
        check_inputs(replace(made, rotary=(4,)), "what")
    with pytest.raises(EngineError, match=r"expected an input 'rope_cos\.1' in what\n  found: none"):
        check_inputs(replace(made, rotary=(8, 8)), "what")


def test_each_token_has_the_rows_of_its_sequences_table():
    rope = LengthRope(16, (1.0, 0.5), (0.25, 0.125), scale=2.0)
    tables = {"rope_cos": _input("f32", "tokens", "2"), "rope_sin": _input("f32", "tokens", "2")}
    made = replace(plan(), rotary=(2,), tensors={**plan().tensors, **tables})
    slots, arrays = Slots(made, 4, [rope]), idle_inputs(made, {"tokens": 5, "sequences": 2, "rows": 2})
    for _ in range(2):
        slots.take([(0,)])
    step = [PlacedSequence(0, (1, 2), 7, 1, False, True, True), PlacedSequence(1, (3,), 30, 1, False, False, False, 17)]
    slots.fill(arrays, step)
    assert arrays["positions"].tolist() == [0, 1, 2, 0, 0] and arrays["seq_lens"].tolist() == [9, 31]
    angles = np.array([[7, 3.5], [8, 4], [7.5, 3.75]])
    np.testing.assert_allclose(arrays["rope_cos"][:3], 2 * np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(arrays["rope_sin"][:3], 2 * np.sin(angles), atol=1e-6)

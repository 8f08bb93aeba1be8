"""Before a GPU's first step: memory is summed, weights are checked on their way, parameters are laid out."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fakes.driver import FakeApi, Result, read_parameters
from support.toy_gpu import ARRAYS, HEIGHT, KERNELS, MAX_BATCH, MAX_BLOCKS, WEIGHTS, toy_engine, toy_plan

from llmc.compiler.engine.layout import MaxShardSize
from llmc.runtime.cuda import upload
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.launches import pack
from llmc.runtime.cuda.placement import Segment, file_segments, place_weights
from llmc.runtime.engine_file.bind import Concat, Expr, Reshape, Slice, Stored
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, ResourceError
from llmc.runtime.files.hashing import CHUNK
from llmc.runtime.plan.budget import CACHE_SHARE, Budget, budget, reachable
from llmc.runtime.plan.plan import Plan, Tensor

BLOCK = 64 * 4
ARENA = 512 + 26624 + 1024
"""Of the mixed program: ids, 68 rows of 97 logits in multiples of 256 bytes, tokens and status."""
STATE, SCRATCH = 256, 4 * 3 * 32


def planned(free: int, *, plan: Plan | None = None, slots: int = MAX_BATCH, weights: int = 1000) -> Budget:
    return budget(plan or toy_plan(), weights=weights, slots=slots, state_slots=MAX_BATCH, free=free, what="toy")


def test_the_parts_of_the_budget():
    parts = planned(1 << 30)
    assert (parts.arena, parts.state, parts.scratch, parts.block) == (ARENA, STATE, (SCRATCH, 0), {"blocks": BLOCK})
    # token_ids, positions, slots: 272 bytes each, in 512; slots and rows as well; tables 64, starts 20: 256 each
    assert parts.inputs == 5 * 512 + 2 * 256
    assert parts.fixed == 1024 + ARENA + 3072 + 256 + 512
    assert parts.blocks == {"blocks": MAX_BATCH * MAX_BLOCKS}


def test_the_cache_gets_a_share_of_what_is_left():
    fixed = planned(1 << 30).fixed
    assert planned(fixed + 10 * BLOCK).blocks["blocks"] == int(CACHE_SHARE * 10) == 9
    assert planned(fixed + 10 * BLOCK, slots=2).blocks["blocks"] == 2 * MAX_BLOCKS, (
        "no more than the sequences can fill"
    )


def test_one_sequence_at_full_context_is_the_least():
    fixed = planned(1 << 30, slots=1).fixed
    enough = fixed + 5 * BLOCK
    assert planned(enough, slots=1).blocks == {"blocks": MAX_BLOCKS}
    parts = r"activations 0.03 MiB, .*cache of 256 positions 0.00 MiB.*"
    text = rf"cannot allocate 0.03 MiB of GPU memory for toy \({parts}\n  found: 0.03 MiB"
    with pytest.raises(ResourceError, match=text) as refusal:
        planned(enough - BLOCK, slots=1)
    assert refusal.value.fix == "an engine built with --max-context 192" and refusal.value.exit_code == 4
    with pytest.raises(ResourceError) as refusal:
        planned(fixed - 1, slots=1)
    assert refusal.value.fix == "a GPU with more memory, or an engine with smaller weights (--quantize int4)"


def test_fewer_sequences_are_named_if_they_would_fit():
    """A plan whose larger decode programs have larger arenas than its prompts' program."""
    plan = toy_plan()
    programs = tuple(replace(p, arena=100_000 * p.sequences) if p.decode else p for p in plan.programs)
    plan = replace(plan, programs=programs)
    assert [p.sequences for p in reachable(plan, 3) if p.decode] == [1, 2, 4]
    assert [p.sequences for p in reachable(plan, 2) if p.decode] == [1, 2]
    with pytest.raises(ResourceError) as refusal:
        planned(250_000, plan=plan)
    assert refusal.value.fix == "--max-batch 2"
    assert planned(250_000, plan=plan, slots=2).arena == 200_000


def test_too_little_memory_is_said_before_anything_is_allocated(tmp_path: Path):
    from llmc.runtime.cuda.contents import EngineContents
    from llmc.runtime.cuda.device import CudaDevice

    api = FakeApi(KERNELS, memory=30_000)
    with (
        EngineFile.open(toy_engine(tmp_path / "e.llmc")) as engine,
        pytest.raises(ResourceError, match=f"cannot allocate .* of GPU memory for profile 'sm_90' of {engine.path}"),
    ):
        CudaDevice(EngineContents(engine, "sm_90"), toy_plan(), 4, driver=Driver(api))
    assert not api.calls["cuMemAlloc"] and not api.calls["cuMemHostAlloc"] and not any(api.live.values())


def test_a_plan_without_a_cache_is_refused():
    plan = toy_plan()
    tensors = {name: tensor for name, tensor in plan.tensors.items() if tensor.kind != "cache"}
    with pytest.raises(EngineError, match="expected a plan with a KV cache in toy"):
        planned(1 << 30, plan=replace(plan, tensors=tensors))


def uploaded(path: Path, plan: Plan, api: FakeApi) -> dict[str, np.ndarray]:
    """Every weight's bytes on the fake device."""
    with EngineFile.open(path) as engine:
        placement = place_weights(engine, "sm_90", plan)
        driver = Driver(api)
        base = driver.allocate(placement.bytes, "weights")
        upload.upload(engine, placement, base, driver)
        sizes = {name: tensor.bytes({}) for name, tensor in plan.tensors.items() if tensor.kind == "weight"}
        found = {
            name: api.device.array(base + placement.offsets[name], np.uint8, size).copy()
            for name, size in sizes.items()
        }
        assert placement.offsets["codes"] == placement.offsets["same codes"]
        assert all(offset % 256 == 0 for offset in placement.offsets.values())
    assert (api.live["streams"], api.live["events"], api.host.count) == (0, 0, 0)
    return found


def test_weights_arrive_whatever_their_expressions(tmp_path: Path):
    found = uploaded(toy_engine(tmp_path / "e.llmc"), toy_plan(), FakeApi())
    left, right, far = (ARRAYS[f"{name}.weight"] for name in ("left", "right", "far"))
    assert found["bias"].view(np.float32).tolist() == ARRAYS["bias.weight"].tolist()
    assert found["height"].view(np.float32).tolist() == [HEIGHT, 1.0]
    assert found["codes"].tolist() == [*left.flat, *right.flat] == found["same codes"].tolist()
    assert found["apart"].tolist() == [*far.flat, *left.flat]
    assert found["middle"].tolist() == [*left[1:].flat]
    assert found["columns"].tolist() == [*left[:, 1:3].flat]


BIG = Stored("big.weight", "U8", (5, CHUNK - 7))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Plan, dict[str, Expr]]:
    """An engine with a tensor of five chunks, and weights that cut it where no chunk ends."""
    array = np.random.default_rng(0).integers(0, 256, BIG.shape, np.uint8)
    weights: dict[str, Expr] = {**WEIGHTS, "whole": BIG, "rows": Slice(BIG, 0, 1, 4)}
    shapes = {"whole": BIG.shape, "rows": (3, BIG.shape[1])}
    plan = toy_plan(tensors={name: Tensor("weight", "u8", tuple(map(str, shape))) for name, shape in shapes.items()})
    path = tmp_path_factory.mktemp("big") / "e.llmc"
    return toy_engine(path, plan, weights=weights, more={BIG: array}), array, plan, weights


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_large_tensors_go_in_chunks_through_reused_slots(big: Any, threads: int, monkeypatch: pytest.MonkeyPatch):
    """With one or two threads and no spare slot, five chunks share fewer slots: none may be overwritten too early."""
    monkeypatch.setattr(upload, "cpu_count", lambda: threads)
    monkeypatch.setattr(upload, "_SPARE", 1)
    path, array, plan, _ = big
    api = FakeApi()
    found = uploaded(path, plan, api)
    assert np.array_equal(found["whole"], array.reshape(-1))
    assert np.array_equal(found["rows"], array[1:4].reshape(-1))
    # six parts of small tensors, two computed weights, and five chunks of which four also hold some of the slice
    assert api.calls["cuMemcpyHtoDAsync"] == 6 + 2 + 5 + 4


def test_weights_of_several_files_arrive_too(big: Any, tmp_path: Path):
    path, array, plan, weights = big
    most = MaxShardSize(5 * CHUNK + 2000, 60_000)
    split = toy_engine(tmp_path / "s.llmc", plan, weights=weights, more={BIG: array}, most=most)
    with EngineFile.open(split) as engine:
        assert [len(part.infos) > 0 for part in engine.parts] == [True, True]
        assert engine.tensors[BIG.name].file == 1 and engine.tensors["left.weight"].file == 0
        further, offset = engine.parts[1].path, engine.tensors[BIG.name].offset
    found = uploaded(split, plan, FakeApi())
    alone = uploaded(path, plan, FakeApi())
    assert all(np.array_equal(found[name], alone[name]) for name in alone) and found["whole"].any()
    data = bytearray(further.read_bytes())
    data[offset + CHUNK] ^= 1
    further.write_bytes(data)
    with pytest.raises(EngineError, match=rf"bytes in {further} that match their digests\n  found: .* chunk 2 of 5"):
        uploaded(split, plan, FakeApi())


def test_a_chunk_that_does_not_match_its_digest_is_named_and_not_copied(big: Any, tmp_path: Path):
    path, _, plan, _ = big
    damaged = tmp_path / "damaged.llmc"
    with EngineFile.open(path) as engine:
        offset = engine.tensors[BIG.name].offset + 2 * CHUNK + 5
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    damaged.write_bytes(data)
    api = FakeApi()
    with pytest.raises(
        EngineError, match=r"that match their digests\n  found: tensor 'big.weight' chunk 3 of 5 \(bytes"
    ):
        uploaded(damaged, plan, api)
    assert (api.live["streams"], api.live["events"], api.host.count) == (0, 0, 0)
    assert api.calls["cuMemcpyHtoDAsync"] == 6 + 2 + 2, "what lies before the damage, and nothing of it"


def test_damage_in_a_tensor_that_is_only_computed_from_is_found_too(tmp_path: Path):
    path = toy_engine(tmp_path / "e.llmc")
    with EngineFile.open(path) as engine:
        offset = engine.tensors["height.weight"].offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"tensor 'height.weight' chunk 1 of 1"):
        uploaded(path, toy_plan(), FakeApi())


def test_the_file_that_was_opened_is_read_whatever_has_its_name_now(tmp_path: Path):
    path = toy_engine(tmp_path / "e.llmc")
    with EngineFile.open(path) as engine:
        placement, driver = place_weights(engine, "sm_90", toy_plan()), Driver(FakeApi())
        base = driver.allocate(placement.bytes, "weights")
        path.rename(tmp_path / "moved.llmc")
        upload.upload(engine, placement, base, driver)
        (tmp_path / "moved.llmc").write_bytes(b"")
        with pytest.raises(EngineError, match=r"expected bytes in .*e.llmc that match their digests"):
            upload.upload(engine, placement, base, driver)
        engine.close()
        with pytest.raises(ResourceError, match=r"cannot read .*e.llmc\n  found: Bad file descriptor"):
            upload.upload(engine, placement, base, driver)


@pytest.mark.parametrize(
    ("name", "expr", "text"),
    [
        ("bias", None, "cannot load weight 'bias' of .*\n  found: no binding"),
        (
            "bias",
            Stored("gone.weight", "F32", (4,)),
            r"expected tensor 'gone.weight' as F32 \[4\] .*\n  found: no such tensor",
        ),
        ("bias", Stored("bias.weight", "F32", (2, 2)), r"tensor 'bias.weight' as F32 \[2, 2\] .*\n  found: F32 \[4\]"),
        (
            "bias",
            Stored("height.weight", "BF16", (2,)),
            r"expected weight 'bias' of 16 bytes in .*\n  found: 4 bytes, BF16 \[2\]",
        ),
    ],
)
def test_weights_that_do_not_fit_the_plan_are_refused(tmp_path: Path, name: str, expr: Expr | None, text: str):
    weights = {**WEIGHTS, name: expr}
    path = toy_engine(tmp_path / "e.llmc", weights={n: e for n, e in weights.items() if e is not None})
    with EngineFile.open(path) as engine, pytest.raises(EngineError, match=text):
        place_weights(engine, "sm_90", toy_plan())


def test_what_lies_in_the_file_as_it_is_used():
    a, b = Stored("a", "BF16", (2, 3)), Stored("b", "BF16", (4, 3))
    assert file_segments(Concat((a, b), 0), 100) == [Segment("a", 0, 12, 100), Segment("b", 0, 24, 112)]
    assert file_segments(Reshape(Concat((b, a), 0), (3, 6)), 0) == [Segment("b", 0, 24, 0), Segment("a", 0, 12, 24)]
    assert file_segments(Slice(b, 0, 1, 3), 0) == [Segment("b", 6, 18, 0)]
    assert file_segments(Concat((Slice(b, 0, 3, 4), a), 0), 0) == [Segment("b", 18, 24, 0), Segment("a", 0, 12, 6)]
    assert file_segments(Slice(Slice(b, 0, 1, 3), 0, 1, 2), 0) == [Segment("b", 12, 18, 0)]
    assert file_segments(Slice(Slice(b, 0, 1, 2), 1, 1, 3), 5) == [Segment("b", 8, 12, 5)]
    assert file_segments(Slice(Slice(b, 1, 0, 2), 0, 1, 2), 0) is None
    assert file_segments(Concat((a, a), 1), 0) is None
    assert file_segments(Slice(b, 1, 0, 2), 0) is None
    row = Stored("r", "U8", (1, 8))
    assert file_segments(Concat((row, Slice(row, 1, 2, 5)), 1), 0) == [Segment("r", 0, 8, 0), Segment("r", 2, 5, 8)]


def test_parameters_lie_in_order_each_aligned_to_its_size():
    types = ("*bf16", "i32", "i64", "fp32", "*u8", "i32")
    address = 0x7F1234567800
    packed = pack([*types, "*i8", "*i8"], [address, -3, -(2**40), 0.1, 2**63 + 16, 2**31 - 1, 0, 512], what="x")
    assert read_parameters(types, packed.address) == (
        *(address, -3, -(2**40), pytest.approx(0.1, abs=1e-8), 2**63 + 16, 2**31 - 1, 0, 512),
    )
    pointers = (ctypes.c_void_p * 8).from_address(packed.address)
    first = pointers[0] or 0
    assert [(pointer or 0) - first for pointer in pointers] == [0, 8, 16, 24, 32, 40, 48, 56]


@pytest.mark.parametrize(
    ("types", "values", "text"),
    [
        (("i32",), (2**31,), "expected a parameter of type i32 in launch 'x'\n  found: 2147483648"),
        (("*i32",), (-1,), r"a parameter of type \*i32"),
        (("bf16",), (1.0,), "cannot pack the parameters of launch 'x': bf16\n  found: 1 values, and types among i32"),
        (("i32", "i32"), (1,), "of launch 'x': i32, i32\n  found: 1 values"),
    ],
)
def test_parameters_that_do_not_fit(types: tuple[str, ...], values: tuple[int | float, ...], text: str):
    with pytest.raises(EngineError, match=text):
        pack(types, values, what="x")


def test_memory_that_others_took_meanwhile():
    api = FakeApi()
    api.fail["cuMemAlloc"] = Result["CUDA_ERROR_OUT_OF_MEMORY"]
    with pytest.raises(
        ResourceError,
        match=r"cannot allocate 1.5 MiB of GPU memory for weights\n  found: CUDA_ERROR_OUT_OF_MEMORY\n  try: end",
    ):
        Driver(api).allocate(3 << 19, "weights")


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Plan]:
    """A rank's weights: rows and columns of a tensor of five chunks, of which only the second lies in the rows."""
    array = np.random.default_rng(0).integers(0, 256, BIG.shape, np.uint8)
    weights: dict[str, Expr] = {**WEIGHTS, "rows": Slice(BIG, 0, 1, 3), "few": Slice(BIG, 1, 5, 9)}
    shapes = {"rows": (2, BIG.shape[1]), "few": (5, 4)}
    plan = toy_plan(tensors={name: Tensor("weight", "u8", tuple(map(str, shape))) for name, shape in shapes.items()})
    path = tmp_path_factory.mktemp("sliced") / "e.llmc"
    return toy_engine(path, plan, weights=weights, more={BIG: array}), array, plan


def test_a_rank_reads_the_bytes_of_its_slices_only(sliced: Any, monkeypatch: pytest.MonkeyPatch):
    path, array, plan = sliced
    read: list[tuple[int, int]] = []
    theirs = os.preadv

    def preadv(file: int, into: list[memoryview], offset: int) -> int:
        read.append((offset, len(into[0])))
        return theirs(file, into, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    found = uploaded(path, plan, FakeApi())
    assert np.array_equal(found["rows"], array[1:3].reshape(-1))
    assert np.array_equal(found["few"], array[:, 5:9].reshape(-1))
    with EngineFile.open(path) as engine:
        start = engine.tensors[BIG.name].offset
    of_big = sorted((at - start, at - start + size) for at, size in read if at >= start)
    row = BIG.shape[1]
    assert (of_big[0][0], of_big[-1][1], sum(stop - first for first, stop in of_big)) == (row, 3 * row, 2 * row)


def test_a_rank_checks_the_chunks_that_it_has_whole(sliced: Any, tmp_path: Path):
    """Of the rows that it has, one chunk is whole; `--verify full` checks the parts of others."""
    path, array, plan = sliced
    damaged = tmp_path / "damaged.llmc"
    with EngineFile.open(path) as engine:
        start = engine.tensors[BIG.name].offset
    for at, named in ((CHUNK + 5, "chunk 2 of 5"), (3 * CHUNK - 30, "")):
        data = bytearray(path.read_bytes())
        data[start + at] ^= 1
        damaged.write_bytes(data)
        if named:
            with pytest.raises(EngineError, match=rf"match their digests\n  found: tensor 'big.weight' {named}"):
                uploaded(damaged, plan, FakeApi())
            continue
        found = uploaded(damaged, plan, FakeApi())["rows"]
        assert found[at - BIG.shape[1]] == array.reshape(-1)[at] ^ 1
        with pytest.raises(EngineError, match=r"big\.weight"):
            EngineFile.open(damaged, verify="full")


def test_a_file_that_ends_inside_a_part_is_refused(sliced: Any):
    path, _, plan = sliced
    with EngineFile.open(path) as engine:
        placement = place_weights(engine, "sm_90", plan)
        (part,) = (
            job for job in upload._chunks(engine, placement) if job.label.startswith("tensor 'big.weight' chunk 3")
        )
        late = replace(part, part=replace(part.part, offset=path.stat().st_size - 3))
        with path.open("rb") as file, pytest.raises(OSError, match="ends too early"):
            upload._read(file.fileno(), late, memoryview(bytearray(CHUNK)))

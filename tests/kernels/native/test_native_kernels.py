"""Kernels in CUDA C++ are kernels like others: what is compiled, refused, kept, launched, and chosen by tiles."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.paths import ROOT

from llmc.compiler.targets.cuda.call import Operand
from llmc.compiler.targets.cuda.cubins import cache, nvrtc
from llmc.compiler.targets.cuda.cubins.cache import KernelCache, source_digest, sources_of
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization, compile_all, specialization_of, try_compile
from llmc.compiler.targets.cuda.cubins.elf import image_of
from llmc.compiler.targets.cuda.cubins.native import header
from llmc.compiler.targets.cuda.cubins.sass import disassemble, disassembler
from llmc.compiler.targets.cuda.evidence import compare as evidence
from llmc.compiler.targets.cuda.kernels.linear.choose import linear
from llmc.compiler.targets.cuda.kernels.linear.native import gemm, stream, versus
from llmc.compiler.targets.cuda.kernels.linear.native.fits import gemm_shared, stream_shared, unlike, wrong
from llmc.compiler.targets.cuda.kernels.linear.parts.fused import ALONE, Fused
from llmc.compiler.targets.cuda.kernels.linear.tiles import NATIVE, Tile
from llmc.runtime.cuda.launches import layout, pack
from llmc.runtime.cuda.tensor_maps import MatrixTile, tile_of
from llmc.runtime.errors import EngineError, ResourceError, Unsupported
from llmc.runtime.progress import NO_PROGRESS

GOLDEN = ROOT / "tests" / "golden" / "sm_90.evidence.json"
SUITES = (stream.SUITE, gemm.SUITE)
CALLS = [*(call for suite in SUITES for call in suite.calls(90)), *(c.call for s in SUITES for c in s.cases())]
STREAM = Tile(32, 128, 1, 1, 4, 3, NATIVE)
GEMM = Tile(256, 128, 128, 1, 8, 4, NATIVE)


@pytest.fixture(scope="module")
def cubins() -> dict[Specialization, Cubin]:
    return compile_all(map(specialization_of, CALLS), 90, progress=NO_PROGRESS)


def test_none_spills_and_each_takes_the_shared_memory_that_its_tile_says(cubins: dict[Specialization, Cubin]):
    assert len(cubins) > 20
    for call in CALLS:
        one = specialization_of(call)
        cubin, sizes = cubins[one], dict(one.constants)
        assert (cubin.code.spills, cubin.local, cubin.static_shared, cubin.code.pdl) == (0, 0, 0, True)
        n, k, m = (int(sizes[name] or 0) for name in ("BLOCK_N", "BLOCK_K", "BLOCK_M"))
        tile = Tile(n, k, m, 1, int(sizes.get("WARPS") or 0), one.stages, NATIVE)
        expected = gemm_shared(tile) if one.kernel == "linear_gemm" else stream_shared(tile, str(sizes["FORMAT"]))
        assert cubin.code.shared == expected, one


def test_what_a_launch_passes_lies_where_the_machine_code_has_it(cubins: dict[Specialization, Cubin]):
    """Of a tensor map 128 bytes, aligned in the constant bank and not in the block of parameters."""
    for one, cubin in cubins.items():
        image = image_of(cubin.data, cubin.code.entry)
        fields = layout([*cubin.types, "*i8", "*i8"])
        assert [(p.offset, p.size) for p in image.parameters] == [(field.offset, field.size) for field in fields]
        assert image.threads == (32 * one.warps, 1, 1)
    packed = pack(["u8[128,128]", "i32", "u8[256,128]"], [b"a" * 128, 7, b"b" * 128], what="x")
    assert packed.pointers[0] != packed.pointers[1] and len(packed.block) >= 64 + 2 * 128
    with pytest.raises(EngineError, match="expected a parameter of type u8"):
        pack(["u8[128,128]"], [7], what="x")
    assert tile_of("u8[256,128]") == MatrixTile(256, 128) and tile_of("*u8") is None
    assert str(MatrixTile(256, 128)) == "u8[256,128]"


def test_only_weights_are_read_before_the_launch_before_has_ended(cubins: dict[Specialization, Cubin]):
    """Nothing but bulk copies comes before the wait in a thread's code; which copies, the emulated runs tell."""
    program = disassembler()
    assert program is not None
    codes = [image_of(cubin.data, cubin.code.entry).code for cubin in cubins.values()]
    for one, listing in zip(cubins, disassemble(codes, 90, program), strict=True):
        names = [instruction.name for instruction in listing.instructions]
        found = Counter(names)
        assert found["PREEXIT"] == 1 and found["ACQBULK"] == 2, "the threads that multiply, and those that copy"
        copies, others = {"UBLKCP", "UTMALDG"}, {"LDG", "STG", "LD", "ST", "LDGSTS", "ATOMG", "RED"}
        first = names.index("ACQBULK")
        second = names.index("ACQBULK", first + 1)
        assert not {*names[:first]} & others, one
        if {*names[:first]} & copies:  # the threads that copy come first in the code
            assert not {*names[first:second]} & others, one
        else:
            assert {*names[first:second]} & copies, one
        assert not {*names} & {"LDL", "STL"}


def test_registers_that_are_taken_are_those_that_are_given(cubins: dict[Specialization, Cubin]):
    """A warpgroup that asks for more than the block has waits forever (PTX ISA, setmaxnreg)."""
    program = disassembler()
    assert program is not None
    codes = [image_of(cubin.data, cubin.code.entry).code for cubin in cubins.values()]
    changing = 0
    for one, listing in zip(cubins, disassemble(codes, 90, program), strict=True):
        changes = [instruction for instruction in listing.instructions if instruction.name == "USETMAXREG"]
        if not changes:
            continue
        wanted = {change.opcode.split(".")[1]: int(change.operands.split()[-1], 16) for change in changes}
        assert wanted == {"TRY_ALLOC": 232, "DEALLOC": 40}, one
        needed = 128 * (2 * wanted["TRY_ALLOC"] + wanted["DEALLOC"])
        assert needed <= 32 * one.warps * cubins[one].code.registers <= 1 << 16, one
        changing += 1
    assert changing > 4


def test_other_chips_are_refused_by_name():
    one = specialization_of(next(iter(stream.SUITE.cases())).call)
    for sm in (80, 89, 100, 120):
        outcome = try_compile([one], sm, progress=NO_PROGRESS, cache=KernelCache(None))[one]
        assert isinstance(outcome, Unsupported)
        assert str(outcome).startswith("cannot compile kernel linear_stream ") and f" for sm_{sm}\n" in str(outcome)
        assert outcome.found == "its instructions are those of sm_90 alone"
    assert list(stream.SUITE.calls(100)) == list(gemm.SUITE.calls(80)) == []


def test_the_same_bytes_twice_and_no_paths(cubins: dict[Specialization, Cubin]):
    chosen = [specialization_of(next(iter(suite.cases())).call) for suite in SUITES]
    again = compile_all(chosen, 90, progress=NO_PROGRESS, cache=KernelCache(None), jobs=2)
    for one in chosen:
        assert again[one] == cubins[one]
        assert "\n.version 9.0\n" in again[one].ptx and "\n.target sm_90a\n" in again[one].ptx
        for text in (again[one].data, again[one].ptx.encode()):
            assert not [part for part in (b".cu\0", b"/tmp", b".file", b"/home") if part in text]


def test_keys_cover_the_source_its_headers_and_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = {name: sources_of(name) for name in ("linear/native/stream.cu", "gated")}
    digest = source_digest()
    edited = dict(cache._cuda((ROOT / "compiler/targets/cuda/kernels").rglob("*.cu*")))
    assert len(edited) == 6 and cache.Tools.installed().nvrtc == nvrtc.compiler_version() == "13.0.88"
    real = cache._cuda

    def other(files: object) -> dict[str, bytes]:
        return {name: text + b"// edited" for name, text in real(files).items()}  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(cache, "_cuda", other)
    assert sources_of("linear/native/stream.cu") != before["linear/native/stream.cu"]
    assert sources_of("gated") == before["gated"] and source_digest() != digest


def test_without_nvrtc_its_wheel_is_named(monkeypatch: pytest.MonkeyPatch):
    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc, "find_spec", lambda name: None)
    with pytest.raises(
        ResourceError, match=r"cannot find NVRTC of CUDA 13.0\n  found: not installed\n  try: pip .*nvrtc"
    ):
        nvrtc.to_ptx("", "x.cu", {}, ())
    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc, "_installed", lambda: "13.5.1")
    with pytest.raises(ResourceError, match=r"expected NVRTC of CUDA 13.0\n  found: 13.5.1"):
        nvrtc.compiler_version()


def test_what_nvrtc_refuses_is_said():
    with pytest.raises(RuntimeError, match=r'NVRTC ended with 6: x.cu\(1\): error: identifier "wrong" is undefined'):
        nvrtc.to_ptx("__device__ int x = wrong;", "x.cu", {}, ())


def test_the_header_of_a_call_has_its_constants_and_parameters():
    request = specialization_of(next(iter(gemm.SUITE.cases())).call).request(90)
    lines = header(request).splitlines()
    assert {"constexpr int BLOCK_M = 64;", "constexpr bool PROMOTE = false;"} <= {*lines}
    assert {"constexpr Absent residual{};", "using y_element = bf16;"} <= {*lines}
    assert lines[-1] == (
        "#define PARAMETERS const __grid_constant__ Matrix x, float* x_scale, const __grid_constant__ Matrix w, "
        "float* w_scale, bf16* bias, bf16* y, int tokens, void*, void*"
    )


@pytest.mark.parametrize(
    ("kind", "k", "format", "tokens", "tile", "sm", "said"),
    [
        ("small", 4096, "fp8", 1, STREAM, 90, ""),
        ("small", 4096, "dense", 1, STREAM, 90, ""),
        ("fp8", 4096, "fp8", 2048, GEMM, 90, ""),
        ("small", 4096, "fp8", 1, STREAM, 100, "the route native is for sm_90 alone"),
        ("small", 4096, "fp8", 1, replace(STREAM, splits=2), 90, "splits 2 is not 1"),
        ("small", 4096, "int4", 1, STREAM, 90, "a stream of weights in int4, not in fp8 or dense"),
        ("small", 4096, "fp8", 2, STREAM, 90, "block_m 1 is not the 2 tokens, up to 16, as a power of two"),
        ("small", 4096, "fp8", 32, replace(STREAM, block_m=32), 90, "block_m 32 is not the 32 tokens, up to 16"),
        ("small", 4096, "fp8", 1, replace(STREAM, block_n=128), 90, "a stream has 16, 32 or 64 rows, and 4 or 8 warps"),
        ("small", 4000, "fp8", 1, STREAM, 90, "or the row not a multiple of 64"),
        ("small", 4096, "fp8", 1, replace(STREAM, block_k=64), 90, "columns in blocks of 64 of 4096: not 128 bytes"),
        ("small", 4096, "fp8", 1, replace(STREAM, stages=1), 90, "stages 1 is not from 2 to 16"),
        ("small", 4096, "fp8", 1, replace(STREAM, block_n=64, block_k=4096), 90, "bytes of shared memory, of at most"),
        ("large", 4096, "dense", 2048, GEMM, 90, "no kernel of the kind large by the route native"),
        ("fp8", 4100, "fp8", 2048, GEMM, 90, "rows of 4100 bytes are not a multiple of 16"),
        ("fp8", 4096, "fp8", 2048, replace(GEMM, block_n=64), 90, "a block has 128 or 256 rows, 64 or 128 tokens"),
        ("fp8", 4096, "fp8", 2048, replace(GEMM, warps=4), 90, "warps 4 is not 8: a warpgroup for each 64 tokens"),
        ("fp8", 4096, "fp8", 2048, replace(GEMM, stages=5), 90, "245840 bytes of shared memory, of at most 232448"),
        ("small", 4096, "int8", 1, Tile(64, 128, 16, 1, 4, 9), 90, "stages 9 is not from 1 to 8"),
    ],
)
def test_tiles_that_a_kernel_cannot_have_are_refused(
    kind: str, k: int, format: str, tokens: int, tile: Tile, sm: int, said: str
):
    found = wrong(kind, 4096, k, format, tokens, tile, sm)
    assert said in found and bool(said) == bool(found)


def never_expanded(n: int, k: int) -> tuple[Operand, Operand]:
    raise AssertionError(f"FP8 weights [{n}, {k}] are to be expanded")


def chosen(
    tile: Tile | None,
    *,
    k: int = 256,
    scale: int | None = None,
    act: str = "bf16",
    sm: int = 90,
    fused: Fused = ALONE,
) -> str:
    """The kernel of a linear with FP8 weights, or with 16-bit ones without a scale, in a step of one token."""
    x, y = Operand("x", act, ("tokens", k)), Operand("y", act, ("tokens", 64))
    weights = (Operand("w", "bf16", (64, k)),)
    if scale is not None:
        weights = (Operand("w", "u8", (64, k)), Operand("s", "f32", (64,) * scale))
    call = linear(
        *(x, weights, y),
        format="dense" if scale is None else "fp8",
        max_tokens=1,
        sm=sm,
        tile=lambda kind, n, k: tile,
        make=Operand.of,
        expanded=never_expanded,
        counters=lambda count: Operand("counters", "i32", (count,)),
        fused=fused,
    )
    return call.kernel.name


def test_a_linear_that_does_not_fit_keeps_tritons_kernel():
    assert chosen(None, scale=1) == "linear_small"
    assert chosen(STREAM, scale=1) == chosen(STREAM) == "linear_stream"
    assert chosen(STREAM, scale=1, k=200) == "linear_small"
    assert chosen(STREAM, scale=1, sm=100) == "linear_small"
    assert chosen(STREAM, act="f16") == "linear_small", "weights in bf16"
    norm = Fused(squares=Operand("squares", "f32", (2, "tokens")))
    assert chosen(STREAM, fused=norm) == "linear_stream"
    assert chosen(replace(STREAM, block_n=16)) == "linear_stream"
    assert chosen(replace(STREAM, block_n=16), fused=norm) == "linear_small", "half a sum of 32 squares"
    x, w = Operand("x", "u8", ("tokens", 64)), Operand("w", "u8", (64, 64))
    assert unlike(x, (w, Operand("s", "f32", (1, 1)))) == "scales of blocks"


def test_the_tiles_to_measure_fit_and_are_native():
    x, w, scale = Operand("x", "bf16", ("tokens", 4096)), Operand("w", "u8", (4096, 4096)), Operand("s", "f32", (4096,))
    for tokens in (1, 8, 16):
        tiles = versus.tiles("small", 4096, 4096, "fp8", tokens, 90, x, (w, scale))
        assert len(tiles) >= 6 and tiles[0] == stream.tile_for(4096, "fp8", tokens, 90)
        assert not [one for one in tiles if wrong("small", 4096, 4096, "fp8", tokens, one, 90) or one.route != NATIVE]
    codes = Operand("x", "u8", ("tokens", 4096))
    assert {one.block_n for one in versus.tiles("fp8", 4096, 4096, "fp8", 2048, 90, codes, (w, scale))} == {128, 256}
    assert versus.tiles("small", 4096, 4096, "fp8", 1, 100, x, (w, scale)) == []
    rows = [
        {one.block_n for one in versus.tiles("small", 4096, 4096, "fp8", 1, 90, x, (w, scale), squares=squares)}
        for squares in (False, True)
    ]
    assert rows == [{16, 32, 64}, {32, 64}]
    assert "16 rows is not a multiple of 32" in wrong(
        "small", 4096, 4096, "fp8", 1, replace(STREAM, block_n=16), 90, squares=True
    )
    assert versus.tiles("small", 4096, 4096, "int4", 1, 90, x, (w, scale)) == []


def test_each_kernel_beats_tritons_on_every_criterion(pytestconfig: pytest.Config):
    """And by how much is held: every change is to be seen."""
    pairs = evidence.compare(versus.pairs(), NO_PROGRESS)
    found = {pair.name: {"native": vars(pair.native), "triton": vars(pair.triton)} for pair in pairs}
    text = json.dumps(found, indent=1, default=list) + "\n"
    if pytestconfig.getoption("--update-golden"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(GOLDEN.read_text(encoding="utf-8")), "`make golden` rewrites the file"
    assert {pair.name: pair.verdict for pair in pairs} == dict.fromkeys(found, dict.fromkeys("abc", True))
    assert evidence.limits() == {
        "h100": {"in_flight": 20303, "memory": 1181},
        "h200": {"in_flight": 29091, "memory": 825},
    }


def test_a_worse_kernel_is_not_kept():
    pair = evidence.compare(list(gemm.pairs(90))[:1], NO_PROGRESS)[0]
    for change, lost in (
        ({"in_flight": 29000}, "a"),
        ({"in_flight": pair.triton.in_flight}, "a"),
        ({"cycles": pair.triton.cycles}, "b"),
        ({"barriers": ("BAR.SYNC",)}, "b"),
        ({"spills": 4}, "c"),
        ({"local": 1}, "c"),
    ):
        verdict = replace(pair, native=replace(pair.native, **change)).verdict
        assert [name for name, met in verdict.items() if not met] == [lost]

"""Kernels ahead of time: what a cubin tells, what is refused, what the cache survives, and that bytes repeat."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.targets.cuda.call import Kernel, KernelCall, Operand
from llmc.compiler.targets.cuda.cubins import assembler, cache, compile, worker
from llmc.compiler.targets.cuda.cubins.cache import KernelCache, Tools
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization, compile_all, specialization_of, try_compile
from llmc.compiler.targets.cuda.kernels import gated, suites
from llmc.runtime.chips import chip
from llmc.runtime.errors import EngineError, LlmcError, ResourceError, Unsupported
from llmc.runtime.progress import NO_PROGRESS

NO_CACHE = KernelCache(None)


def call(width: int = 96, activation: str = "relu", dtype: str = "bf16") -> KernelCall:
    x, y = Operand("x", dtype, ("tokens", 2 * width)), Operand("y", dtype, ("tokens", width))
    return gated.gated(x, y, activation=activation)


RELU = specialization_of(call())
SILU = specialization_of(call(activation="silu"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> KernelCache:
    return KernelCache(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def cubins(kept: KernelCache) -> dict[int, Cubin]:
    return {sm: compile_all([RELU], sm, progress=NO_PROGRESS, cache=kept, jobs=1)[RELU] for sm in (80, 90)}


def failing(code: str, monkeypatch: pytest.MonkeyPatch) -> LlmcError:
    """The outcome of a kernel whose worker runs `code` instead."""
    monkeypatch.setattr(compile, "_START", code)
    outcome = try_compile([RELU], 90, progress=NO_PROGRESS, cache=NO_CACHE)[RELU]
    assert isinstance(outcome, LlmcError)
    return outcome


def test_a_specialization_is_what_a_call_compiles_to():
    assert RELU.types == ("*bf16", "*bf16")
    assert RELU.constants == (("WIDTH", 96), ("ACTIVATION", "relu"), ("BLOCK", 1024))
    assert (RELU.kernel, RELU.file, RELU.function, RELU.warps, RELU.stages) == ("gated", "gated", "gated_kernel", 4, 2)
    assert str(RELU) == "gated WIDTH=96 ACTIVATION=relu BLOCK=1024 warps=4 stages=2"
    assert RELU == specialization_of(call()) != SILU
    assert len({RELU, SILU, specialization_of(call())}) == 2


def test_every_dtype_and_number_has_a_type():
    arguments = {name: Operand(name, name, (1,)) for name in ("bf16", "f16", "f32", "i32", "i64", "u8")}
    values = [*arguments.values(), "tokens", 3, 0.5]
    assert [compile._type(one) for one in values] == [
        *("*bf16", "*fp16", "*fp32", "*i32", "*i64", "*u8"),
        *("i32", "i32", "fp32"),
    ]


def test_constants_of_other_types_are_other_specializations():
    specializations = [replace(RELU, constants=(("WIDTH", value),)) for value in (1, True, 1.0, None)]
    assert len(set(specializations)) == 4


def test_a_cubin_tells_what_its_launch_needs(cubins: dict[int, Cubin]):
    for sm, cubin in cubins.items():
        assert cubin.data.startswith(b"\x7fELF")
        code = cubin.code
        assert code.entry.encode() in cubin.data
        assert (cubin.sm, code.entry, cubin.types) == (sm, "gated_kernel", RELU.types)
        assert (code.shared, cubin.static_shared, code.pdl) == (0, 0, sm >= 90)
        assert (code.global_scratch, code.profile_scratch) == (0, 0)
        assert 8 < code.registers < 64
        assert (code.spills, cubin.local) == (0, 0)


def test_cubins_and_ptx_hold_no_paths(cubins: dict[int, Cubin]):
    for text in (text for cubin in cubins.values() for text in (cubin.data, cubin.ptx.encode())):
        assert not [part for part in (b"gated.py", b"/tmp", b".file", b"/home", b"llmc") if part in text]


def test_a_cubin_is_what_the_pinned_assembler_makes_of_the_ptx_beside_it(cubins: dict[int, Cubin]):
    for sm, cubin in cubins.items():
        assert ".version 9.0\n" in cubin.ptx and f".target {assembler.ARCH[sm]}\n" in cubin.ptx
        assert b"Cuda compilation tools, release 13.0, V13.0.88" in cubin.data
        assert assembler.assemble(cubin.ptx, sm)[0] == cubin.data


def test_this_process_goes_on_interpreting(cubins: dict[int, Cubin]):
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert type(gated.gated_kernel).__name__ == "InterpretedFunction"


def test_a_worker_loads_kernels_and_no_torch():
    script = (
        "import sys; from importlib import import_module; from llmc.compiler.kernel_imports import prepare; prepare()\n"
        "from llmc.compiler.targets.cuda.kernels import FILES, __name__ as package\n"
        "print(*(import_module(f'{package}.{file}').SUITE.kernels[0].name for file in FILES))\n"
        "assert 'torch._C' not in sys.modules and 'onnx_ir' not in sys.modules\n"
        "import torch; print(torch.bfloat16, sys.modules['torch'].bfloat16)\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    kernels, numbers = said.stdout.splitlines()
    assert kernels.split() == [suite.kernels[0].name for suite in suites().values()]
    assert numbers == "torch.bfloat16 torch.bfloat16"


def test_resources_come_from_the_assembler():
    log = (
        "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n"
        "    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 1024 bytes smem\n"
    )
    assert worker.resources(log) == {"registers": 255, "local": 24, "spills": 36, "static_shared": 1024}
    with pytest.raises(RuntimeError, match="no resources in the output of ptxas: 'nothing'"):
        worker.resources("nothing")


def test_a_kernel_for_newer_chips_is_refused():
    kernel = Kernel("gated", gated.gated_kernel, minimum_sm=89)
    specialization = specialization_of(replace(call(), kernel=kernel))
    with pytest.raises(Unsupported) as caught:
        compile_all([specialization], 80, progress=NO_PROGRESS, cache=NO_CACHE)
    assert str(caught.value) == (
        f"cannot compile kernel {specialization} for sm_80\n  found: it needs sm_89 or newer\n  try: a newer GPU"
    )


def test_what_triton_refuses_names_kernel_constants_and_chip(kept: KernelCache, cubins: dict[int, Cubin]):
    """And the other specializations are compiled all the same."""
    wrong = replace(RELU, constants=(("WIDTH", 96), ("ACTIVATION", "relu"), ("BLOCK", 1000)))
    outcomes = try_compile([wrong, RELU], 90, progress=NO_PROGRESS, cache=kept)
    assert outcomes[RELU] == cubins[90]
    error = outcomes[wrong]
    assert type(error) is LlmcError
    assert error.asked == "cannot compile kernel gated WIDTH=96 ACTIVATION=relu BLOCK=1000 warps=4 stages=2 for sm_90"
    assert error.found.startswith("ValueError: arange's range must be a power of 2\\nCompilationError: at ")


def test_more_shared_memory_than_a_block_has_is_refused(cubins: dict[int, Cubin]):
    fits = replace(cubins[90], code=replace(cubins[90].code, shared=232448))
    assert compile._fitting(RELU, fits, chip(90).shared) is fits
    error = compile._fitting(RELU, replace(fits, static_shared=16), chip(90).shared)
    assert isinstance(error, LlmcError)
    assert error.found == "232464 bytes of shared memory per block, of at most 232448"


def test_a_missing_triton_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compile, "find_spec", lambda name: None if name == "triton" else object())
    with pytest.raises(ResourceError) as caught:
        compile_all([RELU], 90, progress=NO_PROGRESS, cache=NO_CACHE)
    assert str(caught.value) == (
        "cannot compile kernels without the extra 'cuda-build'\n  found: not installed: triton\n"
        "  try: pip install '.[cuda-build]' in a checkout of llmc"
    )


def test_nothing_to_compile_needs_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compile, "find_spec", lambda name: None)
    assert compile_all([], 90, progress=NO_PROGRESS) == {}


def test_a_worker_that_dies_names_the_kernel_and_what_it_said(monkeypatch: pytest.MonkeyPatch):
    error = failing("import os, sys; print('LLVM ERROR: x', file=sys.stderr, flush=True); os._exit(134)", monkeypatch)
    assert type(error) is LlmcError
    assert (
        str(error)
        == f"cannot compile kernel {RELU} for sm_90\n  found: its compiler ended with code 134: LLVM ERROR: x"
    )


def test_a_worker_that_is_killed_points_to_memory(monkeypatch: pytest.MonkeyPatch):
    error = failing("import os; os.kill(os.getpid(), 9)", monkeypatch)
    assert type(error) is ResourceError
    assert error.found == "its compiler was killed, probably for lack of memory"
    assert error.fix == "--jobs 1"


@pytest.mark.parametrize("wrong", ["pass", """print('{"error": "no"}', flush=True); input()"""])
def test_the_kernels_after_a_failure_get_a_new_worker(
    wrong: str, cubins: dict[int, Cubin], kept: KernelCache, monkeypatch: pytest.MonkeyPatch
):
    code = f"if 'silu' in input(): {wrong}; raise SystemExit(1)\nprint({_kept_answer(kept)!r}, flush=True)\ninput()"
    monkeypatch.setattr(compile, "_START", code)
    outcomes = try_compile([SILU, RELU], 90, progress=NO_PROGRESS, cache=NO_CACHE, jobs=1)
    assert isinstance(outcomes[SILU], LlmcError)
    assert outcomes[RELU] == cubins[90]


class _Interrupting:
    """A progress that raises as soon as something is done, as Ctrl-C would."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "B") -> Iterator[Callable[[int], None]]:
        def advance(_done: int) -> None:
            raise KeyboardInterrupt

        yield advance


def test_an_interrupt_ends_all_workers(cubins: dict[int, Cubin], kept: KernelCache, monkeypatch: pytest.MonkeyPatch):
    code = f"import time\nif 'relu' in input(): print({_kept_answer(kept)!r}, flush=True)\ntime.sleep(600)"
    monkeypatch.setattr(compile, "_START", code)
    started: list[subprocess.Popen[str]] = []
    real = subprocess.Popen
    monkeypatch.setattr(compile.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        try_compile([SILU, RELU], 90, progress=_Interrupting(), cache=NO_CACHE, jobs=2)
    assert time.monotonic() - begun < 20
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def _entry(kept: KernelCache, sm: int) -> Path:
    assert kept.folder is not None
    return kept.folder / cache.key_of(RELU.request(sm), cache.sources_of("gated"), Tools.installed())


def _kept_answer(kept: KernelCache) -> str:
    return json.dumps(kept.load(_entry(kept, 90).name))


@pytest.fixture
def counted(kept: KernelCache, cubins: dict[int, Cubin], monkeypatch: pytest.MonkeyPatch) -> list[Specialization]:
    """The specializations that are compiled from here on; they get the answer that was kept for RELU."""
    answer = kept.load(_entry(kept, 90).name)
    compiled: list[Specialization] = []

    def fake(specializations: list[Specialization], sm: int, jobs: int | None) -> Generator[Any, None, None]:
        compiled.extend(specializations)
        yield from ((specialization, answer) for specialization in specializations)

    monkeypatch.setattr(compile, "_compile", fake)
    return compiled


def test_a_second_build_compiles_nothing(cubins: dict[int, Cubin], kept: KernelCache, counted: list[Specialization]):
    assert compile_all([RELU], 90, progress=NO_PROGRESS, cache=kept)[RELU] == cubins[90]
    assert counted == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "nonsense"])
def test_a_damaged_entry_is_compiled_again(
    damage: str, cubins: dict[int, Cubin], kept: KernelCache, counted: list[Specialization], tmp_path: Path
):
    whole = _entry(kept, 90).read_bytes()
    damaged = {
        "cut": whole[:-100],
        "flipped": whole[:500] + bytes([whole[500] ^ 1]) + whole[501:],
        "empty": b"",
        "other": _entry(kept, 80).read_bytes(),
        "nonsense": b"\xff\xfe\n{",
    }[damage]
    copy = KernelCache(tmp_path)
    _entry(copy, 90).write_bytes(damaged)
    for _ in range(2):
        assert compile_all([RELU], 90, progress=NO_PROGRESS, cache=copy)[RELU] == cubins[90]
    assert counted == [RELU]
    assert _entry(copy, 90).read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == [_entry(copy, 90).name]


def test_what_decides_the_bytes_decides_the_key():
    request = RELU.request(90)
    changes = [{"sm": 89}, {"warps": 8}, {"stages": 3}, {"types": ["*fp16", "*fp16"]}]
    changes += [{"constants": {**request["constants"], "WIDTH": value}} for value in (97, 96.0, None)]
    tools = Tools("3.9.0", "12", "13.0")
    keys = {cache.key_of({**request, **change}, "sources", tools) for change in [{}, *changes]}
    keys.add(cache.key_of(request, "other sources", tools))
    keys.add(cache.key_of(request, "sources", replace(tools, triton="4.0")))
    keys.add(cache.key_of(request, "sources", replace(tools, ptxas="13")))
    keys.add(cache.key_of(request, "sources", replace(tools, nvrtc="13.1")))
    assert len(keys) == len(changes) + 5


def test_a_file_edited_meanwhile_is_not_kept(
    counted: list[Specialization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    states = iter(("before", "after"))
    monkeypatch.setattr(compile, "sources_of", lambda file: next(states))
    try_compile([SILU], 90, progress=NO_PROGRESS, cache=KernelCache(tmp_path))
    assert counted == [SILU]
    assert list(tmp_path.iterdir()) == []


def packed(kept: KernelCache, folder: Path) -> KernelCache:
    """A pack of RELU for sm_90, as another Triton has compiled it."""
    tools = Tools("1.2.3", "another assembler", "another NVRTC")
    key = cache.key_of(RELU.request(90), cache.sources_of("gated"), tools)
    KernelCache(folder).save(key, kept.load(_entry(kept, 90).name))
    (folder / cache.TOOLS).write_text(json.dumps(asdict(tools)))
    return KernelCache(folder)


def test_a_pack_serves_whatever_triton_is_installed(
    cubins: dict[int, Cubin],
    kept: KernelCache,
    counted: list[Specialization],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    pack = packed(kept, tmp_path)
    monkeypatch.setattr(compile, "find_spec", lambda name: None)
    assert compile_all([RELU], 90, progress=NO_PROGRESS, cache=pack)[RELU] == cubins[90]
    assert pack.tools.triton == "1.2.3" and counted == []


def test_a_pack_is_never_added_to(kept: KernelCache, counted: list[Specialization], tmp_path: Path):
    pack = packed(kept, tmp_path)
    before = sorted(tmp_path.iterdir())
    for specialization, sm in ((SILU, 90), (RELU, 80)):
        outcome = try_compile([specialization], sm, progress=NO_PROGRESS, cache=pack)[specialization]
        assert isinstance(outcome, ResourceError) and "cannot find kernel" in outcome.asked
    pack.save("key", {})
    assert counted == [] and sorted(tmp_path.iterdir()) == before


def test_a_pack_of_other_sources_is_refused(
    kept: KernelCache, counted: list[Specialization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pack = packed(kept, tmp_path)
    monkeypatch.setattr(compile, "sources_of", lambda file: "edited")
    assert isinstance(try_compile([RELU], 90, progress=NO_PROGRESS, cache=pack)[RELU], ResourceError)


def test_a_cache_that_cannot_be_written_is_no_error(
    counted: list[Specialization], cubins: dict[int, Cubin], tmp_path: Path
):
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file" / "kernels"):
        found = compile_all([RELU], 90, progress=NO_PROGRESS, cache=KernelCache(folder))
        assert found[RELU] == cubins[90]
    assert counted == [RELU, RELU]


def test_a_kernel_that_spills_for_the_sake_of_a_second_block_has_its_multiprocessor_to_itself():
    """Found by compiling everything with the assembler of CUDA 13.0."""
    (specialization,) = (
        one
        for one in map(specialization_of, suites()["linear.large"].calls(86))
        if dict(one.constants)["FORMAT"] == "int8"
    )
    cubin = compile_all([specialization], 86, progress=NO_PROGRESS)[specialization]
    assert "\n.reqntid 128\n.minnctapersm 1\n" in cubin.ptx
    spilling = worker.resources(assembler.assemble(cubin.ptx.replace(".minnctapersm 1\n", ""), 86)[1])
    assert cubin.code.spills == 0 < spilling["spills"] and cubin.code.registers > spilling["registers"]
    assert worker.for_one_block(cubin.ptx.replace(".minnctapersm 1\n", "")) == cubin.ptx


def test_a_kernel_that_reads_its_parameters_elsewhere_is_refused(cubins: dict[int, Cubin]):
    right = cubins[90]
    compile.check_parameters(right, 4)
    for wrong, warps in ((replace(right, types=("*bf16", "i32", *right.types[2:])), 4), (right, 8)):
        with pytest.raises(EngineError, match=r"expected kernel gated_kernel for sm_90 with parameters .*\n  found: "):
            compile.check_parameters(wrong, warps)


def test_a_wrong_parameter_block_is_one_kernels_outcome_and_is_not_kept(
    counted: list[Specialization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compile, "layout", lambda types: ())
    (outcome,) = try_compile([SILU], 90, progress=NO_PROGRESS, cache=KernelCache(tmp_path)).values()
    assert isinstance(outcome, EngineError) and not [*tmp_path.iterdir()]

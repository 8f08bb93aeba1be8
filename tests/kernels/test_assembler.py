"""What is assembled, and by what: PTX that waits for the launch before it, an assembler of one release, its chips."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmc.compiler.targets.cuda.cubins import assembler, worker
from llmc.compiler.targets.cuda.cubins.compile import compile_all, specialization_of
from llmc.compiler.targets.cuda.cubins.elf import image_of
from llmc.compiler.targets.cuda.kernels import suites
from llmc.runtime.chips import CAPABILITIES
from llmc.runtime.errors import ResourceError
from llmc.runtime.progress import NO_PROGRESS


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    for known in (assembler.assembler, assembler.assembler_version):
        known.cache_clear()
    yield
    for known in (assembler.assembler, assembler.assembler_version):
        known.cache_clear()


def test_every_target_has_a_name_for_the_assembler():
    assert tuple(assembler.ARCH) == CAPABILITIES
    assert (assembler.ARCH[90], assembler.ARCH[100], assembler.ARCH[120]) == ("sm_90a", "sm_100f", "sm_120f")


def test_it_is_the_wheels():
    assert assembler.assembler_version() == "V13.0.88"
    assert assembler.assembler().parts[-4:] == ("nvidia", "cu13", "bin", "ptxas")


def test_without_the_wheel_the_pip_line_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    text = r"cannot find ptxas of CUDA 13.0\n  found: not installed\n  try: pip install 'nvidia-cuda-nvcc==13.0.\*'"
    for found in (None, SimpleNamespace(submodule_search_locations=[str(tmp_path)])):
        monkeypatch.setattr(assembler, "find_spec", lambda name, found=found: found)
        with pytest.raises(ResourceError, match=text):
            assembler.assembler_version()


@pytest.mark.parametrize(
    ("said", "found"),
    [("Cuda compilation tools, release 13.4, V13.4.59", "V13.4.59"), ("something else", "something else")],
)
def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch, said: str, found: str):
    monkeypatch.setattr(assembler.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    with pytest.raises(ResourceError, match=f"expected ptxas of CUDA 13.0\n  found: {found}\n  try: pip install"):
        assembler.assembler_version()


def test_one_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "nvidia" / "cu13" / "bin" / "ptxas"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(
        assembler, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    )
    with pytest.raises(ResourceError, match=r"exit status 3.*\n  try: pip install --force-reinstall"):
        assembler.assembler_version()


def test_ptx_it_refuses_is_told_without_folders_of_this_machine():
    with pytest.raises(
        RuntimeError, match=r"ptxas of CUDA 13\.0 ended with code 255: ptxas kernel\.ptx, line 3; fatal"
    ):
        assembler.assemble(".version 9.0\n.target sm_90a\nnonsense\n", 90)


@pytest.mark.parametrize(("sm", "members"), [(100, ("sm_100", "sm_103")), (120, ("sm_120", "sm_121"))])
def test_code_of_a_family_assembles_for_each_of_its_chips(sm: int, members: tuple[str, str], tmp_path: Path):
    """PTX with `.target sm_100f` is for the family: the assembler takes it for B300, and for no other family."""
    specialization = specialization_of(next(iter(suites()["gated"].calls(sm))))
    cubin = compile_all([specialization], sm, progress=NO_PROGRESS)[specialization]
    assert f".target {assembler.ARCH[sm]}\n" in cubin.ptx and image_of(cubin.data, cubin.code.entry).abi == 8
    (tmp_path / "k.ptx").write_text(cubin.ptx)
    for chip, code in ((members[0], 0), (members[1], 0), ("sm_90a", 255)):
        command = [assembler.assembler(), f"--gpu-name={chip}", tmp_path / "k.ptx", "-o", tmp_path / "k"]
        assert subprocess.run(command, capture_output=True).returncode == code, chip


@pytest.mark.parametrize(
    "line",
    [
        "ld.global.b32 %r1, [%rd1];",
        "@%p1 bra $L__BB0_2;",
        "$L__BB0_1:",
        "st.global.b32 [%rd1], %r1;",
        "cp.async.cg.shared.global [%r1], [%rd1], 16;",
        "atom.global.add.u32 %r1, [%rd1], 1;",
    ],
)
def test_a_kernel_that_may_access_memory_before_its_wait_is_refused(line: str):
    before = "ld.param.b64 %rd1, [p];\n\tadd.s64 %rd2, %rd1, 4;\n\tcp.async.bulk.prefetch.L2.global [%rd1], 64;"
    text = "{{\n// %bb.0:\n\t{}\n\tgriddepcontrol.wait ;\n\t{}\n}}\n"
    worker.check_wait(text.format(before, line))
    for wrong in (text.format(f"{before}\n\t{line}", ""), text.format(before, line).replace("wait", "launch")):
        with pytest.raises(RuntimeError, match="may access memory before it waits"):
            worker.check_wait(wrong)


def test_the_wait_comes_before_the_first_instruction():
    specialization = specialization_of(next(iter(suites()["gated"].calls(90))))
    old, new = (compile_all([specialization], sm, progress=NO_PROGRESS)[specialization] for sm in (80, 90))
    assert (old.code.pdl, new.code.pdl) == (False, True)
    ptx = old.ptx
    assert "griddepcontrol" not in ptx and new.ptx.count("griddepcontrol.wait;") == 1
    lines = worker.with_wait(ptx).splitlines()
    at = lines.index("\tgriddepcontrol.wait;")
    assert lines[at - 2].startswith("// %bb.0:") and lines[at - 1] == "\tgriddepcontrol.launch_dependents;"
    assert not [line for line in lines[: at - 2] if line.startswith(("\tld.", "\tmov.", "\tst."))]
    assert "\n".join([*lines[: at - 1], *lines[at + 1 :]]) == ptx.rstrip("\n")
    for text in ("", ptx + ptx):
        with pytest.raises(RuntimeError, match="PTX of another form than one kernel's"):
            worker.with_wait(text)

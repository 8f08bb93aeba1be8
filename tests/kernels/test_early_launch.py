"""Programmatic dependent launch: kernels of new chips wait for the launch before them, and nothing else changes."""

from __future__ import annotations

import pytest

from llmc.compiler.targets.cuda.call import Operand
from llmc.compiler.targets.cuda.cubins import worker
from llmc.compiler.targets.cuda.cubins.compile import compile_variants, variant_of
from llmc.compiler.targets.cuda.kernels import gated
from llmc.runtime.progress import NO_PROGRESS

CALL = gated.gated(Operand("x", "bf16", ("tokens", 192)), Operand("y", "bf16", ("tokens", 96)), activation="relu")


def test_the_wait_comes_before_the_first_instruction():
    variant = variant_of(CALL)
    old, new = (compile_variants([variant], sm, progress=NO_PROGRESS)[variant] for sm in (80, 90))
    assert (old.pdl, new.pdl) == (False, True)
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

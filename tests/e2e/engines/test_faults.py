"""Checkpoints with forged headers or hostile weights met by a user; `tests/scripts/faults` has simpler damage."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import (
    DOWN,
    EMBEDDING,
    FIRST,
    HEAD,
    NORM,
    UP,
    Call,
    built,
    edit,
    edit_header,
    refused,
    retensor,
)
from support.engines import PicoEngine
from support.paths import PICO

import llmc
from llmc.quantize import FORMATS
from llmc.runtime.engine_file.file import ENGINE


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint, to be damaged."""
    return Path(shutil.copytree(PICO, tmp_path / "checkpoint"))


def _duplicate(text: str) -> str:
    entry = re.search(rf'"{NORM}": {{[^}}]*}}, ', text)
    assert entry is not None
    return text.replace(entry[0], entry[0] * 2)


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


def _entry(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_header(folder / FIRST, lambda header: header[NORM].update(values))


def _become(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _dtype(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: retensor(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(dtype)}))


HTML = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"
REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "an offset that wraps": (_entry(data_offsets=[2**64 - 8, 2**64]), (NORM, "fewer than 2^63 bits and bytes")),
    "a shape that wraps": (_entry(shape=[2**40, 2**40]), (NORM, "fewer than 2^63 bits and bytes")),
    "an overlap": (_entry(data_offsets=[0, 512]), ("tensors that do not overlap", NORM, EMBEDDING)),
    "a tensor twice": (
        lambda c: edit_header(c / FIRST, lambda header: None, _duplicate),
        (f"the key '{NORM}' twice in one object",),
    ),
    "bottomless nesting": (
        lambda c: (c / FIRST).write_bytes(struct.pack("<Q", 100_005) + b'{"a":' + b"[" * 100_000),
        ("JSON nested at most 4 levels deep",),
    ),
    "float64 weights": (_dtype(torch.float64), (f"tensor '{DOWN}' as one of BF16, F16, F32\n  found: F64",)),
    "integer weights": (_dtype(torch.int8), (f"tensor '{DOWN}' as one of BF16, F16, F32\n  found: I8",)),
    "fp8 without scales": (_dtype(torch.float8_e4m3fn), (f"tensor '{DOWN}' as one of", "found: F8_E4M3")),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_damaged_checkpoint_is_refused(
    call: Call, checkpoint: Path, case: tuple[Callable[[Path], object], tuple[str, ...]]
):
    damage, said = case
    damage(checkpoint)
    refused(call, checkpoint, *said)


WITHOUT_TORCH = """
import sys
from llmc.cli.app import run
code = run(["build", *sys.argv[1:], "-o", "never.llmc"])
print(code, sorted({"torch", "onnx", "onnx_ir", "onnxruntime"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("damage", "flags", "code"),
    [
        (_become(FIRST, HTML), [], 3),
        (_config(hidden_size=320), [], 3),
        (lambda c: (c / "r.yaml").write_text("version: 1\nquantise: {}\n"), ["--recipe", "./r.yaml"], 2),
        (lambda c: None, ["--quantize", "int5"], 2),
    ],
    ids=["damaged shard", "shapes", "recipe", "flag"],
)
def test_what_can_be_refused_early_is_refused_before_torch_is_imported(
    checkpoint: Path, damage: Callable[[Path], object], flags: list[str], code: int
):
    damage(checkpoint)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(checkpoint), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkpoint)
    assert done.stdout.split("\n")[0] == f"{code} []", done.stderr


def test_a_head_beside_a_tied_embedding(call: Call, checkpoint: Path):
    retensor(checkpoint, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert f"unused: {HEAD} (bit-equal to the tied embedding)" in built(call, checkpoint, "-v")[1]
    (checkpoint.parent / "e.llmc").unlink()
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors | {HEAD: tensors[HEAD] + 1}, checkpoint / "model.safetensors")
    refused(call, checkpoint, f"found: tensor '{HEAD}' that differs from '{EMBEDDING}'")


@pytest.mark.parametrize("quantize", ["none", *FORMATS])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_leaves_the_old_engine(call: Call, checkpoint: Path, quantize: str, value: float):
    old = checkpoint.parent / "e.llmc"
    old.write_bytes(bytes(ENGINE.offset) + ENGINE.mark)
    retensor(checkpoint, lambda tensors: tensors[UP][5].fill_(value))
    code, text = call("build", checkpoint, "-o", old, "--quantize", quantize)
    assert (code, f"expected finite numbers in {UP}" in text) == (3, True)
    assert old.read_bytes() == bytes(ENGINE.offset) + ENGINE.mark
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint", "e.llmc"]


def test_a_constant_weight_is_a_warning(call: Call, checkpoint: Path):
    retensor(checkpoint, lambda tensors: (tensors[UP].zero_(), tensors[DOWN].fill_(0.5)))
    text = built(call, checkpoint, "--quantize", "int4")[1]
    assert f"warning: tensor {UP} is constant" in text
    assert f"warning: tensor {DOWN} is constant" in text


def test_special_tokens_spelled_by_a_user_have_the_ids_of_plain_text(pico_engine: PicoEngine):
    with llmc.load(pico_engine("int8")) as engine:
        special = engine.tokenizer.special_tokens
        for text in (*special, f"a{'b'.join(special)}c"):
            ids = engine.tokenizer.encode(text, bos=False)
            assert not set(ids) & set(special.values())
            assert engine.tokenizer.decode(ids, skip_special=False) == text
        assert engine.tokenizer.encode("<|end_of_text|>", bos=False, special=True) == [special["<|end_of_text|>"]]

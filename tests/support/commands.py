"""Command lines run as a user would, and damage done to checkpoints and engines before: for the tests of faults."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmc.cli.app import run
from llmc.runtime.engine_file import shards

FIRST, SECOND, INDEX = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
)
DOWN, UP, HEAD = "model.layers.0.mlp.down_proj.weight", "model.layers.3.mlp.up_proj.weight", "lm_head.weight"
NORM, EMBEDDING = "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"
Json = dict[str, Any]


class Outcome:
    """Exit code, both streams, and the last line of stdout as JSON."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        return json.loads(self.out.rstrip("\n").split("\n")[-1])


class Call:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Exit code, and what was said on stdout and stderr."""
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out + shown.err


def refused(call: Call, checkpoint: Path, *said: str, code: int = 3, flags: tuple[object, ...] = ()) -> None:
    """`llmc build` ends with this code and message, and leaves no file."""
    folder = checkpoint.parent / "out"
    folder.mkdir(exist_ok=True)
    found, text = call("build", checkpoint, "-o", folder / "e.llmc", *flags)
    assert found == code, text
    assert [one for one in said if one not in text] == [], text
    assert list(folder.iterdir()) == []


def built(call: Call, checkpoint: Path, *flags: object) -> tuple[Path, str]:
    """The engine `llmc build` makes, and what it says."""
    path = checkpoint.parent / "e.llmc"
    code, text = call("build", checkpoint, "-o", path, *flags)
    assert code == 0, text
    return path, text


def edit(file: Path, change: Callable[[Json], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def edit_header(file: Path, change: Callable[[Json], object], text: Callable[[str], str] = str) -> None:
    """Change the header of a safetensors file; its data stay as they are."""
    raw = file.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:end])
    change(header)
    new = text(json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + raw[end:])


def retensor(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change tensors; the checkpoint becomes a single file."""
    tensors = load_file(checkpoint / FIRST) | load_file(checkpoint / SECOND)
    for name in (FIRST, SECOND, INDEX):
        (checkpoint / name).unlink()
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def edit_engine(engine: Path, target: Path, change: Callable[[Json], object], text: Callable[[str], str] = str) -> Path:
    """An engine with another header, whose digest is right."""
    raw = engine.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:end])
    change(header)
    new = text(json.dumps(header, separators=(",", ":"))).encode()
    new = new.ljust(-(-(len(new) + 8) // 256) * 256 - 8)
    new = shards.FIRST.put(new)
    target.write_bytes(struct.pack("<Q", len(new)) + new + raw[end:])
    return target


class Terminal:
    """`llmc run --chat` at a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.shown, self._seen = b"", 0
        command = [sys.executable, "-m", "llmc", "run", *map(str, arguments), "--chat"]
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it, and this may be one
            os.execv(sys.executable, command)

    def until(self, text: bytes) -> bytes:
        """What is shown from the last such place up to `text`."""
        start = self._seen
        while text not in self.shown[start:]:
            assert self.read(), self.shown.decode(errors="replace")
        self._seen = self.shown.index(text, start) + len(text)
        return self.shown[start : self._seen]

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def press_ctrl_c(self) -> None:
        """Again if nothing happens: Python overlooks one that comes just before readline waits for a key."""
        self.type(b"\x03")
        for _ in range(10):
            if select.select([self._terminal], [], [], 2)[0]:
                return
            self.type(b"\x03")

    def read(self) -> bool:
        """Wait for more; False if no more will come."""
        if not select.select([self._terminal], [], [], 120)[0]:
            os.kill(self._child, signal.SIGKILL)  # instead of waiting for ever
        try:
            piece = os.read(self._terminal, 4096)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.shown += piece
        return bool(piece)

    def end(self) -> int:
        """The exit code, when all has been read."""
        while self.read():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])

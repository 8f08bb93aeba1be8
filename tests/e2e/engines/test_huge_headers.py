"""Headers made to eat memory or time are refused in little of it: memory is measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.engines import small_checkpoint

from llmc.cli.app import run
from llmc.runtime.engine_file.shards import MAX_TENSORS
from llmc.runtime.errors import CheckpointError, EngineError
from llmc.runtime.files import safetensors

HUGE = {
    "many entries": """",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))""",
    "many keys": """",".join(f'"{i}":0' for i in range(2_500_000))""",
    "wide shape": """'"a":{"shape":[' + "1," * 12_000_000 + "1]}" """,
    "nesting": """'"a":' + "[" * 100_000""",
    "blank": """" " * 90_000_000""",
    "quotes": """'""' * 12_000_000""",
    "wide characters": """'"\U0001f600' + "a" * 26_000_000 + '":0'""",
}


@pytest.fixture
def no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a header of too many tensors was parsed")

    monkeypatch.setattr(safetensors, "loads", refuse)


def header_of(count: int, prefix: str = "t") -> bytes:
    entries = (f'"{prefix}{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(count))
    return ("{" + ",".join(entries) + "}").encode()


def write(path: Path, count: int, prefix: str) -> None:
    raw = header_of(count, prefix)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(count))


@pytest.mark.usefixtures("no_json")
def test_300_000_tensors_are_counted_before_any_is_parsed() -> None:
    raw = header_of(300_000)
    for error, most in ((CheckpointError, 200_000), (EngineError, MAX_TENSORS)):
        with pytest.raises(error, match=f"expected at most {most} tensors in x\n  found: about 300000"):
            safetensors.parse_header(raw, 8 + len(raw) + 300_000, what="x", error=error, max_tensors=most)


def test_the_tensors_of_all_shards_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    small_checkpoint(folder)
    shards = [one for one in sorted(folder.iterdir()) if one.suffix == ".safetensors"]
    own = sum(len(safetensors.read_header(one, error=CheckpointError).tensors) for one in shards)
    monkeypatch.setattr("llmc.compiler.checkpoint.weights.shards._MAX_TENSORS", own + 20)
    table = {name: one.name for one in shards for name in safetensors.read_header(one, error=CheckpointError).tensors}
    for name in ("y", "z"):
        write(folder / f"{name}.safetensors", 15, f"{name}.")
        table[f"{name}.0"] = f"{name}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    refused = f"expected at most {own + 20} tensors in {folder}/z.safetensors and the files before it"
    for command in (["build", str(folder), "-o", str(tmp_path / "x.llmc")], ["inspect", str(folder)]):
        assert run(command) == 3
        assert f"{refused}\n  found: about {own + 30}" in capsys.readouterr().err


@pytest.mark.parametrize("body", HUGE.values(), ids=HUGE)
def test_huge_headers_cost_little_memory(tmp_path: Path, body: str) -> None:
    path = tmp_path / "h.safetensors"
    make = (
        f"raw = ('{{' + {body} + '}}').encode()\nopen({str(path)!r}, 'wb').write(len(raw).to_bytes(8, 'little') + raw)"
    )
    subprocess.run([sys.executable, "-c", make], check=True)
    read_it = (
        "import resource\nfrom pathlib import Path\n"
        "from llmc.runtime.errors import CheckpointError\n"
        "from llmc.runtime.files.safetensors import read_header\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    read_header(Path({str(path)!r}), error=CheckpointError)\n"
        "except CheckpointError as problem:\n    print('refused')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", read_it], check=True, capture_output=True, text=True)
    verdict, mebibytes = done.stdout.split()
    assert verdict == "refused"
    assert int(mebibytes) < 256

"""Headers made to eat memory are refused in little of it: measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HUGE = {
    "many entries": """",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))""",
    "many keys": """",".join(f'"{i}":0' for i in range(2_500_000))""",
    "wide shape": """'"a":{"shape":[' + "1," * 12_000_000 + "1]}" """,
    "nesting": """'"a":' + "[" * 100_000""",
    "blank": """" " * 90_000_000""",
    "quotes": """'""' * 12_000_000""",
    "wide characters": """'"\U0001f600' + "a" * 26_000_000 + '":0'""",
}


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

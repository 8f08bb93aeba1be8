"""Measures each weight format on the bundled model: perplexity on held-out code, and the distance from the checkpoint.

    python benchmarks/accuracy.py [--out benchmarks/results/accuracy.json]

The texts are files of the running interpreter's standard library that the model was not trained on (its README lists
them). The baseline is the checkpoint itself through the fp32 oracle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CHECKPOINT = Path(__file__).parent.parent / "examples/checkpoints/pico-python"
TEXTS = ("token.py", "hashlib.py", "socket.py", "wsgiref/util.py", "turtledemo/clock.py")
FORMATS = ("none", "int8", "fp8", "int4", "int4-g128", "nvfp4", "mxfp4")


def llmc(*arguments: str | Path) -> dict[str, float]:
    """A command's JSON result."""
    command = [sys.executable, "-m", "llmc", *map(str, arguments), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy.json"))
    options = parser.parse_args()
    library = Path(sysconfig.get_path("stdlib"))
    texts = [item for name in TEXTS for item in ("--text", library / name)]
    rows = {}
    print("| format | engine, MB | perplexity | KL mean, nats | KL p99 | same best token |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            engine = Path(folder) / f"{name}.llmc"
            llmc("build", CHECKPOINT, "-o", engine, *(() if name == "none" else ("--quantize", name)))
            found = llmc("eval", engine, *texts, "--baseline", CHECKPOINT)
            rows[name] = {"bytes": engine.stat().st_size, **found}
            print(
                f"| {name} | {rows[name]['bytes'] / 1e6:.1f} | {found['perplexity']:.3f} | {found['kl_mean']:.2g} "
                f"| {found['kl_p99']:.2g} | {100 * found['top1']:.1f} % |",
                flush=True,
            )
    python = sys.version.split()[0]
    options.out.write_text(json.dumps({"texts": TEXTS, "python": python, "formats": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

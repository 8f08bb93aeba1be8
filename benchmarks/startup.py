"""Process start to exit: `llmc --help` and `llmc run` of 16 tokens, against a bare interpreter in the same rounds.

python benchmarks/startup.py [--rounds 15] [--out benchmarks/results/startup.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from llmc.runtime.machine import cpu_count, cpu_name

CHECKPOINT = Path(__file__).parent.parent / "examples/checkpoints/pico-python"
GOALS = {"llmc run, 16 tokens": 1.0, "llmc --help": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "pico.llmc"
        llmc = [sys.executable, "-m", "llmc"]
        build = [*llmc, "build", str(CHECKPOINT), "-o", str(engine), "--quantize", "int8"]
        subprocess.run(build, check=True, capture_output=True)
        commands = {
            "llmc run, 16 tokens": [*llmc, "run", str(engine), "def main(", "--max-tokens", "16"],
            "llmc --help": [*llmc, "--help"],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(options.rounds + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if turn:  # the first round warms the page cache
                    seconds[name].append(time.perf_counter() - start)
    bare = median(seconds["python -c pass"])
    rows = {
        name: {
            "median_s": round(median(times), 4),
            "best_s": round(min(times), 4),
            "times_bare_python": round(median(times) / bare, 1),
            "goal_s": GOALS.get(name),
        }
        for name, times in seconds.items()
    }
    result = {"machine": f"{cpu_name()}, {cpu_count()} threads", "rounds": options.rounds, "commands": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in rows.items():
        print(
            f"{name:20s} median {row['median_s']:.3f} s, best {row['best_s']:.3f} s, {row['times_bare_python']}x python"
        )


if __name__ == "__main__":
    main()

"""Process start to exit, and to the first sign of life on a terminal, against a bare interpreter in the same rounds.

python benchmarks/startup.py [--rounds 15] [--out benchmarks/results/startup.json]
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

from llmc.runtime.machine import cpu_count, cpu_name

CHECKPOINT = Path(__file__).parent.parent / "examples/checkpoints/pico-python"
CONFIG = Path(__file__).parent.parent / "examples/configs/llama-3.1-405b.json"
# As after `pip install`, which compiles modules: without their bytecode a command compiles up to 178 of them each time.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
GOALS = {"llmc run, 16 tokens": 1.0, "llmc --help": 0.3, "llmc plan, 405B on 8 GPUs": 3.0}
FIRST_GOAL_S = 0.5


def first_output(command: list[str]) -> float:
    """Seconds from the start of a process to its first byte on a terminal; its end is waited for."""
    ours, theirs = pty.openpty()
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        os.read(ours, 1)
        seconds = time.perf_counter() - start
        with suppress(OSError):  # EIO: the process has closed its terminal
            while os.read(ours, 4096):
                pass
        if process.wait():
            raise SystemExit(f"{command} ended with {process.returncode}")
    os.close(ours)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "pico.llmc"
        llmc = [sys.executable, "-m", "llmc"]
        build = [*llmc, "build", str(CHECKPOINT), "-o", str(engine), "--quantize", "int8"]
        subprocess.run(build, check=True, capture_output=True, env=ENVIRONMENT)
        commands = {
            "llmc run, 16 tokens": [*llmc, "run", str(engine), "def main(", "--max-tokens", "16"],
            "llmc --help": [*llmc, "--help"],
            "llmc plan, 405B on 8 GPUs": [*llmc, "plan", str(CONFIG), "--for", "8xh200", "--json"],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        score = ["eval", str(engine), "--text", str(CHECKPOINT / "README.md")]
        watched = {
            f"first output of llmc {words[0]}": [*llmc, *words]
            for words in (build[3:], commands["llmc run, 16 tokens"][3:], score, ["bench", str(engine), "-n", "8"])
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(options.rounds + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
                if turn:  # the first round warms the page cache, and writes bytecode
                    seconds[name].append(time.perf_counter() - start)
            for name, command in watched.items():
                seconds.setdefault(name, []).extend([first_output(command)] * bool(turn))
    bare = median(seconds["python -c pass"])
    rows = {
        name: {
            "median_s": round(median(times), 4),
            "best_s": round(min(times), 4),
            "times_bare_python": round(median(times) / bare, 1),
            "goal_s": FIRST_GOAL_S if name.startswith("first") else GOALS.get(name),
        }
        for name, times in seconds.items()
    }
    result = {"machine": f"{cpu_name()}, {cpu_count()} threads", "rounds": options.rounds, "commands": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in rows.items():
        print(
            f"{name:28s} median {row['median_s']:.3f} s, best {row['best_s']:.3f} s, {row['times_bare_python']}x python"
        )


if __name__ == "__main__":
    main()

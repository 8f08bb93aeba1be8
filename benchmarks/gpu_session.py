"""All that only a GPU can tell, most important first; every part in a process and a time limit of its own.

benchmarks/gpu.sh [--seconds 570] [--dry-run] [GROUP or PART ...]

A part that hangs or fails costs only itself, and one that no longer fits into the session's seconds is left out by
name. After every part, $OUT has the results so far: a JSON file and a log of the session, named by what was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from gpu_engines import EngineSpec, carried

OUT = Path(os.environ.get("OUT", "benchmarks/results"))
WORK = Path(os.environ.get("WORK", "build/gpu"))
BUILD_LIMIT = 150
"""Seconds for an engine with random weights that is not there yet."""
LEAST = 15
"""Seconds without which no part is begun."""
SHOWN = 500
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Part:
    """A command after the interpreter's name. engine: built before it, and then among its options."""

    name: str
    group: str
    limit: int
    command: tuple[str, ...]
    engine: EngineSpec | None = None

    @property
    def tests(self) -> bool:
        return self.command[: len(PYTEST)] == PYTEST

    def arguments(self, work: Path, dry: bool) -> list[str]:
        """The whole command."""
        command = [sys.executable, *self.command]
        if self.tests:
            return [*command, "--collect-only"] if dry else command
        command += ["--work", str(work), "--out", str(self.result(work))]
        if self.engine is not None:
            command += ["--shape", self.engine.shape, *self.engine.flags]
        return [*command, "--dry-run"] if dry else command

    def result(self, work: Path) -> Path:
        return work / "results" / f"{self.name}.json"


FP8 = EngineSpec("8b", "fp8", activations="fp8")
"""In steps of few tokens, activations are not rounded: it decodes as the engine without them does."""
BF16 = EngineSpec("8b", "none")
MANY = replace(FP8, max_batch=256, max_context=2304)
BATCHES = ("--batch", "1", "8")


def _decode(name: str, engine: EngineSpec, *options: str, limit: int = 120) -> Part:
    return Part(f"decode_{name}", "decode", limit, ("benchmarks/gpu_decode.py", *options), engine)


PARTS: tuple[Part, ...] = (
    Part("kernels", "correct", 200, (*PYTEST, "tests/gpu/test_gpu_kernels.py")),
    Part("agree", "correct", 100, ("benchmarks/gpu_agree.py",)),
    Part("engine", "correct", 260, (*PYTEST, "tests/gpu/test_gpu_engine.py")),
    Part("soak", "correct", 120, ("benchmarks/gpu_soak.py",)),
    Part("sanitize", "correct", 200, ("benchmarks/gpu_sanitize.py",)),
    _decode("fp8", FP8, *BATCHES),
    _decode("bf16", BF16, *BATCHES),
    Part("peer_transformers", "decode", 200, ("benchmarks/peers/run_transformers.py", "--format", "bf16")),
    _decode("nvfp4", replace(FP8, quantize="nvfp4", activations="none"), *BATCHES),
    _decode("int4", replace(FP8, quantize="int4", activations="none"), *BATCHES),
    _decode("1b_bf16", replace(BF16, shape="1b"), limit=80),
    _decode("fp8_early", FP8, "--early", limit=80),
    Part("peer_torchao", "decode", 240, ("benchmarks/peers/run_transformers.py", "--format", "int4", "fp8")),
    Part("load_fp8", "rest", 140, ("benchmarks/gpu_load.py",), FP8),
    Part("prefill_fp8", "rest", 100, ("benchmarks/gpu_prefill.py",), FP8),
    Part("prefill_bf16", "rest", 100, ("benchmarks/gpu_prefill.py",), BF16),
    Part("throughput_fp8", "rest", 240, ("benchmarks/gpu_throughput.py",), MANY),
)


@dataclass
class Session:
    """Runs parts until the time is over. outcomes: by part, as they go to the file."""

    name: str
    seconds: float
    dry: bool
    work: Path = WORK
    out: Path = OUT
    clock: Callable[[], float] = time.monotonic
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, parts: Sequence[Part]) -> bool:
        """Whether all parts ended well."""
        stop = self.clock() + self.seconds
        (self.work / "results").mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / f"gpu-{self.name}.log", "w") as log:
            for part in parts:
                self.outcomes[part.name] = outcome = self._part(part, stop, log)
                self._write()
                print(f"== {part.name}: {told(part, outcome)}", flush=True)
        return all(outcome.get("exit") == 0 for outcome in self.outcomes.values())

    def _part(self, part: Part, stop: float, log: TextIO) -> dict[str, Any]:
        part.result(self.work).unlink(missing_ok=True)
        left = stop - self.clock()
        if left < LEAST:
            return {"left out": f"{left:.0f} s left"}
        outcome: dict[str, Any] = {}
        spec = part.engine
        if spec is not None and not self.dry and not spec.path(self.work, sm()).exists():
            spec.prepare(self.work)
            began = self.clock()
            code, tail = self._command(spec.build_command(self.work, sm()), min(BUILD_LIMIT, left), log)
            outcome["build seconds"] = self.clock() - began
            if code:
                return {**outcome, "exit": code, "seconds": outcome["build seconds"], "said": tail}
        began = self.clock()
        limit = max(1.0, min(part.limit, stop - began))
        code, tail = self._command(part.arguments(self.work, self.dry), limit, log)
        print(tail, flush=True)
        outcome |= {"exit": code, "seconds": self.clock() - began}
        if part.result(self.work).exists():
            return {**outcome, "result": json.loads(part.result(self.work).read_text())}
        return {**outcome, "said": tail}

    def _command(self, command: Sequence[str], limit: float, log: TextIO) -> tuple[int, str]:
        """Run to its end or limit, with all that it has started; exit code (124: it ran too long), and last words."""
        log.write(f"== {' '.join(command)}\n")
        log.flush()
        begin = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        with open(log.name) as said:
            said.seek(begin)
            lines = said.read().splitlines()[-4:]
        log.seek(0, os.SEEK_END)
        return code, "\n".join(line[:SHOWN] for line in lines)

    def _write(self) -> None:
        found = {"parts": self.outcomes, "ratios": ratios(self.outcomes)}
        (self.out / f"gpu-{self.name}.json").write_text(json.dumps(found, indent=1) + "\n")


def told(part: Part, outcome: Mapping[str, Any]) -> str:
    """An outcome in words."""
    if "left out" in outcome:
        return f"left out, {outcome['left out']}"
    built = f", engine built in {outcome['build seconds']:.0f} s" if "build seconds" in outcome else ""
    return f"exit {outcome['exit']} after {outcome['seconds']:.0f} s of at most {part.limit}{built}"


def ratios(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Tokens/s at batch 1 over those of each peer that this session has measured with as many bits."""
    peers: dict[str, float] = {}
    for name in ("peer_transformers", "peer_torchao"):
        for format, found in outcomes.get(name, {}).get("result", {}).get("formats", {}).items():
            if "tokens_per_s" in found:
                peers[format] = found["tokens_per_s"]
    ours = {"bf16": "bf16", "fp8": "fp8", "int4": "int4"}
    made = {}
    for name, format in ours.items():
        rows = outcomes.get(f"decode_{name}", {}).get("result", {}).get("decode", [])
        if rows and format in peers:
            made[f"decode {name} over transformers {format}"] = rows[0]["tokens_per_s"] / peers[format]
    return made


def sm() -> int:
    """The compute capability of the first GPU."""
    import gpu_common

    return gpu_common.gpu().sm


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts of these names and groups, in their order; all without any.

    SystemExit: there is no such part.
    """
    known = {part.name for part in PARTS} | {part.group for part in PARTS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no part or group {unknown[0]!r}: one of {', '.join(sorted(known))}")
    return [part for part in PARTS if not names or part.name in names or part.group in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--seconds", type=float, default=570, help="of the whole session")
    parser.add_argument("--dry-run", action="store_true", help="arguments and imports only; needs no GPU")
    options = parser.parse_args()
    parts = chosen(options.parts)
    pack = carried()
    print(f"kernels: {'those of ' + str(pack) if pack is not None else 'compiled here'}", flush=True)
    if not options.dry_run:
        sm()
    session = Session("-".join(options.parts) or "all", options.seconds, options.dry_run)
    sys.exit(not session.run(parts))


if __name__ == "__main__":
    main()

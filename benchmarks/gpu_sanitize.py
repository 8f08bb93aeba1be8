"""The bundled checkpoint under compute-sanitizer: no access outside of memory, no race in shared memory.

python benchmarks/gpu_sanitize.py [--quantize none nvfp4] [--tokens 4] [--seconds 45]

Exit code 0 also where the tool is missing or refuses the machine: the result says which, and no count is claimed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_common as common
from gpu_engines import SMALL_ENGINES, small_engine

TOOL = "compute-sanitizer"
CHECKS = ("memcheck", "racecheck")
SUMMARY = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}
REFUSALS = ("Device not supported", "Unable to find injection library", "Internal Sanitizer Error")
_ERROR_CODE = 86
_TAIL = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    formats = [spec.quantize for spec in SMALL_ENGINES]
    parser.add_argument("--quantize", nargs="+", default=["none", "nvfp4"], choices=formats)
    parser.add_argument("--tokens", type=common.positive, default=4)
    parser.add_argument("--seconds", type=common.positive, default=45, help="at most, of each check")
    parser.add_argument("--work", type=Path, default=Path("build/gpu"))
    parser.add_argument("--out", type=Path, default=common.OUT / "gpu_sanitize.json")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    tool = shutil.which(TOOL)
    if options.dry_run:
        print(json.dumps({"tool": tool, "checks": CHECKS, "engines": options.quantize}))
        return
    gpu = common.gpu()
    rows: list[dict[str, Any]] = []
    for name in options.quantize if tool is not None else ():
        spec = next(one for one in SMALL_ENGINES if one.quantize == name)
        engine = small_engine(spec, options.work, gpu.sm)
        run = [sys.executable, "-m", "llmc", "run", str(engine), "def main(", "--profile", f"sm_{gpu.sm}"]
        run += ["--temperature", "0", "--max-tokens", str(options.tokens), "--json"]
        for check in CHECKS:
            command = [str(tool), "--tool", check, "--target-processes", "all", "--error-exitcode", str(_ERROR_CODE)]
            rows.append({"engine": spec.formats, "check": check, **checked([*command, *run], check, options.seconds)})
    reason = "" if tool is not None else f"not available: no {TOOL} here"
    common.write(options.out, {"machine": common.machine(gpu), "not available": reason, "checks": rows})
    sys.exit(any(row.get("found", 0) for row in rows))


def checked(command: list[str], check: str, seconds: float) -> dict[str, Any]:
    """What one check found, or why nothing is known."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"not available": f"not done after {seconds:.0f} s"}
    return verdict(done.stdout + done.stderr, check, done.returncode)


def verdict(said: str, check: str, code: int) -> dict[str, Any]:
    """The tool's own count, where it has come to one and the program ended well."""
    if refused := next((line.strip() for line in said.splitlines() if any(r in line for r in REFUSALS)), ""):
        return {"not available": refused[:_TAIL]}
    found = SUMMARY[check].search(said)
    if found is None or (code and not int(found[1])):
        return {"not available": f"exit {code}: {said[-_TAIL:]}"}
    return {"found": int(found[1]), **({"said": said[:_TAIL]} if int(found[1]) else {})}


if __name__ == "__main__":
    main()

"""Runs the tests that are too long for every change, and keeps the result with its date and commit.

python benchmarks/soak.py [--out benchmarks/results/soak.json]; `make soak` runs it. With paths, all tests in them:
`python benchmarks/soak.py tests/e2e/numbers/families --out benchmarks/results/families.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from llmc.runtime.machine import cpu_count, cpu_name

ROOT = Path(__file__).parent.parent
PYTEST = ["-m", "pytest", "-q", "--disable-plugin-autoload", "-p", "xdist", "-p", "hypothesispytest"]
PYTEST += ["-n", "auto", "--dist", "worksteal"]  # some tests take minutes, and the last ones would wait behind them


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/soak.json")
    parser.add_argument("paths", nargs="*", help="tests to run, all of them; default: every test marked soak")
    options = parser.parse_args()
    # before the tests: half an hour later the checkout may be another, and without git there is no result to keep
    tested = {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        start = time.monotonic()
        which = (
            ["-o", "addopts=--import-mode=importlib --strict-markers", *options.paths]
            if options.paths
            else ["-m", "soak"]
        )
        done = subprocess.run([sys.executable, *PYTEST, *which, f"--junitxml={report}"], cwd=ROOT)
        seconds = time.monotonic() - start
        if not report.exists():
            sys.exit(f"no test ran: pytest ended with exit code {done.returncode}")
        cases = [*ElementTree.parse(report).getroot().iter("testcase")]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **tested,
        "machine": f"{cpu_name()}, {cpu_count()} threads",
        "seconds": round(seconds),
        "passed": len(cases) - len(failed) - sum(case.find("skipped") is not None for case in cases),
        "failed": [_name(case) for case in failed],
        "tests": {_name(case): round(float(case.get("time", 0)), 1) for case in cases},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['passed']} passed, {len(failed)} failed in {seconds:.0f} s: {options.out}")
    sys.exit(done.returncode)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


if __name__ == "__main__":
    main()

"""A command's own streams, in a process of its own: stdout may be full, and a terminal may know only ASCII."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_full_disk_behind_stdout_is_an_error_of_the_environment():
    code = "import sys; from llmc.cli.app import run; sys.exit(run(['--version']))"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 4
    assert "cannot write to stdout\n  found: [Errno 28] No space left on device" in done.stderr


def test_text_that_the_terminal_cannot_show_is_escaped():
    code = (
        "from llmc.cli.common import console; console.prepare_streams(); "
        "console.out('é'); console.out_json({'a': 'é\\ud800'})"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == '\\xe9\n{"a": "\\u00e9\\ud800"}\n'

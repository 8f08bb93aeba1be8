"""A command's own streams, in a process of its own: a terminal may know only ASCII."""

from __future__ import annotations

import os
import subprocess
import sys


def test_text_that_the_terminal_cannot_show_is_escaped():
    code = (
        "from llmc.cli.common import console; console.prepare_streams(); "
        "console.out('é'); console.out_json({'a': 'é\\ud800'})"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == '\\xe9\n{"a": "\\u00e9\\ud800"}\n'

"""The command line: it parses, calls and prints. The start is kept thin so that `llmc --help` answers at once."""

from __future__ import annotations

import gc
import sys

from .common.exits import ENVIRONMENT, INTERRUPTED


def main() -> None:
    """Entry point of the `llmc` script."""
    try:
        from ..runtime.guard.panics import own_stderr
        from .app import run
        from .common.huge_pages import allow_restart

        allow_restart()
        own_stderr()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before a command could begin
        code = INTERRUPTED
    except (ImportError, MemoryError, OSError) as error:  # a limit so low that not even the commands can be read
        sys.stderr.write(f"llmc: cannot start: {error or 'too little memory'}\n")
        code = ENVIRONMENT
    gc.freeze()  # Python's last search for cycles takes 0.3 s after a large plan; the system frees the memory anyway
    sys.exit(code)

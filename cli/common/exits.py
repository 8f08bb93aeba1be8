"""Exit codes beside those of `runtime/errors.py`."""

USAGE = 2
ENVIRONMENT = 4
INTERNAL = 70
INTERRUPTED = 130
TERMINATED = 143

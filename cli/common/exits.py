"""The exit codes of all commands, in one table: --help prints it, and a test compares it with docs/ci.md."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.errors import EngineError, LlmcError, RecipeError, ResourceError, VerifyError

USAGE = RecipeError.exit_code
ENVIRONMENT = ResourceError.exit_code
INTERNAL = LlmcError.exit_code
INTERRUPTED = 130
PIPE_CLOSED = 141
"""128 + SIGPIPE."""
TERMINATED = 143
EXIT_CODES: Mapping[int, str] = {
    0: "done",
    VerifyError.exit_code: "a check says no: a digest, the golden probe, a gate",
    USAGE: "the command line, a recipe or a request is wrong",
    EngineError.exit_code: "a checkpoint or an engine is damaged or not supported",
    ENVIRONMENT: "this machine lacks memory, disk, a device or an extra",
    INTERNAL: "a bug in llmc",
    INTERRUPTED: "interrupted by Ctrl-C",
    PIPE_CLOSED: "the reader of stdout has left",
    TERMINATED: "ended by SIGTERM",
}

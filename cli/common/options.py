"""The flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ...runtime.environment import VARIABLES
from ...runtime.progress import set_debug_level
from ...runtime.sampling.params import RANGES

Command = TypeVar("Command", bound=Callable[..., None])


def flag(name: str, help: str, **more: Any) -> Any:
    """A typer option called `--name`; a setting of the machine is also read from its variable, such as LLMC_THREADS."""
    variable = "LLMC_" + name.removeprefix("--").replace("-", "_").upper()
    short = more.pop("short", ())
    return typer.Option(name, *short, help=help, envvar=variable if variable in VARIABLES else None, **more)


Json = Annotated[bool, flag("--json", "Print one JSON object on one line, the last of stdout.")]
_LADDER = "Say on stderr: 1 passes, profiles, tracebacks; 2 misses; 3 launches, times; 4 PTX."
Debug = Annotated[str | None, flag("--debug", _LADDER, metavar="0..4")]
Verbose = Annotated[bool, flag("--verbose", "Show more.", short=("-v",))]
EngineFile = Annotated[str, typer.Argument(metavar="ENGINE", help="An engine file (.llmc).", show_default=False)]
CHECKPOINT: Any = typer.Argument(
    metavar="CHECKPOINT", help="A Hugging Face folder, or org/name[@revision] on the hub.", show_default=False
)
CheckpointPath = Annotated[str, CHECKPOINT]
Profile = Annotated[str | None, flag("--profile", "The profile to run; by default the best that fits this machine.")]
Simulate = Annotated[
    bool, flag("--simulate", "Run a GPU's profile without one, through Triton's interpreter: exact, and very slow.")
]
For = Annotated[
    str | None, flag("--for", "A GPU that need not be here: a100, l4, l40s, h100, h200, b200, rtx4090, rtx5090.")
]
Threads = Annotated[int | None, flag("--threads", "CPU threads; by default the CPUs this process may use.", min=1)]
RecipeName = Annotated[str | None, flag("--recipe", "A bundled recipe by name, or a YAML file by its path.")]
AcceptConfig = Annotated[
    list[str] | None, flag("--accept-config", "Accept a config key that llmc does not know; may be repeated.")
]
RandomWeights = Annotated[
    int | None, flag("--random-weights", "Make weights from this seed instead of reading them: for benchmarks.", min=0)
]
Dump = Annotated[
    Path | None, flag("--dump", "A new folder, for the graph after each pass, a page of the changes, launches and PTX.")
]
Force = Annotated[bool, flag("--force", "Replace an output that is a file of another kind; inputs never are.")]
MaxBatch = Annotated[int | None, flag("--max-batch", "Most sequences that run at the same time.")]
BUILD_FLAGS: Mapping[str, Any] = {
    "quantize": Annotated[str | None, flag("--quantize", "Weight format: int4, int8, fp8, nvfp4, mxfp4 ... or none.")],
    "activations": Annotated[str | None, flag("--activations", "fp8: large steps on FP8 tensor cores; or none.")],
    "kv": Annotated[str | None, flag("--kv", "fp8: a GPU's KV cache in half the bytes; or none.")],
    "targets": Annotated[str | None, flag("--target", "Machines to build for, as cpu,sm_90 or by a GPU's name: h100.")],
    "max_context": Annotated[
        int | None, flag("--max-context", "Most tokens of a sequence, prompt and answer together.")
    ],
    "max_batch": MaxBatch,
}
"""The options of `BuildFlags`."""
SAMPLING: Mapping[str, Any] = {
    name: Annotated[int | None if one.whole else float | None, flag("--" + name.replace("_", "-"), one.help)]
    for name, one in RANGES.items()
}
"""The options of `SamplingOptions` that are one number."""


def debugged(command: Callable[..., None]) -> Callable[..., None]:
    """A command with --debug, which it need not know of."""

    @wraps(command)
    def with_level(debug: str | None, **arguments: Any) -> None:
        set_debug_level(debug)
        command(**arguments)

    return takes({"debug": Debug})(with_level)


def takes(group: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Add a group of options to a command. It receives them as **keywords, None where not given."""

    def give(command: Command) -> Command:
        own = signature(command, eval_str=True)
        named = [one for one in own.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        more = [Parameter(n, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for n, hint in group.items()]
        command.__signature__ = own.replace(parameters=[*named, *more])  # type: ignore[attr-defined]
        return command

    return give

"""The flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ...runtime.environment import VARIABLES
from ...runtime.progress import set_debug_level
from ...runtime.sampling.params import OF_MODEL, RANGES, SamplingParams
from . import complete

Command = TypeVar("Command", bound=Callable[..., None])


def _sampling_default(name: str) -> str:
    usual = SamplingParams.__dataclass_fields__[name].default
    shown = "none" if usual is None else f"{usual:g}"
    return f"the model's, else {shown}" if name in OF_MODEL else shown


MACHINE, RECIPE, SAMPLE, REPORT = "Machine", "Recipe", "Sampling", "Report"
"""Groups of flags in a --help; a command's own flags are in none."""


def flag(
    name: str, help: str, *, default: str = "", group: str | None = None, short: Sequence[str] = (), **more: Any
) -> Any:
    """A typer option called `--name`; a setting of the machine is also read from its variable, such as LLMC_THREADS.

    `default` says what happens without the flag, where the Python default (None) does not.
    """
    variable = "LLMC_" + name.removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        name,
        *short,
        help=f"{help}  [default: {default}]" if default else help,
        envvar=variable if variable in VARIABLES else None,
        rich_help_panel=group,
        **more,
    )


Json = Annotated[bool, flag("--json", "Print one JSON object on one line, the last of stdout.", group=REPORT)]
_LADDER = "Say on stderr: 1 passes, profiles, tracebacks; 2 misses; 3 launches, times; 4 PTX."
Debug = Annotated[str | None, flag("--debug", _LADDER, metavar="0..4", default="0", group=REPORT)]
Verbose = Annotated[bool, flag("--verbose", "Show more.", short=("-v",), group=REPORT)]
EngineFile = Annotated[str, typer.Argument(metavar="ENGINE", help="An engine file (.llmc).", show_default=False)]
CHECKPOINT: Any = typer.Argument(
    metavar="CHECKPOINT", help="A Hugging Face folder, or org/name[@revision] on the hub.", show_default=False
)
CheckpointPath = Annotated[str, CHECKPOINT]
Profile = Annotated[
    str | None,
    flag(
        "--profile",
        "The profile of the engine to use.",
        default="the best that fits this machine",
        metavar="NAME",
        group=MACHINE,
        autocompletion=complete.profiles,
    ),
]
Simulate = Annotated[
    bool,
    flag("--simulate", "Run a GPU's profile without one, by Triton's interpreter: exact, very slow.", group=MACHINE),
]
For = Annotated[
    str | None,
    flag(
        "--for",
        "A GPU that need not be here: a100, l4, l40s, h100, h200, b200, rtx4090, rtx5090; cpu; native.",
        default="this machine",
        metavar="GPU",
        group=MACHINE,
        autocompletion=complete.gpus,
    ),
]
Threads = Annotated[
    int | None,
    flag("--threads", "CPU threads.", default="the CPUs this process may use", min=1, metavar="N", group=MACHINE),
]
RecipeName = Annotated[
    str | None,
    flag(
        "--recipe",
        "A bundled recipe by name (llmc recipes), or a YAML file by its path.",
        default="none",
        metavar="NAME|FILE",
        group=RECIPE,
        autocompletion=complete.recipes,
    ),
]
AcceptConfig = Annotated[
    list[str] | None,
    flag("--accept-config", "A config key that llmc may ignore; may be repeated.", default="none", metavar="KEY"),
]
RandomWeights = Annotated[
    int | None,
    flag(
        "--random-weights",
        "Make weights from this seed instead of reading them: for benchmarks.",
        default="read them",
        min=0,
        max=2**63 - 1,
        metavar="SEED",
    ),
]
Dump = Annotated[
    Path | None,
    flag(
        "--dump",
        "A new folder, for the graph after each pass, a page of the changes, launches and PTX.",
        default="none",
        metavar="DIR",
        group=REPORT,
    ),
]
Force = Annotated[bool, flag("--force", "Replace an output that is a file of another kind; inputs never are.")]
MaxBatch = Annotated[
    int | None,
    flag("--max-batch", "Most sequences at the same time.", default="the recipe's, 8", metavar="N", group=RECIPE),
]
_PRECISION = {"default": "the recipe's, none", "group": RECIPE}
_CACHE = {
    **_PRECISION,
    "metavar": "none|fp8",
    "autocompletion": complete.precisions,
}
BUILD_FLAGS: Mapping[str, Any] = {
    "quantize": Annotated[
        str | None,
        flag(
            "--quantize",
            "Weight format: int4, int8, fp8, nvfp4, mxfp4 ... or none; auto: by --for and --goal.",
            default="the recipe's, none",
            metavar="FORMAT",
            group=RECIPE,
            autocompletion=complete.formats,
        ),
    ],
    "activations": Annotated[
        str | None,
        flag(
            "--activations",
            "fp8: large steps of GPUs on FP8 tensor cores; nvfp4, mxfp4: on FP4 ones, of weights in that format.",
            metavar="none|fp8|nvfp4|mxfp4",
            autocompletion=complete.activations,
            **_PRECISION,
        ),
    ],
    "kv": Annotated[str | None, flag("--kv", "fp8: a GPU's KV cache in half the bytes.", **_CACHE)],
    "targets": Annotated[
        str | None,
        flag(
            "--target",
            "Machines to build for, as cpu,sm_90 or by a GPU's name: cpu,h100.",
            default="the recipe's, cpu",
            metavar="LIST",
            group=RECIPE,
            autocompletion=complete.targets,
        ),
    ],
    "parallel": Annotated[
        str | None,
        flag(
            "--parallel",
            "Splits over ranks to build profiles for, as tp1,tp4-pp2,ep4; auto: the best by --for and --goal.",
            default="the recipe's, tp1",
            metavar="LIST",
            group=RECIPE,
        ),
    ],
    "max_context": Annotated[
        int | None,
        flag(
            "--max-context",
            "Most tokens of a sequence, prompt and answer together.",
            default="the model's, at most 4096",
            metavar="N",
            group=RECIPE,
        ),
    ],
    "max_batch": MaxBatch,
}
"""The options of `BuildFlags`."""
SAMPLING: Mapping[str, Any] = {
    name: Annotated[
        int | None if one.whole else float | None,
        flag(
            "--" + name.replace("_", "-"),
            one.help,
            default=_sampling_default(name),
            metavar="N" if one.whole else "X",
            group=SAMPLE,
        ),
    ]
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

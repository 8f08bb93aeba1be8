"""The one file that reads environment variables: what each means, and what happens to values that mean nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import RecipeError, closest, shown

VARIABLES: Mapping[str, str] = {
    "LLMC_CACHE": "the folder of llmc's caches; set to nothing, there is no cache",
    "LLMC_DEBUG": "as --debug: what llmc says of its own work, from 0 to 4",
    "LLMC_JSON": "as --json: print one JSON object, errors too",
    "LLMC_PROFILE": "as --profile: the profile that engines run with",
    "LLMC_THREADS": "as --threads: CPU threads, from 1 to 4096",
}
"""All that llmc reads: settings of a machine. What belongs to one job (a model, a prompt, an output) is a flag only, or
a variable set for one command would change the results of another."""
LAUNCHERS: Mapping[str, str] = {
    "RANK": "which rank this process is, from 0",
    "WORLD_SIZE": "how many ranks the job has",
    "MASTER_ADDR": "the host of rank 0, as all others reach it",
    "MASTER_PORT": "the port at which the ranks find each other",
    "LOCAL_RANK": "which of this machine's ranks this process is, from 0; else they are counted",
}
"""What torchrun and other launchers set for each process of a job. They count for profiles of several ranks."""
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
KERNELS = "kernels"
"""The folder of compiled kernels in llmc's cache folder."""
TOOLS = "tools.json"
"""The file beside kernels that makes them a pack (compiler/targets/cuda/cubins/cache.py)."""
_TESTS = "LLMC_FAKE_"
"""What the tests' fake driver reads."""
_PREFIX = "LLMC_"
_COUNT = re.compile(r"[0-9]{1,9}")
"""No longer one, of which Python refuses to make a number."""
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_OF_WORKERS = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")


def debug(asked: str | None = None) -> int:
    """The debug level: --debug if given, else LLMC_DEBUG, else 0.

    Raises:
        RecipeError: it is not a number from 0 to 4.
    """
    name, text = ("LLMC_DEBUG", os.environ.get("LLMC_DEBUG") or "0") if asked is None else ("--debug", asked)
    if text not in ("0", "1", "2", "3", "4"):
        raise RecipeError(f"expected {name} from 0 to 4", found=repr(text[:40]))
    return int(text)


def json() -> bool:
    """True if every command prints a JSON object, as with --json."""
    return os.environ.get("LLMC_JSON", "0").lower() not in ("0", "false", "")


def threads(asked: int | None) -> int | None:
    """The number of threads asked for, else LLMC_THREADS, else None.

    Raises:
        RecipeError: it is not from 1 to 4096.
    """
    text = os.environ.get("LLMC_THREADS", "") if asked is None else shown(asked)
    name = "LLMC_THREADS" if asked is None or is_setting("threads", asked) else "threads"
    if not text:
        return None
    if not _COUNT.fullmatch(text) or not 0 < int(text) <= 4096:
        raise RecipeError(f"expected {name} from 1 to 4096", found=shown(text))
    return int(text)


def profile(asked: str | None) -> str | None:
    """The profile asked for, else LLMC_PROFILE, else None."""
    return asked or os.environ.get("LLMC_PROFILE") or None


@dataclass(frozen=True)
class Launched:
    """This process's place in a job that a launcher has started."""

    rank: int
    ranks: int
    address: str
    port: int
    store: bool
    """The launcher has a store at address and port; else rank 0 opens one."""
    attempt: str
    """Which start of the job this is: a launcher's store outlives one that failed."""
    local_rank: int | None = None
    """Its place among the ranks of its machine, if the launcher says it."""


def launched() -> Launched | None:
    """What the launcher of this process has set; None if there is none, as RANK and WORLD_SIZE are not set.

    Raises:
        RecipeError: one of the variables is missing or malformed.
    """
    found = {name: os.environ.get(name, "") for name in LAUNCHERS}
    if not has_launcher():
        return None
    for name in _NEEDED:
        if not found[name]:
            given = ", ".join(one for one, text in found.items() if text)
            raise RecipeError(f"expected the variable {name}: {LAUNCHERS[name]}", found=f"of a launcher only {given}")
    ranks = _whole("WORLD_SIZE", found["WORLD_SIZE"], 1, 4096)
    return Launched(
        _whole("RANK", found["RANK"], 0, ranks - 1),
        ranks,
        found["MASTER_ADDR"],
        _whole("MASTER_PORT", found["MASTER_PORT"], 1, 65535),
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        _whole("LOCAL_RANK", found["LOCAL_RANK"], 0, ranks - 1) if found["LOCAL_RANK"] else None,
    )


def has_launcher() -> bool:
    """True if a launcher seems to have started this process: `launched` checks what it has set."""
    return bool(os.environ.get("RANK") or os.environ.get("WORLD_SIZE"))


def follows() -> bool:
    """True if a launcher has started this process as a rank above 0: what it is given is read by rank 0."""
    return os.environ.get("RANK", "") not in ("", "0")


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not _COUNT.fullmatch(text) or not least <= int(text) <= most:
        raise RecipeError(f"expected {name} from {least} to {most}", found=shown(text))
    return int(text)


def is_setting(name: str, value: object) -> bool:
    """True if the variable of this flag has this value: then the machine asks for it, not the command line."""
    return value is not None and os.environ.get(f"LLMC_{name.upper()}") == str(value)


def cache_folder() -> Path | None:
    """The cache folder: LLMC_CACHE, else ~/.cache/llmc; None if LLMC_CACHE is empty or there is no home directory."""
    asked = os.environ.get("LLMC_CACHE")
    if asked is not None:
        return Path(asked) if asked else None
    try:
        return Path.home() / ".cache" / "llmc"
    except RuntimeError:  # no home directory
        return None


def hub_is_offline() -> bool:
    """True if HF_HUB_OFFLINE has a value that huggingface_hub reads as true."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def dumb_terminal() -> bool:
    """True if the terminal cannot move its cursor."""
    return os.environ.get("TERM") == "dumb"


def with_huge_pages() -> dict[str, str] | None:
    """This process's environment with huge pages for malloc (glibc 2.35 and newer); None if malloc has settings."""
    return None if "GLIBC_TUNABLES" in os.environ else {**os.environ, "GLIBC_TUNABLES": _HUGE_PAGES}


def without_huge_pages() -> dict[str, str]:
    """This process's environment without what `with_huge_pages` has added."""
    given = os.environ.items()
    return {name: value for name, value in given if (name, value) != ("GLIBC_TUNABLES", _HUGE_PAGES)}


def for_worker() -> dict[str, str]:
    """The environment of a kernel compiler, without variables that could change a cubin's bytes."""
    return {name: os.environ[name] for name in _OF_WORKERS if name in os.environ}


def settle(name: str, value: str) -> None:
    """Set a variable that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)


def unknown() -> list[str]:
    """A warning for each LLMC_* variable that llmc does not read."""
    strange = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in VARIABLES)
    own = {name.removeprefix(_PREFIX): name for name in VARIABLES}
    found = []
    for name in strange:
        if not name.startswith(_TESTS):
            near = closest(name.removeprefix(_PREFIX), own)  # with the prefix all would be alike
            hint = f" (did you mean {own[near]!r}?)" if near else ""
            found.append(f"no variable {name} is known{hint}: it has no effect")
    return found

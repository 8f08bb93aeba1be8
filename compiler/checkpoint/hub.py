"""Resolves a Hugging Face id to one commit in the usual cache, so that an engine can name its source exactly."""

from __future__ import annotations

from pathlib import Path

from ...runtime.environment import hub_is_offline
from ...runtime.errors import CheckpointError, ResourceError, Unsupported, install_hint
from ...runtime.files.mistaken import HubId, parse_hub_id
from ...runtime.guard.shortage import shortage
from .card import CARD, LICENCES
from .folder import INDEX, SINGLE, Folder, find_weights
from .no_checkpoint import ADAPTER, no_checkpoint

__all__ = ["HubId", "download", "parse_hub_id"]

_SMALL = [
    *("config.json", "generation_config.json", ADAPTER, INDEX),
    *("tokenizer*.json", "special_tokens_map.json", "*.jinja"),
    *(CARD, LICENCES),
]


def download(hub_id: HubId, *, weights: bool) -> tuple[Path, list[str]]:
    """The snapshot folder of the id in the Hugging Face cache, and warnings; fetches only files that llmc reads.

    Raises:
        ResourceError: the extra is missing, access is denied, or there is no network and no cached copy.
        CheckpointError: the repository or revision does not exist.
        Unsupported: the repository has no safetensors weights.
    """
    folder = _snapshot(hub_id, _SMALL)
    commit = Folder(folder).commit
    if commit is None:
        raise CheckpointError(f"expected a snapshot of one commit for {hub_id}", found=str(folder))
    if weights:
        _snapshot(HubId(hub_id.name, commit), _weight_names(folder))
        if Folder(folder).has(ADAPTER) and not Folder(folder).has(SINGLE):
            raise no_checkpoint(Folder(folder))
        if not (Folder(folder).has(INDEX) or Folder(folder).has(SINGLE)):
            found = f"neither {SINGLE} nor {INDEX} (pickle files are never read)"
            raise Unsupported(f"expected weights in safetensors files in {hub_id}", found=found)
    if hub_id.revision is None:
        return folder, [f"{hub_id}: no revision given, main is commit {commit} now (pin it: {hub_id}@{commit})"]
    return folder, []


def cached_snapshot(text: str) -> Path | None:
    """The snapshot folder that the Hugging Face cache has for a hub id; None for any other text, or if it has none.

    The hub is not asked: a branch is the commit that it was when something was last downloaded of it.
    """
    hub_id = parse_hub_id(text)
    if hub_id is None:
        return None
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    repository = Path(HF_HUB_CACHE) / f"models--{hub_id.name.replace('/', '--')}"
    revision = hub_id.revision or "main"
    try:
        commit = (repository / "refs" / revision).read_text()
    except (OSError, ValueError):
        commit = revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() and Folder(folder).commit else None


def _weight_names(folder: Path) -> list[str]:
    """The shards that the downloaded index lists (their names are checked), else model.safetensors."""
    opened = Folder(folder)
    weights = find_weights(opened) if opened.has(INDEX) else None
    return [SINGLE] if weights is None else list(weights.shards)


def _snapshot(hub_id: HubId, patterns: list[str]) -> Path:
    asked = f"cannot get {hub_id} from Hugging Face (no folder has that name)"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise ResourceError(
            asked, found="huggingface_hub is not installed", fix=f"{install_hint('hub')}, or pass a local folder"
        ) from None
    try:
        return Path(
            snapshot_download(hub_id.name, revision=hub_id.revision, allow_patterns=patterns, ignore_patterns=["*/*"])
        )
    except GatedRepoError:
        fix = f"ask for access at https://huggingface.co/{hub_id.name}, then set HF_TOKEN"
        raise ResourceError(asked, found="access to it is restricted", fix=fix) from None
    except RepositoryNotFoundError:
        fix = "check the name; a private model needs HF_TOKEN"
        raise CheckpointError(asked, found="the hub has no such model", fix=fix) from None
    except (RevisionNotFoundError, HFValidationError) as problem:
        raise CheckpointError(asked, found=_first_line(problem)) from None
    except LocalEntryNotFoundError as problem:
        state = "HF_HUB_OFFLINE is set" if hub_is_offline() else f"the hub cannot be reached ({_first_line(problem)})"
        fix = f"download it where there is a network (hf download {hub_id.name}), or pass a local folder"
        raise ResourceError(asked, found=f"it is not in the cache, and {state}", fix=fix) from None
    except Exception as problem:  # the client raises its transport library's own errors, which differ by version
        if lacking := shortage(problem, asked):  # such as a full disk
            raise lacking from problem
        fix = "check the network, HF_ENDPOINT and proxy settings, or pass a local folder"
        raise ResourceError(asked, found=f"{type(problem).__name__}: {_first_line(problem)}", fix=fix) from problem


def _first_line(problem: Exception) -> str:
    return next(iter(str(problem).splitlines()), "")

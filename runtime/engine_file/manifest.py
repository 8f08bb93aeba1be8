"""The manifest of an engine: read strictly and written as canonical JSON, so that equal builds give equal bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import EngineError
from ..files.records import plain, read
from ..files.strict_json import canonical, loads
from .rope import LengthRope, check_ropes
from .split import Split

FORMAT = (2, 3)
"""Major: readers of another major refuse. Minor: readers of an older minor ignore keys they do not know."""
LENGTH_ROPES = "length_ropes"
"""The graph takes tables of `ModelFacts.ropes` as inputs."""
RANKS = "ranks"
"""Some profiles are split over ranks (`Profile.ranks`)."""
SHARDS = "shards"
"""The engine has several files, of which the manifest lists those after the first."""
SHARED_LAYERS = "shared_layers"
"""Some layers attend to the cache of an earlier one."""
LATENT_LAYERS = "latent_layers"
"""Some layers have latent attention, whose cache is one row a position (`LayerCache.rank`)."""
FEATURES = frozenset({LENGTH_ROPES, RANKS, SHARDS, SHARED_LAYERS, LATENT_LAYERS})
"""Names that this reader accepts in `required_features`."""
MAX_FILES = 256
"""Of an engine: each takes a file descriptor of the processes that run it, which often have 1024."""
MEASURED = "measured.json"
"""The one section that may differ between machines; the content digest leaves it out."""
TOKENIZER_SECTIONS = "tokenizer/"
"""Prefix of the sections with a checkpoint's tokenizer files, which keep their names."""
_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SECTION = re.compile(r"[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,3}")


@dataclass(frozen=True)
class LayerCache:
    """A layer's cache: per position, keys and values of `kv_heads` heads of `head_dim` numbers."""

    kv_heads: int
    head_dim: int
    window: int | None = None
    """Positions that a token attends to, itself included, so that older ones are dropped; None: all."""
    rank: int | None = None
    """Of latent attention: a row holds keys and values, which are its first `rank` numbers; None: values are apart."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What is stored of each position."""
        return ("key", "value") if self.rank is None else ("key",)


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model that a runtime needs."""

    architecture: str
    family: str
    vocab_size: int
    hidden_size: int
    heads: int
    caches: tuple[LayerCache, ...]
    """One per layer."""
    max_context: int
    parameters: int
    dtype: str
    tied: bool
    bos: int | None
    """The token that begins a text; None if texts begin without one."""
    eos_ids: tuple[int, ...]
    generation: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's sampling defaults."""
    ropes: tuple[LengthRope, ...] | None = None
    """Rotary embeddings whose tables depend on the sequence's length."""
    named_tokens: Mapping[str, str] | None = None
    """Texts of bos_token, eos_token and the like, which chat templates read; since format 2.2."""
    shared_layers: tuple[int, ...] | None = None
    """Layers without a cache of their own, which attend to that of an earlier layer."""
    active_parameters: int | None = None
    """Those that one token reads, of a model with mixtures of experts."""

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows of its layers, ascending."""
        return tuple(sorted({cache.window for cache in self.caches if cache.window is not None}))


@dataclass(frozen=True)
class Profile:
    """One way to run the engine: `graph` names a section, `weights` maps initializers to weight expressions."""

    target: str
    graph: str
    needs: Mapping[str, Any]
    weights: Mapping[str, Any]
    max_context: int
    max_batch: int
    tolerance: float
    split: str | None = None
    """The split over ranks (`split.Split`), None for one rank; since format 2.3, as are the fields below."""
    ranks: tuple[str, ...] | None = None
    """Of a split profile: the sections with the Profile of each rank. Its own `graph` and `weights` are empty."""
    caches: Mapping[str, LayerCache] | None = None
    """Of a rank: its caches by the number of the layer."""
    files: Mapping[str, str] | None = None
    """Of a rank: its sections by file name, as ranks share equal ones. Others have the folder of `graph`."""

    def file(self, name: str) -> str:
        """The section of a file of this profile."""
        return f"{self.graph.rpartition('/')[0]}/{name}" if self.files is None else self.files.get(name, "")


@dataclass(frozen=True)
class Lineage:
    """The checkpoint tensors that one engine tensor was made of, and how."""

    sources: tuple[str, ...] = field(metadata={"key": "from"})
    how: str


@dataclass(frozen=True)
class CheckpointFacts:
    """SHA-256 of each source file; `random_seed` is set if the weights are random instead of the checkpoint's.

    Where it came from is what its content and the hub's cache say, never a path: equal checkpoints give equal engines.
    """

    files: Mapping[str, str]
    revision: str | None = None
    """The commit on the hub."""
    accepted_config: tuple[str, ...] = ()
    random_seed: int | None = None
    name: str | None = None
    """The model's name; since format 2.1, as are the fields below."""
    hub_id: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Shard:
    """A file of an engine after the first: its size, and the digest of its header."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole manifest. The writer adds the digests: of sections, of every 16 MiB of a tensor, of the content."""

    model: ModelFacts
    formats: Mapping[str, str]
    profiles: Mapping[str, Profile]
    lineage: Mapping[str, Lineage]
    unused: Mapping[str, str]
    recipe: Mapping[str, Any]
    recipe_digest: str
    checkpoint: CheckpointFacts
    tools: Mapping[str, str]
    required_features: tuple[str, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_digest: str = ""
    format: str = f"{FORMAT[0]}.{FORMAT[1]}"
    recipe_name: str | None = None
    """The bundled recipe that has this content, whatever file or flags it came from; since format 2.1."""
    shards: tuple[Shard, ...] | None = None
    """The files after the first; None if there is one. Since format 2.3."""

    def to_json(self) -> bytes:
        """Canonical JSON in UTF-8 with every key, defaults included."""
        return canonical(plain(self))

    @staticmethod
    def from_json(text: str | bytes, *, what: str) -> Manifest:
        """Reads and checks a manifest; the major version and required features are checked before any other key.

        Raises:
            EngineError: the manifest is malformed or needs another llmc; names `what` and the key.
        """
        what = f"{what}: manifest"
        value = loads(text, what=what, error=EngineError)
        lenient = _check_version(value, what) > FORMAT[1]
        manifest: Manifest = read(Manifest, value, what, lenient)
        _check(manifest, what)
        return manifest


def content_of(text: str | bytes, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The bytes of the content digest: a checked manifest without measured values, with dtype and shape per tensor.

    An engine has the same in one file and in several: what lists its files is left out, and the feature that says so.
    It is made from the JSON as it stands: keys of a newer minor version count, though this reader ignores them.
    """
    value = loads(text, what="manifest", error=EngineError)
    del value["content_digest"]
    value.get("sections", {}).pop(MEASURED, None)
    if value.pop("shards", None) is not None:
        value["required_features"] = [name for name in value["required_features"] if name != SHARDS]
    value["layout"] = {name: [dtype, list(shape)] for name, (dtype, shape) in layout.items()}
    return canonical(value)


def is_section_name(name: str) -> bool:
    """True if `name` is a legal section name: plain parts joined by "/", without "..", not a padding's name."""
    return bool(_SECTION.fullmatch(name)) and ".." not in name and not name.startswith("pad/")


def _check_version(value: Any, what: str) -> int:
    """The minor version of the format.

    Raises:
        EngineError: this llmc cannot read the format.
    """
    text = value.get("format") if isinstance(value, dict) else None
    found = _VERSION.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise EngineError(f"expected a version such as '2.0' in {what}.format", found=f"{text!r}"[:80])
    major, minor = int(found[1]), int(found[2])
    tools = value.get("tools")
    builder = tools.get("llmc") if isinstance(tools, dict) else None
    fix = f"needs llmc >= {builder}" if isinstance(builder, str) else "needs a newer llmc"
    if major != FORMAT[0]:
        fix = fix if major > FORMAT[0] else "build the engine again with this llmc"
        raise EngineError(f"expected engine format {FORMAT[0]}.x in {what}", found=f"format {text}", fix=fix)
    features = value.get("required_features")
    unknown = [name for name in features if str(name) not in FEATURES] if isinstance(features, list) else []
    if unknown:
        raise EngineError(f"expected features that this llmc supports in {what}", found=f"{unknown}"[:200], fix=fix)
    return minor


def _check_split(name: str, profile: Profile, where: str) -> None:
    """Check that a profile has the name and as many ranks as its split has."""
    try:
        split = Split.parse(profile.split or "")
    except ValueError as error:
        raise EngineError(f"expected a split in {where}", found=str(error)[:200]) from None
    ranks = len(profile.ranks or ())
    if split.ranks != ranks or name != split.profile(profile.target):
        asked = f"expected {split.profile(profile.target)[:80]!r} with {split.ranks} ranks in {where}"
        raise EngineError(asked, found=f"{ranks} rank{'s' * (ranks != 1)}")


def check_ranks(caches: Iterable[LayerCache], where: str) -> None:
    """Check caches of latent attention: rows for all heads, whose first numbers are the values, of all positions.

    Raises:
        EngineError: there are other such caches in `where`.
    """
    for cache in caches:
        if cache.rank is not None and not (
            0 < cache.rank < cache.head_dim and cache.kv_heads == 1 and not cache.window
        ):
            raise EngineError(f"expected a rank only of one head's rows that are longer, in {where}", found=f"{cache}")


def _check(manifest: Manifest, what: str) -> None:
    """Checks digests, names of sections, texts that are shown, and that windows hold at least one position."""
    if 0 in manifest.model.windows:
        raise EngineError(f"expected windows of at least one position in {what}.model.caches", found="[0]")
    check_ranks(manifest.model.caches, f"{what}.model.caches")
    latent = any(cache.rank is not None for cache in manifest.model.caches)
    if latent != (LATENT_LAYERS in manifest.required_features):
        found = f"{'some' if latent else 'no'} caches with a rank"
        raise EngineError(f"expected {LATENT_LAYERS!r} in {what}.required_features if there are such", found=found)
    check_ropes(manifest.model.ropes or (), what)
    split, shards = SHARDS in manifest.required_features, manifest.shards or ()
    if split != (manifest.shards is not None) or split != (0 < len(shards) < MAX_FILES):
        wanted = f"1 to {MAX_FILES - 1} files" if split else "no files"
        raise EngineError(f"expected {wanted} in {what}.shards", found=f"{len(shards)}")
    for name, profile in manifest.profiles.items():
        if profile.split is not None or profile.ranks is not None:
            _check_split(name, profile, f"{what}.profiles.{name[:80]}")
    digests = {
        "recipe_digest": [manifest.recipe_digest],
        "content_digest": [manifest.content_digest],
        **{f"sections.{name}": [digest] for name, digest in manifest.sections.items()},
        **{f"tensors.{name}": digests for name, digests in manifest.tensors.items()},
        "shards": [shard.sha256 for shard in shards],
        **{f"checkpoint.files.{name}": [digest] for name, digest in manifest.checkpoint.files.items()},
    }
    for key, values in digests.items():
        for value in values:
            if not _DIGEST.fullmatch(value):
                raise EngineError(f"expected 64 lower-case hex digits in {what}.{key}", found=f"{value!r}"[:80])
    for key in ("name", "hub_id", "revision", "licence"):
        if not (getattr(manifest.checkpoint, key) or "").isprintable():
            raise EngineError(
                f"expected printable text in {what}.checkpoint.{key}",
                found=f"{getattr(manifest.checkpoint, key)!r}"[:80],
            )
    for name in manifest.sections:
        if not is_section_name(name):
            raise EngineError(f"expected plain names in {what}.sections", found=f"{name!r}"[:200])

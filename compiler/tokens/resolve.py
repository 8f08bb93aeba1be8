"""The one place that decides which tokens begin a text, end an answer and have names.

The oracle is transformers 5.23.0: names as in `tokenization_utils_base.py`, BOS in front of a text as the
post-processor of tokenizer.json puts it (`_from_pretrained` drops add_bos_token where there is a tokenizer.json). One
difference is deliberate: an answer ends with any end token that config.json, generation_config.json or the tokenizer's
eos_token names, where `generate()` heeds one of the first two only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...runtime.errors import CheckpointError
from ...runtime.text.tokenizer import Tokenizer
from .names import CONFIG, Texts, class_of, named_tokens

VOCABULARY = "tokenizer.json"


@dataclass(frozen=True)
class Sources:
    """What the files of a checkpoint say, tokenizer.json aside."""

    family: str
    rows: int
    """Of the embedding: ids from here on have none."""
    bos: Mapping[str, int] = field(default_factory=dict)
    """config.json and generation_config.json, if they give bos_token_id, to the id."""
    eos: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    default_bos: int | None = None
    """The architecture's, if config.json has no such key."""
    default_eos: tuple[int, ...] = ()
    tokenizer_class: str | None = None
    named: Texts = field(default_factory=dict)
    """Of tokenizer_config.json."""
    special_map: Texts = field(default_factory=dict)
    map_is_read: bool = True
    add_bos: bool | None = None
    add_eos: bool | None = None


@dataclass(frozen=True)
class SpecialTokens:
    """The answer to every question about special tokens."""

    bos: int | None
    """The token that begins a text; None if texts begin without one."""
    eos_ids: tuple[int, ...]
    named: Mapping[str, str]
    """Texts of named tokens, for chat templates."""
    notes: tuple[str, ...] = ()
    """Where the files disagree, and what is taken."""


def resolve(sources: Sources, tokenizer: Tokenizer | None) -> SpecialTokens:
    """The special tokens of a checkpoint; without a tokenizer its configs decide alone.

    Raises:
        CheckpointError: a token that each text gets has no row, or none of the end tokens that files name can occur.
    """
    if tokenizer is None:
        eos, notes = _ends(sources, None, None, "")
        return SpecialTokens([sources.default_bos, *sources.bos.values()][-1], eos, {}, notes)
    named = named_tokens(
        sources.named,
        sources.special_map,
        sources.map_is_read,
        class_of(sources.family, sources.tokenizer_class, tokenizer.byte_level),
    )
    bos, of_bos = _begins(sources, tokenizer, named.texts.get("bos_token"), named.origin.get("bos_token", ""))
    eos, of_eos = _ends(sources, tokenizer, named.texts.get("eos_token"), named.origin.get("eos_token", ""))
    return SpecialTokens(bos, eos, named.texts, (*named.notes, *of_bos, *of_eos))


def _begins(
    sources: Sources, tokenizer: Tokenizer, name: str | None, origin: str
) -> tuple[int | None, tuple[str, ...]]:
    """The token that the post-processor puts in front of a text, and notes; `name` is the bos_token that `origin`
    gives."""
    front, behind = tokenizer.around
    if beyond := [token for token in (*front, *behind) if token >= sources.rows]:
        raise CheckpointError(
            f"expected the tokens that {VOCABULARY} adds to each text below the {sources.rows} rows of the embedding",
            found=_shown(beyond, tokenizer),
            fix=f"the {VOCABULARY} that this checkpoint was trained with",
        )
    said = {file: (token,) for file, token in sources.bos.items()}
    notes = []
    if name is not None and (token := tokenizer.token_to_id(name)) is not None:
        said[origin] = (token,)
    elif name is not None:
        notes.append(
            f"bos_token {name!r} of {origin} is no token of {VOCABULARY}: chat templates write it as plain text"
        )
    if len({*said.values(), front or next(iter(said.values()), ())}) > 1 or (said and name is None and not front):
        nameless = "" if name is not None else ", the tokenizer's files name none"
        texts = f"texts begin with {_shown(front, tokenizer)}" if front else "texts begin without one"
        notes.append(f"BOS: {_told(said, tokenizer)}{nameless}; {texts}, as {VOCABULARY} says")
    for key, asked, adds in (("add_bos_token", sources.add_bos, front), ("add_eos_token", sources.add_eos, behind)):
        if asked is not None and asked != bool(adds):
            place = f"adds {_shown(adds, tokenizer)}" if adds else "adds none"
            notes.append(
                f"{key} is {str(asked).lower()} in {CONFIG}, but {VOCABULARY} {place}, as transformers does too"
            )
    if behind:
        notes.append(
            f"{VOCABULARY} puts {_shown(behind, tokenizer)} behind each text, prompts included (as in transformers)"
        )
    return front[0] if front else None, tuple(notes)


def _ends(
    sources: Sources, tokenizer: Tokenizer | None, name: str | None, origin: str
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The tokens that end an answer, and notes; `name` is the eos_token that `origin` gives."""
    said = dict(sources.eos)
    lost: list[str] = []
    notes: list[str] = []
    if name is not None and tokenizer is not None:
        token = tokenizer.token_to_id(name)
        if token is None:
            lost.append(f"eos_token {name!r} of {origin} is not in the vocabulary")
        else:
            said[origin] = (token,)
    wanted = {token for ids in said.values() for token in ids}
    if not wanted and not lost and sources.default_eos:
        wanted = set(sources.default_eos)
        notes.append(f"no file names an end token: the architecture's {_shown(sorted(wanted), tokenizer)} is taken")
    ends = []
    for token in sorted(wanted):
        if token >= sources.rows:
            lost.append(f"{_shown([token], tokenizer)} is not below the {sources.rows} rows of the embedding")
        elif tokenizer is not None and not tokenizer.has(token):
            lost.append(f"no token has id {token}")
        else:
            ends.append(token)
    if said and max(map(len, said.values())) < len(wanted):  # no file says it all
        notes.append(f"EOS: {_told(said, tokenizer)}; answers end with {_shown(ends, tokenizer)}")
    if lost and not ends and (said or name is not None):
        raise CheckpointError("expected an end token that the model can write", found="; ".join(lost))
    return tuple(ends), (*notes, *(f"an end token is left out: {why}" for why in lost))


def _told(said: Mapping[str, Iterable[int]], tokenizer: Tokenizer | None) -> str:
    return ", ".join(f"{file} says {_shown(ids, tokenizer)}" for file, ids in said.items()) or "no file names one"


def _shown(ids: Iterable[int], tokenizer: Tokenizer | None) -> str:
    """Ids with their spelling."""
    names = ((token, "" if tokenizer is None else tokenizer.text_of(token)) for token in ids)
    return ", ".join(f"{token} ({name!r})" if name else f"{token}" for token, name in names) or "none"

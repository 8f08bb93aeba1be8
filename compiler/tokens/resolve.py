"""The one place that decides which tokens begin a text, end an answer and have names.

The oracle is transformers 5.23.0: names as in `tokenization_utils_base.py`, BOS in front of a text as the
post-processor of tokenizer.json puts it. Two differences are deliberate. An answer ends with any end token that
config.json, generation_config.json or the tokenizer's eos_token names, where `generate()` heeds one of the first two
only. And a text begins with BOS or not as add_bos_token says, if it is there: transformers 4 obeyed it,
`_from_pretrained` of 5.23 drops it where there is a tokenizer.json, and the model was trained with it.
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

    model_type: str
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
        bos = [sources.default_bos, *sources.bos.values()][-1]
        if bos is not None and not sources.bos:
            notes = (f"no file names BOS: the architecture's {bos} is taken", *notes)
        return SpecialTokens(bos, eos, {}, notes)
    named = named_tokens(
        sources.named,
        sources.special_map,
        sources.map_is_read,
        class_of(sources.model_type, sources.tokenizer_class, tokenizer.byte_level),
    )
    bos, of_bos = _begins(sources, tokenizer, named.texts.get("bos_token"), named.origin.get("bos_token", ""))
    eos, of_eos = _ends(sources, tokenizer, named.texts.get("eos_token"), named.origin.get("eos_token", ""))
    return SpecialTokens(bos, eos, named.texts, (*named.notes, *of_bos, *of_eos))


def _begins(
    sources: Sources, tokenizer: Tokenizer, name: str | None, origin: str
) -> tuple[int | None, tuple[str, ...]]:
    """The token that the post-processor puts in front of a text, and notes; `name` is the bos_token that `origin`
    gives."""
    own, behind = tokenizer.around
    front, noted = _asked(sources, tokenizer, name, own)
    if beyond := [token for token in (*front, *behind) if token >= sources.rows]:
        raise CheckpointError(
            f"expected the tokens that {VOCABULARY} adds to each text below the {sources.rows} rows of the embedding",
            found=_shown(beyond, tokenizer),
            fix=f"the {VOCABULARY} that this checkpoint was trained with",
        )
    said = {file: (token,) for file, token in sources.bos.items()}
    notes = [*noted]
    if name is not None and (token := tokenizer.token_to_id(name)) is not None:
        said[origin] = (token,)
    elif name is not None:
        notes.append(
            f"bos_token {name!r} of {origin} is no token of {VOCABULARY}: chat templates write it as plain text"
        )
    if len({*said.values(), front or next(iter(said.values()), ())}) > 1 or (said and name is None and not front):
        nameless = "" if name is not None else ", the tokenizer's files name none"
        texts = f"texts begin with {_shown(front, tokenizer)}" if front else "texts begin without one"
        notes.append(
            f"BOS: {_told(said, tokenizer)}{nameless}; {texts}, as {VOCABULARY if front == own else CONFIG} says"
        )
    if sources.add_eos is not None and sources.add_eos != bool(behind):
        notes.append(
            f"add_eos_token is {_flag(sources.add_eos)} in {CONFIG}, but {VOCABULARY} {_adds(behind, tokenizer)}"
        )
    if behind:
        notes.append(
            f"{VOCABULARY} puts {_shown(behind, tokenizer)} behind each text, prompts included (as in transformers)"
        )
    return front[0] if front else None, tuple(notes)


def _asked(
    sources: Sources, tokenizer: Tokenizer, name: str | None, own: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The tokens in front of a text as add_bos_token says, and what to say of it; `own` are the post-processor's."""
    if sources.add_bos is None or sources.add_bos == bool(own):
        return own, ()
    says = f"add_bos_token is {_flag(sources.add_bos)} in {CONFIG}, but {VOCABULARY} {_adds(own, tokenizer)}"
    if not sources.add_bos:
        return (), (f"{says}: texts begin without it (transformers 5 adds it)",)
    token = None if name is None else tokenizer.token_to_id(name)
    if token is None:
        return own, (f"{says}, and no file names a bos_token that it has: texts begin without one",)
    return (token,), (f"{says}: texts begin with {_shown([token], tokenizer)} (transformers 5 adds none)",)


def _flag(value: bool) -> str:
    return str(value).lower()


def _adds(ids: tuple[int, ...], tokenizer: Tokenizer) -> str:
    return f"adds {_shown(ids, tokenizer)}" if ids else "adds none"


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
    if not ends:
        notes.append("no file names an end token: answers end at the most tokens asked for, or with a stop string")
    return tuple(ends), (*notes, *(f"an end token is left out: {why}" for why in lost))


def _told(said: Mapping[str, Iterable[int]], tokenizer: Tokenizer | None) -> str:
    return ", ".join(f"{file} says {_shown(ids, tokenizer)}" for file, ids in said.items()) or "no file names one"


def _shown(ids: Iterable[int], tokenizer: Tokenizer | None) -> str:
    """Ids with their spelling."""
    names = ((token, "" if tokenizer is None else tokenizer.text_of(token)) for token in ids)
    return ", ".join(f"{token} ({name!r})" if name else f"{token}" for token, name in names) or "none"

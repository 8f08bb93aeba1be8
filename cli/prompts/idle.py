"""Flags of `llmc run` that would change nothing: refused where the command line shows it, else said by the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ...runtime.errors import LlmcError, RecipeError

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.sampling.params import SamplingOptions
    from ...runtime.scheduling.request import Result
    from .lines import Chat, Line, PromptLine

_GREEDY = "nothing at temperature 0: the likeliest token is always taken"


def refuse_idle(
    given: SamplingOptions, *, prompt: str | None, prompts: str | None, chat: bool, show_prompt: bool, json: bool
) -> None:
    """Check that each flag changes something.

    Raises:
        RecipeError: one does not; names it.
    """
    special, logprobs = bool(given.get("special")), bool(given.get("logprobs"))
    conversation = chat and prompt is None and prompts is None
    for flag, idle, why, fix in (
        ("--special", special and chat, "the text of a message is always plain", "a plain PROMPT"),
        ("--show-prompt", show_prompt and prompts is not None, "prompts of a file are not shown", "a single PROMPT"),
        ("--show-prompt", show_prompt and conversation, "messages of a conversation are not shown", "a single PROMPT"),
        ("--logprobs", logprobs and not json and prompts is None, "text without numbers is printed", "--json"),
    ):
        if idle:
            raise RecipeError(f"cannot use {flag}, which would change nothing", found=why, fix=fix)


def idle_options(engine: Engine, options: SamplingOptions) -> Iterator[str]:
    """What to say of options that change nothing with this engine."""
    if names := engine.idle(options):
        flags = ", ".join("--" + name.replace("_", "-") for name in names)
        yield f"{flags} change{'s' * (len(names) == 1)} {_GREEDY}"


def cut_tokens(engine: Engine, options: SamplingOptions, prompt_tokens: int = 1) -> Iterator[str]:
    """What to say of more tokens than the context has room for, behind a prompt of so many."""
    wanted, room = options.get("max_tokens"), engine.max_context - prompt_tokens
    if wanted is not None and wanted > room > 0:
        yield f"--max-tokens {wanted} is cut to {room}, the room in the context of {engine.max_context} tokens"


def cut_short(result: Result, options: SamplingOptions) -> bool:
    """True if an answer ended where the context was full, before the tokens that were asked for."""
    wanted = options.get("max_tokens")
    return result.finish_reason == "length" and wanted is not None and result.completion_tokens < wanted


def refuse_idle_special(line: PromptLine, chat: Chat, where: str) -> None:
    """Check that a line's "special" changes its prompt.

    Raises:
        RecipeError: it has no plain text; names `where`.
    """
    if line.options.get("special") and (line.prompt is None or chat.wanted):
        found = "token ids" if line.tokens is not None else "a message, whose text is always plain"
        raise RecipeError(f'cannot use "special" at {where}, which would change nothing', found=found)


def idle_lines(engine: Engine, lines: Sequence[Line], given: SamplingOptions, chat: Chat) -> Iterator[str]:
    """What to say of a file of prompts, whose lines may have options of their own."""
    if not lines:
        yield "there are no prompts"
    if given.get("special") and lines and all(line.prompt is None for line in lines):
        yield "--special changes nothing: no prompt is a text"
    others = sum(not line.heeds(chat) for line in lines)
    if chat.wanted and others:
        yield f"--chat changes nothing for {others} of {len(lines)} prompts, which have no text of their own"
    counts = Counter(name for line in lines for name in _own(engine, line, given))
    for name, count in counts.items():
        yield f'"{name}" changes {_GREEDY} ({count} of {len(lines)} prompts)'


def _own(engine: Engine, line: Line, given: SamplingOptions) -> list[str]:
    """Names of a line's own options that change nothing; none if an option is wrong, which its result will tell."""
    merged: Any = {**given, **line.options}
    with suppress(LlmcError):
        return [name for name in engine.idle(merged) if name in line.options]
    return []

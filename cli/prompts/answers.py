"""Encodes a prompt and prints its stream: shared by single prompts, prompt files and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common import console

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.scheduling.request import Result, Stream


def prompt_ids(engine: Engine, text: str, chat: bool, system: str | None, special: bool) -> Sequence[int]:
    """The tokens of a plain prompt, or of a conversation of one message."""
    if not chat:
        return engine.tokenizer.encode(text, special=special)
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return engine.encode_chat(messages)


def write(stream: Stream, json: bool, profile: str) -> None:
    """Write a text as it comes and its speed at the end, or with --json everything at the end."""
    with stream:
        report(follow(stream, json), json, profile)


def follow(stream: Stream, json: bool) -> Result:
    """Write a text as it comes, unless it is to be part of an object."""
    if not json:
        try:
            for piece in stream:
                if piece.text:
                    console.out_model(piece.text)
        finally:
            console.out("")  # also after Ctrl-C: what was printed stays, on a line of its own
    return stream.result()


def report(result: Result, json: bool, profile: str) -> None:
    """Write what is known at the end: the speed, or the object of --json."""
    if json:
        console.out_json(as_json(result))
        return
    timings, count = result.timings, result.completion_tokens
    speed = f"{count} tokens at {timings.decode_tokens_per_s:.1f} tokens/s" if count > 1 else f"{count} token"
    cached = f" ({result.cached_tokens} cached)" if result.cached_tokens else ""
    console.note(
        f"{speed} ({result.finish_reason}), "
        f"{result.prompt_tokens} of prompt{cached}, first token after {timings.ttft_s:.3f} s; "
        f"profile {profile} loaded in {timings.load_s:.2f} s"
    )


def as_json(result: Result) -> dict[str, Any]:
    """A result as `--json` shows it."""
    timings = result.timings
    value = console.facts(
        result, "text", "token_ids", "prompt_tokens", "cached_tokens", "completion_tokens", "finish_reason"
    )
    value["timings"] = {
        "load_s": round(timings.load_s, 4),
        "ttft_s": round(timings.ttft_s, 4),
        "decode_tokens_per_s": round(timings.decode_tokens_per_s, 2),
    }
    if result.logprobs:
        value["logprobs"] = [console.facts(one, "token", "logprob", "top") for one in result.logprobs]
    return value

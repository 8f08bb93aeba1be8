"""`llmc run`: an engine writes text, for one prompt, for a file of prompts, or in a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime.errors import RecipeError
from ..common import console, options, simulate, texts
from ..common.options import flag
from ..prompts import answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...runtime.engine import Engine, Options

Prompt = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", help="The text to continue; - reads it from stdin as it is.")
]
PromptsFile = Annotated[
    str | None,
    flag("--prompts", 'A JSON object a line with "prompt" or "tokens", and flags such as "max_tokens"; - is stdin.'),
]
Chat = Annotated[bool, flag("--chat", "PROMPT is a message; without PROMPT, hold a conversation.")]
System = Annotated[str | None, flag("--system", "The system message of a --chat.")]
ShowPrompt = Annotated[bool, flag("--show-prompt", "Show the prompt's exact tokens on stderr.")]
Special = Annotated[bool, flag("--special", "Let special tokens spelled in PROMPT count as such.")]
CheckEngine = Annotated[str, flag("--verify", "What to check before running: header, or full for every byte.")]
MaxTokens = Annotated[int | None, flag("--max-tokens", "Most tokens to generate.")]
Temperature = Annotated[float | None, flag("--temperature", "0 always takes the likeliest token.")]
TopK = Annotated[int | None, flag("--top-k", "Choose among the K likeliest tokens; 0 is all.")]
TopP = Annotated[
    float | None, flag("--top-p", "Choose among the likeliest tokens that have this probability together.")
]
MinP = Annotated[float | None, flag("--min-p", "Leave out tokens less likely than this share of the likeliest.")]
Seed = Annotated[int | None, flag("--seed", "Equal seeds give equal texts.")]
Stop = Annotated[list[str] | None, flag("--stop", "End before this text; may be repeated.")]
RepetitionPenalty = Annotated[float | None, flag("--repetition-penalty", "Above 1 makes used tokens less likely.")]
PresencePenalty = Annotated[float | None, flag("--presence-penalty", "Subtracted from tokens already generated.")]
FrequencyPenalty = Annotated[
    float | None, flag("--frequency-penalty", "Subtracted for each time a token was generated.")
]
LogitBias = Annotated[list[str] | None, flag("--logit-bias", "TOKEN_ID=NUMBER, added to the logit; may be repeated.")]
Logprobs = Annotated[int | None, flag("--logprobs", "With --json: log-probabilities of this many best tokens.")]


def run(
    engine: options.EngineFile,
    prompt: Prompt = None,
    chat: Chat = False,
    system: System = None,
    prompts: PromptsFile = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    logit_bias: LogitBias = None,
    logprobs: Logprobs = None,
    special: Special = False,
    show_prompt: ShowPrompt = False,
    profile: options.Profile = None,
    simulated: options.Simulate = False,
    threads: options.Threads = None,
    max_batch: options.MaxBatch = None,
    verify: CheckEngine = "header",
    json: options.Json = False,
) -> None:
    """Run an engine: its text goes to stdout, its speed to stderr."""
    from ..common import huge_pages
    from ..prompts import batch, conversation

    huge_pages.ensure(Path(engine))
    _check(prompt, prompts, chat, system)
    if verify not in ("header", "full"):
        raise RecipeError(f"--verify {verify}", fix="header or full")
    given: Options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": stop,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": _biases(logit_bias or []),
        "logprobs": logprobs,
        "special": special,
    }
    requests = batch.read(prompts) if prompts is not None else []
    text = texts.read_text("-") if prompt == "-" else prompt
    from ...runtime.load import load

    device = simulate.stand_in(simulated)
    with load(engine, profile, threads=threads, max_batch=max_batch, verify=verify, make_device=device) as loaded:
        for said in loaded.notes:
            console.note(f"llmc: {said}")
        if profile is None:
            _say_what_idles(engine, loaded.profile)
        if prompts is not None:
            batch.run_all(loaded, requests, given, chat=chat, system=system)
        elif text is None:
            conversation.hold(loaded, given, system=system, json=json)
        else:
            ids = answers.prompt_ids(loaded, text, chat, system, special)
            if show_prompt:
                _show(loaded, ids)
            answers.write(loaded.stream(ids, **given), json, loaded.profile)


def _check(prompt: str | None, prompts: str | None, chat: bool, system: str | None) -> None:
    if prompt is not None and prompts is not None:
        raise RecipeError("PROMPT and --prompts together", fix="one of them")
    if prompt is None and prompts is None and not chat:
        raise RecipeError("llmc run without a prompt", fix="PROMPT, - for stdin, --prompts FILE, or --chat")
    if system is not None and not chat:
        raise RecipeError("--system without --chat", fix="--chat --system TEXT")


def _say_what_idles(engine: str, used: str) -> None:
    """That there is a GPU which this engine leaves alone: nobody should take the CPU's speed for the GPU's."""
    from ...runtime.chips import SM, runs_on
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.profiles import fits, gpus

    if not gpus():
        return
    with EngineFile.open(engine) as opened:
        if opened.manifest.profiles[used].target in SM:
            return
        reasons = {name: reason for name, reason in fits(opened).items() if reason}
    lines = [f"  {name}: {reason}" for name, reason in reasons.items()]
    if not reasons:
        fitting = [target for target, sm in SM.items() if runs_on(sm, gpus()[0].sm)]
        lines = [f"  try: llmc build --target cpu,{target}" for target in fitting[:1]]
    console.note("\n".join([f"llmc: no profile of {engine} uses the GPU of this machine ({gpus()[0].name})", *lines]))


def _biases(texts: list[str]) -> dict[int, float]:
    biases = {}
    for text in texts:
        token, _, number = text.partition("=")
        try:
            biases[int(token)] = float(number)
        except ValueError:
            raise RecipeError(f"--logit-bias {text!r}", fix="TOKEN_ID=NUMBER, such as 42=-5") from None
    return biases


def _show(engine: Engine, ids: Sequence[int]) -> None:
    for token in ids:
        console.note(f"{token:>8}  {engine.tokenizer.decode([token], skip_special=False)!r}")

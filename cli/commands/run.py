"""`llmc run`: a model writes text, for one prompt, for a file of prompts, or in a conversation.

What is run is an engine file, or the engine of a checkpoint in the cache (`cli/cache/engine.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...runtime import environment
from ...runtime.errors import RecipeError, Unsupported, shown
from ...runtime.sampling.params import RANGES
from ..cache import engine as cached
from ..common import console, options, progress, simulate, texts
from ..common.options import flag
from ..judge import trust
from ..prompts import answers
from ..prompts.idle import cut_tokens, idle_lines, idle_options, refuse_idle

if TYPE_CHECKING:
    from ...runtime.engine import Engine

PromptsFile = Annotated[
    str | None,
    flag(
        "--prompts",
        'JSON lines with "prompt", "tokens" or "messages", or of OpenAI\'s batch files; - is stdin.',
        default="none",
        metavar="FILE",
    ),
]
MaxBatch = Annotated[
    int | None,
    flag(
        "--max-batch", "Most sequences at the same time.", default="the profile's", metavar="N", group=options.MACHINE
    ),
]
LogitBias = Annotated[
    list[str] | None,
    flag(
        "--logit-bias",
        "Added to the logit; may be repeated.",
        default="none",
        metavar="TOKEN_ID=NUMBER",
        group=options.SAMPLE,
    ),
]
ChatTemplateFile = Annotated[
    Path | None,
    flag("--chat-template", "A jinja file, for conversations.", default="the engine's template", metavar="FILE"),
]
Image = Annotated[
    list[str] | None,
    flag("--image", "Always refused: says which parts for images were left out.", default="none", metavar="FILE"),
]

Subject = Annotated[
    str,
    typer.Argument(
        metavar="ENGINE|CHECKPOINT",
        help="An engine file, or a folder or org/name[@revision] on the hub, which is built into the cache first.",
        show_default=False,
    ),
]


@options.takes({**cached.BUILT, **options.SAMPLING})
def run(
    engine: Subject,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin as it is.")
    ] = None,
    chat: Annotated[
        bool, flag("--chat", "PROMPT is a message; without PROMPT, hold a conversation (/help there).")
    ] = False,
    system: Annotated[
        str | None, flag("--system", "The system message of a --chat.", default="none", metavar="TEXT")
    ] = None,
    chat_template: ChatTemplateFile = None,
    image: Image = None,
    prompts: PromptsFile = None,
    max_tokens: Annotated[
        int | None, flag("--max-tokens", "Most tokens to generate.", default="512", metavar="N", group=options.SAMPLE)
    ] = None,
    stop: Annotated[
        list[str] | None,
        flag("--stop", "End before this text; may be repeated.", default="none", metavar="TEXT", group=options.SAMPLE),
    ] = None,
    logit_bias: LogitBias = None,
    special: Annotated[bool, flag("--special", "Let special tokens spelled in PROMPT count as such.")] = False,
    show_prompt: Annotated[bool, flag("--show-prompt", "Show the prompt's exact tokens on stderr.")] = False,
    profile: options.Profile = None,
    simulated: options.Simulate = False,
    threads: options.Threads = None,
    max_batch: MaxBatch = None,
    verify: Annotated[
        str, flag("--verify", "What to check first; full is every byte.", metavar="header|full")
    ] = "header",
    trusted: trust.Trust = None,
    json: options.Json = False,
    **more: Any,
) -> None:
    """Run an engine or a checkpoint: text goes to stdout, the rest to stderr."""
    from ..common import huge_pages
    from ..prompts import batch, conversation, lines

    built = {name: more.pop(name) for name in cached.BUILT}
    if image:
        raise _no_images(engine)
    _check(prompt, prompts, chat, system, chat_template)
    template = None if chat_template is None else _template(chat_template)
    if verify not in ("header", "full"):
        raise RecipeError("expected --verify header or full", found=verify)
    for name, value in more.items():
        if value is not None:
            RANGES[name].check(name, value)
    judge = trust.judge(trusted, simulated=simulated, quiet=json)
    biases = _biases(logit_bias or [])
    given: Any = {**more, "max_tokens": max_tokens, "stop": stop, "logit_bias": biases, "special": special}
    refuse_idle(given, prompt=prompt, prompts=prompts, chat=chat, show_prompt=show_prompt, json=json)
    chats = lines.Chat(chat, system)
    follows = environment.follows()
    requests = batch.read(prompts, engine=engine, chat=chats) if prompts not in (None, "-") and not follows else []
    path = Path(engine)
    if cached.is_checkpoint(engine):
        from ...runtime.engine import check_request

        check_request(given)
        environment.threads(threads)
        asked: Any = {"profile": profile, "simulated": simulated, "max_batch": max_batch, "verify": verify}
        path = cached.engine_of(engine, built, **asked, chat=chat and chat_template is None, quiet=json)
    else:
        cached.refuse_flags(engine, built)
    huge_pages.ensure(path)  # before stdin is read, because it may start this process again
    from ...runtime.load import load

    device = simulate.stand_in(simulated)
    limits: Any = {"threads": threads, "max_batch": max_batch, "verify": verify}

    def opened() -> Engine:
        with progress.loading(path, quiet=json or follows):
            return load(path, profile, **limits, chat_template=template, make_device=device, judge=judge)

    alone = opened() if follows else None  # a rank above 0 serves, and ends here; its stdin is rank 0's
    if prompts is not None and (prompts == "-" or alone is not None):
        requests = batch.read(prompts, engine=engine, chat=chats)
    if chat_template is not None and prompts is not None and not any(line.templated(chats) for line in requests):
        raise RecipeError(f"expected conversations in {prompts} with --chat-template", found="other lines alone")
    text = texts.read_text("-") if prompt == "-" else prompt
    with alone or opened() as loaded:
        for said in loaded.notes:
            console.note(f"llmc: {said}")
        if profile is None:
            _warn_unused_gpu(path, loaded.profile)
        for said in idle_options(loaded, given):
            console.note(f"llmc: {said}")
        if prompts is not None:
            for said in (*cut_tokens(loaded, given), *idle_lines(loaded, requests, given, chats)):
                console.note(f"llmc: {said}")
            batch.run_all(loaded, requests, given, chats, quiet=json)
        elif text is None:
            inputs = [engine, path, *([chat_template] if chat_template else ())]
            conversation.chat_loop(loaded, given, system=system, json=json, inputs=inputs)
        else:
            ids = answers.prompt_ids(loaded, text, chat, system, special)
            for said in cut_tokens(loaded, given, len(ids)):
                console.note(f"llmc: {said}")
            for token in ids if show_prompt else ():
                console.note(f"{token:>8}  {loaded.tokenizer.text_of(token)!r}")
            answers.write(loaded.stream(ids, **{**given, "special": None}), json, loaded.profile)


def _no_images(engine: str) -> Unsupported:
    """Why an image cannot be read: of an engine by its manifest, of a checkpoint by its config, before it is built."""
    from ...runtime.text.images import no_images

    if cached.is_checkpoint(engine):
        from ...compiler.checkpoint.checkpoint import open_checkpoint

        config = open_checkpoint(engine, random_weights=0).config
        return no_images(engine, [f"{part} left out" for part in dict.fromkeys(config.parts.values())])
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.engine_file.info import parts_left_out

    with EngineFile.open(engine) as opened:
        return no_images(engine, parts_left_out(opened.manifest.unused))


def _check(prompt: str | None, prompts: str | None, chat: bool, system: str | None, chat_template: Path | None) -> None:
    if prompt is not None and prompts is not None:
        raise RecipeError("expected PROMPT or --prompts, not both")
    if prompt is None and prompts is None and not chat:
        raise RecipeError("expected a prompt", fix="PROMPT, - for stdin, --prompts FILE, or --chat")
    if system is not None and not chat:
        raise RecipeError("expected --chat with --system", fix="--chat --system TEXT")
    if chat_template is not None and not chat and prompts is None:
        fix = "--chat, or --prompts with messages"
        raise RecipeError("expected --chat with --chat-template", fix=fix)


def _template(path: Path) -> str:
    """The text of --chat-template, read once, because it may be a pipe, and checked before an engine is built."""
    from ...runtime.text.chat import checked_source

    return checked_source(path, bos_token="", eos_token="")


def _warn_unused_gpu(engine: Path, used: str) -> None:
    """Warn if a GPU is present but the chosen profile runs on the CPU."""
    from ...runtime.chips import SM, target_for
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.profiles import fits, gpus

    if not gpus():
        return
    with EngineFile.open(engine) as opened:
        if opened.manifest.profiles[used].target in SM:
            return
        lines = [f"  {name}: {reason}" for name, reason in fits(opened).items() if reason]
    if not lines and (target := target_for(gpus()[0].sm)):
        lines = [f"  try: llmc build --target cpu,{target}"]
    console.note("\n".join([f"llmc: no profile of {engine} uses the GPU of this machine ({gpus()[0].name})", *lines]))


def _biases(texts: list[str]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for text in texts:
        token, _, number = text.partition("=")
        try:
            if int(token) in biases:
                raise RecipeError("expected --logit-bias once for each token", found=f"token {shown(int(token))} twice")
            biases[int(token)] = float(number)
        except ValueError:
            raise RecipeError("expected --logit-bias TOKEN_ID=NUMBER, such as 42=-5", found=shown(text)) from None
    return biases

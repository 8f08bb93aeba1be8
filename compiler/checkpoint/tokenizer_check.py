"""Checks the tokenizer and the chat template, which are untrusted input, in a limited process that can be killed."""

from __future__ import annotations

import json
import math
import signal
import string
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import CheckpointError, EngineError, LlmcError, ResourceError
from ...runtime.files.records import plain, read
from ...runtime.files.strict_json import loads
from ...runtime.guard.limits import limit_of, lower_limit
from ...runtime.guard.shortage import MEMORY, lack_said
from ...runtime.text.chat import ChatTemplate
from ...runtime.text.tokenizer import Tokenizer, library_errors
from ..tokens.conversation import template_notes
from ..tokens.resolve import Sources, SpecialTokens, resolve
from .trial import unsupported

if TYPE_CHECKING:
    from .checkpoint import Checkpoint  # the worker process does not import it

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
DEADLINE_S = 30
"""The largest public tokenizers (33 MB) take 3 s on an idle machine; a busy one must not refuse them."""
MEMORY_BYTES = 4 * 1024**3
_MOST_CPU_S = 2 * DEADLINE_S
"""Ends the worker if the build has died and no longer enforces the deadline."""
TEMPLATE_CPU_S = 2
"""CPU time of a template beyond what the tokenizer has used; a template takes milliseconds."""
TEMPLATE_MEMORY_BYTES = 384 * 1024**2
"""Memory of a template beyond what the tokenizer holds; its budget allows about 100 MiB."""
SHOWN = 8
"""Entries that an error lists."""
TOKENIZER = "tokenizer.json"
TEMPLATE = "the chat template"
TEXTS = ("Hello, world!", "def f(x):\n    return x ** 2\n", "  two  spaces  ", "Grüße, 日本語 🙂", "1234567.89")
STRESS = (*(unit * 100 for unit in (*string.printable, "aA1 ", "é", "\t \n", "'s", "日")), *TEXTS)
"""Repetitions on which a backtracking regular expression takes exponential time, and plain texts."""


@dataclass(frozen=True)
class Checked:
    """What a tokenizer and a chat template were found to mean."""

    special: SpecialTokens
    notes: tuple[str, ...] = ()
    """What to say to the user: where files disagree, tokens without a row, a template that fails or never stops."""


def start_check(checkpoint: Checkpoint, *, deadline_s: float = DEADLINE_S) -> Future[Checked]:
    """Begin to check a checkpoint's tokenizer and chat template in a worker process, if it has a tokenizer, and to
    resolve its special tokens.

    The future holds a CheckpointError if the tokenizer is too large, is not JSON, exceeds its time or memory, panics,
    gives an id to two tokens, has ids of ordinary tokens beyond the embedding, has ids that the library would change,
    or lacks an end token; the error lists the ids.
    """
    future: Future[Checked] = Future()

    def run() -> None:
        try:
            if "tokenizer.json" in checkpoint.tokenizer:
                future.set_result(_ask_worker(checkpoint, deadline_s))
            else:
                special = resolve(checkpoint.special, None)
                future.set_result(Checked(special, special.notes))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="llmc-tokenizer-check", daemon=True).start()
    return future


def _ask_worker(checkpoint: Checkpoint, deadline_s: float) -> Checked:
    tokenizer_json = checkpoint.tokenizer["tokenizer.json"]
    if len(tokenizer_json) > MAX_TOKENIZER_BYTES:
        found, fix = f"{len(tokenizer_json)} bytes", f"at most {MAX_TOKENIZER_BYTES} bytes"
        raise CheckpointError(f"cannot use {TOKENIZER}", found=found, fix=fix)
    question = {"sources": plain(checkpoint.special), "template": checkpoint.chat_template}
    # -P: the working folder may be the checkpoint, and none of its files may be imported as a module.
    command = [sys.executable, "-P", "-m", __name__]
    sent = json.dumps(question).encode() + b"\n" + tokenizer_json
    try:
        answer = subprocess.run(command, input=sent, capture_output=True, timeout=deadline_s)
    except subprocess.TimeoutExpired as late:
        begun = _lines(late.stdout or b"")
        what = begun[-1]["begins"] if begun else TOKENIZER
        found, fix = f"it did not finish in {deadline_s:g} s", "one without runaway patterns or loops"
        raise CheckpointError(f"cannot use {what}", found=found, fix=fix) from None
    begun = _lines(answer.stdout)
    reply = begun.pop() if begun and "begins" not in begun[-1] else {}
    stage = begun[-1] if begun else {"begins": TOKENIZER, "users": _EVERY_LIMIT}
    what = stage["begins"]
    if "refused" in reply:
        raise CheckpointError(f"cannot use {what}", found=reply["refused"], fix=reply["fix"])
    if "special" in reply:
        return read(Checked, reply, "the worker's reply")
    raise _ending(what, stage["users"], answer.returncode, reply.get("lacks") or answer.stderr.decode(errors="replace"))


def _lines(stdout: bytes) -> list[dict[str, Any]]:
    """What the worker has written: a line when it begins a part of its work, and the reply."""
    return [json.loads(line) for line in stdout.splitlines() if line.endswith(b"}")]


_EVERY_LIMIT = ("AS", "CPU")
"""A worker that has begun nothing was ended by no limit of its own."""


def _ending(what: str, users: Collection[str], code: int, said: str) -> LlmcError:
    """Why a worker gave no answer: because of the file, or because of this machine and the user's limits on processes.

    `users` are the limits that are the user's, because they are lower than llmc's. Rust prints a cause first and Python
    last. The worker's own limits never end it with SIGKILL.
    """
    lines = said.strip().splitlines() or [""]
    lack = lack_said(said)
    if code == -signal.SIGXCPU and "CPU" not in users:
        return CheckpointError(f"cannot use {what}", found="it used up its processor time")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        limit = limit_of("CPU") if "CPU" in users else None
        found = f"its process was ended with {signal.Signals(-code).name}, " + (
            "probably for lack of memory" if limit is None else f"ulimit -t {limit} or lack of memory"
        )
        return ResourceError(f"cannot check {what}", found=found, fix="a higher limit, or a machine with more memory")
    if lack is not None and (lack is not MEMORY or "AS" in users):
        found = "; ".join(filter(None, (lines[-1][-300:], lack.limited)))
        return ResourceError(f"cannot check {what}: {lack.what}", found=found, fix=lack.fix)
    if code < 0:
        return CheckpointError(
            f"cannot use {what}", found=f"the worker ended with {signal.Signals(-code).name}: {lines[0][:300]}"
        )
    return CheckpointError(f"cannot use {what}", found=f"the worker ended with {code}: {lines[-1][-300:]}")


def _work(question: Mapping[str, Any], tokenizer_json: bytes) -> dict[str, Any]:
    """Run in the worker process: check the tokenizer, then the template; returns the reply as JSON values."""
    try:
        sources: Sources = read(Sources, question["sources"], "the question")
        declared = _declared_ids(
            loads(tokenizer_json, what="tokenizer.json", error=CheckpointError, max_bytes=MAX_TOKENIZER_BYTES)
        )
        _check_ids(declared)
        with library_errors("load it", CheckpointError):
            tokenizer = Tokenizer.from_bytes(tokenizer_json, {})
        _check_library(tokenizer, declared)
        notes = [*_rows(declared, tokenizer, sources.rows)]
        with library_errors("encode a text", CheckpointError):
            special = resolve(sources, tokenizer)
        notes += special.notes
        with library_errors("encode probe texts", CheckpointError):
            for text in STRESS:
                tokenizer.decode(tokenizer.encode(text))
        if question["template"] is not None:
            _limit_template()
            notes += _template_notes(tokenizer, question["template"], special, sources.rows)
        return plain(Checked(special, tuple(notes)))
    except (MemoryError, ResourceError) as error:
        return {"lacks": f"{error} {error.__cause__ or 'cannot allocate memory'}"}
    except LlmcError as error:
        return {"refused": "; ".join(filter(None, (error.asked, error.found))), "fix": error.fix}


def _declared_ids(document: Any) -> list[tuple[str, int]]:
    """(token, id) of model tokens and added tokens, as the file lists them, without repeats."""
    try:
        vocab = document["model"]["vocab"]
        pairs = list(vocab.items()) if isinstance(vocab, dict) else [(piece[0], i) for i, piece in enumerate(vocab)]
        added = [(entry["content"], entry["id"]) for entry in document.get("added_tokens") or ()]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError("cannot read its vocabulary", found=f"{type(error).__name__}: {error}") from None
    for token, number in (*pairs, *added):
        if not isinstance(token, str) or not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise CheckpointError("cannot read its vocabulary", found=f"token {token!r} with id {number!r}")
    return list(dict.fromkeys((*pairs, *added)))


def _check_ids(declared: list[tuple[str, int]]) -> None:
    first: dict[int, str] = {}
    twice = [(number, first[number], token) for token, number in declared if first.setdefault(number, token) != token]
    if twice:
        shown = _list(f"id {number} is {one!r} and {two!r}" for number, one, two in twice)
        raise CheckpointError("expected one token for each id", found=shown)


def _rows(declared: list[tuple[str, int]], tokenizer: Tokenizer, rows: int) -> Iterator[str]:
    """What to say of added tokens beyond the rows of the embedding: many checkpoints have one, for padding.

    Raises:
        CheckpointError: an ordinary token is beyond them: this is the tokenizer of another model.
    """
    beyond = sorted((number, token) for token, number in declared if number >= rows)
    if not beyond:
        return
    if ordinary := [entry for entry in beyond if entry[0] not in tokenizer.added_ids]:
        shown = _list(f"{number} ({token!r})" for number, token in ordinary)
        fix = "the tokenizer.json this checkpoint was trained with"
        raise CheckpointError(f"expected ids below the {rows} rows of the embedding", found=shown, fix=fix)
    shown = _list(f"{token!r} ({number})" for number, token in beyond)
    yield f"added tokens without one of the {rows} rows of the embedding: {shown}; a prompt that holds one is refused"


def _check_library(tokenizer: Tokenizer, declared: list[tuple[str, int]]) -> None:
    """Compare ids with the file's: the tokenizers library renumbers added tokens without an error."""
    changed = [(token, number, tokenizer.token_to_id(token)) for token, number in declared]
    if wrong := [entry for entry in changed if entry[1] != entry[2]]:
        shown = _list(f"{token!r} has id {number} in the file and {now} when loaded" for token, number, now in wrong)
        raise CheckpointError("expected ids without gaps", found=shown, fix="consecutive ids for added tokens")


def _template_notes(tokenizer: Tokenizer, template: str, special: SpecialTokens, rows: int) -> list[str]:
    """What to say of the chat template, among it why it cannot render one message.

    Raises:
        EngineError: the template needs more than its budget, which refuses the checkpoint.
    """
    try:
        compiled = ChatTemplate(template, **special.named)
        notes = list(template_notes(compiled, tokenizer, special.eos_ids, rows))
        return notes + [f"chat template: {said}" for said in unsupported(compiled)]
    except EngineError:
        raise
    except LlmcError as error:
        return [f"chat template: {'; '.join(filter(None, (error.asked, error.found)))}"]


def _list(entries: Any) -> str:
    entries = list(entries)
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return ", ".join(entries[:SHOWN]) + more


def _limit_template() -> None:
    memory, seconds = MEMORY_BYTES, _MOST_CPU_S
    with suppress(ImportError, FileNotFoundError):  # not on Linux: the worker keeps the limits it has
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = min(pages * resource.getpagesize() + TEMPLATE_MEMORY_BYTES, MEMORY_BYTES)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(used.ru_utime + used.ru_stime) + TEMPLATE_CPU_S
    _begin(TEMPLATE, memory, seconds)


def _begin(what: str, memory: int, seconds: int) -> None:
    """Limit this process for a part of its work, and say which limits are the user's, for they are lower."""
    limits = {"AS": (memory, MEMORY_BYTES), "CPU": (seconds, _MOST_CPU_S + 1)}  # SIGXCPU comes before SIGKILL
    users = [name for name, (soft, hard) in limits.items() if lower_limit(name, soft, hard)]
    print(json.dumps({"begins": what, "users": users}), flush=True)


def _main() -> None:
    lower_limit("CORE", 0, 0)
    _begin(TOKENIZER, MEMORY_BYTES, _MOST_CPU_S)
    question, _, tokenizer_json = sys.stdin.buffer.read().partition(b"\n")
    print(json.dumps(_work(json.loads(question), tokenizer_json)))


if __name__ == "__main__":
    _main()

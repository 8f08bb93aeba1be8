"""The loaded engine: prompts in, text out, for any number of threads at once."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Unpack, overload

import numpy as np

from .engine_file.info import EngineInfo
from .errors import RecipeError, Unsupported, demand, described, several, shown
from .guard.public import public
from .sampling.params import SamplingOptions, SamplingParams, defaults_of
from .scheduling.executor import Executor
from .scheduling.loop import Loop
from .scheduling.request import LogitsRequest, Request, Result, Stream, TextRequest
from .text.chat import ChatTemplate, no_template
from .text.images import refuse_images
from .text.stream import TextStream, checked_stops
from .text.tokenizer import Tokenizer
from .text.turns import Fitted, fit

DEFAULT_MAX_TOKENS = 512

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


_SAMPLING = [field.name for field in fields(SamplingParams)]
_SWITCHES = ("special", "ignore_eos")


class Engine(AbstractContextManager["Engine"]):
    """A model ready to run; a context manager. All methods may be called from any thread.

    Requests of all threads run together while the KV cache has room; the rest wait in order of arrival.

    Raises:
        RecipeError: the request is malformed or too long, or this process is a child that was made by fork after the
            engine was loaded, from every method that starts one.
        EngineError: the model computed numbers that are not finite, and this request ends; or a step failed on the
            device: all requests end with this error, and later ones are refused; or the engine's file was changed in
            place: what was already streamed cannot be relied on.
        ResourceError: there is too little memory for this request; or a rank of a profile of several has died or hangs:
            all requests end with this error, and later ones are refused.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer | None,
        info: EngineInfo,
        *,
        eos_ids: Collection[int] = (),
        generation: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        load_s: float = 0.0,
        notes: tuple[str, ...] = (),
        demand_unchanged: Callable[[], None] = lambda: None,
    ) -> None:
        self.info = info
        self.profile = info.profile
        self.load_s = load_s
        self.vocab_size = executor.vocab
        self.max_batch = executor.sequences
        """Requests that run at the same time; more wait."""
        self.notes = (*executor.notes, *notes)
        self._tokenizer = tokenizer
        self._chat_source = chat_template
        self._defaults = defaults_of(generation or {})
        self._loop = Loop(executor, eos_ids, demand_unchanged)
        self._close = weakref.finalize(self, self._loop.close)

    def __repr__(self) -> str:
        return f"<llmc.Engine {self.info!r}>"

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            Unsupported: the checkpoint had none.
        """
        if self._tokenizer is None:
            found = "no tokenizer in the checkpoint"
            raise Unsupported("cannot read or write text with this engine", found=found, fix="token ids")
        return self._tokenizer

    @property
    def max_context(self) -> int:
        """Tokens, prompt and output together, that one request can have."""
        return self._loop.capacity

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Result: ...
    @overload
    def generate(self, prompt: list[str] | list[list[int]], **options: Unpack[SamplingOptions]) -> list[Result]: ...
    @public(SamplingOptions)
    def generate(
        self, prompt: Prompt | list[str] | list[list[int]], **options: Unpack[SamplingOptions]
    ) -> Result | list[Result]:
        """The result of one prompt (text or token ids), or the results of a list of prompts, which run together.

        Ctrl-C and the first error cancel all running requests. A result does not depend on the other prompts of a list.
        """
        batch = _is_batch(prompt)
        prompts: Any = prompt if batch else [prompt]
        with ExitStack() as running:
            streams = [running.enter_context(self.stream(one, **options)) for one in prompts]
            results = [stream.result() for stream in streams]
        return results if batch else results[0]

    @public(SamplingOptions)
    def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Stream:
        """Starts a request and returns an iterator over its pieces; closing or dropping it cancels the request."""
        _check_switches(options)
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, special=bool(options.get("special")))
        elif options.get("special"):
            raise RecipeError("cannot use special: a prompt of token ids has no text", fix="a prompt as text")
        ids = _token_ids(prompt)
        if self._tokenizer is not None:
            self._tokenizer.require_rows(ids, self.vocab_size)
        request = TextRequest(
            ids,
            _max_tokens(options),
            self._params(options),
            ignore_eos=bool(options.get("ignore_eos")),
            text=TextStream(self._tokenizer, _stops(options), after=ids),
            load_s=self.load_s,
        )
        self._loop.submit(request)
        return Stream(request, self._cancel)

    @public()
    def encode_chat(self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None) -> list[int]:
        """The token ids of a conversation, ready for an answer; its text never becomes a special token.

        Raises:
            RecipeError: the template refuses the messages.
            Unsupported: the checkpoint had no tokenizer or no chat template, or a message has an image.
        """
        refuse_images(messages, self.info.architecture, self.info.left_out)
        for tool in several("tools", tools or (), lambda _, one: one):
            demand("each of tools", tool, "a mapping", Mapping)
        return self.chat_template.encode(self.tokenizer, messages, tools=tools)

    @public(SamplingOptions)
    def chat(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **options: Unpack[SamplingOptions]
    ) -> Result:
        """The answer to a conversation of {role, content} messages."""
        return self.generate(self.encode_chat(messages, tools=tools), **options)

    @public(SamplingOptions)
    def stream_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **options: Unpack[SamplingOptions]
    ) -> Stream:
        """The answer to a conversation, piece by piece."""
        return self.stream(self.encode_chat(messages, tools=tools), **options)

    @public(SamplingOptions)
    def check_options(self, **options: Unpack[SamplingOptions]) -> None:
        """Checks options as each request does, before there is one.

        Raises:
            RecipeError: an option is unknown or out of range.
        """
        check_request(options)
        self._params(options)

    @public()
    def fit_chat(self, messages: Sequence[Message], max_tokens: int | None = None) -> Fitted:
        """A conversation and its token ids, without its oldest turns if the context has no room for an answer.

        Raises the errors of `encode_chat`.
        """
        _max_tokens({"max_tokens": max_tokens})
        return fit(messages, self.encode_chat, self.max_context, max_tokens or DEFAULT_MAX_TOKENS)

    @public()
    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits ``f32 [T, V]``: row t predicts token t + 1. They are computed in chunks and take 4 * T * V bytes."""
        ids = _token_ids(token_ids, text="engine.tokenizer.encode(text)")
        request = LogitsRequest(ids, 0, all_logits=True)
        self._loop.submit(request)
        try:
            return request.result()
        finally:
            self._cancel(request)

    @public()
    def cancel(self, stream: Stream | None = None) -> None:
        """Ends one streamed request (None: all requests); results have finish_reason "cancelled"."""
        if stream is not None:
            demand("stream", stream, "what engine.stream() has returned", Stream)
        self._loop.cancel(None if stream is None else stream.request)

    @public()
    def close(self) -> None:
        """Cancels all requests, waits for them and frees the model; a second call does nothing."""
        self._close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cancel(self, request: Request) -> None:
        # a bound method, so that a running stream keeps its engine alive
        self._loop.cancel(request)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template.

        Raises:
            Unsupported: the checkpoint had no tokenizer or no chat template, or the template does not compile.
        """
        if self._chat_source is None:
            raise no_template()
        return ChatTemplate(self._chat_source, **self.tokenizer.named)

    @public()
    def idle(self, options: SamplingOptions) -> tuple[str, ...]:
        """Names of the given options that change nothing in a request with these options."""
        demand("options", options, "a mapping", Mapping)
        params = self._params(options)
        neutral = SamplingParams()
        drawn = ("seed", "top_k", "top_p", "min_p") if params.greedy else ()
        return tuple(name for name in drawn if options.get(name) not in (None, getattr(neutral, name)))

    def _params(self, options: SamplingOptions) -> SamplingParams:
        given: dict[str, Any] = {name: options.get(name) for name in _SAMPLING if options.get(name) is not None}
        if (bias := given.get("logit_bias")) is not None:
            if not isinstance(bias, Mapping):
                found = type(bias).__name__
                raise RecipeError(
                    "expected logit_bias as a mapping", found=found, fix="a mapping of token id to number"
                )
            given["logit_bias"] = tuple(bias.items())
        return replace(self._defaults, **given)


def _is_batch(prompt: object) -> bool:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or not prompt:
        return False
    return isinstance(prompt[0], str | Sequence | np.ndarray)


def _token_ids(ids: object, *, text: str = "a string") -> tuple[int, ...]:
    """Token ids of any iterable of whole numbers; `text` is what a caller with a text should give."""
    if _is_message(ids) or (isinstance(ids, Sequence) and ids and _is_message(ids[0])):
        fix = "engine.chat(messages) or engine.stream_chat(messages)"
        raise RecipeError("cannot read messages as a prompt", found=described(ids), fix=fix)
    wanted = f"{text}, or a list of whole numbers"
    if isinstance(ids, str | bytes | bytearray | Mapping) or not isinstance(ids, Iterable):
        raise RecipeError("cannot read the prompt", found=described(ids), fix=wanted)
    try:
        return tuple(map(operator.index, ids))
    except TypeError as error:
        raise RecipeError("cannot read the prompt", found=str(error), fix=wanted) from None


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _check_switches(options: Mapping[str, Any]) -> None:
    for name in _SWITCHES:
        if not isinstance(options.get(name), bool | None):
            raise RecipeError(f"expected {name} as true or false", found=shown(options.get(name)))


def check_request(options: SamplingOptions) -> None:
    """Checks what can be known without an engine: switches, max_tokens and stop strings.

    Raises:
        RecipeError: one is out of range.
    """
    _check_switches(options)
    _max_tokens(options)
    checked_stops(_stops(options))


def _stops(options: SamplingOptions) -> str | Sequence[str]:
    stop = options.get("stop")
    return () if stop is None else stop


def _max_tokens(options: SamplingOptions) -> int:
    value = options.get("max_tokens")
    if value is None:
        return DEFAULT_MAX_TOKENS
    if type(value) is not int or not 1 <= value < 1 << 63:
        raise RecipeError("expected max_tokens as a whole number from 1 to 9223372036854775807", found=shown(value))
    return value

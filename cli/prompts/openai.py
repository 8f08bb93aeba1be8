"""Lines of OpenAI's batch files, `{"custom_id", "method", "url", "body"}`, and answers in the shape of output files.

What llmc cannot do is refused by the field's name, when the file is read. A field that is null counts as absent.
"""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ...runtime.errors import LlmcError, RecipeError, nearest
from ..common import texts
from . import lines
from .lines import Chat, Messages

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.sampling.draw import Sampled
    from ...runtime.scheduling.request import Result

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_PROMPT = {CHAT: "messages", COMPLETIONS: "prompt"}
_SAME = (
    *("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"),
    *("top_k", "min_p", "repetition_penalty", "ignore_eos"),
)
"""Fields that are options of llmc; the last four are no OpenAI's, but other servers have them too."""
_LENGTH = ("max_tokens", "max_completion_tokens")
_ONLY: Mapping[str, Any] = {"n": 1, "best_of": 1, "stream": False, "echo": False, "store": False}
"""Fields of which llmc does one value only."""
_LABELS = ("model", "user", "metadata")
"""Fields that change no answer."""
SUPPORTED = (*_SAME, *_LENGTH, *_ONLY, *_LABELS, "logit_bias", "logprobs")
"""Fields that both endpoints have."""
_LINE = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class BatchLine:
    """One request; `index` counts lines that are not blank, from 0."""

    index: int
    custom_id: str
    url: str
    model: str | None
    """None: the body names none."""
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    messages: Messages | None = None
    top_logprobs: int | None = None
    """Best tokens to show beside each; None: no log-probabilities."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def heeds(self, chat: Chat) -> bool:
        return self.messages is not None and chat.messages(self.messages) != self.messages

    def templated(self, chat: Chat) -> bool:
        return self.messages is not None

    def encode(self, engine: Engine, chat: Chat, special: bool) -> Sequence[int]:
        if self.messages is not None:
            return engine.encode_chat(chat.messages(self.messages))
        return self.tokens or () if self.prompt is None else engine.tokenizer.encode(self.prompt, special=special)

    def answer(self, engine: Engine, result: Result) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": result.finish_reason, "logprobs": None}
        shown = None if self.top_logprobs is None else result.logprobs
        if self.url == CHAT:
            choice["message"] = {"role": "assistant", "content": result.text, "refusal": None}
            if shown is not None:
                choice["logprobs"] = {"content": [self._chat_logprob(engine, one) for one in shown], "refusal": None}
        else:
            choice["text"] = result.text
            if shown is not None:
                choice["logprobs"] = self._logprobs(engine, shown)
        body = {
            "id": f"{'chatcmpl' if self.url == CHAT else 'cmpl'}-{self.index}",
            "object": "chat.completion" if self.url == CHAT else "text_completion",
            "created": int(time.time()),
            "model": self.model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": result.prompt_tokens,
                "completion_tokens": result.completion_tokens,
                "total_tokens": result.prompt_tokens + result.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
            },
        }
        return self._response(200, body)

    def failure(self, error: LlmcError) -> dict[str, Any]:
        wrong = error.exit_code in (2, 3)  # the request or what this engine can do, else the machine
        kind = "invalid_request_error" if wrong else "server_error"
        problem = {"message": str(error), "type": kind, "param": None, "code": type(error).__name__}
        return self._response(400 if wrong else 500, {"error": problem})

    def _response(self, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
        response = {"status_code": status, "request_id": f"req_{self.index}", "body": body}
        return {"id": f"batch_req_{self.index}", "custom_id": self.custom_id, "response": response, "error": None}

    def _chat_logprob(self, engine: Engine, one: Sampled) -> dict[str, Any]:
        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            text = engine.tokenizer.text_of(token)
            return {"token": text, "logprob": logprob, "bytes": list(engine.tokenizer.token_bytes(token))}

        best = [entry(*pair) for pair in one.top[: self.top_logprobs]]
        return {**entry(one.token, one.logprob), "top_logprobs": best}

    def _logprobs(self, engine: Engine, sampled: Sequence[Sampled]) -> dict[str, Any]:
        def text(token: int) -> str:
            return _shown(engine.tokenizer.token_bytes(token))

        tokens = [text(one.token) for one in sampled]
        whole = codecs.getincrementaldecoder("utf-8")("replace")
        lengths = [len(whole.decode(engine.tokenizer.token_bytes(one.token))) for one in sampled]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in sampled],
            "top_logprobs": [
                {text(token): number for token, number in one.top[: self.top_logprobs]} for one in sampled
            ],
            "text_offset": [*accumulate(lengths[:-1], initial=0)],
        }


def _shown(token: bytes) -> str:
    r"""A token's text, or `bytes:\xe2` as OpenAI writes a token that is a part of a character."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def batch_line(index: int, value: Mapping[str, Any], where: str) -> BatchLine:
    """One line's JSON as a request.

    Raises:
        RecipeError: a field is wrong or not supported; names `where` and the field.
    """
    for key in value:
        if key not in _LINE:
            raise RecipeError(f"expected a known key at {where}", found=f"{key!r}{nearest(key, _LINE)}")
    name, body = value["custom_id"], value.get("body")
    if not isinstance(name, str) or not name:
        raise RecipeError(f'expected "custom_id" as a text that is not empty at {where}', found=texts.shown(name))
    value = {key: one for key, one in value.items() if one is not None}
    if value.get("method", "POST") != "POST":
        raise RecipeError(f'expected the method "POST" at {where}', found=texts.shown(value["method"]))
    if not isinstance(body, dict):
        raise RecipeError(f'expected "body" as an object at {where}', found=texts.shown(body))
    url = value.get("url", CHAT if "messages" in body else COMPLETIONS)
    if not isinstance(url, str) or url not in _PROMPT:
        raise RecipeError(f'expected the url "{CHAT}" or "{COMPLETIONS}" at {where}', found=texts.shown(url))
    given = {key: one for key, one in body.items() if one is not None}
    _refuse_unsupported(given, url, where)
    model = given.get("model")
    if not isinstance(model, str | None):
        raise RecipeError(f'expected "model" as a text at {where}', found=texts.shown(model))
    top = _top_logprobs(given, url, where)
    options = {key: given[key] for key in _SAME if key in given}
    lengths = [given[key] for key in _LENGTH if key in given]
    if len(lengths) > 1:
        raise RecipeError(f"expected max_tokens or max_completion_tokens at {where}, not both")
    if lengths:
        options["max_tokens"] = lengths[0]
    if isinstance(bias := given.get("logit_bias"), dict):
        options["logit_bias"] = lines.biases(bias, where)
    elif bias is not None:
        raise RecipeError(f'expected "logit_bias" as an object at {where}', found=texts.shown(bias))
    if top is not None:
        options["logprobs"] = max(top, 1)
    prompt = _prompt(given, url, where)
    return BatchLine(index, name, url, model, **prompt, top_logprobs=top, options=options)


def one_model(batch: Iterable[tuple[str, BatchLine]]) -> str | None:
    """The model that lines name, which must be the same, as ids must not; None if none does.

    Raises:
        RecipeError: two lines disagree; names both.
    """
    seen: dict[str, str] = {}
    first: tuple[str, BatchLine] | None = None
    for where, line in batch:
        if line.custom_id in seen:
            found = f"{line.custom_id!r} at {seen[line.custom_id]} too"
            raise RecipeError(f'expected another "custom_id" at {where}', found=found)
        seen[line.custom_id] = where
        if line.model is None:
            continue
        first = first or (where, line)
        if line.model != first[1].model:
            found = f"{line.model!r}, and {first[1].model!r} at {first[0]}: an engine is one model"
            raise RecipeError(f"expected the model of the other lines at {where}", found=found[:200])
    return first[1].model if first else None


def _refuse_unsupported(given: Mapping[str, Any], url: str, where: str) -> None:
    known = (*SUPPORTED, _PROMPT[url], *(("top_logprobs",) if url == CHAT else ()))
    for key, value in given.items():
        if key not in known:
            found = f'"{key}", which llmc does not support{nearest(key, known)}'
            raise RecipeError(f"cannot run the body at {where}", found=found, fix=f'a body without "{key}"')
        if key in _ONLY and (type(value), value) != (type(_ONLY[key]), _ONLY[key]):
            fix = f'"{key}": {json.dumps(_ONLY[key])}, or none'
            raise RecipeError(f"cannot run the body at {where}", found=f'"{key}": {json.dumps(value)}'[:100], fix=fix)


def _top_logprobs(given: Mapping[str, Any], url: str, where: str) -> int | None:
    wanted, top = given.get("logprobs"), given.get("top_logprobs")
    if url == COMPLETIONS:
        if wanted is not None and (type(wanted) is not int or wanted < 0):
            raise RecipeError(f'expected "logprobs" as a whole number at {where}', found=texts.shown(wanted))
        return wanted
    if wanted is not None and type(wanted) is not bool:
        raise RecipeError(f'expected "logprobs" as true or false at {where}', found=texts.shown(wanted))
    if top is not None and (type(top) is not int or top < 0):
        raise RecipeError(f'expected "top_logprobs" as a whole number at {where}', found=texts.shown(top))
    if top is not None and not wanted:
        raise RecipeError(f'expected "logprobs" of true with "top_logprobs" at {where}', found=texts.shown(wanted))
    return (top or 0) if wanted else None


def _prompt(given: Mapping[str, Any], url: str, where: str) -> dict[str, Any]:
    key = _PROMPT[url]
    if key not in given:
        raise RecipeError(f'expected "{key}" in the body at {where}', found=", ".join(given))
    value = given[key]
    if url == CHAT:
        return {"messages": tuple(_message(one, where) for one in texts.messages(value, where))}
    if isinstance(value, list) and value and not isinstance(value[0], str | list):
        return {"tokens": texts.token_ids(value, where)}
    if not isinstance(value, str):
        raise RecipeError(f'expected one "prompt" at {where}, a text or token ids', found=texts.shown(value))
    return {"prompt": value}


def _message(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A message whose content is one text; parts of text are joined by line ends."""
    for key, value in message.items():
        if key not in ("role", "content", "name") and value is not None:
            raise RecipeError(f'cannot run a message with "{key}" at {where}', found="a field llmc does not support")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise RecipeError(f"expected text in the messages at {where}", found=texts.shown(part))
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RecipeError(f"expected text in the messages at {where}", found=texts.shown(content))
    return {**{key: one for key, one in message.items() if one is not None}, "content": content}

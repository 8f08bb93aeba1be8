"""The engine's promises to its callers, with a fake executor and a real tokenizer: so every token is known."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.fakes.executor import INFO, FakeExecutor, fake_logits, one_by_one
from support.samples.tokenizers import pico

from llmc.runtime.engine import Engine
from llmc.runtime.errors import EngineError, RecipeError, Unsupported
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import Output
from llmc.runtime.text.tokenizer import Tokenizer

PROMPT = [5, 9, 30, 7]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(*pico())


class Gate(FakeExecutor):
    """Holds its steps back until the gate opens, so that a test can act in the middle of a generation."""

    def __init__(self, opens_at: int, **options: Any) -> None:
        super().__init__(**options)
        self.open = threading.Event()
        self.waiting = threading.Event()
        self.opens_at = opens_at

    def collect(self, ticket: object) -> tuple[Output, ...]:
        if len(self.steps) >= self.opens_at:
            self.waiting.set()
            assert self.open.wait(20)
        return super().collect(ticket)


Open = Callable[..., Engine]


@pytest.fixture
def engine_of(tokenizer: Tokenizer) -> Iterator[Open]:
    engines: list[Engine] = []

    def make(executor: FakeExecutor | None = None, **options: Any) -> Engine:
        executor = executor or FakeExecutor(vocab=tokenizer.vocab_size)
        engines.append(Engine(executor, options.pop("tokenizer", tokenizer), INFO, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def fake(tokenizer: Tokenizer, **options: Any) -> FakeExecutor:
    return FakeExecutor(vocab=tokenizer.vocab_size, **options)


def test_a_result_says_all_about_a_request(engine_of: Open, tokenizer: Tokenizer) -> None:
    result = engine_of(load_s=1.5).generate(PROMPT, max_tokens=12)
    assert result.token_ids == one_by_one(PROMPT, SamplingParams(), 12, tokenizer.vocab_size)
    assert result.text == tokenizer.decode(result.token_ids)
    assert (result.prompt_tokens, result.completion_tokens, result.finish_reason) == (4, 12, "length")
    assert result.timings.load_s == 1.5
    assert result.timings.ttft_s > 0 and result.timings.decode_tokens_per_s > 0
    assert result.logprobs == ()


@pytest.mark.parametrize("options", [{}, {"depth": 0, "mixed": False, "blocks": 2, "block_tokens": 128}])
def test_a_list_of_prompts_runs_together_and_gives_the_results_of_each_alone(
    engine_of: Open, tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    executor = fake(tokenizer, **options)
    engine = engine_of(executor)
    prompts = [[1, 2, 3], [4] * 20, [6], [7, 8]]
    results = engine.generate(prompts, max_tokens=9, temperature=1.0, seed=3)
    assert [result.token_ids for result in results] == [
        one_by_one(prompt, SamplingParams(temperature=1.0, seed=3), 9, tokenizer.vocab_size) for prompt in prompts
    ]
    assert max(len(step) for step in executor.steps) > 1
    texts = ["def f(x):", "import os"]
    assert [result.text for result in engine.generate(texts, max_tokens=5)] == [
        engine.generate(text, max_tokens=5).text for text in texts
    ]


def test_a_text_prompt_is_encoded_and_its_special_tokens_are_plain_unless_asked_for(
    engine_of: Open, tokenizer: Tokenizer
) -> None:
    executor = fake(tokenizer)
    engine = engine_of(executor)
    special = next(iter(tokenizer.special_tokens))
    for asked in (False, True):
        engine.generate(f"x = {special}", max_tokens=1, special=asked)
        last = executor.steps[-1][0].sequence
        step = [
            scheduled
            for step in executor.steps
            for scheduled in step
            if scheduled.sequence == last and scheduled.is_prompt
        ]
        ids = [token for scheduled in step for token in scheduled.tokens]
        assert ids == tokenizer.encode(f"x = {special}", special=asked)
        assert (tokenizer.special_tokens[special] in ids[1:]) is asked


def test_the_pieces_of_a_stream_join_to_the_text(engine_of: Open) -> None:
    engine = engine_of()
    whole = engine.generate(PROMPT, max_tokens=30, temperature=1.0, seed=1)
    stream = engine.stream(PROMPT, max_tokens=30, temperature=1.0, seed=1)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.token for piece in pieces] == whole.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * 29 + ["length"]
    assert stream.result().text == whole.text
    assert list(stream) == []


@pytest.mark.parametrize("depth", [0, 1])
def test_a_stop_string_ends_the_text_and_is_not_in_it(engine_of: Open, tokenizer: Tokenizer, depth: int) -> None:
    executor = fake(tokenizer, depth=depth)
    engine = engine_of(executor)
    whole = engine.generate(PROMPT, max_tokens=40).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 5]
    steps = len(executor.steps)
    result = engine.generate(PROMPT, max_tokens=40, stop=stop)
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"
    assert result.completion_tokens < 40
    assert len(executor.steps) - steps <= result.completion_tokens + depth
    engine.close()
    assert executor.live == 0


def test_an_end_of_sequence_token_ends_the_text_and_is_counted(engine_of: Open, tokenizer: Tokenizer) -> None:
    ids = one_by_one(PROMPT, SamplingParams(), 12, tokenizer.vocab_size)
    engine = engine_of(eos_ids=[ids[7], 10**6])
    result = engine.generate(PROMPT, max_tokens=12)
    assert result.token_ids == ids[: ids.index(ids[7]) + 1]
    assert result.text == tokenizer.decode(result.token_ids[:-1])
    assert result.finish_reason == "stop"
    assert engine.generate(PROMPT, max_tokens=12, ignore_eos=True).token_ids == ids


def test_logprobs_come_with_each_token(engine_of: Open, tokenizer: Tokenizer) -> None:
    engine = engine_of()
    result = engine.generate(PROMPT, max_tokens=3, logprobs=2)
    first = fake_logits(PROMPT, tokenizer.vocab_size).astype(np.float64)
    expected = first - np.log(np.exp(first).sum())
    assert [sampled.token for sampled in result.logprobs] == result.token_ids
    assert result.logprobs[0].logprob == pytest.approx(expected.max(), abs=1e-5)
    assert [token for token, _ in result.logprobs[0].top] == np.argsort(-expected)[:2].tolist()
    streamed = list(engine.stream(PROMPT, max_tokens=3, logprobs=2))
    assert tuple(piece.sampled for piece in streamed) == result.logprobs


def test_defaults_come_from_the_checkpoint_and_arguments_win(engine_of: Open, tokenizer: Tokenizer) -> None:
    vocab = tokenizer.vocab_size
    engine = engine_of(generation={"do_sample": True, "temperature": 0.5, "top_k": 4})
    sampled = SamplingParams(temperature=0.5, top_k=4, seed=2)
    assert engine.generate(PROMPT, max_tokens=9, seed=2).token_ids == one_by_one(PROMPT, sampled, 9, vocab)
    greedy = one_by_one(PROMPT, SamplingParams(), 9, vocab)
    assert engine.generate(PROMPT, max_tokens=9, temperature=0.0).token_ids == greedy
    drawn = {tuple(engine.generate(PROMPT, max_tokens=9, temperature=5.0, top_k=0).token_ids) for _ in range(3)}
    assert len(drawn) == 3, "without a seed each request has its own"


def test_logits_of_all_positions(engine_of: Open, tokenizer: Tokenizer) -> None:
    ids = list(range(50))
    logits = engine_of().logits(ids)
    assert logits.shape == (50, tokenizer.vocab_size) and logits.dtype == np.float32
    for position in (0, 8, 49):
        assert (logits[position] == fake_logits(ids[: position + 1], tokenizer.vocab_size)).all()


def test_requests_of_many_threads_run_together(engine_of: Open, tokenizer: Tokenizer) -> None:
    executor = fake(tokenizer, blocks=40)
    engine = engine_of(executor)
    got: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        got[index] = engine.generate([index, 3], max_tokens=15).token_ids

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == {i: one_by_one([i, 3], SamplingParams(), 15, tokenizer.vocab_size) for i in range(12)}
    engine.close()
    assert executor.live == 0 and executor.closed == 1


@pytest.mark.parametrize("how", ["cancel", "engine", "close"])
def test_a_cancelled_request_leaves_and_the_others_stay(engine_of: Open, tokenizer: Tokenizer, how: str) -> None:
    executor = Gate(6, vocab=tokenizer.vocab_size)
    engine = engine_of(executor)
    stream = engine.stream(PROMPT, max_tokens=100)
    other = engine.stream([8], max_tokens=20)
    assert next(stream).token is not None
    assert executor.waiting.wait(20)
    if how == "cancel":
        stream.cancel()
    elif how == "engine":
        engine.cancel(stream)
    else:
        stream.close()
        assert list(stream) == []
    executor.open.set()
    assert other.result().token_ids == one_by_one([8], SamplingParams(), 20, tokenizer.vocab_size)
    if how != "close":
        pieces = list(stream)
        assert pieces[-1].finish_reason == "cancelled" and pieces[-1].token is None
        assert stream.result().finish_reason == "cancelled"
        assert stream.result().text == tokenizer.decode(stream.result().token_ids)
    engine.close()
    assert executor.live == 0
    assert max(scheduled.end for step in executor.steps for scheduled in step if scheduled.sequence == 0) < 30


def test_a_dropped_stream_is_cancelled(engine_of: Open, tokenizer: Tokenizer) -> None:
    executor = Gate(6, vocab=tokenizer.vocab_size)
    engine = engine_of(executor)
    for piece in engine.stream(PROMPT, max_tokens=100):
        assert piece.token is not None
        assert executor.waiting.wait(20)
        break
    gc.collect()
    executor.open.set()
    assert engine.generate([8], max_tokens=3).completion_tokens == 3
    assert executor.live == 0 and len(executor.steps) < 20


def test_ctrl_c_cancels_what_it_interrupts(
    engine_of: Open, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Gate(4, vocab=tokenizer.vocab_size)
    engine = engine_of(executor)

    def interrupt(_flag: object) -> None:
        assert executor.waiting.wait(20)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmc.runtime.scheduling.request.wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([PROMPT, [3]], max_tokens=100)
    executor.open.set()
    assert engine.generate([8], max_tokens=3).completion_tokens == 3
    assert executor.live == 0 and len(executor.steps) < 20


def test_an_exception_of_the_executor_ends_every_request_with_it(engine_of: Open, tokenizer: Tokenizer) -> None:
    executor = Gate(3, vocab=tokenizer.vocab_size, fail_at=5)
    engine = engine_of(executor)
    streams = [engine.stream([index], max_tokens=50) for index in range(3)]
    executor.open.set()
    for stream in streams:
        with pytest.raises(RuntimeError, match="on fire"):
            list(stream)
        with pytest.raises(RuntimeError, match="on fire"):
            stream.result()
    with pytest.raises(EngineError, match=r"broken engine\n  found: .*RuntimeError: the device is on fire") as refusal:
        engine.generate(PROMPT)
    assert isinstance(refusal.value.__cause__, RuntimeError)
    engine.close()
    assert executor.closed == 1


def test_logits_that_are_not_finite_end_one_request(engine_of: Open, tokenizer: Tokenizer) -> None:
    engine = engine_of(fake(tokenizer, broken_token=400))
    stream = engine.stream([8], max_tokens=20)
    with pytest.raises(EngineError, match="not finite, first nan for token 3"):
        engine.generate([8, 400], max_tokens=20)
    assert stream.result().completion_tokens == 20


def test_a_fault_in_one_requests_text_ends_only_that_request(
    engine_of: Open, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    good = engine.stream([8], max_tokens=20)

    class Broken:
        def __init__(self, *_: object, **__: object) -> None:
            self.stopped, self.text = False, ""

        def push(self, token: int) -> str:
            raise UnicodeError("a broken decoder")

    monkeypatch.setattr("llmc.runtime.engine.TextStream", Broken)
    bad = engine.stream([9], max_tokens=20)
    with pytest.raises(UnicodeError, match="a broken decoder"):
        bad.result()
    assert good.result().completion_tokens == 20


def test_closing_cancels_waits_and_is_final(engine_of: Open, tokenizer: Tokenizer) -> None:
    executor = Gate(4, vocab=tokenizer.vocab_size)
    with engine_of(executor) as engine:
        stream = engine.stream(PROMPT, max_tokens=100)
        assert executor.waiting.wait(20)
        threading.Timer(0.05, executor.open.set).start()
    assert stream.result().finish_reason == "cancelled"
    assert executor.closed == 1
    engine.close()
    assert executor.closed == 1
    with pytest.raises(RecipeError, match="cannot run a request\n  found: a closed engine"):
        engine.generate(PROMPT)
    assert not [thread for thread in threading.enumerate() if thread is engine._loop._thread]


def test_an_engine_never_used_or_forgotten_frees_its_executor(tokenizer: Tokenizer) -> None:
    unused, forgotten = fake(tokenizer), fake(tokenizer)
    with Engine(unused, tokenizer, INFO) as engine:
        assert engine._loop._thread is None, "no thread before the first request"
    assert unused.closed == 1
    engine = Engine(forgotten, tokenizer, INFO)
    engine.generate(PROMPT, max_tokens=2)
    del engine
    gc.collect()
    assert forgotten.closed == 1


def test_a_stream_keeps_its_engine(tokenizer: Tokenizer) -> None:
    stream = Engine(fake(tokenizer), tokenizer, INFO).stream(PROMPT, max_tokens=30)
    gc.collect()
    time.sleep(0.01)
    assert len(list(stream)) == 30


def test_an_engine_without_a_tokenizer_takes_and_gives_ids(engine_of: Open) -> None:
    engine = engine_of(FakeExecutor(), tokenizer=None)
    result = engine.generate([1, 2], max_tokens=4)
    assert result.token_ids == one_by_one([1, 2], SamplingParams(), 4, 31) and result.text == ""
    for refused in (
        lambda: engine.generate("text"),
        lambda: engine.tokenizer,
        lambda: engine.generate([1], stop="x"),
    ):
        with pytest.raises(Unsupported, match="no tokenizer in the checkpoint"):
            refused()


def test_chat_renders_the_template_and_users_cannot_write_special_tokens(engine_of: Open, tokenizer: Tokenizer) -> None:
    special = next(iter(tokenizer.special_tokens))
    source = "{% for m in messages %}" + special + "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    engine = engine_of(chat_template=source)
    messages = [{"role": "user", "content": f"x {special} y"}]
    ids = engine.encode_chat(messages)
    assert ids.count(tokenizer.special_tokens[special]) == 1
    answer = engine.chat(messages, max_tokens=5)
    assert answer.token_ids == engine.generate(ids, max_tokens=5).token_ids
    assert "".join(piece.text for piece in engine.stream_chat(messages, max_tokens=5)) == answer.text
    with pytest.raises(Unsupported, match="no chat template in the checkpoint"):
        engine_of().chat(messages)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "expected a prompt of at least one token"),
        ([1, 2.5], {}, "cannot read the prompt\n  found: 'float' object"),
        (7, {}, "cannot read the prompt\n  found: 7"),
        ([1] * 128, {}, "cannot run a prompt of 128 tokens\n  found: room for 128 tokens"),
        ([10**9], {}, "in the prompt\n  found: token id 1000000000"),
        (PROMPT, {"max_tokens": 0}, "expected max_tokens as a whole number from 1 to 9223372036854775807\n  found: 0"),
        (PROMPT, {"max_tokens": 1.5}, r"max_tokens as a whole number from 1 to 9223372036854775807\n  found: 1.5"),
        ([10**5000], {}, "in the prompt\n  found: token id an integer of thousands of digits"),
        (PROMPT, {"temperature": float("nan")}, "expected temperature as a number from 0 to 5\n  found: nan"),
        (PROMPT, {"logit_bias": {10**9: 1.0}}, "token id 1000000000"),
        (PROMPT, {"logit_bias": [1]}, "expected logit_bias as a mapping\n  found: list"),
        (b"abc", {}, "cannot read the prompt\n  found: b'abc'"),
        (PROMPT, {"stop": 3}, "expected stop as a string or a list of strings\n  found: int"),
        (PROMPT, {"special": "false"}, "expected special as true or false\n  found: 'false'"),
        (PROMPT, {"stop": [""]}, r"stop\[0\]"),
        (PROMPT, {"stop": ["a"] * 17}, "at most 16 stop strings\n  found: 17"),
        (PROMPT, {"stop": ["a" * 257]}, "at most 256 bytes"),
        (PROMPT, {"temprature": 1}, r"options of generate\(\)\n  found: 'temprature' \(did you mean 'temperature'"),
    ],
)
def test_requests_that_cannot_be_are_refused(engine_of: Open, prompt: Any, options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        engine_of().generate(prompt, **options)


def test_a_huge_prompt_for_logits_is_refused_before_memory_is_taken(engine_of: Open) -> None:
    with pytest.raises(RecipeError, match=r"a prompt of 1000000 tokens\n.*\n.*at most 128 tokens"):
        engine_of().logits([1] * 1_000_000)

"""Layers with a window on ONNX Runtime: far beyond the window, in buffers that are compacted, numbers stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import Outcome
from support.engines import quantized_logits, relative, some_ids
from support.running import run_some
from support.samples.windowed import FAMILY, FULL, SLIDING, windowed_checkpoint

import llmc
from llmc.compiler.families import FAMILIES
from llmc.runtime.cpu.executor import CpuExecutor
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.scheduling.executor import ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

TOLERANCE = 1e-4
VOCAB, WINDOW = 512, 20
HEADS: dict[str, dict[str, Any]] = {
    "group query attention": {},
    "head 24": {"head_dim": 24},
    "standard attention": {"head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48},
}


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, FAMILY.architecture, FAMILY)
        yield


@contextmanager
def opened(path: Path, slots: int = 4) -> Iterator[CpuExecutor]:
    executor = CpuExecutor(EngineFile.open(path), "cpu", threads=2, max_batch=slots)
    try:
        yield executor
    finally:
        executor.close()


def ids(count: int, seed: int) -> list[int]:
    return some_ids(count, seed, VOCAB)


def prompt_logits(executor: CpuExecutor, prompt: list[int], chunk: int) -> np.ndarray:
    rows = []
    for start in range(0, len(prompt), chunk):
        tokens = tuple(prompt[start : start + chunk])
        (output,) = executor.submit((ScheduledSequence(0, tokens, start, ((0,),), None, len(prompt), "all"),))
        rows.append(output.logits)
    executor.release(0)
    return np.concatenate(rows)


def of_transformers(folder: Path, tokens: list[int], **config: Any) -> np.ndarray:
    """Logits f32 [T, V] of transformers' Mistral over a checkpoint's weights."""
    from transformers import MistralConfig, MistralForCausalLM

    given = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
        **config,
    }
    model = MistralForCausalLM(MistralConfig(vocab_size=VOCAB, sliding_window=WINDOW, **given)).float().eval()
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("heads", HEADS)
def test_logits_beyond_the_window_are_transformers(tmp_path: Path, heads: str):
    folder = windowed_checkpoint(tmp_path / "c", WINDOW, SLIDING, SLIDING, **HEADS[heads])
    path = llmc.build(folder, tmp_path / "e.llmc", targets=["cpu"], quantize="none")
    prompt = ids(150, 1)
    expected = of_transformers(folder, prompt, **HEADS[heads])
    with opened(path) as executor:
        assert executor.max_prefill == WINDOW
        for chunk in (WINDOW, 13, 1):
            assert relative(prompt_logits(executor, prompt, chunk), expected) < TOLERANCE
        buffers = {name: array.shape[2] for name, array in executor.slots.arrays.items()}
        assert set(buffers.values()) == {2 * WINDOW}


def test_requests_of_different_lengths_get_the_tokens_of_the_whole_text(tmp_path: Path):
    folder = windowed_checkpoint(tmp_path / "c", WINDOW, SLIDING, SLIDING)
    path = llmc.build(folder, tmp_path / "e.llmc", targets=["cpu"], quantize="none")
    requests = [
        Request(tuple(ids(size, size)), count) for size, count in ((3, 90), (70, 50), (21, 5), (130, 60), (1, 30))
    ]
    with opened(path, slots=3) as executor:
        run_some(Scheduler(executor), requests, 4)
    for request in requests:
        logits = of_transformers(folder, [*request.prompt, *request.tokens])[len(request.prompt) - 1 : -1]
        assert len(request.tokens) == request.max_tokens
        chosen = logits[np.arange(len(logits)), request.tokens]
        assert (logits.max(axis=1) - chosen <= TOLERANCE * np.abs(logits).max()).all()


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_layers_with_and_without_a_window_agree_with_the_oracle(
    call: Callable[..., Outcome], tmp_path: Path, quantize: str
):
    folder = windowed_checkpoint(tmp_path / "c", WINDOW, FULL, SLIDING, FULL)
    path = llmc.build(folder, tmp_path / "e.llmc", targets=["cpu"], quantize=quantize)
    kinds = "4 heads and 2 kv heads of 16 (2 of 3 layers), 2 kv heads of 16, window 20 (1 of 3 layers), vocabulary 512"
    assert kinds in call("inspect", path).out
    prompt = ids(140, 2)
    expected = quantized_logits(path, quantize, prompt, folder)
    with opened(path) as executor:
        bound = TOLERANCE if quantize == "none" else 1e-1
        assert relative(prompt_logits(executor, prompt, 17), expected) < bound
        shapes = {name: array.shape[2] for name, array in executor.slots.arrays.items()}
        assert shapes == {
            f"{layer}.{part}": (256, 2 * WINDOW, 256)[layer] for layer in range(3) for part in ("key", "value")
        }


def test_a_window_of_the_whole_context_is_none(tmp_path: Path):
    folder = windowed_checkpoint(tmp_path / "c", 64, SLIDING)
    path = llmc.build(folder, tmp_path / "e.llmc", targets=["cpu"], quantize="none", max_context=64)
    with opened(path) as executor:
        assert set(executor.slots.lengths) == {"past_lengths"}

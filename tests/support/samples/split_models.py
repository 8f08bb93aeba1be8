"""Models whose graphs are split over ranks: their stored tensors, made once, and steps with caches to run them on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.decoder.decoder import Decoder, build
from llmc.compiler.decoder.placement import place
from llmc.compiler.families.spec import cache_of
from llmc.compiler.oracle.oracle import Oracle
from llmc.compiler.oracle.ranks import inputs_of_ranks, join
from llmc.passes import model_passes, run_phase
from llmc.passes.graph.graph import Canonical, Computed, Copied, Graph
from llmc.passes.graph.meet import verify_meeting
from llmc.passes.graph.verify import LOGICAL, verify
from llmc.passes.partition import partition
from llmc.passes.placement import Placement
from llmc.quantize import FORMATS
from llmc.runtime.engine_file.rope import POSITIONS, table_inputs, table_of
from llmc.runtime.engine_file.rope_tables import rows_of
from llmc.runtime.engine_file.split import Split

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 509,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "initializer_range": 0.1,
    "torch_dtype": "float32",
}
"""The smallest shapes that 8 shards can cut between blocks of 128; no degree divides the vocabulary, 509."""
CONTEXT = 32
Values = dict[str, np.ndarray]


def write_config(folder: Path, **config: Any) -> Path:
    """A folder with a config.json alone: LLAMA with changes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    return folder


@dataclass
class Model:
    """A checkpoint with random weights, and one oracle for all graphs of its formats."""

    checkpoint: Checkpoint
    _decoders: dict[str, Decoder] = field(default_factory=dict)
    _tensors: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    _format: str = "none"

    def __post_init__(self) -> None:
        self.oracle = Oracle(self._read, threads=1)

    @classmethod
    def of(cls, folder: Path, **config: Any) -> Model:
        return cls(open_source(write_config(folder, **config), random_weights=0))

    @classmethod
    def at(cls, folder: Path) -> Model:
        """A checkpoint of float32 tensors."""
        return cls(open_source(folder))

    def decoder(self, fmt: str) -> Decoder:
        """The logical graph after the model passes, with all linears in one format."""
        if fmt not in self._decoders:
            decoder = self._decoders[fmt] = build(self.checkpoint, CONTEXT)
            run_phase(model_passes(lambda _: fmt), decoder.graph)
        return self._decoders[fmt]

    def place(self, split: Split, fmt: str) -> Placement:
        return place(self.decoder(fmt).spec, split, lambda _: fmt)

    def ranks(self, split: Split, fmt: str) -> list[Graph]:
        """The verified graphs of all ranks."""
        graphs = list(partition(self.decoder(fmt).graph, self.place(split, fmt)))
        for graph in graphs:
            verify(graph, LOGICAL)
        verify_meeting(graphs, split)
        return graphs

    def run(self, graph: Graph, fmt: str, inputs: Mapping[str, np.ndarray]) -> Values:
        self._format = fmt
        return self.oracle.run(graph, inputs)

    def inputs(self, split: Split, fmt: str, inputs: Mapping[str, np.ndarray]) -> Values:
        """Of the joined graph; the caches given are those of the whole graph."""
        return inputs_of_ranks(inputs, self.decoder(fmt).spec, self.place(split, fmt))

    def caches_of_ranks(self, split: Split, fmt: str, whole: Mapping[str, np.ndarray]) -> Values:
        """The caches that the joined graph must give, of those that the whole graph gives."""
        pasts = {name.replace("present", "past"): value for name, value in whole.items()}
        found = self.inputs(split, fmt, pasts)
        return {name.replace("past", "present"): value for name, value in found.items() if ".past." in name}

    def step(self, ids: np.ndarray, past: Sequence[int], rows: Sequence[int], caches: Values | None = None) -> Values:
        """The inputs of the tokens ``ids [B, S]`` after `past` tokens of each sequence, in `caches` of CONTEXT."""
        decoder = self.decoder("none")
        positions = np.arange(CONTEXT)
        tables = {
            name: values
            for number, rope in enumerate(decoder.ropes)
            for name, values in zip(
                table_inputs(number), rows_of(rope, table_of(decoder.ropes, CONTEXT), positions), strict=True
            )
        }
        if tables:
            tables[POSITIONS] = np.asarray(past)[:, None] + np.arange(ids.shape[1])
        for index, layer in enumerate(decoder.spec.layers):
            if layer.mixer.source is not None:
                continue
            shape = (len(ids), layer.mixer.kv_heads, CONTEXT, layer.mixer.head_dim)
            for part in cache_of(layer.mixer).parts:
                name = f"{index}.{part}"
                tables[f"past.{name}"] = np.zeros(shape, np.float32) if caches is None else caches[f"present.{name}"]
        given = {"input_ids": ids, "logits_indices": np.array(rows), "past_lengths": np.array(past, np.int32)}
        return {**given, **tables}

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        key = self._format, name
        if key not in self._tensors:
            self._tensors[key] = self._make(self.decoder(self._format).graph.canonical[name])
        rows = self._tensors[key]
        return rows[start:] if stop < 0 and rows.shape else rows[start:stop] if rows.shape else rows

    def _make(self, tensor: Canonical) -> np.ndarray:
        origin = tensor.origin
        if isinstance(origin, Computed):
            return origin.data
        if isinstance(origin, Copied):
            return self._source(origin.tensor)
        fmt = FORMATS[origin.format]
        source = self._source(origin.tensor)
        if source.ndim == 3:  # experts, each by itself
            return np.stack([np.asarray(fmt.quantize(torch.from_numpy(one), None)[origin.suffix]) for one in source])
        largest = max(float(np.abs(self._source(name)).max()) for name in origin.shares) if fmt.shares_scale else None
        return np.asarray(fmt.quantize(torch.from_numpy(source), largest)[origin.suffix])

    def _source(self, tensor: str) -> np.ndarray:
        """A stored tensor; biases, which random checkpoints have as zeros, are numbers that a sum must have once."""
        found = self.checkpoint.source.rows(tensor, 0, (self.checkpoint.source.info(tensor).shape or (1,))[0])
        numbers = np.linspace(-0.5, 0.5, found.size, dtype=np.float32).reshape(found.shape)
        return found + numbers if tensor.endswith(".bias") else found


Check = Callable[[str, np.ndarray, np.ndarray], None]
"""Takes the name of a value, what ranks gave, and what the whole graph gave."""


def compare(model: Model, fmt: str, splits: Sequence[str], check: Check, steps: int = 2) -> None:
    """Two steps of two sequences, the second on the caches of the first, by the ranks of each split and by the whole.

    The sequences have 7 and 5 tokens in their caches when the second step begins; logits are asked for some rows. Ranks
    compute the last `steps` of them.
    """
    ids = np.random.default_rng(1).integers(0, model.checkpoint.config.decoder.vocab_size, (2, 12))
    graph = model.decoder(fmt).graph
    first = model.step(ids[:, :7], [0, 0], [3, 11])
    began = model.run(graph, fmt, first)
    second = model.step(ids[:, 7:], [7, 5], [0, 4, 8], began)
    whole = ((first, began), (second, model.run(graph, fmt, second)))
    for name in splits:
        split = Split.parse(name)
        joined = join(model.ranks(split, fmt), split)
        verify(joined, LOGICAL)
        for inputs, results in whole[-steps:]:
            found = model.run(joined, fmt, model.inputs(split, fmt, inputs))
            wanted = {"logits": results["logits"]} | model.caches_of_ranks(split, fmt, results)
            assert found.keys() == wanted.keys()
            for value, expected in wanted.items():
                check(f"{name} {value}", found[value], expected)

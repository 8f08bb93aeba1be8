"""What is given damaged input: one target for each reader of what strangers write, with whole input to begin with."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.runtime.errors import CheckpointError

from . import damage, tokenizers_like

CASES = 100_000
"""Cases of each target."""
GRAPH, MANIFEST, ENGINE, PLAN = "graph.onnx", "manifest.json", "tiny.llmc", "plan.json"
SPLIT, SHARD = "split.llmc", "shard.llmc"
"""Files of the folder of seeds (`seeds.py`)."""
_TENSORS = {"a.weight": ("BF16", [3, 4]), "b.weight": ("F32", [2]), "c": ("I64", []), "d": ("U8", [0, 9])}
_WIDTH = {"BF16": 2, "F32": 4, "I64": 8, "U8": 1}


@dataclass(frozen=True)
class Target:
    """A reader, and what makes its cases."""

    name: str
    seeds: tuple[bytes, ...]
    damage: damage.Damage
    read: Callable[[bytes], object]
    """Raises LlmcErrors only."""
    cases: int = CASES

    def case(self, seed: int, index: int) -> bytes:
        """The case of a number; every hundredth is a whole input."""
        chosen = random.Random(f"{seed}/{self.name}/{index}")
        whole = chosen.choice(self.seeds)
        return whole if index % 100 == 0 else self.damage(chosen, whole)


def targets(seeds: Path, work: Path) -> Mapping[str, Target]:
    """All targets; `work` is a folder of the process that reads, for inputs that are files."""
    found = (
        Target("safetensors", (_safetensors(),), _in_header, lambda data: _read_safetensors(data, work)),
        Target("manifest", (_bytes(seeds, MANIFEST),), damage.of_json, _read_manifest),
        Target("engine", (_bytes(seeds, ENGINE),), _in_sealed_header, lambda data: _open_engine(data, work)),
        Target(
            "shard", (_bytes(seeds, SHARD),), _in_sealed_header, lambda data: _open_shard(data, seeds / SPLIT, work)
        ),
        Target("onnx", (_bytes(seeds, GRAPH),), damage.of_onnx, _scan),
        Target("plan", (_bytes(seeds, PLAN),), damage.of_json, _read_plan),
        Target("tokenizer", tokenizers_like.SEEDS, damage.of_json, _check_tokenizer),
        Target("template", tokenizers_like.TEMPLATES, damage.of_template, _render, cases=CASES // 5),
    )
    return {one.name: one for one in found}


def _bytes(seeds: Path, name: str) -> bytes:
    return (seeds / name).read_bytes()


def _safetensors() -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in _TENSORS.items():
        count = 1
        for size in shape:
            count *= size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count * _WIDTH[dtype]]}
        end += count * _WIDTH[dtype]
    return _framed(json.dumps(header).encode(), bytes(end))


def _framed(header: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + rest


def _parts(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return data[8 : 8 + length], data[8 + length :]


def _in_header(random: random.Random, seed: bytes) -> bytes:
    header, rest = _parts(seed)
    made = _framed(damage.of_json(random, header), rest)
    return damage.of_bytes(random, made) if random.random() < 0.2 else made


def _in_sealed_header(random: random.Random, seed: bytes) -> bytes:
    """Damage to an engine's header or to the manifest in it, with the digest that the damaged header has."""
    from llmc.runtime.engine_file.shards import FIRST, LATER

    header, rest = _parts(seed)
    if random.random() < 0.5 and header.startswith(FIRST.mark):
        document = json.loads(header)
        metadata = document["__metadata__"]
        metadata["llmc"] = damage.of_json(random, metadata["llmc"].encode()).decode("utf-8", "replace")
        header = json.dumps(document, separators=(",", ":")).encode()
    else:
        header = damage.of_json(random, header)
    for seal in (FIRST, LATER):
        if header.startswith(seal.mark):
            header = seal.put(header)
    return _framed(header, rest)


def _file(data: bytes, work: Path, name: str) -> Path:
    path = work / f"{name}-{os.getpid()}"
    path.write_bytes(data)
    return path


def _read_safetensors(data: bytes, work: Path) -> None:
    from llmc.runtime.files.safetensors import read_header

    read_header(_file(data, work, "a.safetensors"), error=CheckpointError)


def _read_manifest(data: bytes) -> None:
    from llmc.runtime.engine_file.manifest import Manifest, content_of

    made = Manifest.from_json(data, what="a.llmc")
    content_of(data, {})
    Manifest.from_json(made.to_json(), what="a.llmc")


def _open_engine(data: bytes, work: Path) -> None:
    from llmc.runtime.engine_file.bind import from_json
    from llmc.runtime.engine_file.file import EngineFile

    with EngineFile.open(_file(data, work, "a.llmc")) as engine:
        for name in engine.tensors:
            engine.tensor(name)
        for name in engine.sections:
            engine.section(name)
        for profile in engine.manifest.profiles.values():
            for expr in profile.weights.values():
                from_json(expr)
        engine.check_all()


def _open_shard(data: bytes, engine: Path, work: Path) -> None:
    from llmc.runtime.engine_file.layout import check_layout
    from llmc.runtime.engine_file.manifest import Manifest
    from llmc.runtime.engine_file.shards import FIRST, LATER, Part
    from llmc.runtime.errors import EngineError

    first = Part(engine, FIRST, EngineError)
    part = Part(_file(data, work, "s.llmc"), LATER, EngineError, [first])
    manifest = Manifest.from_json(first.metadata["llmc"], what="a.llmc")
    part.map()
    for info in part.infos.values():
        part.view(info).tobytes()
    check_layout({"a.llmc": first.infos, "s.llmc": part.infos}, manifest)


def _scan(data: bytes) -> None:
    from llmc.runtime.cpu.onnx_scan import scan
    from llmc.runtime.engine_file.bind import WEIGHTS_LOCATION

    scan(data, what="graph.onnx", external=WEIGHTS_LOCATION)


def _read_plan(data: bytes) -> None:
    from llmc.runtime.plan.plan import Plan

    Plan.from_json(data, what="plan.json")


def _check_tokenizer(data: bytes) -> None:
    """What the worker of a build does, then what a run does with an engine that holds this tokenizer."""
    from llmc.compiler.checkpoint import tokenizer_check
    from llmc.runtime.text.tokenizer import Tokenizer

    named = {"bos_token": "<s>", "eos_token": "</s>"}
    sources = {"model_type": "llama", "rows": 64, "eos": {"config.json": [1]}, "named": named, "add_bos": True}
    reply = tokenizer_check._work({"sources": sources, "template": None}, data)
    if "refused" in reply:
        raise CheckpointError(reply["refused"])
    tokenizer = Tokenizer.from_bytes(data, named)
    ids = tokenizer.encode("Hello <s> wörld", bos=True)
    tokenizer.decode(ids)
    tokenizer.decode(ids[3:], after=ids[:3])


def _render(data: bytes) -> None:
    from llmc.runtime.text.chat import ChatTemplate

    source = data.decode("utf-8", "replace")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    template.render([{"role": "user", "content": "Hi {{ x }}"}, {"role": "assistant", "content": "Yes"}])

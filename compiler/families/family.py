"""What a family reads of a checkpoint: judged without importing torch or onnx, so that a refusal comes at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...runtime.errors import CheckpointError, nearest
from ..checkpoint.checkpoint import Checkpoint
from ..config.config import Config

_SHOWN = 20


@dataclass(frozen=True)
class Names:
    """Module names in the checkpoint; those of a layer are relative to `layer`."""

    embedding: str
    layer: str
    attention_norm: str
    q: str
    k: str
    v: str
    o: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    final_norm: str
    head: str


@dataclass(frozen=True)
class Family:
    """What distinguishes one family of decoders from another."""

    architecture: str
    name: str
    names: Names


def parameters(family: Family, config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor the family reads, with its shape."""
    n, c = family.names, config
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {f"{n.embedding}.weight": (c.vocab_size, c.hidden_size)}
    for layer in range(c.num_hidden_layers):
        prefix = n.layer.format(layer=layer)
        for name in (n.attention_norm, n.mlp_norm):
            shapes[f"{prefix}.{name}.weight"] = (c.hidden_size,)
        linears = (
            (n.q, q, c.hidden_size, c.attention_bias),
            (n.k, kv, c.hidden_size, c.attention_bias),
            (n.v, kv, c.hidden_size, c.attention_bias),
            (n.o, c.hidden_size, q, c.attention_bias),
            (n.gate, c.intermediate_size, c.hidden_size, c.mlp_bias),
            (n.up, c.intermediate_size, c.hidden_size, c.mlp_bias),
            (n.down, c.hidden_size, c.intermediate_size, c.mlp_bias),
        )
        for name, rows, columns, biased in linears:
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if biased:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
    shapes[f"{n.final_norm}.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes[f"{n.head}.weight"] = (c.vocab_size, c.hidden_size)
    return shapes


def check_tensors(family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    """Compare names and shapes of the tensors with what the family reads; returns the unused tensors and why.

    Raises:
        CheckpointError: tensors missing, left over, or of another shape, with a table of expected and found.
    """
    source, shapes = checkpoint.source, parameters(family, checkpoint.config)
    present = set(source.names)
    wrong: list[tuple[str, str, Collection[str]]] = []
    for name, expected in shapes.items():
        if name not in present:
            wrong.append((name, f"expected {list(expected)}, found nothing", source.names))
        elif source.info(name).shape != expected:
            wrong.append((name, f"expected {list(expected)}, found {list(source.info(name).shape)}", ()))
    unused = {}
    for name in source.names:
        if name in shapes:
            continue
        if name.endswith("rotary_emb.inv_freq"):
            unused[name] = "rope tables are computed from the configuration"
        elif name == f"{family.names.head}.weight" and checkpoint.config.tie_word_embeddings:
            unused[name] = "bit-equal to the tied embedding"
        else:
            wrong.append((name, f"expected nothing, found {list(source.info(name).shape)}", shapes))
    if wrong:
        lines = [f"{name}: {said}{nearest(name, known)}" for name, said, known in wrong[:_SHOWN]]
        lines += [f"and {len(wrong) - _SHOWN} more"] * (len(wrong) > _SHOWN)
        raise CheckpointError(
            f"tensors of {checkpoint.config.architecture}",
            found=f"{len(wrong)} disagreements:\n    " + "\n    ".join(lines),
            fix="a config.json that belongs to these weights",
        )
    return unused


def account(family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    """`check_tensors`, and a head beside a tied embedding is read and must equal it."""
    unused = check_tensors(family, checkpoint)
    if (head := f"{family.names.head}.weight") in unused:
        _require_equal(checkpoint, head, f"{family.names.embedding}.weight")
    return unused


def _require_equal(checkpoint: Checkpoint, head: str, embedding: str) -> None:
    source = checkpoint.source
    same = source.info(head).shape == source.info(embedding).shape
    same = same and source.info(head).dtype == source.info(embedding).dtype
    rows = source.info(head).shape[0] if same else 0
    for start in range(0, rows, 4096):
        stop = min(start + 4096, rows)
        if source.rows(head, start, stop).tobytes() != source.rows(embedding, start, stop).tobytes():
            same = False
            break
    if not same:
        raise CheckpointError(
            "config.json says tie_word_embeddings",
            found=f"tensor {head!r} that differs from {embedding!r}",
            fix='"tie_word_embeddings": false in config.json, if the head is meant to be its own',
        )

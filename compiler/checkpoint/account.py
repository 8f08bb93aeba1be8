"""Every tensor of a checkpoint is used, or left out for a reason; the check needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ...runtime.dtypes import CONFIG_DTYPES
from ...runtime.errors import CheckpointError, nearest
from .checkpoint import Checkpoint, open_checkpoint, with_chat_template
from .weights.layout import layout_of
from .weights.unread import left_out_parts, part_of, why_unread

_SHOWN = 20
"""Disagreements that an error lists."""


def open_source(
    where: str | Path,
    accept_config: Collection[str] = (),
    random_weights: int | None = None,
    chat_template: str | Path | None = None,
) -> Checkpoint:
    """Open a checkpoint for a build: `open_checkpoint`, check its tensors, and begin to hash its files.

    `chat_template` replaces the checkpoint's.

    Raises:
        CheckpointError: the tensors do not match the configuration.
        LlmcError: whatever `open_checkpoint` and `with_chat_template` raise.
    """
    checkpoint = open_checkpoint(where, accept_config=accept_config, random_weights=random_weights)
    if chat_template is not None:
        checkpoint = with_chat_template(checkpoint, chat_template)
    check_tensors(checkpoint)
    checkpoint.files.start_digest()
    return checkpoint


def check_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """Compare names and shapes of the files' tensors with those the decoder reads; return {unused tensor: reason}.

    A part that is left out as a whole, such as a vision tower, is there once, by its module.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape; lists expected and found.
    """
    infos, spec = checkpoint.source.stored, checkpoint.config.decoder
    layout, parts = layout_of(infos, spec), checkpoint.config.parts
    shapes = layout.shapes
    wrong: list[tuple[str, str, Collection[str]]] = []
    for name, expected in shapes.items():
        if name not in infos:
            wrong.append((name, f"expected {list(expected)}, found nothing", infos))
        elif infos[name].shape != expected:
            wrong.append((name, f"expected {list(expected)}, found {list(infos[name].shape)}", ()))
    unused = {}
    for name, info in infos.items():
        if name in shapes or part_of(name, parts, spec):
            continue
        if reason := why_unread(replace(info, name=layout.own_name(name)), spec):
            unused[name] = reason
        else:
            plain = "" if info.dtype in CONFIG_DTYPES.values() else f"{info.dtype} "
            wrong.append((name, f"expected nothing, found {plain}{list(info.shape)}", shapes))
    if wrong:
        lines = [f"{name}: {said}{nearest(name, known)}" for name, said, known in wrong[:_SHOWN]]
        lines += [f"and {len(wrong) - _SHOWN} more"] * (len(wrong) > _SHOWN)
        raise CheckpointError(
            f"expected the tensors of {checkpoint.config.family.architecture}",
            found=f"{len(wrong)} disagreements:\n    " + "\n    ".join(lines),
            fix="a config.json that belongs to these weights",
        )
    return unused | left_out_parts((name for name in infos if name not in shapes), parts, spec)


def account(checkpoint: Checkpoint) -> dict[str, str]:
    """`check_tensors`; also reads a head stored beside a tied embedding, which must equal the embedding.

    Raises:
        CheckpointError: see `check_tensors`; or the head differs from the embedding.
    """
    unused, spec = check_tensors(checkpoint), checkpoint.config.decoder
    head = f"{spec.head}.weight"
    if spec.tied and head in checkpoint.source.names:
        _require_equal(checkpoint, head, f"{spec.embedding}.weight")
    return unused


def _require_equal(checkpoint: Checkpoint, head: str, embedding: str) -> None:
    source = checkpoint.source
    one, other = source.info(head), source.info(embedding)
    same = (one.shape, one.dtype) == (other.shape, other.dtype)
    spans = [(start, min(start + 4096, one.shape[0])) for start in range(0, one.shape[0], 4096)]
    if not same or any(source.rows(head, *span).tobytes() != source.rows(embedding, *span).tobytes() for span in spans):
        raise CheckpointError(
            'expected a head equal to the embedding, as "tie_word_embeddings" in config.json says',
            found=f"tensor {one.name!r} that differs from {other.name!r}",
            fix='"tie_word_embeddings": false in config.json, if the head is not meant to be tied',
        )

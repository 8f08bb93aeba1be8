"""Opens the weight files of a checkpoint and settles what index and files say differently, by what the model reads.

What is read is what transformers reads (5.23.0, `modeling_utils.py` and `utils/hub.py`): the index names the shards,
and every tensor of every shard counts, whatever the index says of it. A tensor that is read and that two shards hold
must have the same bytes in both: transformers takes the last shard's, the index may say another, and other programs
take the first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ....runtime.dtypes import CONFIG_DTYPES
from ....runtime.engine_file.info import drafts_left_out, parts_left_out
from ....runtime.errors import CheckpointError, Unsupported, nearest
from ....runtime.files.safetensors import MAX_HEADER_BYTES, Header, TensorInfo, parse_header, read_header_bytes
from ...families.config import Config
from ..digest import Files
from ..folder import INDEX, Folder, OpenFile, Weights, find_weights, refuse_hard_link
from ..no_checkpoint import ADAPTER, no_checkpoint
from .layout import Arranged, Layout, Place, layout_of
from .source import FileSource
from .unread import ROPE, TIED, grouped, left_out_parts, part_of, why_named, why_unread

_MAX_TENSORS = 200_000
"""Of all shards together, which takes 2 s to read. The largest models of experts have 140,000, by name and scale."""
_COMPARED_BYTES = 4 << 20
PACKED = "U8"
"""What files have codes and scales of experts as."""
Copies = Mapping[str, list[tuple[OpenFile, TensorInfo]]]
"""Every tensor by name, in each shard that holds it, in order of the shards' names."""


def open_weights(files: Files, config: Config) -> tuple[Arranged, Config, list[str]]:
    """Open all shards and check what the model reads of them.

    Returns the source, by the decoder's names; the config, whose head is not tied if it is stored and counts; warnings.

    Raises:
        CheckpointError: a shard is missing or damaged, or index and shards disagree about a tensor that is read.
        Unsupported: a tensor that is read is not plain floating point.
    """
    folder = files.folder
    weights = find_weights(folder)
    if weights is None:
        raise no_checkpoint(folder)
    if weights.index is not None:
        files.add(*weights.index)
    listed = weights.listed or {}
    absent = _absent(weights, folder, layout_of(listed, config.decoder).shapes)
    copies: dict[str, list[tuple[OpenFile, TensorInfo]]] = {}
    count = 0
    for name in weights.shards:
        if name in absent:
            continue
        opened = folder.open(name)
        refuse_hard_link(folder, opened)
        files.shards.append(opened)
        header = read_header(opened, before=count)
        count += len(header.tensors)
        for info in header.tensors.values():
            copies.setdefault(info.name, []).append((opened, info))
    tensors = {name: found[-1] for name, found in copies.items()}
    names, source = {*copies, *listed}, FileSource(tensors)
    config = _with_stored_head(config, names)
    layout = layout_of(names, config.decoder)
    reads = layout.shapes
    _check_dtypes(source.stored, layout, config)
    warnings = [
        *(f"{INDEX} lists {name}, which is missing: nothing of it is read" for name in absent),
        *_compare_with_index(weights, copies, reads),
        *_unread(source.stored, layout, config),
        *(
            f"{name} is not read: {INDEX} does not list it" if weights.listed else f"{name} is not read"
            for name in folder.names()
            if name.endswith(".safetensors") and name not in weights.shards
        ),
    ]
    if folder.has(ADAPTER):
        warnings.append(f"{ADAPTER} is not read: the engine has the weights of this folder, without the adapter")
    found = sum(info.nbytes for _, info in tensors.values())
    if weights.total_size not in (None, found):
        warnings.append(f"{INDEX}: total_size says {weights.total_size} bytes, the tensors have {found}")
    return Arranged(source, layout), config, warnings


def _with_stored_head(config: Config, names: Collection[str]) -> Config:
    """The config, which says that the head is not the embedding if there is one whose presence decides."""
    if not config.stored_head_counts:
        return config
    decoder = config.decoder
    place = layout_of(names, decoder).places[f"{decoder.head}.weight"]
    if not isinstance(place, Place) or place.tensor not in names:
        return config
    return replace(config, decoder=replace(decoder, tied=False))


def read_header(opened: OpenFile, *, before: int) -> Header:
    """The checked header of an open weight file; `before` counts the tensors of the files before it.

    Raises:
        CheckpointError: it is damaged, or together they have too many tensors.
    """
    what, size = opened.facts.shown, opened.facts.bytes
    raw = read_header_bytes(opened.fd, size, what=what, error=CheckpointError, max_bytes=MAX_HEADER_BYTES)
    return parse_header(raw, size, what=what, error=CheckpointError, max_tensors=_MAX_TENSORS, before=before)


def _absent(weights: Weights, folder: Folder, reads: Collection[str]) -> list[str]:
    """The shards that are not there, if the index lists nothing for them that is read."""
    absent = [name for name in weights.shards if not folder.has(name)]
    needed = {shard for tensor, shard in (weights.listed or {}).items() if tensor in reads}
    missing = [name for name in absent if name in needed]
    if missing:
        raise CheckpointError(
            f"expected the {len(weights.shards)} shards that {INDEX} lists in {folder.path}",
            found=f"{len(missing)} missing: {', '.join(missing[:4])}",
            fix="download the missing files",
        )
    return absent


def _compare_with_index(weights: Weights, copies: Copies, reads: Collection[str]) -> list[str]:
    """Warnings about what the index says of tensors, and about tensors in two shards.

    Raises:
        CheckpointError: the index lists a tensor that is read and in no shard, or its copies in two shards differ.
    """
    if weights.listed is None:
        return []
    nowhere = [name for name in weights.listed if name not in copies]
    if lost := sorted(name for name in nowhere if name in reads):
        raise CheckpointError(
            f"expected tensor {lost[0]!r} in {weights.listed[lost[0]]}, as {INDEX} lists it",
            found=f"no such tensor{nearest(lost[0], copies)}",
            fix="download the checkpoint again: index and shard are of different versions",
        )
    twice = {name: found for name, found in copies.items() if len(found) > 1}
    for name in twice:
        if name in reads:
            _require_equal(twice[name])
    elsewhere = [
        name
        for name, shard in weights.listed.items()
        if name in copies and all(opened.facts.name != shard for opened, _ in copies[name])
    ]
    said = {
        f"{INDEX} does not list what its shards hold": [name for name in copies if name not in weights.listed],
        f"{INDEX} lists what no shard holds and the model does not read": nowhere,
        f"{INDEX} lists tensors for other shards than those that hold them": elsewhere,
        "two shards hold the same tensors": twice,
    }
    return [f"{what}: {grouped(names)}" for what, names in said.items() if names]


def _require_equal(copies: list[tuple[OpenFile, TensorInfo]]) -> None:
    """Compare the copies of a tensor in several shards.

    Raises:
        CheckpointError: they differ.
    """
    (first, one), *others = copies
    for other, info in others:
        same = (one.dtype, one.shape) == (info.dtype, info.shape)
        if not same or not _same_bytes((first, one.offset), (other, info.offset), one.nbytes):
            raise CheckpointError(
                f"expected one tensor {one.name!r} in the shards that {INDEX} lists",
                found=f"two that differ, in {first.facts.name} and in {other.facts.name}",
                fix="download the checkpoint again: the shards are of different versions",
            )


def _same_bytes(one: tuple[OpenFile, int], other: tuple[OpenFile, int], nbytes: int) -> bool:
    for start in range(0, nbytes, _COMPARED_BYTES):
        parts = [bytearray(min(_COMPARED_BYTES, nbytes - start)) for _ in range(2)]
        for part, (opened, offset) in zip(parts, (one, other), strict=True):
            opened.read_into(memoryview(part), offset + start)
        if parts[0] != parts[1]:
            return False
    return True


def _check_dtypes(infos: Mapping[str, TensorInfo], layout: Layout, config: Config) -> None:
    """Refuse tensors that are read and neither plain floating point nor the bytes of a format that the family is in.

    If a tensor that is read is missing, or the configuration says that the weights are quantized, others may stand in
    for it: then all tensors but known buffers are judged.
    """
    judged = [name for name in layout.shapes if name in infos]
    if config.quantization or len(judged) < len(layout.shapes):
        own = layout.own_name
        judged = [
            name
            for name, info in infos.items()
            if not why_named(own(name), info.shape, config.decoder) and not part_of(name, config.parts, config.decoder)
        ]
    for name in judged:
        dtype = infos[name].dtype
        if name in layout.packed:
            if dtype != PACKED:
                asked = f"expected tensor {name!r} as {PACKED}, which holds codes and scales"
                raise Unsupported(asked, found=dtype, fix="the files as they were published")
        elif dtype not in CONFIG_DTYPES.values():
            method = f", quant_method {config.quantization!r}" if config.quantization else ""
            raise Unsupported(
                f"expected tensor {name!r} as one of {', '.join(CONFIG_DTYPES.values())}",
                found=f"{dtype}{method}",
                fix="start from the bf16, fp16 or fp32 checkpoint: model.to(torch.bfloat16).save_pretrained writes one",
            )


def _unread(infos: Mapping[str, TensorInfo], layout: Layout, config: Config) -> list[str]:
    """Warnings about buffers, and about a setting that the tensors contradict."""
    why = {
        name: why_unread(replace(info, name=layout.own_name(name)), config.decoder)
        for name, info in infos.items()
        if name not in layout.shapes and not part_of(name, config.parts, config.decoder)
    }
    buffers = [name for name, reason in why.items() if reason not in (None, ROPE, TIED)]
    warnings = [f"buffers that are no weights are not read: {grouped(buffers)}"] if buffers else []
    rest = (name for name in infos if name not in layout.shapes)
    parts = left_out_parts(rest, config.parts, config.decoder)
    warnings += [*parts_left_out(parts), *drafts_left_out(parts)]
    if config.quantization and not layout.packed:
        warnings.append(
            f"quantization_config ({config.quantization}) is a leftover: every tensor is plain floating point"
        )
    return warnings

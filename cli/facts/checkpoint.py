"""The facts of a checkpoint: of one that can be built, what the build reads; of any other, what its files say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from math import prod
from typing import TYPE_CHECKING, Any

from ...runtime.errors import CheckpointError, LlmcError, Unsupported
from ..common import console

if TYPE_CHECKING:
    from ...compiler.checkpoint.checkpoint import Checkpoint
    from ...compiler.checkpoint.described import Described
    from ...compiler.checkpoint.tokenizer_check import Checked
    from ...compiler.families.spec import DecoderSpec
    from ...runtime.files.safetensors import TensorInfo

Facts = dict[str, Any]
_SHOWN, _LARGEST = 8, 3


def checkpoint_facts(where: str, accept_config: Collection[str], *, tensors: bool = False) -> Facts:
    """The facts of a checkpoint; with `tensors` also dtype and shape of each. `reason` says why it cannot be built.

    Raises:
        LlmcError: it cannot be found, or has no safetensors file whose header can be read.
    """
    from ...compiler.checkpoint.account import check_tensors
    from ...compiler.checkpoint.checkpoint import open_checkpoint
    from ...compiler.checkpoint.described import describe
    from ...compiler.checkpoint.tokenizer_check import start_check

    try:
        checkpoint = open_checkpoint(where, accept_config=accept_config)
    except (CheckpointError, Unsupported) as error:
        try:
            found = describe(where)
        except LlmcError:
            raise error from None
        if not found.tensors:
            raise
        return {**_described(found), **_listed(found.tensors, tensors), "buildable": False, "reason": str(error)}
    reason, text = "", None
    try:
        check_tensors(checkpoint)
        text = start_check(checkpoint).result()
    except CheckpointError as error:
        reason = str(error)
    infos = checkpoint.source.stored.values()
    return {
        **_built_from(checkpoint, text),
        **_listed(infos, tensors),
        "buildable": not reason,
        "reason": reason or None,
    }


def _built_from(checkpoint: Checkpoint, text: Checked | None) -> Facts:
    from ...compiler.families.spec import cache_of

    config = checkpoint.config
    decoder = config.decoder
    mixers, widths = [layer.mixer for layer in decoder.layers], _widths(decoder)
    return {
        "path": str(checkpoint.path),
        "revision": checkpoint.revision,
        "architecture": config.family.architecture,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": next(iter(widths), None),
        "layers": len(decoder.layers),
        "heads": mixers[0].heads,
        "kv_heads": mixers[0].kv_heads,
        "head_dim": mixers[0].head_dim,
        "latent_rank": cache_of(mixers[0]).rank,
        "windows": dict(Counter(str(mixer.window) for mixer in mixers if mixer.window is not None)),
        "vocab_size": decoder.vocab_size,
        "parameters": sum(prod(shape) for shape in decoder.tensors().values()),
        "active_parameters": decoder.active_parameters(),
        "experts": _experts(decoder),
        "max_position_embeddings": decoder.positions,
        "rope": next((mixer.rope.type for mixer in mixers if mixer.rope is not None), None),
        "tied": decoder.tied,
        "bos": text.special.bos if text else None,
        "eos_ids": list(text.special.eos_ids) if text else [],
        "generation": dict(checkpoint.generation),
        **_sizes(checkpoint.source.stored.values()),
        "files": {facts.name: facts.bytes for facts in checkpoint.files.facts},
        "ignored_config": dict(config.ignored),
        "accepted_config": list(config.accepted),
        "warnings": [*checkpoint.warnings, *(text.notes if text else ())],
    }


def _widths(decoder: DecoderSpec) -> list[int]:
    """The inner size of the MLP of each layer that has one without a router."""
    from ...compiler.families.spec import Experts

    return [layer.mlp.down.columns for layer in decoder.layers if not isinstance(layer.mlp, Experts)]


def _experts(decoder: DecoderSpec) -> Facts | None:
    """The mixtures of a model, those of its first layer that has one; None without any."""
    from ...compiler.families.spec import Experts

    mixtures = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, Experts)]
    if not mixtures:
        return None
    first = mixtures[0]
    return {
        "layers": len(mixtures),
        "count": first.down.experts,
        "active": first.router.chosen,
        "intermediate_size": first.down.columns,
        "shared_intermediate_size": first.shared.down.columns if first.shared else None,
    }


_FIELDS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "tied": ("tie_word_embeddings",),
}
"""Facts by the names that configs have for them."""


def _described(found: Described) -> Facts:
    config = found.config
    named = config.get("architectures")
    return {
        "path": str(found.path),
        "revision": found.revision,
        "architecture": named[0] if isinstance(named, list) and named else None,
        "model_type": config.get("model_type"),
        **{name: next((config[key] for key in keys if key in config), None) for name, keys in _FIELDS.items()},
        "adapter": dict(found.adapter) or None,
        "quantization": dict(found.quantization) or None,
        **_sizes(found.tensors),
        "largest": _shapes(sorted(found.tensors, key=lambda info: -info.nbytes)[:_LARGEST]),
        "tokenizer": list(found.tokenizer),
        "files": dict(found.files),
    }


def _sizes(infos: Iterable[TensorInfo]) -> Facts:
    infos = list(infos)
    return {
        "tensors": len(infos),
        "bytes": sum(info.nbytes for info in infos),
        "dtypes": dict(sorted(Counter(info.dtype for info in infos).items())),
    }


def _listed(infos: Iterable[TensorInfo], wanted: bool) -> Facts:
    return {"shapes": _shapes(infos)} if wanted else {}


def _shapes(infos: Iterable[TensorInfo]) -> Facts:
    return {info.name: [info.dtype, *info.shape] for info in infos}


_CHECKPOINT = """\
checkpoint {path}{at}
  {architecture}: {layers} layers, hidden {hidden_size}{intermediate}, \
{heads} heads and {cached}
  vocabulary {vocab_size}, {head} head, context {max_position_embeddings}, rope {rope}
  {tensors} tensors, {bytes!b}: {counts}
  bos {bos}, eos {eos_ids}"""


def _cached(facts: Facts) -> str:
    """What a layer keeps of a position."""
    if facts["latent_rank"]:
        return f"latent rows of {facts['head_dim']}"
    return f"{facts['kv_heads']} kv heads of {facts['head_dim']}"


_EXPERTS = """\
  {experts[layers]} layers with experts: {experts[active]} of {experts[count]} for a token, \
intermediate {experts[intermediate_size]}{shared}
  {parameters:,} parameters, {active_parameters:,} of them active"""


def _shared(experts: Facts) -> str:
    width = experts["shared_intermediate_size"]
    return f", and a shared one of {width}" if width else ""


def checkpoint_text(facts: Facts) -> str:
    """The facts for people, and at the end why the checkpoint cannot be built."""
    reason, facts = facts["reason"], console.on_lines(facts)
    at = f" at {facts['revision']}" if facts["revision"] else ""
    counts = ", ".join(f"{count} {dtype}" for dtype, count in facts["dtypes"].items())
    if "rope" in facts:
        more = {"intermediate": f", intermediate {facts['intermediate_size']}" if facts["intermediate_size"] else ""}
        more |= {"cached": _cached(facts), "head": "tied" if facts["tied"] else "untied"}
        lines = [console.fill(_CHECKPOINT, facts, at=at, counts=counts, **more)]
        if facts["experts"]:
            lines.insert(1, console.fill(_EXPERTS, facts, shared=_shared(facts["experts"])))
    else:
        lines = [f"checkpoint {facts['path']}{at}", *_what_files_say(facts)]
        lines.append(console.fill("  {tensors} tensors, {bytes!b}: {counts}", facts, counts=counts))
        lines.append(f"  largest: {', '.join(_tensors(facts['largest']))}")
        lines.append(f"  tokenizer: {', '.join(facts['tokenizer']) or 'none'}")
    lines += [f"  {name}: {console.size(size)}" for name, size in facts["files"].items()]
    if facts.get("ignored_config"):
        lines.append(f"  config keys without effect: {', '.join(facts['ignored_config'])}")
    lines += [f"  warning: {warning}" for warning in facts.get("warnings", ())]
    lines += [f"  {one}" for one in _tensors(facts.get("shapes", {}))]
    if not facts["buildable"]:
        lines.append("  cannot be built: " + reason.replace("\n", "\n  "))
    return "\n".join(lines)


def _tensors(shapes: Facts) -> list[str]:
    return [f"{name} {dtype} {shape}" for name, (dtype, *shape) in shapes.items()]


def _what_files_say(facts: Facts) -> list[str]:
    """The lines of what config.json and adapter_config.json say; a fact that no file says is left out."""
    lines = []
    if facts["architecture"] or facts["model_type"]:
        names = {
            "layers": "layers",
            "hidden_size": "hidden",
            "intermediate_size": "intermediate",
            "heads": "heads",
            "kv_heads": "kv heads",
            "head_dim": "head size",
            "vocab_size": "vocabulary",
            "max_position_embeddings": "context",
        }
        known = [f"{label} {facts[key]}" for key, label in names.items() if facts[key] is not None]
        kind = f" ({facts['model_type']})" if facts["architecture"] and facts["model_type"] else ""
        lines.append(f"  {facts['architecture'] or facts['model_type']}{kind}: {', '.join(known) or 'no sizes'}")
    if facts["adapter"]:
        base = facts["adapter"].get("base_model_name_or_path") or "an unnamed model"
        lines.append(f"  adapter for {base}: {_settings(facts['adapter'])}")
    if facts["quantization"]:
        lines.append(f"  quantized: {_settings(facts['quantization'])}")
    return lines


def _settings(values: Facts) -> str:
    plain = [f"{key} {one}" for key, one in values.items() if isinstance(one, str | int | float) and one != ""]
    plain = [one for one in plain if not one.startswith("base_model_name_or_path ")]
    return ", ".join(plain[:_SHOWN]) + (f" and {len(plain) - _SHOWN} more" if len(plain) > _SHOWN else "")

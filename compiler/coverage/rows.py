"""The table of families: one row each, read from the records of a small example config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...quantize import FORMATS
from ...runtime.chips import TARGETS
from ...runtime.engine_file.split import Split
from ...runtime.errors import LlmcError
from ..decoder.placement import place
from ..families import FAMILIES, REMOTE, Family
from ..families.config import parse_config
from ..families.reading import LOGITS
from ..families.spec import DecoderSpec
from ..targets.cuda.gaps import gaps
from ..vision.table import KINDS, ROWS
from ..vision.table import Row as VisionRow
from .features import features

SIZES: Mapping[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Of the example configs: widths that every block of a format divides, and layers enough for every pattern of kinds."""
SPLITS = (Split(2, 1), Split(1, 2))


@dataclass(frozen=True)
class Row:
    """What llmc computes of a family."""

    model_type: str
    architecture: str
    features: tuple[str, ...]
    """Beyond Llama's, that each of its configs has."""
    optional: tuple[str, ...]
    """Those that some configs turn on."""
    formats: tuple[str, ...]
    """Weight formats that can store its linears."""
    gaps: tuple[str, ...]
    """What no launch plan computes; none if every sm_* target takes it."""
    unsplit: Mapping[str, str]
    """Kind of split that does not work, to why."""
    verified: str

    @property
    def targets(self) -> tuple[str, ...]:
        return TARGETS if not self.gaps else ("cpu",)


@dataclass(frozen=True)
class Wrapper:
    """A model of images, or sound, and text whose text model llmc computes."""

    model_type: str
    architecture: str
    text: str
    """The family of the text model where its config does not name one; a family of this table may be named."""
    left_out: tuple[str, ...]
    verified: str


def wrappers() -> tuple[Wrapper, ...]:
    """A row for each model of images and text, in the order of their table."""
    return tuple(map(_wrapper, ROWS.values()))


def _wrapper(row: VisionRow) -> Wrapper:
    remote = row.config != "text_config"  # only code outside of transformers, which is not here, calls it otherwise
    return Wrapper(
        row.model_type,
        row.architecture,
        text=_text_family(row.kind),
        left_out=tuple(dict.fromkeys(row.parts.values())),
        verified=f"{LOGITS}, for the text model alone" if remote else LOGITS,
    )


def _text_family(kind: str) -> str:
    return FAMILIES[KINDS[kind].family].name if kind in KINDS else kind


def rows() -> tuple[Row, ...]:
    """A row for each family, in the order of the table of families."""
    return tuple(map(_row, (*FAMILIES.values(), *REMOTE.values())))


def example(family: Family) -> dict[str, Any]:
    """A small config.json of a family that turns on what its configs may have."""
    return {**SIZES, "architectures": [family.architecture], "model_type": family.name, **family.example}


def _row(family: Family) -> Row:
    values = example(family)
    spec = _read(values)
    try:
        always = features(_read({key: value for key, value in values.items() if key not in family.example}))
    except LlmcError:  # a key of the example is needed
        always = features(spec)
    every = features(spec)
    return Row(
        family.name,
        family.architecture,
        features=tuple(one for one in every if one in always),
        optional=tuple(one for one in every if one not in always),
        formats=tuple(name for name in FORMATS if _stores(name, spec)),
        gaps=gaps(spec),
        unsplit={split.name: why for split in SPLITS if (why := _unsplit(spec, split))},
        verified=family.verified,
    )


def _read(values: Mapping[str, Any]) -> DecoderSpec:
    return parse_config(json.dumps(values)).decoder


def _stores(name: str, spec: DecoderSpec) -> bool:
    return not any(FORMATS[name].check(*shape) for shape in spec.linears().values())


def _unsplit(spec: DecoderSpec, split: Split) -> str:
    try:
        place(spec, split, lambda _: "none")
    except LlmcError as error:
        return error.found
    return ""

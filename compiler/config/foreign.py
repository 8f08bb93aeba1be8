"""Kinds of models that llmc knows and does not compute, with what is missing: they are refused by name.

The facts are those of transformers 5.23; a test holds the names against its tables.
"""

from __future__ import annotations

from collections.abc import Mapping

_EXPERTS = "mixture of experts"
_SHORT = "gated short convolutions"
_MAMBA = "Mamba layers (a recurrent state)"
_MAMBA2 = "Mamba 2 layers (a recurrent state)"
_SOME_EXPERTS = "in most a mixture of experts"
_DELTA = "gated delta net (linear attention with a recurrent state)"
_KIMI = "Kimi delta attention (linear attention with a recurrent state)"
_LATENT = "multi-head latent attention"
_INDEXER = "sparse attention (an indexer chooses keys)"
_STREAMS = "hyper-connections (several residual streams)"
FOREIGN: Mapping[str, tuple[str, ...]] = {
    """afmoe aria beam cohere2_moe dbrx ernie4_5_vl_moe exaone_moe flex_olmo flint glm4v_moe granitemoeshared
    hunyuan_v1_moe kolibri1 laguna mellum qwen3_vl_moe solar_open step3p7 zaya""": (_EXPERTS,),
    "granitemoe_swa": (_EXPERTS, "attention sinks"),
    "mimo_v2_flash": (_EXPERTS, "attention sinks", "values of another size than keys"),
    "jetmoe": (_EXPERTS, "attention heads chosen by a router"),
    "muse_spark": (_EXPERTS, "gated residuals"),
    "minicpm3 youtu": (_LATENT,),
    "axk1 kimi_k25 longcat_flash": (_LATENT, _EXPERTS),
    "axk2 dots3_note mistral_large4": (_INDEXER, _LATENT, _EXPERTS),
    "hy_v4": (_INDEXER, _STREAMS, _LATENT, _EXPERTS),
    "deepseek_v4": (_INDEXER, _STREAMS, "compressed keys and values", "experts chosen by a hash", _EXPERTS),
    "glm5_next": (_INDEXER, _STREAMS, _KIMI, _LATENT, _EXPERTS),
    "minimax_m3_vl minimax_m3_sparse": ("sparse attention (blocks of keys are chosen)", _EXPERTS),
    "qwen3_5": (_DELTA, "output gate of attention"),
    "qwen3_5_moe qwen3_next": (_DELTA, "output gate of attention", _EXPERTS),
    "qwen4_exp": (_DELTA, _INDEXER, _STREAMS, "embeddings of n-grams", _EXPERTS),
    "olmo_hybrid": (_DELTA,),
    "bailing_hybrid kimi_linear": (_KIMI, _LATENT, _EXPERTS),
    "minimax": ("lightning attention (linear attention with a recurrent state)", _EXPERTS),
    "mamba falcon_mamba": (_MAMBA,),
    "jamba": (_MAMBA, _EXPERTS),
    "zamba": (_MAMBA, "layers that share weights"),
    "mamba2 bamba": (_MAMBA2,),
    "zamba2": (_MAMBA2, "layers that share weights"),
    "falcon_h1": (_MAMBA2, "two mixers side by side"),
    "granitemoehybrid": ("Mamba 2 layers (a recurrent state) in most", _SOME_EXPERTS),
    "nemotron_h nemotron_h_omni": (_MAMBA2, "one mixer or MLP a layer", _SOME_EXPERTS),
    "lfm2 lfm2_vl": (_SHORT,),
    "lfm2_moe": (_SHORT, _EXPERTS),
    "lfm3 lfm3_vl": (_SHORT, "output gate of attention"),
    "inkling inkling2": (_SHORT, "attention biased by distance", _EXPERTS),
    "recurrent_gemma": ("RG-LRU layers (a recurrent state)",),
    "rwkv xlstm": ("a recurrent state in place of attention",),
    "gemma3n": ("AltUp (several residual streams)", "LAuReL (a low-rank path beside attention)", "sparse activations"),
    "diffllama": ("differential attention",),
    "bloom mpt": ("attention biased by distance (ALiBi)",),
    "biogpt gpt2 gpt_bigcode gpt_neo openai_gpt opt": ("learned embeddings of positions",),
    "mllama": ("cross attention to images",),
    "diffusion_gemma": ("generation of blocks by diffusion",),
    """bart bigbird_pegasus blenderbot florence2 led longt5 m2m_100 marian mbart mt5 pegasus plbart prophetnet
    switch_transformers t5 t5gemma t5gemma2 umt5 whisper""": (
        "an encoder beside the decoder",
        "cross attention",
    ),
    """albert bert camembert deberta deberta_v2 distilbert electra eurobert modernbert mpnet nomic_bert roberta
    xlm_roberta""": ("attention to later tokens (an encoder: it generates no text)",),
}
"""Names, as `model_type` has them but for "_text" at their end, to what is missing."""
MISSING: Mapping[str, tuple[str, ...]] = {
    name.replace("_", ""): missing for names, missing in FOREIGN.items() for name in names.split()
}
"""Plain name to what is missing."""


def plain(name: str) -> str:
    """A `model_type`, or a name in `architectures`, as the table has it: both of one model give one name."""
    stem = name.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model")
    return stem.lower().replace("_", "").replace("-", "").removesuffix("text")


def missing(architecture: str, model_type: str) -> tuple[str, ...]:
    """What llmc does not compute of a kind of model, if it knows it by either name."""
    return MISSING.get(plain(model_type)) or MISSING.get(plain(architecture)) or ()

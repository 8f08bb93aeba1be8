"""Tokenizers of every kind that decodes in a way of its own, trained on a few strings when a test needs one."""

from __future__ import annotations

from collections.abc import Callable

from support.samples.strings import STRINGS
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE, Unigram, WordPiece

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _with_bos(raw: RawTokenizer) -> RawTokenizer:
    bos = raw.token_to_id("<s>")
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return raw


def _byte_level(pre: pre_tokenizers.PreTokenizer) -> RawTokenizer:
    raw = RawTokenizer(BPE())
    raw.pre_tokenizer, raw.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    raw.train_from_iterator(STRINGS, trainer)
    return _with_bos(raw)


def byte_level() -> RawTokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def byte_level_prefixed() -> RawTokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def byte_level_digits() -> RawTokenizer:
    """Qwen's and DeepSeek's kind: digits one by one, words by a pattern of its own."""
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    split = [pre_tokenizers.Digits(individual_digits=True), words]
    return _byte_level(pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(False, use_regex=False)]))


def byte_level_added() -> RawTokenizer:
    raw = byte_level()
    raw.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("    ", normalized=False), "日本"])
    raw.add_special_tokens([AddedToken("<|user|>", lstrip=True, rstrip=True)])
    return raw


def _sentencepiece() -> RawTokenizer:
    raw = RawTokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()  # words apart, as sentencepiece trains them
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIAL + BYTES, limit_alphabet=60)
    raw.train_from_iterator(STRINGS, trainer)
    # a trainer makes all of its tokens special; in a checkpoint the bytes are ordinary tokens of the model
    model = raw.model
    plain = RawTokenizer(model)
    plain.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return plain


def _joined(*more: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more])


def llama2() -> RawTokenizer:
    raw = _sentencepiece()
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = _joined(decoders.Strip(" ", 1, 0))
    return _with_bos(raw)


def gemma() -> RawTokenizer:
    raw = _sentencepiece()
    raw.normalizer, raw.decoder = normalizers.Replace(" ", "▁"), _joined()
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return _with_bos(raw)


def _metaspace(scheme: str) -> Callable[[], RawTokenizer]:
    def made() -> RawTokenizer:
        raw = _sentencepiece()
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
        return _with_bos(raw)

    made.__name__ = f"metaspace_{scheme}"
    return made


def llama_of_transformers() -> RawTokenizer:
    """What LlamaTokenizer of transformers 5 makes of a checkpoint."""
    raw = _sentencepiece()
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = _joined(decoders.Strip(" ", 1, 0))
    return _with_bos(raw)


def unigram() -> RawTokenizer:
    raw = RawTokenizer(Unigram())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>")
    raw.train_from_iterator(STRINGS, trainer)
    return _with_bos(raw)


def wordpiece() -> RawTokenizer:
    raw = RawTokenizer(WordPiece(unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.train_from_iterator(STRINGS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL))
    return _with_bos(raw)


def word_ends() -> RawTokenizer:
    """GPT-1's kind: the last piece of a word is marked, and becomes a space unless it is the last of all."""
    raw = RawTokenizer(BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    raw.train_from_iterator(STRINGS, trainer)
    return _with_bos(raw)


KINDS: tuple[Callable[[], RawTokenizer], ...] = (
    *(byte_level, byte_level_prefixed, byte_level_digits, byte_level_added, llama2, gemma, llama_of_transformers),
    *(_metaspace("always"), _metaspace("first"), _metaspace("never"), unigram, wordpiece, word_ends),
)

"""Texts that tokenizers split and join in different ways."""

from __future__ import annotations

STRINGS = (
    *("", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "a", " a", "a ", "  a", "a  ", "Hello"),
    *(" Hello", "Hello world", "Hello  world", " Hello world", "  Hello world ", "Hello world!"),
    *("Hello, world.", "Hello ,world", "hello\nworld", "hello\n world", "hello \nworld", "\nhello"),
    *("hello\n", "\n hello", "don't", "I'm he'd we'll", "1", "12", "123", "1234567", "3.14", "1,000"),
    *("-5", "a1b2", "x = 1 + 2", "def f(x):\n    return x ** 2\n", "\tindent", "if (a && b) {}"),
    *("naïve", "café", "Grüße", "ñandú", "Ġ", "▁", "a▁b", "日本", "日本語 テスト", "中文。", "한국어"),
    *("Привет, мир", "שלום", "مرحبا", "🙂", "🙂🙂 a", "👩\u200d👩\u200d👧", "é", "\xa0", "a\xa0b"),
    *("\u200b", "�", "<0x41>", "##ing", "</w>", "[UNK]", "the cat sat on the mat"),
    *("The quick brown fox jumps over the lazy dog.", "https://example.org/a?b=c&d=1#e"),
    *("user@example.org", "AAAAAAAAAAAAAAAAAAAA", "ababababababababababababababab", "... --- ..."),
    *("(a) [b] {c} <d>", "\"quoted\" 'single'", "100% of $5"),
)

"""Names that a template can use, by what they cost: filters, tests, and with a dot methods."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SIZED = words("center ljust rjust zfill expandtabs indent batch slice round wordwrap truncate")
"""Filters and methods whose integer arguments are sizes."""
TEXTUAL = words(
    "string upper lower capitalize title trim replace center wordcount escape e forceescape safe pprint striptags join "
    "xmlattr"
)
"""Filters that make a text of any value."""
QUADRATIC = words("pprint striptags urlize wordwrap .striptags")
"""Those that may look at a text once for each of its parts."""
PRODUCT = words("trim .strip .lstrip .rstrip .rfind .rindex .rsplit .rpartition")
"""Those that may compare each character of a text with each of their argument's."""
SHALLOW = words(
    "attr batch count d default first items last length list map random reject rejectattr reverse select selectattr "
    "slice .get .keys .values .items .copy"
)
"""Those that do not look into the elements of a value."""
CONSTANT = words("attr count d default first last length random .get .keys .values .items")
"""Those of SHALLOW that do not walk over the elements either."""
FLAT_TESTS = words(
    "boolean callable defined escaped false filter float integer iterable mapping none number sameas sequence string "
    "test true undefined"
)
"""Tests that do not look into a value."""
OF_STR = words(
    "capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha isascii "
    "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip "
    "maketrans partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title translate upper zfill"
)
OF_INT = words("as_integer_ratio bit_count bit_length conjugate denominator imag numerator real")
OF_FLOAT = words("as_integer_ratio conjugate hex imag is_integer real")
OF_DICT = words("copy fromkeys get items keys values")
OF_LOOP = words("changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0")

"""Templates are contained: what may grow is paid for before it grows; nothing is reached but what is on the list."""

from __future__ import annotations

import tracemalloc

import pytest

from llmc.runtime.errors import EngineError, LlmcError, RecipeError, Unsupported
from llmc.runtime.text.template import Template

FUEL = 20_000
"""A fifteenth of what a chat has."""
PEAK_BYTES = 16 * 1024 * 1024
"""Memory of a rendering with FUEL; a unit of fuel is at most 4 elements of a list of texts of one character."""
GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x|length }}"
NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(COUNT) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
LONG = "{% set ns = namespace(x='START') %}{% for i in range(14) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
"""A text of 16,384 times START; making it costs some 2,000 units of FUEL for one character."""
BUDGET, TOO_LARGE = "more steps than its budget has", "at most 10000|more than 65536 bits|more than 100000 numbers"


def grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


STEPS = (
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000)|reject|list }}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000)|map('abs')|first }}{{ range(100000)|list|length }}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000)|sum }}{% endfor %}",
    LONG.replace("START", "a") + "{% for a in range(100000) %}{{ 'b' in ns.x }}{% endfor %}",
    LONG.replace("START", "a") + "{% for a in range(100000) %}{{ ns.x == ns.x ~ '' }}{% endfor %}",
    LONG.replace("START", "a") + "{% for a in range(100000) %}{{ ns.x.find('b') }}{% endfor %}",
    LONG.replace("START", "a") + "{% for a in range(100000) %}{{ ns.x is lower }}{% endfor %}",
    LONG.replace("START", "<!--") + "{{ ns.x|striptags }}",
    LONG.replace("START", "a@") + "{{ ns.x|urlize }}",
    LONG.replace("START", "a-") + "{{ ns.x|wordwrap(1) }}",
    LONG.replace("START", "%s") + "{{ ns.x % ((1,) * 16384) ~ '%(a)s' * 9 % {'a': ns.x * 9} }}",
    "{{ ('%(a)s' * 2000) % {'a': 'x' * 9000} }}",
    "{{ ('{0}' * 2000).format('x' * 9000) }}",
    "{{ '{a}{a}{a}{a}{a}{a}{a}{a}'.format_map({'a': 'x' * 90000}) }}",
    grow("'aaaa'", "ns.x ~ ns.x"),
    grow("'aaaa'", "ns.x + ns.x"),
    grow("['a']", "ns.x + ns.x"),
    grow("['a']", "ns.x * 3"),
    grow("'ab'", "ns.x|replace('a', ns.x)"),
    grow("'ab'", "ns.x.replace('', 'abc')"),
    grow("'ab'", "[ns.x, ns.x]|join(ns.x)"),
    grow("'ab'", "ns.x.join(ns.x)"),
    grow("'ab'", "'%s%s%s'|format(ns.x, ns.x, ns.x)"),
    grow("'ab'", "'{0}{0}{0}'.format(ns.x)"),
    grow("'ab'", "ns.x.translate({97: ns.x, 98: ns.x})"),
    grow("'a\nb'", "(ns.x ~ '\n')|indent(ns.x)"),
    grow("'a\tb'", "ns.x.expandtabs(9000)"),
    grow("'<'", "ns.x|e|string ~ ns.x"),
    grow("'a'", "ns.x|tojson|tojson ~ ns.x"),
    grow("[[1]]", "ns.x|map('list')|list + ns.x"),
    NEST.replace("COUNT", "60") + "{{ ns.x }}",
    NEST.replace("COUNT", "60") + "{{ ns.x|tojson }}",
    NEST.replace("COUNT", "60") + "{{ ns.x == [ns.x[0], ns.x[1]] }}",
    NEST.replace("COUNT", "60") + "{{ ns.x|string }}",
    NEST.replace("COUNT", "60") + "{{ '%s' % (ns.x,) }}",
    NEST.replace("COUNT", "60") + "{{ '{}'.format(ns.x) }}",
    NEST.replace("COUNT", "60") + "{{ 'a' ~ ns.x }}",
    NEST.replace("COUNT", "60") + "{{ [ns.x]|map('string')|first }}",
    NEST.replace("COUNT", "60") + "{{ [ns.x]|select|join }}",
    NEST.replace("COUNT", "60") + "{{ raise_exception(ns.x) }}",
    NEST.replace("COUNT", "60") + "{{ ns.x|pprint }}",
    NEST.replace("COUNT", "60") + "{{ ns }}",
    LONG.replace("START", "a") + "{% for a in range(100000) %}{{ ns.x.rfind('b' ~ ns.x[1:]) }}{% endfor %}",
    LONG.replace("START", "a") + "{{ ns.x.rsplit('b' ~ ns.x[1:]) }}{{ (ns.x ~ 'b').strip('c' ~ ns.x) }}",
    "{{ 'a' * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 1000000000 * (1,) }}",
    "{{ ('a' * 10000)|replace('a', 'b' * 100000) }}",
    "{{ ([[1]] * 5000)|sum(start=[]) }}",
    "{{ ('a\n' * 2000)|indent(9000) }}",
    "{{ (['a'] * 5000)|join('b' * 9000) }}",
    "{{ (range(20000)|map('string'))|join('b' * 9000) }}",
    "{{ ('a ' * 1000)|wordwrap(1, true, 'b' * 9000) }}",
    "{{ ([1] * 5000)|tojson(separators=('b' * 9000, '')) }}",
    NEST.replace("COUNT", "10") + "{{ ns.x|tojson(indent=16) }}",
    "{% macro f(n) %}{% for i in range(10) %}{{ f(n + 1) if n < 6 }}{% endfor %}{% endmacro %}{{ f(0) * 99999999 }}",
    "{% for x in range(9) recursive %}{{ loop(range(9)) if loop.depth < 9 }}{% endfor %}",
    "{{ dict.fromkeys(range(100000)) }}{{ dict.fromkeys(range(100000)) }}",
)
SIZES = (
    "{{ '%2000000000d'|format(1) }}",
    "{{ '%2000000000d' % 1 }}",
    "{{ '%.2000000000f' % 1 }}",
    "{{ '%*d' % (2000000000, 1) }}",
    "{{ '%.*f' % (2000000000, 1) }}",
    "{{ '%(a(b))2000000000d' % {'a(b)': 1} }}",
    "{{ '{:2000000000d}'.format(1) }}",
    "{{ '{:.2000000000f}'.format(1) }}",
    "{{ '{:{}}'.format(1, 2000000000) }}",
    "{{ '{a:2000000000}'.format_map({'a': 1}) }}",
    "{{ 'a\nb'|indent(2000000000) }}",
    "{{ 'a'.center(2000000000) }}",
    "{{ 'a'|center(2000000000) }}",
    "{{ 'a'|center(width=2000000000) }}",
    "{{ 'a'.ljust(2000000000) }}",
    "{{ 'a'.rjust(2000000000) }}",
    "{{ 'a'.zfill(2000000000) }}",
    "{{ 'a\t'.expandtabs(2000000000) }}",
    "{{ 'a\t'.expandtabs(tabsize=2000000000) }}",
    "{{ [1]|batch(2000000000, 0)|list }}",
    "{{ [1]|slice(2000000000)|list }}",
    "{{ 5|round(-2000000000) }}",
    "{{ 5.5|round(2000000000, 'floor') }}",
    "{{ (['a']|map('center', 2000000000))|list }}",
    "{{ ('a'|attr('center'))(2000000000) }}",
    "{{ range(1000000000)|list }}",
    "{{ range(10 ** 30)|list }}",
    "{{ 9 ** 999999999 }}",
    "{{ 9 ** (9 ** 9) }}",
    grow("3", "ns.x * ns.x"),
    "{{ ('f' * 20000)|int(0, 16) // 3 }}",
)
DEEP = (
    grow("{'a': 1}", "dict(ns.x, a=[ns.x, ns.x])") + "{{ ns.x }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ caller() }}{% call f() %}{% endcall %}{% endmacro %}{% call f() %}{% endcall %}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=1) %}{% for i in range(500) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x == ns.x }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *((one, BUDGET) for one in STEPS),
        *((one, TOO_LARGE) for one in SIZES),
        *((one, "too deep|nest deeper") for one in DEEP),
    ],
)
def test_what_grows_is_paid_before(source: str, message: str):
    template = Template(source)
    tracemalloc.start()
    try:
        with pytest.raises(EngineError, match=message):
            template.render({}, FUEL)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("source", ("{{ 'a' * 80000 }}", "{{ range(20000)|list }}", "{{ '{:9999}'.format(1) }}"))
def test_what_fits_is_rendered(source: str):
    assert len(Template(source).render({}, FUEL * 2)) > 9_000


@pytest.mark.parametrize(
    "link",
    (
        "-",
        ".b",
        "|upper",
        "not ",
        "()",
        "(",
        "[",
        "{a:",
        " + 1",
        " if 1 else ",
        " ~ (1",
        "{% if 1 %}",
        "{% for a in b %}",
    ),
)
def test_a_template_that_nests_too_deep_does_not_compile(link: str):
    """The parser recurses for brackets and prefixes, the evaluator for chains; 64 Ki characters are the most."""
    chain = link * (64_000 // len(link))
    source = chain if "%" in link else f"{{{{ {'' if link in ('-', 'not ', '(', '[', '{a:') else 'a'}{chain}"
    with pytest.raises((EngineError, Unsupported), match=r"nests deeper than 150 levels|too deep|syntax error"):
        Template(source if "%" in link else source + " }}")


@pytest.mark.parametrize(("number", "kind"), (("9" * 5000, Unsupported), ("0x" + "f" * 20_000, EngineError)))
def test_a_number_of_thousands_of_digits_does_not_compile(number: str, kind: type[LlmcError]):
    with pytest.raises(kind, match="cannot compile the chat template"):
        Template("{{ " + number + " % 7 }}")


def test_usual_depths_compile():
    assert Template("{{ " + " + ".join(["'a'"] * 100) + " }}").render({}, FUEL) == "a" * 100
    assert Template("{% if 1 %}" * 40 + "a" + "{% endif %}" * 40).render({}, FUEL) == "a"


@pytest.mark.parametrize(
    ("source", "kind"),
    (
        ("{{ raise_exception.__globals__.x }}", RecipeError),
        ("{{ range.__self__.x }}", RecipeError),
        ("{{ ''.format.__self__.x }}", RecipeError),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", RecipeError),
        ("{{ '{a.__init__.__globals__}'.format_map({'a': range}) }}", RecipeError),
        ("{{ (1|attr('__class__')).x }}", RecipeError),
        ("{{ ([1]|map(attribute='__class__')|first).x }}", RecipeError),
        ("{{ ([1]|groupby('__class__.x')) }}", RecipeError),
        ("{{ [1]|sort(attribute='__class__.x') }}", RecipeError),
        ("{{ [1]|selectattr('__class__.x')|list }}", RecipeError),
        ("{{ dict.__call__.x }}", RecipeError),
        ("{{ namespace(__class__=1) }}", RecipeError),
        ("{{ namespace().__class__.x }}", RecipeError),
        ("{{ cycler.next }}", Unsupported),
        ("{{ cycler.__init__.__globals__.x }}", RecipeError),
        ("{% macro f() %}{% endmacro %}{{ f._func.x }}", RecipeError),
        ("{% macro f() %}{% endmacro %}{{ f._environment.x }}", RecipeError),
        ("{% for x in [1] %}{{ loop._iterator.x }}{% endfor %}", RecipeError),
        ("{{ (x for x in y) }}", Unsupported),
        ("{{ [1].append(2) }}", RecipeError),
        ("{{ {}.update({}) }}", RecipeError),
        ("{{ {}.keys() - [] }}", Unsupported),
        ("{{ (1).to_bytes(2000000000, 'big') }}", Unsupported),
        ("{{ ([1]|map('abs')).send(1) }}", Unsupported),
        ("{{ ([1]|map('abs')).gi_frame.x }}", RecipeError),
        ("{{ [1]|map('abs') }}", Unsupported),
        ("{{ [[1]|reverse] }}", Unsupported),
        ("{{ self.x }}", Unsupported),
    ),
)
def test_nothing_of_python_is_reached(source: str, kind: type[LlmcError]):
    """Jinja2's sandbox gives nothing for a name with underscores, and fails on the name after it: so does llmc."""
    with pytest.raises(kind):
        Template(source).render({}, FUEL)


def test_no_python_code_is_made(monkeypatch: pytest.MonkeyPatch):
    import builtins

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a template became Python code")

    for name in ("exec", "eval", "compile"):
        monkeypatch.setattr(builtins, name, forbidden)
    monkeypatch.setattr("jinja2.environment.Environment.compile", forbidden)
    monkeypatch.setattr("jinja2.environment.Environment._generate", forbidden)
    source = "{% macro f(x) %}{{ x|upper }}{% endmacro %}{% for x in 'ab' %}{{ f(x) }}{{ loop.index }}{% endfor %}"
    assert Template(source).render({}, FUEL) == "A1B2"


def test_an_error_shows_a_long_message_in_part():
    with pytest.raises(RecipeError) as caught:
        Template("{{ raise_exception('a' * 5000) }}").render({}, FUEL)
    assert len(str(caught.value)) < 700

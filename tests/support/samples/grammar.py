"""Random small templates for hypothesis: few names and many constructs, so that scopes and errors meet.

Only names are sliced: Jinja2 folds constants, and then a constant that has no slices is undefined instead of an error.
"""

from __future__ import annotations

from hypothesis import strategies as st

NAMES = ("x", "y", "m", "messages", "ns", "loop", "caller", "f", "g", "varargs", "kwargs", "nothing")
ATOMS = (
    *(
        "1",
        "0",
        "-3",
        "2.5",
        "'a'",
        "'B c'",
        "''",
        "'<é>'",
        "none",
        "true",
        "[]",
        "[3, 1, 2]",
        "['b', 'A']",
        "{'a': 1, 'k': [2]}",
    ),
    *(
        "(1, 'x')",
        "range(3)",
        "1e16",
        "10 ** 20",
        "{}",
        "m.role",
        "messages[0].content",
        "loop.index",
        "loop.last",
        "ns.v",
        "x.a",
    ),
)
BINARY = ("+", "-", "*", "/", "//", "%", "~", "and", "or", "==", "!=", "<", ">=", "in", "not in", "**")
FILTERS = (
    *(
        "upper",
        "length",
        "list",
        "join(',')",
        "tojson",
        "default('d')",
        "first",
        "last",
        "sort",
        "int",
        "float",
        "string",
        "title",
        "trim",
    ),
    *(
        "reverse|list",
        "map('upper')|list",
        "select|list",
        "sum",
        "unique|list",
        "items|list",
        "round(1)",
        "abs",
        "e",
        "replace('a', 'b')",
        "batch(2)|list",
    ),
    *(
        "map(attribute='role')|list",
        "selectattr('role', 'equalto', 'user')|list|length",
        "dictsort",
        "indent(1)",
        "truncate(3, true, '')",
        "nope",
        "max",
        "capitalize",
    ),
)
TESTS = (
    "defined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
    "odd",
    "in [1, 'a']",
    "eq 1",
    "undefined",
    "true",
    "callable",
    "nope",
)
METHODS = (
    ".upper()",
    ".split()",
    ".get('a')",
    ".items()",
    ".strip('a')",
    ".title()",
    ".nope",
    "['a']",
    "[0]",
    "[-1]",
    ".a.b",
    ".keys()|list",
    ".index(1)",
    "()",
    "(1)",
)


def _wrapped(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(BINARY), inner),
        st.builds("({}|{})".format, inner, st.sampled_from(FILTERS)),
        st.builds("({} is {})".format, inner, st.sampled_from(TESTS)),
        st.builds("({}{})".format, inner, st.sampled_from(METHODS)),
        st.builds("({}{})".format, st.sampled_from(NAMES), st.sampled_from(("[1:]", "[::2]", "[:-1]", "[y:]"))),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("({} if {})".format, inner, inner),
        st.builds("(not {})".format, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds(
            "{}({}, y={})".format,
            st.sampled_from(("f", "g", "loop.cycle", "loop.changed", "dict", "caller")),
            inner,
            inner,
        ),
        st.builds("'%s|%5s' % ({}, {})".format, inner, inner),
    )


expressions = st.recursive(st.sampled_from(NAMES + ATOMS), _wrapped, max_leaves=4)
_target = st.sampled_from(("x", "y", "m", "f", "x, y", "ns.v", "ns", "(x, ns.v)"))
_dash = st.sampled_from(("", "", "-", "+"))
_space = st.sampled_from(("", " ", "\n", "  \n  ", "t", "\n\n t"))


def _tags(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds(
            "{{% if {} {}%}}{}{{%{} else %}}{}{{% endif {}%}}".format, expressions, _dash, body, _dash, body, _dash
        ),
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, expressions, body),
        st.builds("{{% for m in messages if {} %}}{}{{% else %}}{}{{% endfor %}}".format, expressions, body, body),
        st.builds("{{% for x, y in {} recursive %}}{}{{% endfor %}}".format, expressions, body),
        st.builds(
            "{{% for x in [1, 2, 3] %}}{}{{% if {} %}}{{% {} %}}{{% endif %}}{}{{% else %}}e{{% endfor %}}".format,
            body,
            expressions,
            st.sampled_from(("break", "continue")),
            body,
        ),
        st.builds(
            "{{% for x in [[1, [2]], [[]]] recursive %}}{}{{{{ loop(x) if x is sequence }}}}{{% endfor %}}".format,
            body,
        ),
        st.builds("{{% macro {}(x, y={}) %}}{}{{% endmacro %}}".format, st.sampled_from("fg"), expressions, body),
        st.builds("{{% call(x) {}({}) %}}{}{{% endcall %}}".format, st.sampled_from("fg"), expressions, body),
        st.builds("{{% macro g(x, y=x) %}}{}{{{{ caller(x) }}}}{{% endmacro %}}".format, body),
        st.builds("{{% with x = {}, y = x %}}{}{{% endwith %}}".format, expressions, body),
        st.builds(
            "{{% filter {} %}}{}{{% endfilter %}}".format,
            st.sampled_from(("upper", "trim", "replace('a', x)", "length")),
            body,
        ),
        st.builds("{{% set {} %}}{}{{% endset %}}".format, st.sampled_from(("x", "y", "ns.v", "x | upper")), body),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, body),
        st.builds("{}{}{}".format, body, _space, body),
    )


_simple = st.one_of(
    st.builds("{{{{{} {} {}}}}}".format, _dash, expressions, st.sampled_from(("", "-"))),
    st.builds("{{%{} set {} = {} {}%}}".format, _dash, _target, expressions, _dash),
    st.builds("{}{{#{} c -#}}{}".format, _space, st.sampled_from(("", "-")), _space),
    st.sampled_from(
        (
            "{% set ns = namespace(v=0) %}",
            "{% set ns.v = ns.v + 1 %}",
            "{{ f(1) }}",
            "{{ x }}{{ y }}",
            "{{ loop.index }}",
            " a\n",
        )
    ),
)
templates = st.builds(
    "{% set ns = namespace(v=1) %}{}".replace("{%", "{{%").replace("%}", "%}}").format,
    st.recursive(_simple, _tags, max_leaves=8),
)

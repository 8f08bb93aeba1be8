"""Expressions of chat templates whose value is Jinja2's to say, and the variables that they read."""

from __future__ import annotations

from typing import Any

SEPARATOR = " ;; "
VARIABLES: dict[str, Any] = {
    "s": "hello wORLD's 2nd don't",
    "u": "Grüße ß ŉ ǆ İ <b>&'\"日本\n\ttab",
    "n": 7,
    "f": 2.5,
    "big": 2**70,
    "t": True,
    "z": None,
    "l": [3, 1, 2, 3],
    "words": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": [1, 2, {"x": None}], "C": "é<>&'", "items2": 1.0},
    "rows": [
        {"k": "b", "v": 2, "in": {"y": 1}},
        {"k": "a", "v": 1, "in": {"y": 5}},
        {"k": "B", "v": 3},
        {"k": "a", "v": 0, "in": {"y": 2}},
    ],
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}],
}
STRINGS = r"""
s.title() ;; u.title() ;; s|title ;; u|title ;; s.capitalize() ;; u|capitalize ;; s.swapcase() ;; u.upper()
u.casefold() ;; s.index('w') ;; s.index('zz') ;; s.find('zz') ;; s.rfind('o') ;; s.partition(' ')
s.count('o') ;; s.rpartition(' ') ;; s.rsplit(' ', 1) ;; s.split() ;; s.split('o', maxsplit=1)
'a\nb\r\nc'.splitlines() ;; '7'.zfill(5) ;; '-7'.zfill(5) ;; 'ab'.center(7, '*') ;; 'ab'.ljust(4) ~ '|'
'ab'.rjust(4, '.') ;; 'a\tb'.expandtabs(4) ;; '  x '.strip() ~ '|' ;; 'xxabxx'.strip('x') ;; 'xxab'.lstrip('x')
'abxx'.rstrip('x') ;; 'prefix-a'.removeprefix('prefix-') ;; 'a.b'.removesuffix('.b') ;; s.startswith('hello')
s.startswith(('a', 'he')) ;; s.endswith('t', 1, 3) ;; 'ab' in s ;; ', '.join(words) ;; ', '.join(l)
', '.join(words|map('upper')) ;; 'abc'.replace('b', 'xx') ;; 'aaa'.replace('a', 'b', 2)
'{} {!r:>6} {x:05.1f}'.format(1, 'a', x=2) ;; '{0[k]} {0.k}'.format(rows[0]) ;; '{k}-{v}'.format_map(rows[0])
'{:,} {:>8} {:^8}|'.format(1234567, 'a', 'b') ;; '{.__class__}'.format(1) ;; '{'.format(1)
'{:{w}}|'.format(1, w=5) ;; 'abc'.islower() ;; 'A b'.istitle() ;; '12'.isdigit() ;; '½'.isnumeric()
'a b'.isidentifier() ;; ''.isspace() ;; 'abc'.translate({97: 'x'}) ;; 'ab'.isalpha() ;; 'é'.isascii() ;; s[2]
s[-1] ;; s[1:8:2] ;; s[::-1] ;; s[99] ;; s.nope ;; s.upper ;; 'a' 'b' ;; '\u00e9\n' ;; 'it\'s' ;; "q\"q"
s.join ;; u|length ;; u|wordcount
"""
FORMATS = r"""
'%s and %s' % ('a', 1) ;; '%d%%' % 5 ;; '%05.2f' % 3.14159 ;; '%x %X %o' % (255, 255, 8) ;; '%e' % 12345.678
'%r' % 'a' ;; '%(a)s %(b)d' % {'a': 'x', 'b': 2} ;; '%5s|%-5s|' % ('a', 'b') ;; '%s' % l ;; '%s' % (l,)
'%d' % 'a' ;; '%s %s' % 'a' ;; '%*d' % (5, 3) ;; '%c' % 65 ;; '%s'|format(3) ;; '%(a)s'|format(a=1)
'%s'|format(1, a=2) ;; '%.3s|' % 'abcdef' ;; '%i' % 3.9 ;; '%s' % missing ;; '%s' % none ;; '%g' % 1e-7
'%+d % d' % (3, 3) ;; '%#x' % 255 ;; '%a' % 'é' ;; '%q' % 1
"""
NUMBERS = r"""
1e16 ;; 1e-7 ;; 1e400 ;; -1e400 ;; -0.0 ;; 0.1 + 0.2 ;; 1/3 ;; 2/1 ;; 7 // 2 ;; -7 // 2 ;; 7 // -2 ;; -7 % 3
7 % -3 ;; 7.5 // 2 ;; -7.5 % 2 ;; 2 ** 10 ;; 2 ** -1 ;; 2 ** 0.5 ;; (-8) ** (1/3) ;; 2 ** 3 ** 2 ;; -2 ** 2
big ;; big * big ;; big // 3 ;; 1 / 0 ;; 1 // 0 ;; 1 % 0 ;; 1.0 / 0 ;; 0 ** 0 ;; 1_000 ;; 0x1F + 0o17 + 0b11
1.5e3 ;; 100000000000000000000 ;; 3.0 ;; 1e5 ;; 123456789.123456789 ;; true + 1 ;; n / 2 ;; +n ;; -f ;; n + f
n * 'a' ;; 'a' * n ;; [1] * 3 ;; l + [4] ;; 'a' + 1 ;; 1 + 'a' ;; n - 's' ;; 1 < 2 < 3 ;; 1 < 2 > 5 ;; 'b' > 'a'
1 == 1.0 ;; 1 == true ;; '1' == 1 ;; [1, 2] < [1, 3] ;; 1 < 'a' ;; none < 1 ;; (1, 2) == [1, 2] ;; not n
not [] ;; f.is_integer() ;; n.bit_length() ;; n.real ;; f.hex() ;; f.as_integer_ratio() ;; (3.7)|int
'3.7'|int ;; 'x'|int ;; 'x'|int(5) ;; '0x1f'|int(0, 16) ;; '1e3'|int ;; 'inf'|int ;; none|int ;; missing|int
[]|int(4) ;; '3.5x'|float ;; '1e400'|float ;; 'nan'|float ;; none|float(1.5) ;; missing|float ;; true|int
42.55|round ;; 42.55|round(1, 'floor') ;; 42.5|round ;; 43.5|round ;; 2.675|round(2) ;; 1234|round(-2)
42.1|round(0, 'ceil') ;; 42|round(1, 'x') ;; -3|abs ;; (-3)|abs ;; 1000|filesizeformat
1536|filesizeformat(true) ;; 'a'|abs ;; 1e22 ;; 1e23 ;; 5e-324 ;; 1.7976931348623157e308
"""
TESTS = r"""
3 is odd ;; 4 is even ;; 9 is divisibleby 3 ;; 9 is divisibleby(0) ;; 'a' is in 'abc' ;; 4 is in l
1 is sameas 1 ;; z is sameas none ;; t is true ;; t is false ;; 'a' is lower ;; 'A' is upper ;; 3 is eq 3
3 is ne(4) ;; 3 is gt 2 ;; 3 is lessthan 2 ;; 3 is lt 2 ;; 3 is ge 3 ;; 3 is greaterthan 2 ;; 3 is >= 2
'upper' is filter ;; 'nope' is filter ;; 'even' is test ;; '<'|e is escaped ;; s.upper is callable
s is not string ;; missing.x is defined ;; rows[9] is defined ;; s is nope ;; missing is odd
'a' is divisibleby 2 ;; namespace() is mapping ;; dict is callable ;; not s is string
"""
UNDEFINED = r"""
missing ;; missing.a ;; missing['a'] ;; missing() ;; missing + 1 ;; 1 + missing ;; missing ~ 'a'
'a' ~ missing ;; missing == missing ;; missing == none ;; missing|tojson ;; [missing]|tojson
{'a': missing}|tojson ;; d.nope ;; d.nope.x ;; d['nope'] ;; rows[9] ;; rows[9].k ;; missing|length
missing|upper ;; missing|default('x') ;; none|default('x') ;; none|default('x', true) ;; missing or 'x'
missing and 1 ;; not missing ;; missing in [1] ;; 1 in missing ;; missing|join(',') ;; missing|list
missing|first ;; missing|sort ;; missing|items|list ;; missing is defined and missing.x ;; missing[1:]
-missing ;; missing < 1 ;; '%d' % missing ;; missing|replace('a', 'b') ~ '|' ;; missing|trim ~ '|'
missing|map('upper')|list ;; missing if false ;; (1 if false) ~ '|' ;; (1 if false).x ;; nope()
messages[1].content.x ;; messages[1].content['x'] ;; messages[1]['content']|length
messages[0].nope|default('d') ;; missing.__class__ ;; s.__class__ ;; s.__class__.__mro__ ;; l.append(1)
l.append ;; d.pop('a') ;; d.update({}) ;; raise_exception.__globals__ ;; messages.__class__ ;; d.__len__()
namespace.__init__ ;; {}.__class__.__base__ ;; s|attr('__class__') ;; l|map(attribute='__class__')|list
d.clear is callable ;; [missing] ;; {'a': missing}
"""
FILTERS = r"""
l|sort ;; words|sort ;; words|sort(case_sensitive=true) ;; words|sort(reverse=true)
rows|sort(attribute='v')|map(attribute='v')|list ;; rows|sort(attribute='k,v')|tojson ;; d|dictsort
d|dictsort(true) ;; {'a': 2, 'b': 1}|dictsort(by='value') ;; {'a': 2, 'b': 1}|dictsort(false, 'value', true)
d|dictsort(by='x') ;; rows|groupby('k') ;; rows|groupby('k', case_sensitive=true)|length
rows|groupby('in.y', default=0)|tojson ;; (rows|groupby('k'))[0].grouper ;; (rows|groupby('k'))[0].list|length
l|batch(3)|list ;; l|batch(3, 'x')|list ;; l|slice(3)|list ;; l|slice(3, 'x')|list ;; l|batch(0)|list
l|slice(0)|list ;; l|first ;; l|last ;; []|first ;; []|last ;; l|min ;; l|max ;; []|max ;; words|min
rows|max(attribute='v') ;; l|sum ;; rows|sum(attribute='v') ;; [[1], [2]]|sum(start=[]) ;; l|unique|list
words|unique|list ;; words|unique(true)|list ;; l|reverse|list ;; s|reverse ;; l|join('-')
rows|join(', ', attribute='k') ;; 'abc'|join('.') ;; l|length ;; d|length ;; d|count ;; n|length
rows|map(attribute='in.y', default='?')|list ;; rows|map(attribute='k')|join ;; words|map('upper')|list
words|map('replace', 'a', 'x')|list ;; l|map('nope')|list ;; l|map|list ;; l|select('odd')|list
l|reject('odd')|list ;; [0, 1, '', 'a']|select|list ;; rows|selectattr('in')|list|length
rows|selectattr('k', 'equalto', 'a')|list|length ;; l|select('nope')|list
rows|rejectattr('k', 'in', ['a', 'b'])|map(attribute='k')|list ;; l|select('>', 1)|list ;; d|items|list
d|list ;; s|list|length ;; d.items()|list ;; d.keys() ;; d.values() ;; d|tojson ;; d|tojson(indent=2)
u|tojson ;; u|tojson(ensure_ascii=true) ;; d|tojson(separators=(',', ':'))
{'b': 1, 'a': 2}|tojson(sort_keys=true) ;; 1e400|tojson ;; (1, 2)|tojson ;; none|tojson ;; true|tojson
1.0|tojson ;; 1e16|tojson ;; d.items()|tojson ;; {1: 2, none: 3}|tojson ;; d|tojson(2) ;; d|tojson(indent='--')
big|tojson ;; '<'|e|tojson ;; 'a\n\nb'|indent ;; 'a\n\nb'|indent(2, true) ;; 'a\n\nb'|indent(2, blank=true)
'a\nb'|indent('> ') ;; 3|indent ;; 'a b c d e f g h'|truncate(9) ;; s|truncate(5, true, '') ;; s|truncate(2)
s|wordwrap(5) ;; s|wordwrap(5, false, '|') ;; s|center(40) ~ '|' ;; ' a '|trim ~ '|' ;; 'xax'|trim('x')
3|trim ;; '<a>'|e ;; '<a>'|escape ~ '<' ;; '<'|safe ~ '<' ;; '<'|forceescape ;; '<b>x</b> y'|striptags
('<'|e) + '<' ;; ('%s'|safe) % '<' ;; ('<'|e).upper() ;; 'a b&c/é'|urlencode ;; {'a': 1, 'b': 'x y'}|urlencode
'see http://a.bc x'|urlize ;; d|pprint ;; l|pprint ;; {'a': 1, 'b': none}|xmlattr ;; s|replace('o', '0')
s|replace('o', '0', 1) ;; 12|replace(1, 3) ;; n|string ~ 1 ;; l|string ;; s|upper ;; l|upper ;; s|lower
s|attr('upper')() ;; d|attr('b') ;; d|attr('items')()|list ;; s|default ;; ''|d('x', true) ;; s|nope
l|list is sameas l ;; 'a,b'.split(',')|last ;; d.get('b') ;; d.get('q', 5) ;; d.get('q') ;; d.copy() == d
{}.fromkeys([1, 2], 3) ;; dict(a=1, b=2) ;; dict([['a', 1]]) ;; dict(d, z=1)|length ;; dict.fromkeys('ab')
l.index(2) ;; l.index(9) ;; l.count(3) ;; (1, 2).index(2)
"""
VALUES = r"""
l ;; d ;; rows[0] ;; (1,) ;; () ;; (1, 'a', none) ;; [] ;; {} ;; none ;; true ;; None ;; True
[none, true, 1.0, 'a\'b'] ;; range(3) ;; range(0, 10, 3)|list ;; range(5)[1:3] ;; range(-1)|list ;; l[0]
l[-1] ;; l[1:] ;; l[:-1] ;; l[::2] ;; l[::0] ;; l['a'] ;; l[1.0] ;; l.0 ;; rows.0.k ;; d['a'][2].x
d.a[2]['x'] ;; d.items2 ;; d.C ;; d[1:2] ;; d[[1]] ;; n[0] ;; n.x ;; z.x ;; z['x'] ;; 'a' if n > 3 else 'b'
'a' if n > 30 ;; n in l ;; n not in l ;; 'b' in d ;; 3 in d ;; [1] in [[1]] ;; 1 in 5 ;; n and s ;; z or 'x'
z and 1 ;; n == 7 and not t ;; s ~ n ~ f ~ z ~ t ;; 1 ~ 2 ;; namespace(a=1).a ;; namespace({'b': 2}).b
namespace(a=1) ;; namespace(_a=1) ;; namespace().x ;; cycler('a', 'b').next() ;; cycler('a', 'b').current
cycler() ;; joiner()() ;; joiner('|')() ~ 'x' ;; range ;; lipsum is callable ;; loop ;; caller ;; varargs
true is sameas true ;; dict ;; [1, 2, 3][messages|length - 1]
messages|length > 1 and messages[0].role == 'user' ;; {'a': 1}['a'] ;; {**d} ;; [*l] ;; l|map(attribute=0)|list
'%s'|format(*l) ;; dict(**{'a': 1}) ;; dict(a=1, **{'a': 2}) ;; raise_exception('no') ;; raise_exception()
strftime_now('%%') ;; strftime_now(1) ;; {'a': 1, 'a': 2} ;; {[]: 1} ;; {1: 'x', true: 'y'} ;; (l, d)|length
s.upper()() ;; 3() ;; ('a', 'b')|join ;; d.b.c ;; [[1, 2], [3]]|map('sum')|list ;; l|map('string')|join
l.copy() ;; messages[0]
"""
OF_TYPES = ("s", "l", "d", "(1, 2)", "range(2)", "n", "t", "z", "missing", "l|map('upper')", "f", "d.keys()")
TYPES = (
    "sequence",
    "mapping",
    "iterable",
    "string",
    "number",
    "integer",
    "float",
    "boolean",
    "defined",
    "undefined",
    "none",
    "callable",
)
_TABLES = (STRINGS, FORMATS, NUMBERS, TESTS, UNDEFINED, FILTERS, VALUES)
ALL = (
    *(one for table in _TABLES for line in table.strip().splitlines() for one in line.split(SEPARATOR)),
    *(f"{value} is {kind}" for value in OF_TYPES for kind in TYPES),
)
EXPLAINED = {
    "'abc'.encode": "str.encode",
    "self": "the variable self",
    "2.5[1:]": "'float' object is not subscriptable",
    "lipsum()|length": "lipsum: its text is random",
    "l|random": "the filter random",
    "10 ** 20000 > 1": "an integer of more than 65536 bits",
    "'a'.ljust(10001)|length": ".ljust(10001): at most 10000",
    "('%10001d' % 1)|length": "a width in a format: at most 10000",
    "'{:10001}'.format(1)|length": "a width in a format: at most 10000",
    "d|tojson(indent=17)|length": "tojson(indent=17): at most 16",
    "(strftime_now('x' * 1001))|length": "strftime_now with 1001 characters: at most 1000",
}
"""Every kind of difference, and what llmc says: bytes, the template as a value, slices of
constants that have none (Jinja2 folds them to undefined; of a variable it is an error), what is random or too large."""

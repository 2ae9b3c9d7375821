"""Tests that run in another process than the answer take every right answer that they took in one with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.config.schema.rewards import CodeRewardConfig
from nemotron.rewards.code import Code
from nemotron.rewards.code_tests import same_in_python
from nemotron.rewards.types import VerifierError
from nemotron.sandbox import exchange

STACK = """
class Empty(IndexError): pass
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, x): self.items.append(x); return self
    def pop(self):
        if not self.items: raise Empty("nothing", 0)
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __repr__(self): return f"Stack({self.items})"
    def __enter__(self): return self
    def __exit__(self, *a): self.items.clear()
    def __getitem__(self, i): return self.items[i]
    def __setitem__(self, i, x): self.items[i] = x
    def search(self, x): return x in self.items
"""
NODE = "class Node:\n    def __init__(self, x): self.x = x; self.next = None\n"
KINDS = """
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import IntEnum
from decimal import Decimal
from fractions import Fraction
from datetime import date
class Color(IntEnum): RED = 1
Point = namedtuple("Point", "x y")
class Grown(list):
    def grow(self): self.append(1); return self
"""
RIGHT: list[tuple[str, str | list[str]]] = [
    # source, tests
    ("def f(x): return {x, 2}", "assert f(1) == {1, 2}"),
    ("def f(x): return (x, [x, {'a': (x,)}])", "assert f(1) == (1, [1, {'a': (1,)}])"),
    ("def f(x): return 10 ** 400 + x", "assert f(1) == 10 ** 400 + 1"),
    ("def f(x): return 10 ** 400", f"assert f(1) == {10**400}"),
    ("def f(x): return True", "assert f(1) == 1"),
    ("def f(x): return b'\\x00' + bytes(x)", "assert f(1) == b'\\x00\\x00'"),
    ("def sum(a, b): return a + b", "assert sum(10, 15) == 25"),
    ("def f(x): return x", "assert sorted([2, 1]) == [1, 2]"),
    ("def f(x): return '\\u00e9' + x", "assert f('\\U0001f600') == '\\u00e9\\U0001f600'"),
    ("def f(x): return None", "assert f(1) is None"),
    ("def f(x): return 0.1 + x", "import math\nassert math.isclose(f(0.2), 0.3)"),
    ("def f(x): return 0.1 + x", "assert abs(f(0.2) - 0.3) < 1e-9"),
    ("import math\ndef f(x): return math.pi", "assert f(1) == math.pi"),
    ("from typing import List\ndef f(x: List[int]): return x", "def t(y: List[int]): assert f(y) == y\nt([1])"),
    ("def f(x):\n    yield x\n    yield x + 1", "assert list(f(1)) == [1, 2]\nassert next(f(3)) == 3"),
    ("def f(x): return map(str, x)", "assert list(f([1, 2])) == ['1', '2']"),
    ("def f(x): return (i for i in x)", "assert sum(f(iter([1, 2]))) == 3"),
    ("def f(x): x.sort()", "x = [3, 1]\nf(x)\nassert x == [1, 3]"),
    ("def f(x): x[0] = 'a'; x.update(b=1)", "x = {0: 1}\nf(x)\nassert x == {0: 'a', 'b': 1}"),
    ("def f(g, x): return g(g(x))", "assert f(lambda x: x * 2, 3) == 12"),
    ("def f(g): return [g(i) for i in range(3)]",
     "def h(i):\n    return f2(i)\ndef f2(i): return i * i\nassert f(h) == [0, 1, 4]"),
    ("def f(x): return lambda y: x + y", "assert f(1)(2) == 3"),
    ("def f(x):\n    if x < 0: raise ValueError('negative')\n    return x",
     "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'negative'"),
    ("def f(x): return {}[x]",
     "try:\n    f('k')\n    assert False\nexcept KeyError as e:\n    assert e.args == ('k',)"),
    (STACK, "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s.pop() == 2 and s.items == [1]"),
    (STACK, "s = Stack([1])\ns[0] = 5\nassert s[0] == 5 and list(s) == [5] and 5 in s and s.search(5)"),
    (STACK, "assert Stack([1]) == Stack([1]) and Stack([1]) != Stack([2]) and isinstance(Stack(), Stack)"),
    (STACK, "assert repr(Stack([1])) == 'Stack([1])' and str(Stack()) == 'Stack([])' and f'{Stack()}' == 'Stack([])'"),
    (STACK, "try:\n    Stack().pop()\n    assert False\nexcept Empty as e:\n    assert e.args == ('nothing', 0)"),
    (STACK, "try:\n    Stack().pop()\n    assert False\nexcept IndexError:\n    pass"),
    (STACK, "with Stack([1]) as s:\n    assert len(s) == 1\nassert not s"),
    (STACK, "assert not hasattr(Stack(), 'peek')\nassert hasattr(Stack(), 'push')"),
    (NODE, "a, b = Node(1), Node(2)\na.next = b\nassert a.next.x == 2 and a.next is not None and b.next is None"),
    (KINDS + "def f(): return Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
    (KINDS + "def f(): return OrderedDict(b=1, a=2)", "assert f() == {'a': 2, 'b': 1} and list(f()) == ['b', 'a']"),
    (KINDS + "def f():\n    d = defaultdict(list); d[1].append(2); return d", "assert f() == {1: [2]}"),
    (KINDS + "def f(): return Color.RED", "assert f() == 1 and f() < 2 and f() + 1 == 2 and f() in (1, 2)"),
    (KINDS, "p = Point(1, 2)\nassert p == (1, 2) and p.x == 1 and {p} == {(1, 2)} and p[1] == 2"),
    (KINDS, "g = Grown()\ng.grow()\ng.grow()\nassert g == [1, 1] and len(g) == 2"),
    (KINDS + "def f(): return Decimal('1.50')", "assert f() == 1.5"),
    (KINDS + "def f(): return [Fraction(1, 2)]", "assert f() == [0.5]"),
    (KINDS + "def f(): return date(2020, 1, 2)", "from datetime import date\nassert f() == date(2020, 1, 2)"),
    (KINDS + "def f(): return deque([1], 3), complex(1, 2), range(3)",
     "from collections import deque\nassert f() == (deque([1]), 1 + 2j, range(3))"),
    ("def f(x): print('hi', x)", "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n"
     "    f(1)\nassert out.getvalue() == 'hi 1\\n'"),
    ("def f(x): return x", "import random\nfor _ in range(50):\n    x = random.random()\n    assert f(x) == x"),
    ("class Solution:\n    def two(self, x): return x + 2", "assert Solution().two(1) == 3"),
    ("VALUE = 3\ndef f(): return VALUE", "assert f() == VALUE == 3"),
    ("async def f(x): return x", "import asyncio\nclass A:\n    def __await__(s): yield\nassert callable(f)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def function() -> Iterator[Code]:
    made = Code(CodeRewardConfig.model_validate({"name": "code", "extract": "whole", "test_timeout_s": 20.0}))
    yield made
    made.close()


@pytest.mark.parametrize(("source", "tests"), RIGHT)
def test_right_answers_pass(function: Code, source: str, tests: str) -> None:
    assert function({"test_list": [tests]}, source, ended=True) == 1.0


def test_the_method_of_a_class_is_checked(function: Code) -> None:
    row = {"test": "def check(candidate):\n    assert candidate(1) == 3", "entry_point": "Solution().two"}
    assert function(row, "class Solution:\n    def two(self, x): return x + 2", ended=True) == 1.0
    assert function(row, "class Solution:\n    def two(self, x): return x + 3", ended=True) == 0.0


def test_what_cannot_be_handed_over_is_the_fault_of_the_row(function: Code) -> None:
    row = {"test_list": ["import io\nassert f(io.StringIO('x')) == 'x'"]}
    with pytest.raises(VerifierError, match="hands the answer a StringIO"):
        function(row, "def f(x): return x.read()", ended=True)


HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=8,
)


def _none(*_: Any) -> Any:
    raise AssertionError("plain data needs no reference")


def shape(value: Any) -> Any:
    """Equal for equal values of equal types, whatever the order of a set; NaN is equal too."""
    if isinstance(value, dict):
        return frozenset((shape(key), shape(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(shape, value))
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(shape, value))
    return type(value), repr(value)


@given(VALUES, VALUES)
def test_values_are_compared_as_python_compares(left: Any, right: Any) -> None:
    """Across the wire, and also where the comparison builds nothing."""
    wire = json.loads(json.dumps(exchange.encode(left, _none)))
    assert shape(exchange.decode(wire, _none)) == shape(left)
    assert same_in_python(wire, right) == (exchange.decode(wire, _none) == right)
    assert same_in_python(wire, left) == (exchange.decode(wire, _none) == left)

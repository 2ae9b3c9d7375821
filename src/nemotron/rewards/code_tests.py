"""Unit tests as rows have them, in one form, and whether what code gave is what a test expects."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from nemotron.rewards.text import MISSING, field, first_field, listed_fields
from nemotron.sandbox.exchange import NotPlainError

TEST_FIELDS = ("verifier_metadata.unit_tests", "unit_tests", "tests", "test_list", "test")
"""Where a row has its tests when the config names no field."""


@dataclass(frozen=True, slots=True)
class UnitTest:
    """One test."""

    kind: Literal["main", "call", "equal", "assert"]
    """``main``: run as a program and compare its output. ``call``: call a function and compare as JSON. ``equal``: an
    assert line that is a call and a literal; compared as Python compares. ``assert``: other lines, which are run in a
    process of their own."""
    stdin: str = ""
    function: str = ""
    """What is called; for ``assert`` the name that is the answer's even where Python has one of its own."""
    arguments: tuple[Any, ...] = ()
    expected: Any = None
    """Standard output (``main``) or value (``call``)."""
    wrapped: bool = False
    """The value may stand alone in a list in ``expected``."""
    test: str = ""


def unit_tests(row: Mapping[str, Any], name: str | None) -> list[UnitTest] | str:
    """The tests of a row, or why there are none."""
    names = (name,) if name else TEST_FIELDS
    value = field(row, name) if name else first_field(row, names)
    if value is MISSING:
        return f"the row has no {listed_fields(names)}"
    try:
        tests = _read(value, row.get("entry_point"))
    except (ValueError, TypeError, KeyError) as error:
        return f"its unit tests cannot be read: {error}"
    return tests or "its list of unit tests is empty"


def _read(value: Any, entry_point: Any) -> list[UnitTest]:
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except ValueError:
            decoded = None
        if isinstance(decoded, list | dict):
            return _read(decoded, entry_point)
        # HumanEval: ``check`` is defined by the test and takes the function.
        if isinstance(entry_point, str) and "def check(" in value:
            tested = entry_point.partition(".")[0].partition("(")[0]
            return [UnitTest("assert", function=tested, test=_python(f"{value}\ncheck({entry_point})\n"))]
        return [_assertion(_python(value))]
    if isinstance(value, Mapping):
        return _columns(value)
    if not isinstance(value, list):
        raise ValueError(f"expected a mapping or a list, got {type(value).__name__}")
    tests: list[UnitTest] = []
    for item in value:
        # One text may hold many tests.
        tests += _read(item, entry_point) if isinstance(item, str) else [_one(item)]
    return tests


def _columns(value: Mapping[str, Any]) -> list[UnitTest]:
    """``{inputs, outputs, fn_name?}`` (APPS, TACO, NeMo-Gym's code_gen)."""
    inputs, outputs = value.get("inputs"), value.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise ValueError("expected lists `inputs` and `outputs`")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs but {len(outputs)} outputs")
    tests = [_pair(given, expected, value.get("fn_name")) for given, expected in zip(inputs, outputs, strict=True)]
    # APPS, TACO and Eurus-2 wrap values in a list of one, and do so for all tests of a function or for none.
    wrapped = all(isinstance(test.expected, list) and len(test.expected) == 1 for test in tests)
    return [replace(test, wrapped=wrapped and test.kind == "call") for test in tests]


def _one(value: Any) -> UnitTest:
    """``{input, output, testtype?, fn_name?}`` (LiveCodeBench)."""
    if not isinstance(value, Mapping) or "input" not in value or "output" not in value:
        raise ValueError("expected `input` and `output` in each test")
    return _pair(value["input"], value["output"], value.get("fn_name"))


def _pair(given: Any, expected: Any, function: Any) -> UnitTest:
    if function is None:
        return UnitTest("main", stdin=_text(given), expected=_text(expected))
    if not isinstance(function, str) or not function.isidentifier():
        raise ValueError(f"`fn_name` {function!r} is no name of a function")
    if isinstance(given, str):
        # One argument in JSON per line, and the value in JSON.
        arguments = tuple(json.loads(line) for line in given.splitlines() if line.strip())
        return UnitTest("call", function=function, arguments=arguments, expected=json.loads(expected))
    arguments = tuple(given) if isinstance(given, list) else (given,)
    return UnitTest("call", function=function, arguments=arguments, expected=expected)


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str | int | float):
        raise ValueError(f"expected text, got {type(value).__name__}")
    return str(value)


def _python(test: str) -> str:
    try:
        compile(test, "test.py", "exec")
    except SyntaxError as error:
        raise ValueError(f"a test is not Python: {error.msg}") from error
    return test


def _assertion(test: str) -> UnitTest:
    """The one line ``assert name(literals) == literal`` as a call whose value is compared here; others as they are."""
    match ast.parse(test).body:
        case [ast.Assert(ast.Compare(ast.Call(ast.Name(name), arguments, []), [ast.Eq()], [right]))]:
            try:
                values = tuple(ast.literal_eval(argument) for argument in arguments)
                expected = ast.literal_eval(right)
            except (ValueError, TypeError, MemoryError, RecursionError):
                return UnitTest("assert", test=test)
            return UnitTest("equal", function=name, arguments=values, expected=expected, test=test)
    return UnitTest("assert", test=test)


def same_in_python(found: Any, expected: Any) -> bool:
    """Whether what `exchange.encode` made of a value equals a literal, as ``==`` says.

    Nothing larger than the literal is built: an answer may have made up a set whose elements all hash alike.

    Raises:
        NotPlainError: it is of a type that has to be rebuilt first.
    """
    if isinstance(found, list):
        return isinstance(expected, list) and len(found) == len(expected) and all(map(same_in_python, found, expected))
    if not isinstance(found, dict):
        return bool(found == expected)
    [(tag, content)] = found.items()
    if tag == "t":
        return isinstance(expected, tuple) and same_in_python(content, list(expected))
    if tag in ("s", "f"):
        same_size = isinstance(expected, set | frozenset) and len(content) == len(expected)
        return same_size and {_element(item) for item in content} == expected
    if tag == "d":
        if not isinstance(expected, dict) or len(content) != len(expected):
            return False
        keys = [_element(key) for key, _ in content]
        return set(keys) == set(expected) and all(
            same_in_python(item, expected[key]) for key, (_, item) in zip(keys, content, strict=True)
        )
    return bool(_element(found) == expected)


def _element(found: Any) -> Any:
    if not isinstance(found, dict):
        return found
    [(tag, content)] = found.items()
    if tag == "i":
        return int(content, 16)
    if tag in ("t", "f"):
        return (tuple if tag == "t" else frozenset)(_element(item) for item in content)
    if tag in ("b", "B"):
        return (bytes if tag == "b" else bytearray).fromhex(content)
    raise NotPlainError(str(tag))


def right_value(test: UnitTest, value: Any) -> bool:
    """Whether a function gave what a test expects."""
    return same_value(value, test.expected) or (test.wrapped and same_value(value, test.expected[0]))


def same_output(found: str, expected: str) -> bool:
    """Equal line by line without white space at the ends; numbers may be written differently (``1.50`` for ``1.5``)."""
    left, right = _lines(found), _lines(expected)
    return left == right or (len(left) == len(right) and all(map(_same_line, left, right)))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same_line(found: str, expected: str) -> bool:
    left, right = found.split(), expected.split()
    return len(left) == len(right) and all(map(_same_word, left, right))


def _same_word(found: str, expected: str) -> bool:
    if found == expected:
        return True
    try:
        return Decimal(found) == Decimal(expected)
    except InvalidOperation:
        return False


def same_value(found: Any, expected: Any) -> bool:
    """Equal as JSON; floats to nine digits."""
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_value, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_value(found[key], expected[key]) for key in found)
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, float) or isinstance(expected, float):
        if not isinstance(found, int | float) or not isinstance(expected, int | float):
            return False
        try:
            return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
        except OverflowError:  # an integer beyond every float
            return False
    return bool(found == expected)

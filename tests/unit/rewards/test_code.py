"""Code rewards: forms of tests, scores, and what does not pass for a pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.config.schema.rewards import CodeRewardConfig, RewardConfig
from nemotron.errors import NotAvailableError
from nemotron.rewards import build_rewards, code, row_problems, rows, setup_problems
from nemotron.rewards.code import Code
from nemotron.rewards.code_tests import right_value, same_output, same_value, unit_tests
from nemotron.sandbox.box import containment

DOUBLE = "```python\nprint(2 * int(input()))\n```"
ADD = "```python\ndef add(a, b):\n    return a + b\n```"
STDIN = {"tests": {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}}
CALLS = {"tests": {"inputs": ["1\n2", "3\n4"], "outputs": ["3", "7"], "fn_name": "add"}}
ASSERTS = {"test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}


SHARED = [json.loads(line) for line in (Path(__file__).parents[2] / "cases" / "code.jsonl").read_text().splitlines()]


def make(**keys: Any) -> Code:
    return Code(CodeRewardConfig.model_validate({"name": "code", "test_timeout_s": 20.0, **keys}))


@pytest.fixture(scope="module")
def run_all() -> Iterator[Code]:
    function = make()
    yield function
    function.close()


@pytest.fixture(scope="module")
def run_share() -> Iterator[Code]:
    function = make(score="share")
    yield function
    function.close()


CASES = [
    # row, response, value of `all`, value of `share`
    (STDIN, DOUBLE, 1.0, 1.0),
    (STDIN, "```python\nprint(2)\n```", 0.0, 0.5),
    (STDIN, DOUBLE + "\nor\n```\nprint(1)\n```", 0.0, 0.0),
    (STDIN, "<think>" + DOUBLE + "</think> I do not know", 0.0, 0.0),
    (STDIN, "print(2 * int(input()))", 0.0, 0.0),
    (STDIN, "```python\nprint(2 * int(input()))\nraise SystemExit(1)\n```", 0.0, 0.0),
    (STDIN, "```python\nthis is not python\n```", 0.0, 0.0),
    (CALLS, ADD, 1.0, 1.0),
    (CALLS, "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```", 1.0, 1.0),
    (CALLS, "```python\ndef add(a, b):\n    return 3\n```", 0.0, 0.5),
    (CALLS, "```python\ndef add(a, b):\n    print('{}')\n    return a + b\n```", 1.0, 1.0),
    (CALLS, "```python\ndef add(a, b):\n    return {1}\n```", 0.0, 0.0),
    ({"tests": json.dumps([{"input": "[2, 1]", "output": "[1, 2]", "fn_name": "f"}])},
     "```py\ndef f(x):\n    return tuple(sorted(x))\n```", 1.0, 1.0),
    (ASSERTS, ADD, 1.0, 1.0),
    (ASSERTS, "```python\ndef add(a, b):\n    return 0\n```", 0.0, 0.5),
    ({"test": "def check(f):\n    assert f(2, 2) == 4", "entry_point": "add"}, ADD, 1.0, 1.0),
    # Ways to look as if the tests had passed.
    (ASSERTS, "```python\nimport os\nos._exit(0)\n```", 0.0, 0.0),
    (ASSERTS, "```python\nimport sys\nsys.exit(0)\n```", 0.0, 0.0),
    (ASSERTS, "```python\nimport os\nfor fd in range(3, 20):\n    try: os.write(fd, b'{\"token\": \"x\"}')\n"
     "    except OSError: pass\nos._exit(0)\n```", 0.0, 0.0),
    (ASSERTS, "```python\nprint(open('task.json').read())\n```", 0.0, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case["name"])
def test_tests_as_public_sets_write_them(run_all: Code, case: dict[str, Any]) -> None:
    assert run_all({"tests": case["tests"]}, f"```python\n{case['program']}\n```", ended=True) == case["want"]


JSON_VALUES = st.recursive(st.integers(-5, 5) | st.text("ab", max_size=2), lambda inner: st.lists(inner, max_size=3))


@given(st.lists(JSON_VALUES, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_what_a_right_function_gives_is_right(values: list[Any], wrapped: bool, as_text: bool) -> None:
    """However a set wraps its outputs and packs its tests, and none of the tests is lost."""
    columns = {"fn_name": "f", "inputs": [[0]] * len(values), "outputs": [[v] if wrapped else v for v in values]}
    tests = unit_tests({"tests": json.dumps(columns) if as_text else columns}, None)
    assert not isinstance(tests, str)
    assert [right_value(test, value) for test, value in zip(tests, values, strict=True)] == [True] * len(values)


def test_a_list_of_one_is_unwrapped_only_where_all_are() -> None:
    tests = unit_tests({"tests": {"fn_name": "f", "inputs": [[0], [1]], "outputs": [[3], []]}}, None)
    assert not isinstance(tests, str)
    assert (right_value(tests[0], [3]), right_value(tests[0], 3)) == (True, False)


@pytest.mark.parametrize(("row", "response", "all_of", "share"), CASES)
def test_values(
    run_all: Code, run_share: Code, row: dict[str, Any], response: str, all_of: float, share: float
) -> None:
    assert run_all(row, response, ended=True) == all_of
    assert run_share(row, response, ended=True) == share


def test_what_is_too_slow_has_failed() -> None:
    function = make(test_timeout_s=0.2, score="share")
    slow = "```python\nimport time\nif input() == '1': time.sleep(60)\nprint(4)\n```"
    assert function(STDIN, slow, ended=True) == 0.5
    function.close()


def test_only_the_first_tests() -> None:
    function = make(max_tests=1)
    assert function(STDIN, "```\nprint(2)\n```", ended=True) == 1.0
    function.close()


def test_several_at_once() -> None:
    config = RewardConfig.model_validate({"functions": [{"name": "code"}], "workers": 3})
    with build_rewards(config) as scorer:
        scores = scorer.score_many([(CALLS, ADD, True), (CALLS, DOUBLE, True)] * 3)
    assert [score.reward for score in scores] == [1.0, 0.0] * 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "the row has no `verifier_metadata.unit_tests` or"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "1 inputs but 0 outputs"),
        ({"tests": {"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}}, "cannot be read"),
        ({"tests": {"inputs": ["1"], "outputs": ["1"], "fn_name": "f()"}}, "no name of a function"),
        ({"tests": []}, "list of unit tests is empty"),
        ({"tests": ["assert (", "x"]}, "a test is not Python"),
        ({"tests": [3]}, "expected `input` and `output`"),
        ({"tests": 3}, "expected a mapping or a list"),
    ],
)
def test_rows_without_usable_tests(row: dict[str, Any], problem: str) -> None:
    config = RewardConfig.model_validate({"functions": [{"name": "code"}]})
    [(index, found)] = row_problems(config, row)
    assert index == 0
    assert problem in found


def test_nested_field() -> None:
    assert len(unit_tests({"verifier_metadata": {"unit_tests": STDIN["tests"]}}, None)) == 2
    assert unit_tests({"a": {"b": STDIN["tests"]}}, "a.b") == unit_tests(STDIN, None)


def test_outputs_are_compared_kindly_but_not_too_kindly() -> None:
    assert same_output("1.50 a \n b\n\n", "1.5 a\nb")
    assert same_output("", "\n")
    assert not same_output("1 2", "1\n2")
    assert not same_output("12", "1 2")
    assert not same_output("0.30000000000000004", "0.3")
    assert same_value([1, {"a": 0.1 + 0.2}], [1, {"a": 0.3}])
    assert not same_value(True, 1)
    assert not same_value([1], [1, 2])
    assert not same_value("1", 1)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
@settings(max_examples=50, deadline=None)
def test_every_value_equals_itself(value: Any) -> None:
    assert same_value(json.loads(json.dumps(value)), value)


def test_a_weak_machine_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "containment", lambda: ("weak", {"namespaces": "no", "landlock": "no"}))
    monkeypatch.setattr("nemotron.rewards.rows.containment", code.containment)
    rows._all_setup.cache_clear()
    strict = RewardConfig.model_validate({"functions": [{"name": "code"}]})
    with pytest.raises(NotAvailableError, match="cannot keep untrusted code"):
        build_rewards(strict)
    [problem] = setup_problems(strict)
    assert (problem.severity, problem.name, problem.kind) == ("error", "weak-sandbox", NotAvailableError)
    allowed = RewardConfig.model_validate({"functions": [{"name": "code", "allow_weak_sandbox": True}]})
    [problem] = setup_problems(allowed)
    assert (problem.severity, problem.name) == ("warning", "weak-sandbox")
    with build_rewards(allowed) as scorer:
        assert scorer.score(ASSERTS, ADD, ended=True).reward == 1.0
        assert scorer.score(STDIN, DOUBLE, ended=True).reward == 1.0
        for harm in ("open('/tmp/nemotron-weak', 'w')", "import socket; socket.socket()", "import os; os.fork()"):
            assert scorer.score(ASSERTS, ADD.replace("def", f"{harm}\ndef"), ended=True).reward == 0.0
    rows._all_setup.cache_clear()


def test_this_machine_contains_code() -> None:
    config = RewardConfig.model_validate({"functions": [{"name": "code"}]})
    problems = setup_problems(config)
    assert (problems == []) == (containment()[0] == "namespaces")

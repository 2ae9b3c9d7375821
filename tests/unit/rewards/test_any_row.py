"""Whatever JSON a row holds, a reward function says that it can use the row, or why not; it never fails itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron.config.schema.rewards import RewardConfig
from nemotron.rewards import gold_problems, row_problems
from nemotron.rewards.instructions import INSTRUCTIONS

pytest.importorskip("math_verify")
pytest.importorskip("jsonschema")

FUNCTIONS: list[dict[str, Any]] = [
    {"name": "math"},
    {"name": "exact"},
    {"name": "choice"},
    {"name": "code", "allow_weak_sandbox": True},
    {"name": "regex", "pattern_field": "pattern"},
    {"name": "json_schema", "schema_field": "schema"},
    {"name": "instructions"},
]
NAMES = ["answer", "expected_answer", "tests", "verifier_metadata", "unit_tests", "pattern", "schema", "options"]
NAMES += ["instruction_id_list", "kwargs", "grading_mode", "test", "entry_point", "fn_name", "inputs", "outputs"]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
texts = st.sampled_from(
    [*INSTRUCTIONS, "[1", "(a", "{}", "[]", "A", "assert f(1) == 2", '{"inputs": ["1"], "outputs": 3}']
)
values = st.recursive(
    scalars | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function["name"])
@settings(max_examples=30, deadline=None)
@example(row={"instruction_id_list": ["keywords:existence"], "kwargs": ["text"]})
@example(row={"instruction_id_list": [["a"]], "kwargs": [None]})
@given(row=st.dictionaries(st.sampled_from(NAMES), values, max_size=5))
def test_a_row_function_gives_a_value_or_a_problem(function: dict[str, Any], row: dict[str, Any]) -> None:
    config = RewardConfig.model_validate({"functions": [function], "workers": 1})
    problems = row_problems(config, row)
    assert [index for index, _ in problems] in ([], [0])
    assert all(problem and problem == problem.strip() for _, problem in problems)
    for found in gold_problems(config, [row]):
        assert found.message

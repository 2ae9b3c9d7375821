"""Functions in a worker process: values, and what happens when they raise, hang, crash or cannot be set up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from nemotron.config.schema import rewards as schema
from nemotron.config.schema.rewards import RewardConfig, RewardFunctionConfig
from nemotron.errors import ConfigError, DataError
from nemotron.rewards import Scorer, build_rewards, row_problems
from nemotron.rewards.functions import isolated

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}
REMOTE = {"$ref": "https://example.com/schema.json"}
USER = """
import os, time

def length(row, response, *, ended, limit=10):
    if response == "raise":
        raise KeyError("no such thing")
    if response == "hang":
        time.sleep(60)
    if response == "crash":
        os._exit(3)
    if response == "print":
        print("{}")
    odd = {"none": None, "large": 2.0, "nan": float("nan"), "true": True}
    return odd.get(response, min(1.0, len(response) / limit))
"""


def config(*functions: dict[str, Any], **keys: Any) -> RewardConfig:
    return RewardConfig.model_validate({"functions": list(functions), "workers": 1, **keys})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "length_reward.py").write_text(USER)
    (folder / "broken_reward.py").write_text("import a_module_that_is_not_there\n")
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[Scorer]:
    functions = [
        {"name": "math"},
        {"name": "math", "label": "boxed", "extract": "boxed", "require_end": True},
        {"name": "regex", "pattern": r"(a+)+$", "ignore_case": True},
        {"name": "regex", "label": "row_pattern", "pattern_field": "meta.pattern", "match": "full"},
        {"name": "regex", "label": "forbidden", "pattern": "sorry", "forbid": True},
        {"name": "json_schema", "schema_file": str(folder / "schema.json")},
        {"name": "json_schema", "label": "row_schema", "schema_field": "schema_str", "extract": "whole"},
        {"name": "user", "function": "length_reward:length", "search_path": str(folder), "options": {"limit": 20}},
    ]
    with build_rewards(config(*functions, timeout_s=20.0)) as scorer:
        yield scorer


MATH = [
    # right answer, response, value of `math`, value of `boxed`
    ("1/2", "So the result is $\\frac{1}{2}$.", 1.0, 0.0),
    ("\\frac{1}{2}", "It is \\boxed{0.5}", 1.0, 1.0),
    (12, "First 5, then 7, which makes 12.", 1.0, 0.0),
    ("1,000", "The answer is 1000", 1.0, 0.0),
    ("x^2+2x+1", "\\boxed{(x+1)^2}", 1.0, 1.0),
    ("3", "<think>\\boxed{3}</think> The answer is 4", 0.0, 0.0),
    ("3", "<think>\\boxed{4}</think> The answer is \\boxed{3}", 1.0, 1.0),
    ("3", "<think> never closed 3", 0.0, 0.0),
    (["3", "4"], "\\boxed{4}", 1.0, 1.0),
    ("(1,2)", "\\boxed{(1, 2)}", 1.0, 1.0),
    ("-7", "\\boxed{7}", 0.0, 0.0),
    ("7", "", 0.0, 0.0),
    ("7", "no idea", 0.0, 0.0),
]


@pytest.mark.parametrize(("gold", "response", "value", "boxed"), MATH)
def test_math(scorer: Scorer, gold: Any, response: str, value: float, boxed: float) -> None:
    components = scorer.score({"answer": gold}, response, ended=True).components
    assert (components["math"], components["boxed"]) == (value, boxed)


def cases() -> list[dict[str, Any]]:
    path = Path(__file__).parents[2] / "cases" / "math.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case['gold']}: {case['answer']}"[:60])
def test_math_as_rows_and_models_write_it(scorer: Scorer, case: dict[str, Any]) -> None:
    assert scorer.score({"answer": case["gold"]}, case["answer"], ended=True).components["math"] == case["want"]


NUMBERS = st.integers(-(10**12), 10**12) | st.floats(-1e9, 1e9, allow_nan=False).filter(
    lambda x: x == 0 or abs(x) > 1e-12
)


@given(NUMBERS)
@settings(max_examples=40, deadline=None)
def test_every_number_of_a_row_pays_for_itself(scorer: Scorer, number: float) -> None:
    """However JSON writes it: with an exponent, as a whole float, negative."""
    text = f"{Decimal(repr(number)):f}"
    for answer in (f"\\boxed{{{text}}}", f"\\boxed{{7.25}} no, \\boxed{{{text}}}."):
        assert scorer.score({"answer": number}, answer, ended=True).components["math"] == 1.0


def test_math_that_was_cut_off(scorer: Scorer) -> None:
    components = scorer.score({"answer": "3"}, "\\boxed{3}", ended=False).components
    assert (components["math"], components["boxed"]) == (1.0, 0.0)


def test_math_without_a_right_answer_is_missing(scorer: Scorer) -> None:
    assert "is blank" in scorer.score({"answer": " "}, "5", ended=True).missing["math"]
    assert scorer.score({}, "5", ended=True).missing["math"] == "the row has no `expected_answer` or `answer`"


PATTERNS = [
    # row, response, label, value (None: missing)
    ({}, "xAAA", "regex", 1.0),
    ({}, "b", "regex", 0.0),
    ({"meta": {"pattern": "[0-9]+"}}, " 42 ", "row_pattern", 1.0),
    ({"meta": {"pattern": "[0-9]+"}}, "42!", "row_pattern", 0.0),
    ({"meta": {"pattern": "("}}, "42", "row_pattern", None),
    ({"meta": {}}, "42", "row_pattern", None),
    ({}, "I am fine", "forbidden", 1.0),
    ({}, "I am sorry", "forbidden", 0.0),
    ({}, "<think>sorry</think>fine", "forbidden", 1.0),
    ({}, '{"age": 3}', "json_schema", 1.0),
    ({}, '{"age": -3}', "json_schema", 0.0),
    ({}, 'Here you are:\n```json\n{"age": 3}\n```\nBye', "json_schema", 1.0),
    ({}, 'Sure {not json} {"age": 3} bye', "json_schema", 1.0),
    ({}, '{"age": NaN}', "json_schema", 0.0),
    ({}, "nothing", "json_schema", 0.0),
    ({}, "[" * 100_000, "json_schema", 0.0),
    ({"schema_str": json.dumps(SCHEMA)}, '{"age": 3}', "row_schema", 1.0),
    ({"schema_str": json.dumps(SCHEMA)}, 'x {"age": 3}', "row_schema", 0.0),
    ({"schema_str": "{"}, "{}", "row_schema", None),
    ({"schema_str": {"type": "nonsense"}}, "{}", "row_schema", None),
    ({"schema_str": REMOTE}, "{}", "row_schema", None),
    ({}, "12345", "user", 0.25),
    ({}, "true", "user", 1.0),
    ({}, "print", "user", 0.25),
]


@pytest.mark.parametrize(("row", "response", "label", "value"), PATTERNS)
def test_patterns_and_own_functions(
    scorer: Scorer, row: dict[str, Any], response: str, label: str, value: float | None
) -> None:
    score = scorer.score({"answer": 1, **row}, response, ended=True)
    assert score.components[label] == value
    assert (label in score.missing) == (value is None)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("raise", "raised KeyError: 'no such thing'"),
        ("crash", "its process ended with code 3"),
        ("none", "`length_reward:length` gave a NoneType, not a number"),
        ("large", "the value 2.0 is not in [0, 1]"),
        ("nan", "the value nan is not in [0, 1]"),
        ("hang", "took longer than 1 s"),
    ],
)
def test_a_function_without_value_is_missing(folder: Path, response: str, reason: str) -> None:
    functions = {"name": "user", "function": "length_reward:length", "search_path": str(folder), "timeout_s": 1.0}
    with build_rewards(config(functions)) as scorer:
        score = scorer.score({}, response, ended=True)
        assert (score.reward, score.missing) == (None, {"user": reason})
        assert scorer.score({}, "12345", ended=True).reward == 0.5


def test_a_pattern_that_explodes_is_missing() -> None:
    with build_rewards(config({"name": "regex", "pattern": r"(a+)+$"}, timeout_s=0.5)) as scorer:
        score = scorer.score({}, "a" * 40 + "b", ended=True)
        assert score.missing == {"regex": "took longer than 0.5 s"}
        assert scorer.score({}, "a", ended=True).reward == 1.0


def test_no_answer_waits_for_what_its_function_imports() -> None:
    """A worker that is started anew has all of it before the time of an answer begins."""
    settings = config({"name": "math"}, {"name": "json_schema", "schema_field": "schema"}).model_dump_json()
    code = (
        "import sys; from nemotron.config.schema.rewards import RewardConfig; from nemotron.rewards import worker\n"
        "worker._build(RewardConfig.model_validate_json(sys.argv[1]))\n"
        "sys.exit(not {'math_verify', 'jsonschema.validators', 'referencing.exceptions'} <= {*sys.modules})"
    )
    subprocess.run([sys.executable, "-c", code, settings], check=True)


def test_mathematics_that_explodes_is_missing_or_wrong() -> None:
    # Time for the first formula of a worker, on a slow machine.
    with build_rewards(config({"name": "math"}, timeout_s=8.0)) as scorer:
        score = scorer.score({"answer": "1"}, "\\boxed{9^{9^{9^{9}}}!}", ended=True)
        assert score.reward in (None, 0.0)
        assert scorer.score({"answer": "1"}, "\\boxed{1}", ended=True).reward == 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("not_there:f", "there is no module `not_there`"),
        ("length_reward:width", "has no function `width`"),
        ("broken_reward:f", "imports `a_module_that_is_not_there`, which is not installed"),
    ],
)
def test_own_function_that_cannot_be_imported(folder: Path, function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_rewards(config({"name": "user", "function": function, "search_path": str(folder)}))


def test_row_fields_of_an_own_function() -> None:
    rewards = config({"name": "user", "function": "m:f", "row_fields": ["a.b"]})
    assert row_problems(rewards, {"a": {"b": 1}}) == []
    assert row_problems(rewards, {"a": {}}) == [(0, "the row has no `a.b`")]


def test_schema_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the JSON schema"):
        build_rewards(config({"name": "json_schema", "schema_file": str(tmp_path / "none.json")}))


def test_closing_waits_for_nobody(folder: Path) -> None:
    own = {"name": "user", "function": "length_reward:length", "search_path": str(folder)}
    tests = {"tests": {"inputs": [""], "outputs": [""]}}
    sleep = "```python\nimport time\ntime.sleep(600)\n```"
    scorer = build_rewards(config(own, {"name": "code", "test_timeout_s": 600.0}, timeout_s=600.0, workers=2))
    hung = [scorer.submit(tests, "hang", ended=True), scorer.submit(tests, sleep, ended=True)]
    waiting = [scorer.submit(tests, "", ended=True) for _ in range(5)]
    while not (all(future.running() for future in hung) and scorer._functions[1]._busy):
        time.sleep(0.01)
    scorer.close()
    assert [future.result().reward for future in hung] == [None, None]
    assert all(future.cancelled() for future in waiting)


def test_closing_ends_the_worker(folder: Path) -> None:
    scorer = build_rewards(config({"name": "regex", "pattern": "a"}))
    process = scorer._all_workers[0]._child._process
    assert isinstance(process, subprocess.Popen)
    scorer.close()
    assert process.returncode is not None


ENVIRONMENT = """
import os

def count(row, response, *, ended):
    return float(response in os.environ)

assert "PLANTED_TOKEN" not in os.environ, "the import sees it, too"
"""


def test_a_worker_whose_run_is_gone_ends_without_a_word() -> None:
    """A scheduler ends a run while its workers still import."""
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "nemotron.rewards.worker"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    _, said = process.communicate(config({"name": "exact"}).model_dump_json().encode() + b"\n", timeout=120)
    assert (process.returncode, said) == (1, b"")


def test_a_worker_sees_no_secret_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environment_reward.py").write_text(ENVIRONMENT)
    for name in ("PLANTED_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "ASKED_FOR", "LC_MESSAGES"):
        monkeypatch.setenv(name, "C")
    own = {"name": "user", "function": "environment_reward:count", "search_path": str(tmp_path)}
    settings = config({**own, "environment": ["ASKED_FOR"]})
    assert row_problems(settings, {}) == []
    with build_rewards(settings) as scorer:
        seen = {
            name: scorer.score({}, name, ended=True).reward
            for name in ("PLANTED_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "ASKED_FOR", "LC_MESSAGES", "PATH")
        }
    assert seen == {
        **dict.fromkeys(("PLANTED_TOKEN", "HF_TOKEN", "WANDB_API_KEY"), 0.0),
        **dict.fromkeys(("ASKED_FOR", "LC_MESSAGES", "PATH"), 1.0),
    }


BACKTRACKING = "(a|a)+$"
HANGING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "format", "require": [BACKTRACKING]}, {}),
    ({"name": "format", "forbid": [BACKTRACKING]}, {}),
    ({"name": "exact", "extract": BACKTRACKING}, {"answer": "a"}),
    ({"name": "choice", "extract": BACKTRACKING}, {"answer": "A"}),
    ({"name": "regex", "pattern": BACKTRACKING}, {}),
    ({"name": "regex", "pattern_field": "pattern"}, {"pattern": BACKTRACKING}),
    ({"name": "json_schema", "schema_field": "schema"}, {"schema": {"type": "string", "pattern": BACKTRACKING}}),
]


@pytest.mark.parametrize(
    ("function", "row"),
    [pytest.param(*case, marks=pytest.mark.full if case in HANGING[1:-1] else []) for case in HANGING],
    ids=lambda value: "-".join(map(str, value))[:40],
)
@pytest.mark.timeout(120)
def test_a_pattern_that_never_ends_is_missing_wherever_it_comes_from(
    function: dict[str, Any], row: dict[str, Any]
) -> None:
    answer = json.dumps("a" * 60 + "!")
    with build_rewards(config(function, timeout_s=0.5)) as scorer:
        score = scorer.score(row, answer, ended=True)
        assert score.missing == {function["name"]: "took longer than 0.5 s"}
        # And the next answer is scored as if nothing had been.
        assert scorer.score(row, '"b"', ended=True).reward is not None


def test_every_function_that_takes_a_pattern_says_where_it_runs() -> None:
    """A new key for a pattern, in any function, puts that function into a worker."""
    seen = set()
    for model in (value for value in vars(schema).values() if _is_function(value)):
        for name in (name for name, field in model.model_fields.items() if _takes_a_pattern(field)):
            many = get_origin(model.model_fields[name].annotation) is list
            made = model.model_validate({"name": _name_of(model), name: ["x+"] if many else "x+"})
            assert isolated(made), (model.__name__, name)
            seen.add((_name_of(model), name))
    assert seen >= {("exact", "extract"), ("regex", "pattern"), ("choice", "extract"), ("format", "forbid")}


def _is_function(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, RewardFunctionConfig) and "name" in value.model_fields


def _name_of(settings: Any) -> str:
    (name,) = get_args(settings.model_fields["name"].annotation)
    return str(name)


def _takes_a_pattern(field: FieldInfo) -> bool:
    return "AfterValidator" in repr(field.annotation)

"""What reward functions lack on this machine is found before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.rules.reward_setup import rules
from nemotron.config.schema.rewards import RewardConfig
from nemotron.errors import ConfigError, Finding
from nemotron.rewards import rows


@dataclass
class Section:
    """As much of a config as the rules look at."""

    rewards: RewardConfig | None = None
    heldout: Section | None = None
    eval: Section | None = None


@dataclass
class RewardJob:
    """As much of a job as the rules look at."""

    config: Section
    engine: str = "embedded"
    said: list[str] = field(default_factory=list)

    def error(self, key: str, message: str, *, hint: str | None = None, kind: Any = ConfigError) -> Finding:
        return Finding("error", "", message, key, None, hint, exit_code=kind.exit_code)

    def warning(self, key: str, message: str, *, hint: str | None = None) -> Finding:
        return Finding("warning", "", message, key, None, hint)

    def note(self, key: str, message: str, *, hint: str | None = None) -> Finding:
        return Finding("note", "", message, key, None, hint)


def rewards(**function: Any) -> RewardConfig:
    return RewardConfig.model_validate({"functions": [{"name": "format", "require_end": True}, function]})


def found(config: Section) -> list[tuple[str, str, str, int]]:
    job: Any = RewardJob(config)
    findings = [finding for rule in rules.members for finding in rule.run(job)]
    return [(f.severity, f.name, f.key or "", f.exit_code) for f in findings]


def weak() -> tuple[str, dict[str, str]]:
    return "weak", {"namespaces": "no", "landlock": "no"}


def landlock() -> tuple[str, dict[str, str]]:
    return "landlock", {"namespaces": "no"}


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    rows._all_setup.cache_clear()


def test_what_works_is_silent(tmp_path: Path) -> None:
    (tmp_path / "module_that_works.py").write_text("def f(row, response, *, ended):\n    return 1.0\n")
    own = rewards(name="user", function="module_that_works:f", search_path=str(tmp_path))
    assert found(Section(rewards=own)) == []
    assert found(Section()) == []


@pytest.mark.parametrize(
    ("code", "fits"),
    [
        ("def f(row, response, *, ended, scale=1): return 1.0", True),
        ("def f(row, response, **named): return 1.0", True),
        ("class F:\n    def __call__(self, row, response, *, ended, scale): return 1.0\nf = F()", True),
        ("f = max", True),  # nothing is known of what is written in C
        ("def f(row, response, scale): return 1.0", False),
        ("def f(row, *, ended, scale): return 1.0", False),
        ("def f(row, response, *, ended): return 1.0", False),
        ("async def f(row, response, *, ended, scale): return 1.0", False),
        ("class F:\n    async def __call__(self, row, response, *, ended, scale): return 1.0\nf = F()", False),
        ("def f(row, response, *, ended, scale):\n    yield 1.0", False),
    ],
)
def test_a_function_has_to_take_what_it_is_called_with(
    tmp_path: Path, code: str, fits: bool, request: pytest.FixtureRequest
) -> None:
    module = f"module_called_{request.node.callspec.indices['code']}"
    (tmp_path / f"{module}.py").write_text(code + "\n")
    own = rewards(name="user", function=f"{module}:f", search_path=str(tmp_path), options={"scale": 2})
    wrong = [] if fits else [("error", "reward-function", "rewards.functions.1", 3)]
    assert found(Section(rewards=own)) == wrong


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    key = "eval.heldout.rewards.functions.1"
    measured = Section(eval=Section(heldout=Section(rewards=rewards(name="math"))))
    assert found(measured) == [("error", "missing-package", key, 10)]


@pytest.mark.parametrize(
    "function",
    [
        {"name": "user", "function": "a_module_that_is_not_there:f"},
        {"name": "user", "function": "json:a_function_that_is_not_there"},
        {"name": "json_schema", "schema_file": "/a/file/that/is/not/there.json"},
    ],
)
def test_a_function_that_cannot_be_set_up(function: dict[str, Any]) -> None:
    [(severity, name, key, _)] = found(Section(rewards=rewards(**function)))
    assert (severity, name, key) == ("error", "reward-function", "rewards.functions.1")


@pytest.mark.parametrize(
    ("level", "allow", "severity"),
    [(weak, False, "error"), (weak, True, "warning"), (landlock, False, "note")],
)
def test_a_weak_sandbox(monkeypatch: pytest.MonkeyPatch, level: Any, allow: bool, severity: str) -> None:
    monkeypatch.setattr("nemotron.rewards.code.containment", level)
    monkeypatch.setattr("nemotron.rewards.rows.containment", level)
    [(said, name, key, _)] = found(Section(rewards=rewards(name="code", allow_weak_sandbox=allow)))
    assert (said, name, key) == (severity, "weak-sandbox", "rewards.functions.1")

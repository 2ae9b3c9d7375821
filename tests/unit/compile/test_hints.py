"""A hint that proposes a word for the command line proposes one that works: its key is known and takes that value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from compile_world import CONFIGS, NODE, Compile, CompileStep
from test_one_cause import CASES, errors, here, split
from test_rules import ON_CLUSTER, ON_LAPTOP

from nemotron.config.layers import load
from nemotron.config.overrides import is_override, parse_overrides
from nemotron.config.validate import validate
from nemotron.errors import CompileError, Finding
from nemotron.manifest import declaration, find_step
from nemotron.steps.rl.nemo_rl.rlhf.step import STEP

__all__ = ["here"]
_QUOTED = re.compile(r"`([^`]+)`")
_PLACEHOLDER = re.compile(r"\.\.\.|FILE|NAME|HOST|: \w+=")
# What a hint may also show in backticks: variables of the environment, and options.
_OTHER = re.compile(r"[A-Z_]+=|-")


def proposals(hint: str | None) -> Iterator[str]:
    """The overrides in a hint: ``key=value`` and ``~key``."""
    for word in _QUOTED.findall(hint or ""):
        if is_override(word) and not _OTHER.match(word) and ("=" in word or word.startswith("~")):
            yield word


def refused(config_dir: Path, config: str, words: list[str], model: type, proposed: str) -> list[Finding]:
    """What the compile says of the key of ``proposed``, given after ``words``."""
    key = proposed.lstrip("~+").partition("=")[0]
    if _PLACEHOLDER.search(proposed):
        proposed = f"{key}=null"  # only the key is proposed
    kept = [word for word in words if word.lstrip("~+").partition("=")[0] != key]
    try:
        resolved = load(
            config_dir, config, parse_overrides(list(enumerate([*kept, proposed], 5))), run_dir="r", model=model
        )
        _, findings = validate(resolved, model)
    except CompileError as error:
        findings = list(error.findings)
    unfit = (
        ("unknown-key",) if proposed.endswith("=null") else ("unknown-key", "wrong-type", "no-effect", "out-of-range")
    )
    return [finding for finding in findings if finding.key == key and finding.name in unfit]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("step", "words", "name", "key"), CASES, ids=lambda value: str(value)[:60])
def test_after_a_mistake(compiled_step: CompileStep, step: str, words: str, name: str, key: str) -> None:
    found = find_step(step)
    for finding in errors(compiled_step, step, *split(words)):
        for word in proposals(finding.hint):
            assert refused(found.config_dir, "tiny", split(words), declaration(found).config, word) == [], (
                word,
                finding,
            )


@pytest.mark.parametrize(("name", "number", "severity", "overrides"), [*ON_CLUSTER, *ON_LAPTOP], ids=str)
def test_of_a_rule(
    compiled: Compile, world: Path, name: str, number: int | None, severity: str, overrides: tuple[str, ...]
) -> None:
    extra = ("engine=nemo_rl",) if (name, number, severity, overrides) in ON_CLUSTER else ()
    plan = compiled("own.yaml", *extra, *overrides, **({"place": NODE} if extra else {}))
    for finding in plan.findings:
        for word in proposals(finding.hint):
            assert refused(CONFIGS, "own.yaml", [*extra, *overrides], STEP.config, word) == [], (word, finding)


def test_a_key_that_the_user_s_config_uses_is_named() -> None:
    """Not the copy in a section for another backend, which nobody types."""
    found = find_step("rlhf")
    for typed, meant in (
        ("policy.optimizer.lr=1e-4", "policy.optimizer.kwargs.lr"),
        ("policy.lr=1e-4", "policy.optimizer.kwargs.lr"),
        ("lr=1e-4", "policy.optimizer.kwargs.lr"),
        ("policy.optimizer.weight_decay=0", "policy.optimizer.kwargs.weight_decay"),
        ("policy.megatron_cfg.lr=1", "policy.optimizer.kwargs.lr"),
    ):
        resolved = load(
            found.config_dir, "tiny", parse_overrides([(5, typed)]), run_dir="r", model=declaration(found).config
        )
        (finding,) = resolved.findings
        assert finding.hint == f"did you mean `{meant}`?", typed


def test_null_where_a_key_can_only_be_left_out(compiled_step: CompileStep) -> None:
    """`policy.pretrained_checkpoint=null` does not work; what does is proposed, and works."""
    (finding,) = errors(compiled_step, "rlhf", "policy.pretrained_checkpoint=null")
    assert finding.hint == "drop it; where a config sets it, `~policy.pretrained_checkpoint` takes it away"
    assert errors(compiled_step, "rlhf", "~policy.pretrained_checkpoint") == []


def test_the_weights_of_another_model(compiled_step: CompileStep) -> None:
    from nemotron.config import resolvers

    model = resolvers.ASSETS / "tiny_world" / "judge"
    for finding in errors(compiled_step, "rlhf", f"policy.model_name={model}"):
        if finding.name == "pretrained-checkpoint" and "tokenizer" not in finding.message:
            assert "`~policy.pretrained_checkpoint`" in str(finding.hint)

"""A hint that proposes a word for the command line proposes one that works: its key is known and takes that value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.plan import Plan
from nemotron.compile.rules import output
from nemotron.config.layers import load
from nemotron.config.overrides import is_override, parse_overrides
from nemotron.config.validate import validate
from nemotron.errors import CompileError, Finding
from nemotron.manifest import declaration, find_step
from tests.unit.compile import test_dpo_rules, test_ppo_rules, test_reward_model_rules
from tests.unit.compile.compile_world import LAPTOP, NODE, Compile, CompileStep
from tests.unit.compile.test_one_cause import CASES, broken_files, errors, here, split
from tests.unit.compile.test_rules import ON_CLUSTER, ON_LAPTOP

__all__ = ["broken_files", "here"]
dpo, ppo = test_dpo_rules.compiled, test_ppo_rules.compiled
reward_model = test_reward_model_rules.compiled
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


def some_of(cases: Sequence[Any]) -> list[Any]:
    """So many in `make test`, all in `make full`: each mistake is compiled again for every word of its hints."""
    return [pytest.param(*case, marks=[pytest.mark.full] if n % 6 else []) for n, case in enumerate(cases)]


SOME = some_of(CASES)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("step", "words", "name", "key"), SOME, ids=lambda value: str(value)[:60])
def test_after_a_mistake(compiled_step: CompileStep, step: str, words: str, name: str, key: str) -> None:
    found = find_step(step)
    for finding in errors(compiled_step, step, *split(words)):
        for word in proposals(finding.hint):
            assert refused(found.config_dir, "tiny", split(words), declaration(found).config, word) == [], (
                word,
                finding,
            )


REFUSALS = {"override-without-effect", "not-in-embedded", "not-in-nemo-rl", "engine-not-installed"}
"""What the rules say of a word that is known and changes nothing here, or cannot be had."""
Build = Callable[..., Plan]


def without(words: Sequence[str], proposed: str) -> list[str]:
    key = proposed.lstrip("~+").partition("=")[0]
    return [word for word in words if word.lstrip("~+").partition("=")[0] != key]


def followed(build: Build, words: Sequence[str], **where: Any) -> None:
    """Every word that a hint proposes is taken by the schema and by the rules."""
    for finding in build(*words, **where).findings:
        for word in proposals(finding.hint):
            if word.startswith("engine=") or _PLACEHOLDER.search(word):
                continue
            key = word.lstrip("~+").partition("=")[0]
            try:
                again = build(*without(words, word), word, **where).findings
            except CompileError as error:
                again = error.findings
            names = REFUSALS | {"unknown-key", "wrong-type", "no-effect", "out-of-range"}
            assert [f for f in again if f.key == key and f.name in names] == [], (word, finding)


@pytest.mark.parametrize(("name", "number", "severity", "overrides"), some_of([*ON_CLUSTER, *ON_LAPTOP]), ids=str)
def test_of_a_rule(compiled: Compile, name: str, number: int | None, severity: str, overrides: tuple[str, ...]) -> None:
    cluster = (name, number, severity, overrides) in ON_CLUSTER
    words = (*(("engine=nemo_rl",) if cluster else ()), *overrides)
    followed(lambda *more, **where: compiled("own.yaml", *more, **where), words, **({"place": NODE} if cluster else {}))


@pytest.mark.parametrize("overrides", some_of([(case[-1],) for case in test_dpo_rules.BROKEN]), ids=str)
def test_of_a_rule_of_dpo(dpo: Build, overrides: tuple[str, ...]) -> None:
    followed(dpo, overrides)


@pytest.mark.parametrize("overrides", some_of([(case[-1],) for case in test_reward_model_rules.BROKEN]), ids=str)
def test_of_a_rule_of_reward_models(reward_model: Build, overrides: tuple[str, ...]) -> None:
    followed(reward_model, overrides)


@pytest.mark.parametrize("overrides", some_of([(case[-1],) for case in test_ppo_rules.BROKEN]), ids=str)
def test_of_a_rule_of_ppo(ppo: Build, overrides: tuple[str, ...]) -> None:
    followed(ppo, overrides)


@pytest.mark.parametrize("step", ["rlhf", "rlvr", "dpo", "rm", "ppo"])
@pytest.mark.parametrize("kept", ["1", *(pytest.param(kept, marks=pytest.mark.full) for kept in ("3", "null"))])
def test_where_memory_and_disk_are_full(
    compiled_step: CompileStep, monkeypatch: pytest.MonkeyPatch, step: str, kept: str
) -> None:
    usage = output.shutil.disk_usage(".")
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    words, place = (f"checkpointing.keep_top_k={kept}",), replace(LAPTOP, memory_bytes=2**20)
    findings = compiled_step(step, *words, place=place).findings
    assert {"disk-space", "memory"} <= {finding.name for finding in findings}
    section = find_step(step) and declaration(find_step(step)).config.section
    for finding in findings:
        named_keys = [word for word in _QUOTED.findall(finding.hint or "") if "." in word]
        others = {"grpo", "ppo", "dpo", "rm"} - {section}
        assert not [key for key in named_keys if key.partition(".")[0] in others], finding
    followed(lambda *more, **where: compiled_step(step, *more, **where), words, place=place)


@pytest.mark.parametrize(
    ("step", "away"),
    some_of([(step, away) for away in ("true", "false") for step in ("rlhf", "rlvr", "dpo", "sft", "rm", "ppo")]),
)
def test_where_the_memory_of_a_gpu_and_its_host_are_full(compiled_step: CompileStep, step: str, away: str) -> None:
    words = (f"policy.offload_optimizer_for_logprob={away}",)
    place = replace(NODE, modules=LAPTOP.modules, gpu_memory_bytes=2**20, memory_bytes=2**20)
    names = {finding.name for finding in compiled_step(step, *words, place=place).findings}
    assert "memory" in names
    assert ("host-memory" in names) is (away == "true")
    followed(lambda *more, **where: compiled_step(step, *more, **where), words, place=place)


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

"""The models against the full key list of NeMo-RL v0.7.0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nemotron.config.docs import field_docs
from nemotron.config.known import Standing, alternatives, look_up, model_fields
from nemotron.config.resolvers import interpolate
from nemotron.config.schema.master import GrpoMasterConfig
from nemotron.steps.rl.nemo_rl.rlhf.step import STEP

# key -> [declared type, required, value in the exemplar if it has one]
KEYS: dict[str, list[Any]] = json.loads((Path(__file__).parent / "nemo_rl_grpo_v0.7.0.json").read_text())["keys"]

# Where our model asks for less than NeMo-RL's declaration, and why that is right.
NOT_REQUIRED_BY_US = {
    "policy.generation.vllm_cfg": "only the vLLM backend has it; rule 31 asks for it then",
    "policy.generation.vllm_cfg.skip_tokenizer_init": "NeMo-RL overwrites it at start-up, its exemplars omit it",
}


def field_of(key: str) -> FieldInfo | None:
    """The declared field of a dotted key; None below a pass-through point."""
    models: list[Any] = [STEP.config]
    field = None
    for name in key.split("."):
        found = [
            model_fields(model)[name]
            for model in models
            if isinstance(model, type) and issubclass(model, BaseModel) and name in model_fields(model)
        ]
        if not found:
            return None
        field = found[0]
        models = [
            inner
            for member in alternatives(field.annotation)
            for inner in ([member] if isinstance(member, type) else getattr(member, "__args__", ()))
        ]
    return field


def test_every_key_is_accepted() -> None:
    assert len(KEYS) > 300
    assert [key for key in KEYS if look_up(STEP.config, key.split(".")) is Standing.UNKNOWN] == []


def test_required_keys_are_those_of_nemo_rl() -> None:
    ours = {key: field.is_required() for key in KEYS if (field := field_of(key)) is not None}
    differing = {key for key, required in ours.items() if required != KEYS[key][1]}
    assert differing == set(NOT_REQUIRED_BY_US)


def test_only_true_pass_through_points_are_open() -> None:
    closed = [key for key in KEYS if look_up(STEP.config, key.split(".")) is Standing.KNOWN]
    opened = {key for key in KEYS if look_up(STEP.config, key.split(".")) is Standing.OPEN}
    allowed = (
        "env.",
        "policy.generation.vllm_kwargs.",
        "policy.optimizer.kwargs.",
        "policy.tokenizer.chat_template_kwargs.",
        "policy.generation.vllm_cfg.http_server_serving_chat_kwargs.",
    )
    assert all(key.startswith(allowed) for key in opened)
    assert len(closed) > 500


def test_every_field_says_what_it_does() -> None:
    seen: set[type[BaseModel]] = set()
    silent: list[str] = []

    def visit(model: type[BaseModel]) -> None:
        if model in seen:
            return
        seen.add(model)
        for name, field in model.model_fields.items():
            sections = [m for m in alternatives(field.annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
            if not field_docs(model).get(name) and not any(section.__doc__ for section in sections):
                silent.append(f"{model.__name__}.{name}")
            for member in alternatives(field.annotation):
                for inner in (member, *getattr(member, "__args__", ())):
                    if isinstance(inner, type) and issubclass(inner, BaseModel):
                        visit(inner)

    visit(STEP.config)
    assert len(seen) > 40
    assert silent == []


def test_the_exemplar_of_nemo_rl_is_valid() -> None:
    raw: dict[str, Any] = {}
    for key, (_, _, *exemplar) in KEYS.items():
        if exemplar:
            at = raw
            *sections, name = key.split(".")
            for section in sections:
                at = at.setdefault(section, {})
            at[name] = exemplar[0]
    values, findings = interpolate(raw, {}, run_dir="")
    assert findings == []
    config = GrpoMasterConfig.model_validate(values)
    assert config.policy.dtensor is not None
    assert config.policy.dtensor.v2
    assert config.policy.megatron is None
    assert config.policy.packing is not None

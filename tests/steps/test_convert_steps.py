"""The two convert steps, from config to a model that generates."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "checkpoints"))

from families_zoo import make
from transformers import AutoModelForCausalLM

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.inspect import inspect
from nemotron.artifacts.verify import verify
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.validate import validate
from nemotron.errors import ArtifactError
from nemotron.manifest import config_model, find_step
from nemotron.steps.convert.hf_to_megatron import step as there
from nemotron.steps.convert.hf_to_megatron.config import Config as ThereConfig
from nemotron.steps.convert.megatron_to_hf import step as back
from nemotron.steps.convert.megatron_to_hf.config import Config as BackConfig

COMMON = {"dtype": "auto", "verify": "weights", "overwrite": False}


def test_there_and_back_with_provenance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "hf", "qwen2")
    megatron, result = tmp_path / "megatron", tmp_path / "back"
    config = ThereConfig(hf_model=str(source), output_dir=str(megatron), **COMMON)
    there.check(config)
    there.convert(config)
    again = BackConfig(megatron_path=str(megatron), output_dir=str(result), hf_model=None, **COMMON)
    back.check(again)
    back.convert(again)

    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(megatron), str(result)]
    assert "read back bit for bit" in printed.err
    assert fingerprint(result) == fingerprint(source)
    record = inspect(result).record
    assert record is not None
    assert record["step"] == "convert/megatron_to_hf"
    assert record["inputs"][0]["fingerprint"] == fingerprint(megatron)
    assert record["provenance"]["packages"]["torch"]
    for made in (megatron, result):
        assert verify(made).recorded is True
    AutoModelForCausalLM.from_pretrained(result)


def test_check_refuses_without_writing(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "qwen2")
    with pytest.raises(ArtifactError, match="not a Megatron-Core checkpoint"):
        back.check(BackConfig(megatron_path=str(source), output_dir="x", hf_model=None, **COMMON))
    (source / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": 8}')
    with pytest.raises(ArtifactError, match="MoE"):
        there.check(ThereConfig(hf_model=str(source), output_dir="x", **COMMON))


@pytest.mark.parametrize(
    ("step_id", "source_key"), [("convert/hf_to_megatron", "hf_model"), ("convert/megatron_to_hf", "megatron_path")]
)
def test_manifest_and_default_config_agree(step_id: str, source_key: str) -> None:
    step = find_step(step_id)
    model = config_model(step)
    assert step.configs == ["default", "tiny"]
    bound = {key for artifact in (*step.consumes, *step.produces) for key in artifact.bind}
    assert bound <= set(model.model_fields)
    words = parse_overrides([(1, f"{source_key}=in"), (2, "output_dir=out")])
    resolved = load(step.config_dir, "default", words, run_dir="run", model=model)
    config, findings = validate(resolved, model)
    assert not findings
    assert config is not None
    assert config.model_dump() | COMMON | {source_key: "in", "output_dir": "out"} == config.model_dump()

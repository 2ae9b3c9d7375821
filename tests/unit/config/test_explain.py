"""`--explain KEY`: every layer that wrote a value, in order, and what the value refers to."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron.cli.main import main
from nemotron.config.explain import Explained, explain
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.errors import NotFoundError
from nemotron.manifest import declaration, find_step

RLHF = find_step("rlhf")
MODEL = declaration(RLHF).config
KEY = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.api_key"


def explained(key: str, *words: str, config: str = "tiny") -> Explained:
    parsed = parse_overrides(list(enumerate(words, start=5)))
    resolved = load(RLHF.config_dir, config, parsed, run_dir="runs/RUN_ID", model=MODEL)
    return explain(resolved, RLHF.config_dir, config, parsed, MODEL, key)


def layers(found: Explained) -> list[tuple[str, str]]:
    return [(Path(layer.origin.source).name, layer.text) for layer in found.layers]


def test_every_layer_in_order() -> None:
    found = explained("policy.precision", "policy.precision=bfloat16")
    assert found.text == '"bfloat16"'
    assert layers(found) == [("default.yaml", '"bfloat16"'), ("tiny.yaml", '"float32"'), ("command line", '"bfloat16"')]
    assert found.layers[-1].origin.argument == 5
    assert found.meaning.startswith("Number type")
    assert found.sources == ()


def test_a_file_of_ones_own_above_the_shipped_ones(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("defaults: tiny\ngrpo:\n  seed: 5\n")
    assert layers(explained("grpo.seed", config=str(own)))[-1] == ("own.yaml", "5")


def test_references_are_followed() -> None:
    found = explained("policy.megatron_cfg.optimizer.lr", "policy.optimizer.kwargs.lr=0.5")
    assert (found.text, layers(found)) == ("0.5", [("default.yaml", '"${policy.optimizer.kwargs.lr}"')])
    [source] = found.sources
    assert (source.key, layers(source)[-1]) == ("policy.optimizer.kwargs.lr", ("command line", "0.5"))


def test_a_value_that_a_word_takes_away() -> None:
    found = explained("policy.pretrained_checkpoint", "~policy.pretrained_checkpoint")
    assert found.text == "not set"
    assert [text for _, text in layers(found)] == ["a section of 2 keys: path, format", "not set"]


def test_secrets_stay_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_REWARD_API_KEY", "sk-very-secret")
    found = explained(KEY, f"{KEY}=sk-another-secret")
    assert "secret-" not in repr(found)
    assert "-secret" not in repr(found)
    assert layers(found) == [("default.yaml", '"${oc.env:RL_REWARD_API_KEY,null}"'), ("command line", "[secret]")]


def test_a_key_that_does_not_exist() -> None:
    with pytest.raises(NotFoundError, match=r"no key `policy.lr`") as caught:
        explained("policy.lr")
    assert caught.value.hint == "did you mean `policy.optimizer.kwargs.lr`?"


def test_the_command_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steps", "run", "rlhf", "-c", "tiny", "--runs-dir", str(tmp_path), "grpo.seed=3", "--explain", "grpo.seed"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "grpo.seed = 3"
    assert said.out.splitlines()[-1].split() == ["command", "line,", "argument", "8", "3"]
    assert list(tmp_path.iterdir()) == []

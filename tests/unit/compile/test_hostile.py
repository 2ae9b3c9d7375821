"""What a reader of files can see before anything starts: names too long, pipes and devices, damaged model folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nemotron
from tests.in_process import nemotron as command

LONG = "n" * 300
POLICY = Path(nemotron.__file__).parent / "assets" / "tiny_world" / "policy"


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("data.train.data_path", 5),
        ("data.manifest_path", 5),
        ("eval.heldout.data_path", 5),
        ("policy.model_name", 6),
        ("policy.tokenizer.name", 6),
        ("policy.pretrained_checkpoint.path", 6),
        ("checkpointing.checkpoint_dir", 8),
    ],
)
@pytest.mark.parametrize("name", [LONG, "d/" * 3000])
def test_a_name_that_is_too_long_is_blamed_on_its_key(tmp_path: Path, key: str, code: int, name: str) -> None:
    runs = ("--runs-dir", str(tmp_path))
    done = command("steps", "run", "rlhf", "-c", "tiny", "--dry-run", *runs, f"{key}={name}")
    assert done.code == code, done.stderr
    assert f"the name in `{key}` is too long for a file" in done.stderr
    assert "1 problem found" in done.stderr


@pytest.mark.parametrize("words", [("-c", LONG), ("-c", f"{LONG}.yaml"), ("-c", "tiny", "--runs-dir", LONG)])
def test_names_on_the_command_line_are_no_bug(words: tuple[str, ...]) -> None:
    done = command("steps", "run", "rlhf", "--dry-run", *words)
    assert done.code in (2, 3, 4, 8)
    assert "too long" in done.stderr


@pytest.mark.parametrize("blend", [LONG, f"{LONG}.json", f"{LONG}.jsonl", f"{LONG}/*.jsonl"])
def test_a_blend_with_a_long_name(tmp_path: Path, blend: str) -> None:
    done = command("steps", "run", "rl_prep", "--dry-run", "--runs-dir", str(tmp_path), f"blend_path={blend}")
    assert done.code == 5, done.stderr


@pytest.mark.parametrize(
    "text", ['"a.b": "${gone}"', 'policy:\n  "a.b": "${gone.x}"', 'policy:\n  "c.d": {"e.f": "${oc.env:NOPE_X}"}']
)
def test_interpolation_below_a_key_with_a_dot(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"defaults: default\n{text}\n")
    done = command("steps", "run", "rlhf", "-c", str(path), "--dry-run", "--runs-dir", str(tmp_path))
    assert done.code == 3, done.stderr
    assert f"{path}:" in done.stderr
    assert "gone" in done.stderr or "NOPE_X" in done.stderr


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    "text", [LAUGHS, "a: " + "[" * 5000, "- " * 5000, "a: " + "{b: " * 100, "a: [*x]", "# " + "x" * (2 << 20)]
)
def test_yaml_has_bounds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    done = command("steps", "run", "rlhf", "-c", str(path), "--dry-run", "--runs-dir", str(tmp_path))
    assert done.code == 3, done.stderr
    assert str(path) in done.stderr


@pytest.mark.parametrize("name", ["own.yaml", "own.jsonl", "manifest.json", "config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    shutil.copytree(POLICY, tmp_path / "model")
    pipe = (tmp_path / "model" if name in ("config.json", "model.safetensors") else tmp_path) / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    words = {
        "own.yaml": ("-c", str(pipe)),
        "own.jsonl": ("-c", "tiny", f"data.train.data_path={pipe}"),
        "manifest.json": ("-c", "tiny", f"data.manifest_path={pipe}"),
    }.get(name, ("-c", "tiny", f"policy.model_name={tmp_path / 'model'}"))
    done = command("steps", "run", "rlhf", *words, "--dry-run", "--runs-dir", str(tmp_path / "runs"))
    assert done.code in (3, 4, 5, 6), done.stderr


def config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DAMAGED: list[tuple[Callable[[Path], None], str]] = [
    (config(num_attention_heads=0), "`num_attention_heads` is 0"),
    (config(num_hidden_layers=-2), "`num_hidden_layers` is -2"),
    (config(num_hidden_layers="two"), '`num_hidden_layers` is "two"'),
    (config(max_position_embeddings=0), "`max_position_embeddings` is 0"),
    (config(vocab_size=[]), "`vocab_size` is []"),
    (config(num_key_value_heads=3), "3 key-value heads do not divide"),
    (written("config.json", "[" * 100_000), "readable `config.json`"),
    (written("tokenizer.json", "{}"), "without tokens"),
    (written("tokenizer.json", '{"model"'), "`tokenizer.json` that cannot be read"),
    (written("tokenizer_config.json", "[]"), "`tokenizer_config.json` that cannot be read"),
    (written("chat_template.jinja", "{% for m in %}"), "chat template that does not parse"),
    (written("model.safetensors", ""), "`model.safetensors` of the policy model"),
    (pickled, "`pytorch_model.bin` of the policy model"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGED, ids=[said for _, said in DAMAGED])
def test_a_damaged_model_fails_the_dry_run(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    shutil.copytree(POLICY, tmp_path / "model")
    damage(tmp_path / "model")
    model = (f"policy.model_name={tmp_path / 'model'}", "~policy.pretrained_checkpoint")
    done = command("steps", "run", "rlhf", "-c", "tiny", *model, "--dry-run", "--runs-dir", str(tmp_path / "runs"))
    assert done.code == 6, done.stderr
    assert said in done.stderr
    assert "1 problem found" in done.stderr

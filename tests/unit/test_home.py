"""Paths below a home that this machine does not know: a colleague's on the cluster, or one's own in a container."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel

from nemotron.compile.paths import with_absolute_paths
from nemotron.config.schema.fields import OnDisk
from nemotron.disk.home import expanded, homeless
from nemotron.place import Place
from tests.in_process import Result, nemotron

NOBODY = "~nobody_of_this_name/x"


class Paths(BaseModel):
    """A config with nothing else."""

    source: Annotated[str, OnDisk()]
    target: Annotated[str, OnDisk()]


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom only a number names, in a container that sets no HOME."""

    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_home_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/x") == expanded(Path("~/x")) == Path("/home/me/x")
    assert expanded("~") == Path("/home/me")
    assert expanded(f"~{pwd.getpwuid(0).pw_name}/x") == Path(pwd.getpwuid(0).pw_dir) / "x"
    assert not any(map(homeless, ("~/x", "a/~b", "/~a", "", ".")))


@pytest.mark.parametrize("path", [NOBODY, "~a\0b/x", "~\ud800/x"])
def test_a_path_whose_home_nobody_knows_stays(path: str) -> None:
    assert expanded(path) == Path(path)
    assert homeless(path)


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_home() -> None:
    assert expanded("~/x") == Path("~/x")
    assert homeless("~/x")


def test_a_home_of_another_machine_is_left_to_it() -> None:
    """There it may exist; below the folder of this command it never does."""
    assert not Place(name="cluster", is_here=False, shared=(Path("/"),)).sees(Path(NOBODY))
    values = {"source": NOBODY, "target": "out"}
    found = with_absolute_paths(values, Paths.model_validate(values))
    assert found == {"source": NOBODY, "target": os.path.abspath("out")}


COMMANDS = [
    (("dpo", "-c", "tiny", "policy.model_name={}"), 6),
    (("dpo", "-c", "tiny", "policy.tokenizer.name={}"), 6),
    (("dpo", "-c", "tiny", "data.train.data_path={}"), 5),
    (("dpo", "-c", "tiny", "checkpointing.checkpoint_dir={}"), 8),
    (("dpo", "-c", "tiny", "logger.log_dir={}"), 8),
    (("rl_prep", "blend_path={}"), 5),
    (("rl_prep", "blend_path=null", "blend={{train: [{{path: {}}}]}}"), 5),
    (("rl_prep", "output_dir={}"), 8),
    (("hf_to_megatron", "hf_model={}", "output_dir=out"), 6),
    (("megatron_to_hf", "megatron_path={}", "output_dir=out"), 6),
    (("merge_lora", "adapter={}", "output_dir=out"), 6),
    (("reward_audit", "reward_model.path={}"), 6),
    (("dpo", "-c", "{}.yaml"), 4),
]


def clean(done: Result, code: int) -> bool:
    """An error of whoever wrote the path, which it shows."""
    return done.code == code and "bug" not in done.stderr and "error: " in done.stderr and "~" in done.stderr


@pytest.mark.parametrize(("words", "code"), COMMANDS)
def test_a_step_says_what_is_not_there(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    """With the exit code of any other path where nothing is."""
    done = nemotron("steps", "run", *(word.format(NOBODY) for word in words), "--dry-run", cwd=tmp_path, bare=True)
    assert clean(done, code), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--steps-dir", NOBODY, "steps", "list"), 4),
        (("pipelines", "run", f"{NOBODY}.yaml"), 4),
        (("pipelines", "show", f"{NOBODY}.yaml"), 4),
        (("artifacts", "lineage", NOBODY), 6),
        (("artifacts", "inspect", NOBODY), 6),
    ],
)
def test_a_command_says_what_is_not_there(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    done = nemotron(*words, cwd=tmp_path, bare=True)
    assert clean(done, code), done.stderr


@pytest.mark.parametrize(
    ("name", "words"), [("NEMOTRON_ENV_FILE", ("profiles", "list")), ("NEMOTRON_STEPS", ("steps", "list"))]
)
def test_a_variable_says_what_is_not_there(tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    done = nemotron(*words, cwd=tmp_path, bare=True, env={name: NOBODY})
    assert clean(done, 4), done.stderr


@pytest.mark.usefixtures("no_home")
@pytest.mark.parametrize(("words", "code"), [COMMANDS[0], (("dpo", "-c", "tiny"), 0)])
def test_who_has_no_home_works_without(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    done = nemotron("steps", "run", *(word.format("~/x") for word in words), "--dry-run", cwd=tmp_path, bare=True)
    assert done.code == code, done.stderr
    assert "bug" not in done.stderr

"""What guides of docs tell a user to write and to type, as far as it goes without a cluster: clusters and pipelines.

The commands of Slurm's guide are run on a real one in tests/integration/test_slurm_guide.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from nemotron.profiles.load import SHIPPED, Profiles
from nemotron.snapshot import ASSETS
from tests.in_process import nemotron

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
NAMES = ("slurm", "lepton", "ray")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = re.compile(r"/(mnt|lustre)\b")
"""Where the guides keep files; a test has no such folders."""


def tables(name: str) -> str:
    return "\n".join(text for info, text in BLOCK.findall((GUIDES / f"{name}.md").read_text()) if info == "toml")


def commands(name: str) -> list[list[str]]:
    """Those of `nemotron` in the order of the guide, without what is said about them."""
    blocks = [text for info, text in BLOCK.findall((GUIDES / f"{name}.md").read_text()) if not info]
    lines = [shlex.split(line, comments=True) for text in blocks for line in text.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["nemotron"]]


GYM = '{"responses_create_params": {"input": "2 + 2?"}, "agent_ref": {"name": "a"}, "expected_answer": "4"}\n'
SUBMISSIONS = [
    pytest.param(name, words, id=f"{name}: {' '.join(words[2:9])}")
    for name in NAMES
    for words in commands(name)
    if words[:2] == ["steps", "run"]
]


@pytest.mark.parametrize("name", NAMES)
def test_profiles_of_a_guide_are_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / "env.toml").write_text(tables(name))
    found = Profiles(tmp_path, {})
    own = re.findall(r"^\[(\w+)\]", tables(name), re.MULTILINE)
    assert own
    for profile in own:
        assert found.get(profile).unfilled == []
    used = {words[words.index(flag) + 1] for words in commands(name) for flag in ("-r", "-b") if flag in words}
    checked = {words[2] for words in commands(name) if words[:1] == ["profiles"] and len(words) > 2}
    assert used | checked <= set(own)


@pytest.mark.parametrize(("name", "words"), SUBMISSIONS)
def test_a_submission_of_a_guide_would_be_sent(tmp_path: Path, name: str, words: list[str]) -> None:
    """The plan holds, and so it would without `--dry-run`, which makes warnings of what a submission refuses."""

    def moved(text: str) -> str:
        return PLACES.sub(lambda found: f"{tmp_path}/{found[1]}", text)

    (tmp_path / "env.toml").write_text(moved(tables(name)))
    for word in words:
        if PLACES.search(word):
            file = Path(moved(word).partition("=")[2])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"prompt": "What is 2 + 2?"}\n' * 600)
    done = nemotron(*map(moved, words), *([] if "--dry-run" in words else ["--dry-run"]), cwd=tmp_path, bare=True)
    assert done.code == 0, done.stderr
    assert "a submission refuses this" not in done.stderr, done.stderr
    assert "--- environment of the job" in done.stdout


@pytest.mark.parametrize("step", ["rlhf", "rlvr", "dpo", "rm"])
@pytest.mark.parametrize("kind", ["slurm", "lepton"])
def test_a_shipped_profile_that_is_filled_in_takes_its_step(tmp_path: Path, kind: str, step: str) -> None:
    """The one for a judge had as many nodes as the training takes, and every submission of it was refused."""
    filled = re.sub(r"<shared \w+>", str(tmp_path), (SHIPPED / f"{kind}.toml").read_text())
    (tmp_path / "env.toml").write_text(re.sub(r"<[\w ]+>", "filled-in", filled))
    root = str(tmp_path) if kind == "slurm" else "/mnt/nemotron"
    pair = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text(600 * (pair if step in ("dpo", "rm") else GYM))
    words = ["steps", "run", step, "-c", "default", "-b", f"{kind}_rl_nemo_rl_{step}", "--dry-run"]
    words += [f"data.train.data_path={root}/train.jsonl", f"data.validation.data_path={root}/val.jsonl"]
    done = nemotron(*words, cwd=tmp_path, bare=True)
    assert done.code == 0, done.stderr
    assert "a submission refuses this" not in done.stderr, done.stderr
    assert "engine               nemo_rl" in done.stdout


def test_the_file_of_the_pipelines_guide_compiles(tmp_path: Path) -> None:
    """With pairs in the one place that it names: every node of it holds."""
    (text,) = (text for info, text in BLOCK.findall((GUIDES / "pipelines.md").read_text()) if info == "yaml")
    (tmp_path / "guide.yaml").write_text(text)
    (tmp_path / "data").mkdir()
    shutil.copy(ASSETS / "tiny_world" / "data" / "pairs_train.jsonl", tmp_path / "data" / "pairs.jsonl")
    done = nemotron("pipelines", "run", "guide.yaml", "--dry-run", "--json", cwd=tmp_path, bare=True)
    assert done.code == 0, done.stderr
    assert list(json.loads(done.stdout)["plans"]) == ["pairs", "rm", "audit", "ppo", "hf"]

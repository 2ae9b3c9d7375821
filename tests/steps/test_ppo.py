"""`steps run rl/nemo_rl/ppo`: two processes, either of them killed, resumed to the same bits; and run apart."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import nemotron
from nemotron.rl.policy import Policy
from nemotron.rl.scalar_model import ScalarModel
from tests.alive import is_alive, state_of
from tests.steps.commands import metrics, only_run, run_command, run_here, started

pytestmark = pytest.mark.timeout(600)

ASSETS = Path(nemotron.__file__).parent / "assets" / "tiny_world"
SHORT = (
    "ppo.num_prompts_per_step=4",
    "ppo.max_num_steps=4",
    "policy.train_global_batch_size=16",
    "checkpointing.save_period=2",
    "checkpointing.keep_top_k=null",
    "eval.heldout.max_samples=8",
)
END_S = 120.0
"""Seconds in which the other side must have ended; on an idle machine it takes less than one."""


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model that was not trained: what it rewards does not matter here."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "reward_model"
    model = ScalarModel.from_policy(Policy.load(ASSETS / "policy", device="cpu"), seed=1)
    torch.nn.init.normal_(model.model.score.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    model.set_reward_statistics(0.0, 1.0)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    model.save(folder, tokenizer)
    return f"reward_model.model_name={folder}"


def command(runs: Path, *words: str) -> list[str]:
    step = [sys.executable, "-m", "nemotron", "steps", "run", "rl/nemo_rl/ppo", "-c", "tiny"]
    return [*step, "--runs-dir", str(runs), *words]


def logged(runs: Path) -> int:
    """Training steps in the metrics so far."""
    found = list(runs.glob("*/metrics.jsonl"))
    return found[0].read_bytes().count(b'"train/reward"') if found else 0


def models(folder: Path, step: int = 4) -> list[bytes]:
    """Policy, critic and both optimizers, byte by byte where a file has no timestamps."""
    checkpoint = folder / "checkpoints" / f"step_{step}"
    files = ("policy/weights/hf/model.safetensors", "value/weights/model.safetensors")
    return [(checkpoint / name).read_bytes() for name in files]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of training steps without what depends on the clock."""
    timed = ("wall_s", "timing/")
    kept = [row for row in metrics(folder) if "train/reward" in row]
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in kept]


class Started:
    """A run in a process of its own."""

    def __init__(self, argv: list[str], log: Path, **env: str) -> None:
        self.log = log
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            self.process = started(argv, log)

    def until(self, moment: Callable[[], bool], within_s: float = 240) -> None:
        deadline = time.monotonic() + within_s
        while not moment():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)

    def critic(self) -> int:
        """Process id of its critic."""
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            if (found := state_of(int(pid))) is None or found[1] != self.process.pid:
                continue
            # Of the children of a run it alone has a session of its own.
            with contextlib.suppress(ProcessLookupError):  # it ended while we looked
                if os.getsid(int(pid)) == int(pid):
                    return int(pid)
        raise AssertionError("the run has no critic")

    def end(self, within_s: float = END_S) -> tuple[int, str]:
        """Exit code and what it said."""
        return self.process.wait(within_s), self.log.read_text()


def gone(pid: int) -> bool:
    """Whether a process ends within seconds; a zombie that nobody has collected has ended."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, reward_model: str) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    result = run_here(command(runs, *SHORT, reward_model))
    assert result.code == 0, result.stderr
    return only_run(runs)


def test_a_killed_critic_ends_the_actor_and_a_killed_actor_the_critic_and_both_resume_bitwise(
    uninterrupted: Path, reward_model: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    argv = command(runs, *SHORT, reward_model)

    first = Started(argv, tmp_path / "first.log")
    first.until(lambda: logged(runs) >= 3)
    os.kill(first.critic(), signal.SIGKILL)
    code, said = first.end()
    assert code == 9, said
    assert "the critic's server died with exit code -9" in said
    assert "runs resume" in said
    assert "Traceback" not in said
    assert json.loads((only_run(runs) / "status.json").read_text())["state"] == "failed"

    second = Started([*argv, "--resume"], tmp_path / "second.log")
    second.until(lambda: any(runs.glob("*/checkpoints/tmp_step_*/value*")))
    critic = second.critic()
    second.process.kill()
    assert second.end()[0] == -signal.SIGKILL
    assert gone(critic)

    resumed = run_here([*argv, "--resume"])
    assert resumed.code == 0, resumed.stderr
    folder = only_run(runs)
    assert models(folder) == models(uninterrupted)
    assert rows(folder) == rows(uninterrupted)
    assert not list(folder.glob("checkpoints/*tmp*"))


def test_a_checkpoint_holds_both_models_in_forms_that_others_read(uninterrupted: Path) -> None:
    checkpoint = uninterrupted / "checkpoints" / "step_4"
    assert (checkpoint / "policy/weights/latest_checkpointed_iteration.txt").is_file()
    assert (checkpoint / "value/optimizer/optimizer.pt").is_file()
    critic = AutoModelForSequenceClassification.from_pretrained(checkpoint / "value" / "weights")
    assert critic.config.num_labels == 1
    start = AutoModelForSequenceClassification.from_pretrained(checkpoint.parent / "step_2" / "value" / "weights")
    assert not torch.equal(critic.score.weight, start.score.weight)


def test_metrics_have_nemo_rl_s_names_and_what_reward_alone_does_not_show(uninterrupted: Path) -> None:
    names = {
        *("train/loss", "train/grad_norm", "train/reward", "train/reward_std", "train/kl_penalty"),
        *("train/kl_sum_per_response", "train/reward_minus_kl", "train/reward_length_correlation"),
        *("train/truncation_rate", "train/missing_share", "train/advantages/mean", "train/probs_ratio"),
        *("critic/loss", "critic/explained_var", "critic/explained_var_before", "critic/grad_norm", "critic/lr"),
        *("critic/values_mean", "critic/returns_mean", "critic/vf_clipfrac"),
    }
    assert all(names <= set(row) for row in rows(uninterrupted))
    status = json.loads((uninterrupted / "status.json").read_text())
    assert set(status["heldout_before"]) == set(status["heldout_after"])


@pytest.fixture
def apart(tmp_path: Path, reward_model: str) -> Iterator[tuple[Started, list[str]]]:
    """A critic that runs alone, and the words of its actor."""
    token = {"NEMOTRON_CRITIC_TOKEN": "a secret of the test"}
    shared = (*SHORT, reward_model, f"checkpointing.checkpoint_dir={tmp_path / 'checkpoints'}", "ppo.max_num_steps=2")
    words = [word for word in shared if word != "ppo.max_num_steps=4"]
    critic = Started(command(tmp_path / "critic", *words, "--only", "critic"), tmp_path / "critic.log", **token)
    critic.until(lambda: "answers at http://" in critic.log.read_text())
    address = critic.log.read_text().split("answers at ")[1].split(";")[0]
    yield critic, command(tmp_path / "actor", *words, "--only", "actor", f"critic.address={address}")
    critic.process.kill()
    critic.process.wait()


@pytest.mark.full
def test_the_two_sides_run_apart(apart: tuple[Started, list[str]], tmp_path: Path) -> None:
    critic, argv = apart
    actor = run_here(argv, env={"NEMOTRON_CRITIC_TOKEN": "a secret of the test"})
    assert actor.code == 0, actor.stderr
    code, said = critic.end()
    assert code == 0, said
    assert (tmp_path / "checkpoints/step_2/value/weights/model.safetensors").is_file()
    # The actor owns the folder of the two; a further actor finds it taken, and its critic may come back.
    assert json.loads((tmp_path / "checkpoints/owner.json").read_text())["run"] == only_run(tmp_path / "actor").name
    again = run_command(argv, env={"NEMOTRON_CRITIC_TOKEN": "a secret of the test"})
    assert again.code == 8, again.stderr
    assert "runs resume" in again.stderr
    for folder in (only_run(tmp_path / "critic"), only_run(tmp_path / "actor")):
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"
        assert "a secret of the test" not in "".join(p.read_text() for p in folder.glob("*.json*"))


@pytest.mark.full
def test_a_lone_critic_ends_with_an_error_when_its_actor_is_killed(
    apart: tuple[Started, list[str]], tmp_path: Path
) -> None:
    critic, argv = apart
    actor = Started(argv, tmp_path / "actor.log", NEMOTRON_CRITIC_TOKEN="a secret of the test")
    actor.until(lambda: logged(tmp_path / "actor") >= 1)
    actor.process.kill()
    code, said = critic.end()
    assert code == 9, said
    assert "the actor is gone" in said
    assert "Traceback" not in said

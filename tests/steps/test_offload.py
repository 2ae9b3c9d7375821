"""`policy.offload_optimizer_for_logprob`: a run with it ends with the bytes of one without.

There is no GPU here, where the key has nothing to do, so the moves are forced: from host memory to host memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nemotron.rl import offload
from nemotron.rl.offload import HostState
from tests.steps.commands import only_run, run_here

pytestmark = pytest.mark.timeout(600)

ON = ("policy.offload_optimizer_for_logprob=true",)
LORA = ("policy.dtensor_cfg.enabled=true", "policy.dtensor_cfg.lora_cfg.enabled=true")
BATCHES = ("policy.train_global_batch_size=8", "policy.train_micro_batch_size=4", "eval.heldout=null")
CHECKPOINTS = ("checkpointing.save_period=1", "checkpointing.keep_top_k=null", "checkpointing.metric_name=null")
GRPO = ("grpo.num_prompts_per_step=4", "grpo.num_generations_per_prompt=4", "limits.max_kl=null")
PPO = ("ppo.num_prompts_per_step=8", "ppo.num_generations_per_prompt=2", "limits.max_kl=null")
FEW_PAIRS = ("data.train.data_path=${asset:tiny_world/data/pairs_heldout.jsonl}",)
"""Every row is read before the first step, and the reference scores it."""
QUIET = ("{0}.val_period=0", "{0}.val_at_start=false")
STEPS = {
    "dpo": ("rl/nemo_rl/dpo", "dpo", FEW_PAIRS),
    "rlvr": ("rl/nemo_rl/rlvr", "grpo", GRPO),
    "rlhf": ("rl/nemo_rl/rlhf", "grpo", GRPO),
    "sft": ("sft/nemo_rl", "sft", FEW_PAIRS),
    "rm": ("rl/nemo_rl/rm", "rm", (*FEW_PAIRS, "bradley_terry.statistics_pairs=16")),
    "ppo": ("rl/nemo_rl/ppo", "ppo", PPO),
    "dpo with adapters": ("rl/nemo_rl/dpo", "dpo", (*FEW_PAIRS, *LORA)),
}
ALWAYS = "sft"
"""The others are looked at in the full run, also those whose update has several optimizer steps."""


@contextmanager
def moving() -> Iterator[list[HostState]]:
    """As if the weights were on a device: every optimizer that is asked to moves its state; those that were."""
    made: list[HostState] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload, "_is_elsewhere", lambda parameter: True)
        first = HostState.__init__
        patch.setattr(HostState, "__init__", lambda self, optimizer: (first(self, optimizer), made.append(self))[0])
        yield made


def trained(case: str, runs: Path, steps: int, *more: str) -> Path:
    """A run of so many steps; returns its folder."""
    step, section, own = STEPS[case]
    words = [word.format(section) for word in (*QUIET, "{0}.max_num_steps=" + str(steps))]
    argv = [sys.executable, "-m", "nemotron", "steps", "run", step, "-c", "tiny", "--runs-dir", str(runs)]
    done = run_here([*argv, *words, *BATCHES, *CHECKPOINTS, *own, *more])
    assert done.code == 0, done.stderr
    return only_run(runs)


def files(run: Path, below: str = "") -> dict[str, bytes]:
    """Checkpoints, byte by byte, without what says how the run was asked for."""
    folder = run / "checkpoints" / below
    apart = ("config.yaml", "nemotron_artifact.json", "owner.json", ".owner.lock")
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in apart)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


@pytest.mark.parametrize("case", [pytest.param(one, marks=[] if one == ALWAYS else pytest.mark.full) for one in STEPS])
def test_a_run_with_the_key_ends_with_the_bytes_of_one_without(case: str, tmp_path: Path) -> None:
    with moving() as made:
        without = trained(case, tmp_path / "without", 2)
        assert not made
        within = trained(case, tmp_path / "within", 2, *ON)
    (state,) = made
    assert state._homes, "nothing was moved"
    ours, theirs = files(within), files(without)
    assert ours.keys() == theirs.keys()
    assert any(name.endswith("optimizer.pt") for name in ours)
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the key on a machine where it has nothing to do."""
    return trained("dpo", tmp_path_factory.mktemp("whole"), 2, *ON)


@pytest.mark.full
@pytest.mark.parametrize("first", [pytest.param(True, id="moving before"), pytest.param(False, id="moving after")])
def test_a_run_goes_on_to_the_same_bytes_on_a_machine_of_the_other_kind(
    first: bool, whole: Path, tmp_path: Path
) -> None:
    """The state lies elsewhere before the checkpoint or after it, as between a machine with a GPU and one without."""
    for steps, moves in ((1, first), (2, not first)):
        with moving() as made, pytest.MonkeyPatch.context() as patch:
            if not moves:
                patch.setattr(offload, "_is_elsewhere", lambda parameter: False)
            if steps == 1:
                part = trained("dpo", tmp_path / "part", 1, *ON)
            else:
                argv = [sys.executable, "-m", "nemotron", "runs", "resume", part.name, "--max-steps", "2"]
                done = run_here([*argv, "--runs-dir", str(tmp_path / "part")])
                assert done.code == 0, done.stderr
            assert bool(made) is moves
    # The first was the last of a shorter run, which measures there.
    ours, theirs = files(part, "step_2"), files(whole, "step_2")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []

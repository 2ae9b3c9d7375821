"""The same command started twice, in every way to go on: one run trains, the others say who holds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.steps.commands import TIMEOUT_S, kill_when, only_run

pytestmark = pytest.mark.timeout(1800)
STEP = "rl/nemo_rl/dpo"
STEPS = 4
WORDS = (
    *(f"dpo.max_num_steps={STEPS}", "policy.train_global_batch_size=4", "dpo.val_period=0"),
    *("checkpointing.metric_name=null", "checkpointing.save_period=2", "eval.heldout.max_samples=4"),
    # The reference scores all pairs before the first step.
    "data.train.data_path=${asset:tiny_world/data/pairs_heldout.jsonl}",
)
HELD = ("in use by process", "works on run", "is starting a run", "holds checkpoints of run")
"""How a command says that another one has what it wants."""
# OFTEN=10 in the environment starts them ten times over.
OFTEN = int(os.environ.get("OFTEN", "1"))
FULL = [pytest.mark.full, pytest.mark.timeout(600 * OFTEN)]
TIMES = [pytest.param(OFTEN, id="often", marks=FULL)]


def steps_run(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "nemotron", "steps", "run", STEP, "-c", "tiny", "--runs-dir", str(folder), *words]


def runs_resume(run: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "nemotron", "runs", "resume", run, "--runs-dir", str(folder)]


def together(commands: Sequence[list[str]]) -> list[tuple[int, str]]:
    """Start the commands at once; code and stderr of each."""
    started = [
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for command in commands
    ]
    said = [process.communicate(timeout=TIMEOUT_S)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def steps_of(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "train/loss" in row]


def one_trained(folder: Path, ended: list[tuple[int, str]], attempts: int, checkpoints: Path | None = None) -> None:
    """One of the commands trained what was left, in the attempt of that number; nobody undid or repeated it."""
    trained = [path for path in folder.iterdir() if not path.name.startswith(".") and steps_of_any(path)]
    [run] = trained
    assert sorted(int(path.name) for path in (run / "attempts").iterdir()) == [*range(1, attempts + 1)]
    assert steps_of(run) == [*range(1, STEPS + 1)]
    saved = sorted(path.name for path in (checkpoints or run / "checkpoints").glob("step_*"))
    assert saved == ["step_2", "step_4"]
    assert json.loads((run / "status.json").read_bytes())["state"] == "finished"
    assert sum(code == 0 and "finished already" not in said for code, said in ended) == 1, ended
    for code, said in ended:
        if code == 0:
            continue
        # A command that came when all was done has nothing to do, which is no error.
        assert code == 8, said
        assert any(word in said for word in HELD), said
        assert "Traceback" not in said
        assert "bug in nemotron" not in said


def steps_of_any(run: Path) -> list[int]:
    return steps_of(run) if (run / "metrics.jsonl").is_file() else []


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    assert kill_when(steps_run(folder, *WORDS), lambda: any(folder.glob("*/checkpoints/step_2"))) == -9
    return folder


def restored(killed: Path, folder: Path) -> Path:
    """The killed run, in ``folder``; it has not made its last step."""
    shutil.copytree(killed, folder)
    assert not (only_run(folder) / "checkpoints" / "step_4").exists()
    return folder


@pytest.mark.parametrize("times", TIMES)
def test_a_run_that_is_not_there_yet(tmp_path: Path, times: int) -> None:
    """`--resume` twice: both find nothing to resume."""
    for number in range(times):
        folder = tmp_path / str(number)
        one_trained(folder, together([steps_run(folder, *WORDS, "--resume")] * 2), attempts=1)


@pytest.mark.parametrize("times", TIMES)
def test_a_run_that_was_killed(killed: Path, tmp_path: Path, times: int) -> None:
    """Each of the ways to go on with it beside the other; OFTEN beside itself, too."""
    for number in range(times):
        for pair in ((0, 0), (0, 1), (1, 1)) if times > 1 else ((0, 1),):
            folder = restored(killed, tmp_path / f"{number}-{pair[0]}{pair[1]}")
            ways = (steps_run(folder, *WORDS, "--resume"), runs_resume(only_run(folder).name, folder))
            one_trained(folder, together([ways[way] for way in pair]), attempts=2)


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
@pytest.mark.parametrize("times", TIMES)
def test_one_folder_of_checkpoints(tmp_path: Path, times: int, resume: tuple[str, ...]) -> None:
    """Two runs in different folders of runs, and two in the same: whoever comes first has the checkpoints."""
    for number in range(times):
        shared = tmp_path / f"checkpoints-{number}"
        word = f"checkpointing.checkpoint_dir={shared}"
        folder = tmp_path / f"runs-{number}"
        ended = together([steps_run(folder, *WORDS, word, *resume)] * 2)
        one_trained(folder, ended, attempts=1, checkpoints=shared)


@pytest.mark.full
def test_a_killed_run_and_a_new_one_in_its_folder_of_checkpoints(tmp_path: Path) -> None:
    """The folder stays its owner's, whoever else comes, with `--resume` of another config, too."""
    folder, shared = tmp_path / "runs", tmp_path / "checkpoints"
    words = (*WORDS, f"checkpointing.checkpoint_dir={shared}")
    assert kill_when(steps_run(folder, *words), (shared / "step_2").is_dir) == -9
    run = only_run(folder).name
    others = [steps_run(folder, *words, "dpo.seed=7", *more) for more in ((), ("--resume",))]
    one_trained(folder, together([runs_resume(run, folder), *others]), attempts=2, checkpoints=shared)


@pytest.mark.full
def test_a_copy_of_a_run_does_not_share_its_folder_of_checkpoints(tmp_path: Path) -> None:
    """A run that was moved has its checkpoints still, where they lie elsewhere; of two of them, the first has."""
    folder, shared = tmp_path / "runs", tmp_path / "checkpoints"
    words = (*WORDS, f"checkpointing.checkpoint_dir={shared}")
    assert kill_when(steps_run(folder, *words), (shared / "step_2").is_dir) == -9
    run = only_run(folder)
    shutil.copytree(folder, tmp_path / "copy")
    [(code, said)] = together([runs_resume(run.name, tmp_path / "copy")])
    assert code == 8, said
    assert str(run) in said
    folder.rename(tmp_path / "moved")
    one_trained(
        tmp_path / "moved", together([runs_resume(run.name, tmp_path / "moved")]), attempts=2, checkpoints=shared
    )

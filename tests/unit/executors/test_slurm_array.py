"""A sweep on Slurm is one job array, and every run of it is a run like any other; a real Slurm runs one in
tests/integration."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from nemotron.executors import alive
from nemotron.executors.base import Submission
from nemotron.executors.launch import Launch, batches
from nemotron.executors.slurm.executor import Slurm
from nemotron.runs.attempts import attempts_of
from nemotron.runs.folder import RunFolder, list_runs
from tests.in_process import Result, nemotron

SBATCH = """#!/bin/sh
[ -e "$HERE/refuse" ] && { echo "sbatch: error: Batch job submission failed: $(cat "$HERE/refuse")" >&2; exit 1; }
n=$(cat "$HERE/n" 2>/dev/null || echo 40); n=$((n + 1)); echo $n > "$HERE/n"
echo "$2" >> "$HERE/sent"
echo $n
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose Slurm takes what it is given and runs nothing; a folder below it holds what was sent."""
    tools, here = tmp_path / "bin", tmp_path / "slurm"
    tools.mkdir()
    here.mkdir()
    squeue = '#!/bin/sh\ncat "$HERE/known" 2>/dev/null; exit 0\n'
    scontrol = '#!/bin/sh\necho "$@" >> "$HERE/asked"\necho "JobId=50 JobState=RUNNING Reason=None ExitCode=0:0"\n'
    scancel = '#!/bin/sh\necho "$@" >> "$HERE/cancelled"\n'
    commands = {"sbatch": SBATCH, "squeue": squeue, "sacct": "#!/bin/sh\nexit 1\n"}
    for name, text in {**commands, "scontrol": scontrol, "scancel": scancel}.items():
        # What a job is sent with has none of this machine's variables, so the folder stands in the script itself.
        (tools / name).write_text(text.replace("$HERE", str(here)))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    profile(tmp_path)
    return here


def profile(folder: Path, *lines: str) -> None:
    base = ["[lab]", 'executor = "slurm"', f'remote_job_dir = "{folder}/shared dir"', 'partition = "p"', *lines]
    (folder / "env.toml").write_text("\n".join(base) + "\n")


def sweep(folder: Path, *words: str, step: str = "rlhf", values: str = "grpo.seed=1,2,3") -> Result:
    words = ("steps", "run", step, "-c", "tiny", "engine=embedded", *words, "--sweep", values)
    return nemotron(*words, cwd=folder, bare=True)


def job_of(run: RunFolder) -> str:
    return str((attempts_of(run.path)[-1].handle().model_extra or {})["job_id"])


def test_one_call_submits_all_and_each_run_has_its_task(slurm: Path, tmp_path: Path) -> None:
    done = sweep(tmp_path, "-b", "lab")
    assert done.code == 0, done.stderr
    [script] = (slurm / "sent").read_text().splitlines()
    runs = list_runs(tmp_path / "runs")
    assert done.stdout.split() == [run.id for run in sorted(runs, key=job_of)]
    assert sorted(map(job_of, runs)) == ["41_0", "41_1", "41_2"]
    lines = Path(script).read_text().splitlines()
    assert "#SBATCH --array=0-2" in lines
    assert "#SBATCH --partition=p" in lines
    # A task goes on as the script of its run, and what Slurm prints of it goes into the log of its run.
    folder = Path(script).parent
    for run in runs:
        attempt, task = attempts_of(run.path)[-1], job_of(run).partition("_")[2]
        assert (folder / f"{task}.sh").resolve() == (attempt.path / "job.sh").resolve()
        (folder / f"{task}.log").write_text("said")
        handle = attempt.handle()
        assert Slurm().read_log(handle, 0) == b"said"
        assert Slurm().state(handle).state == "running"
    asked = (slurm / "asked").read_text()
    assert all(f"show job 41_{task}\n" in asked for task in range(3))
    # One of them is cancelled, and the others are not.
    cancelled = nemotron("runs", "cancel", runs[1].id, cwd=tmp_path, bare=True)
    assert cancelled.code == 0, cancelled.stderr
    assert (slurm / "cancelled").read_text().split() == [job_of(runs[1])]
    assert [(attempts_of(run.path)[-1].path / "cancelled").exists() for run in runs] == [False, True, False]


def test_the_arrays_last_line_starts_the_task_of_this_name(slurm: Path, tmp_path: Path) -> None:
    assert sweep(tmp_path, "-b", "lab").code == 0
    script = Path((slurm / "sent").read_text().strip())
    (script.parent / "1.sh").unlink()
    (script.parent / "1.sh").write_text("echo it is $0\n")
    env = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"it is {script.parent}/1.sh"


def test_the_dry_run_prints_the_array_and_writes_nothing(slurm: Path, tmp_path: Path) -> None:
    shown = sweep(tmp_path, "-b", "lab", "-d")
    assert shown.code == 0, shown.stderr
    assert "--- job array of 3 runs" in shown.stdout
    assert "#SBATCH --array=0-2" in shown.stdout
    found = json.loads(sweep(tmp_path, "-b", "lab", "-d", "--json").stdout)
    [array] = found["arrays"]
    assert len(array["request"]["tasks"]) == 3
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "shared dir").exists()


@dataclass
class Sent:
    """What a launch says to be put together with others."""

    shared: tuple[str, ...] | None
    secret: str = ""

    @property
    def submission(self) -> Submission:
        return Submission(executor="slurm", profile="lab", run_dir="/r", shared=self.shared)

    def values(self) -> dict[str, str]:
        return {"KEY": self.secret}


def test_what_differs_in_options_or_in_values_is_in_arrays_of_its_own() -> None:
    """A job array has one set of options, and is sent with one environment."""
    runs = [Sent(("--time=1",)), Sent(None), Sent(("--time=2",)), Sent(("--time=1",)), Sent(None)]
    runs += [Sent(("--time=1",), "another"), Sent(("--time=2",))]
    found = batches(cast("list[Launch]", runs))
    assert [[runs.index(one) for one in batch] for batch in cast("list[list[Sent]]", found)] == [
        [0, 0],  # equal to the fourth
        [1],
        [2, 2],
        [1],
        [5],
    ]
    assert sum(map(len, found)) == len(runs)


def test_what_no_array_can_hold_goes_alone(slurm: Path, tmp_path: Path) -> None:
    profile(tmp_path, "array = false")
    assert sweep(tmp_path, "-b", "lab").code == 0
    assert len((slurm / "sent").read_text().splitlines()) == 3
    # Slurm has no array of heterogeneous jobs.
    profile(tmp_path, "critic = { cpus_per_task = 1 }")
    hetjobs = sweep(tmp_path, "-b", "lab", step="ppo", values="ppo.seed=1,2")
    assert hetjobs.code == 0, hetjobs.stderr
    sent = (slurm / "sent").read_text().splitlines()[3:]
    assert len(sent) == 2
    assert all("#SBATCH hetjob" in Path(script).read_text() for script in sent)


def test_a_refused_array_is_one_line_and_every_run_says_so(slurm: Path, tmp_path: Path) -> None:
    (slurm / "refuse").write_text("Invalid job array specification")
    done = sweep(tmp_path, "-b", "lab")
    assert done.code == 11
    assert done.stderr.count("Slurm refuses the job: Invalid job array specification") == 1
    assert "`array = false`" in done.stderr
    assert [run.status().state for run in list_runs(tmp_path / "runs")] == ["failed"] * 3
    (slurm / "refuse").unlink()
    again = sweep(tmp_path, "-b", "lab", "--resume")
    assert again.code == 0, again.stderr
    assert len(list_runs(tmp_path / "runs")) == 3


def test_an_array_whose_answer_was_lost_is_taken(slurm: Path, tmp_path: Path) -> None:
    (slurm / "known").write_text("77\n77\n77\n")
    assert sweep(tmp_path, "-b", "lab").code == 0
    assert not (slurm / "sent").exists()
    runs = list_runs(tmp_path / "runs")
    assert sorted(map(job_of, runs)) == ["77_0", "77_1", "77_2"]
    assert [alive(run) for run in runs] == ["yes"] * 3


def test_a_sweep_that_grows_submits_what_is_new(slurm: Path, tmp_path: Path) -> None:
    assert sweep(tmp_path, "-b", "lab").code == 0
    done = sweep(tmp_path, "-b", "lab", "--resume", values="grpo.seed=1,2,3,4,5")
    assert done.code == 0, done.stderr
    assert done.stderr.count("goes on already") == 3
    assert sorted(job_of(run) for run in list_runs(tmp_path / "runs")) == ["41_0", "41_1", "41_2", "42_0", "42_1"]

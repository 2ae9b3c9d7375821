"""The batch script, Slurm's states, and what is quoted how; a real Slurm runs them in tests/integration."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from nemotron.errors import ExecutorError
from nemotron.executors.base import How
from nemotron.executors.shells import Done, Here
from nemotron.executors.slurm.executor import _job_id
from nemotron.executors.slurm.script import batch_script, image_file
from nemotron.executors.slurm.states import STATES, job_state, of_scontrol
from nemotron.profiles.model import SlurmProfile

EVERYTHING: dict[str, Any] = {
    "account": "acct",
    "partition": "p",
    "run_partition": "interactive",
    "qos": "normal",
    "nodes": 2,
    "gpus_per_node": 8,
    "cpus_per_task": 16,
    "mem": "64G",
    "exclusive": True,
    "constraint": "a100&nvlink",
    "comment": 'it\'s "quoted" and \\ $(x)',
    "sbatch_options": ["--mail-type=END", "--hint=nomultithread", "overcommit"],
    "startup_commands": ["module load cuda", "export A='b c'"],
}


def script(how: How = How(), *, run_dir: str = "/lustre/runs/r", **values: Any) -> str:  # noqa: B008  frozen
    profile = SlurmProfile.model_validate({"executor": "slurm", **values})
    return batch_script(profile, name="nemotron-r-1", run_dir=run_dir, number=1, how=how)


@pytest.mark.parametrize(
    ("name", "how", "values"),
    [
        ("plain", How(), {}),
        ("everything", How(attached=True), EVERYTHING),
        (
            "pyxis",
            How(),
            {
                "container_image": "nvcr.io/nvidia/nemo-rl:v0.7.0",
                "remote_job_dir": "/lustre/me",
                "mounts": ["/lustre", "/home/me:/root:ro"],
                "startup_commands": ["pip install x"],
            },
        ),
        (
            "enroot",
            How(force_squash=True),
            {
                "container": "enroot",
                "container_image": "docker://ubuntu",
                "remote_job_dir": "/s",
                "squash_dir": "/s/my images",
                "requeue": False,
            },
        ),
        ("squashed", How(), {"container_image": "/images/nemo.sqsh", "remote_job_dir": "/s"}),
    ],
)
def test_scripts(name: str, how: How, values: dict[str, Any], snapshot: SnapshotAssertion) -> None:
    text = script(how, **values)
    assert text == snapshot(name=name)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_critic_gets_machines_of_its_own(snapshot: SnapshotAssertion) -> None:
    critic = {"gpus_per_node": 4, "cpus_per_task": 16, "partition": "q"}
    values = {"executor": "slurm", "partition": "p", "gpus_per_node": 8, "critic": critic}
    profile = SlurmProfile.model_validate(values)
    name, run_dir = "nemotron-r-1", "/lustre/runs/r"
    text = batch_script(profile, name=name, run_dir=run_dir, number=1, how=How(), two_sided=True)
    assert text == snapshot
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "hetjob" not in batch_script(profile, name=name, run_dir=run_dir, number=1, how=How())


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_judge_gets_a_machine_of_its_own(nodes: int, snapshot: SnapshotAssertion) -> None:
    """Beside one node or a Ray over several, whose tasks are then all of the first component."""
    values = {"executor": "slurm", "partition": "p", "nodes": nodes, "gpus_per_node": 8, "cpus_per_task": 64}
    judge = {"gpus_per_node": 8, "cpus_per_task": 32, "partition": "q", "mem": "0"}
    profile = SlurmProfile.model_validate({**values, "judge": judge})
    asked = {"name": "nemotron-r-1", "run_dir": "/lustre/runs/r", "number": 1, "how": How(), "ray": True}
    text = batch_script(profile, judged=True, **asked)
    assert text == snapshot
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    tasks = [line for line in text.splitlines() if "srun " in line]
    assert [("--het-group=1" in line, "--het-group=0" in line) for line in tasks] == [
        (True, False),
        *[(False, True)] * (2 if nodes > 1 else 1),
    ]
    assert "hetjob" not in batch_script(profile, **asked)


@pytest.mark.parametrize(
    "folder", ["/a b/c", "/a'b", '/a"b', "/a$(touch x)`y`", "/100%/j", "/ü/漢", "/a\\b", "/-x;y&z|<>*?[]"]
)
def test_any_folder_is_quoted(folder: str, tmp_path: Path) -> None:
    """Bash sees the worker's words as they are, whatever the folder is called."""
    text = script(run_dir=folder)
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    srun.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    out = subprocess.run(["bash"], input=text.encode(), env=env, capture_output=True, check=True, cwd=tmp_path).stdout
    words = out.decode().split("\0")[:-1]
    assert words[words.index("nemotron.engines.worker") :] == ["nemotron.engines.worker", folder, "--attempt", "1"]
    assert not (tmp_path / "x").exists()


VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "critic": {"critic": {}}, "ray": {"nodes": 2}}
SRUN = """#!/bin/bash
case "$*" in
  *nemotron.engines.worker*) /bin/sleep 0.05; exit {code} ;;
  *) trap 'exit 143' TERM; while kill -0 $PPID 2>/dev/null; do /bin/sleep 0.02; done ;;
esac
"""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("code", "requeues"), [(0, False), (1, False), (9, False), (130, True), (143, False)])
def test_exit_code_of_the_worker_is_the_jobs(tmp_path: Path, code: int, requeues: bool, variant: str) -> None:
    """130 asks for another turn, unless the run was cancelled. What is ended after the worker has no say in it."""
    run = tmp_path / "run"
    (run / "attempts" / "1" / "logs").mkdir(parents=True)
    (tmp_path / "srun").write_text(SRUN.format(code=code))
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho $@ >> {tmp_path}/asked\n")
    # The critic's sixty seconds to leave by itself.
    (tmp_path / "seq").write_text("#!/bin/bash\necho 1\n")
    # Nor does anybody have to look every second or two.
    (tmp_path / "sleep").write_text("#!/bin/bash\nexec /bin/sleep 0.02\n")
    for name in ("srun", "scontrol", "seq", "sleep"):
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    profile = SlurmProfile.model_validate({"executor": "slurm", **VARIANTS[variant]})
    text = batch_script(
        profile,
        name="nemotron-r-1",
        run_dir=str(run),
        number=1,
        how=How(),
        two_sided=variant == "critic",
        ray=variant == "ray",
    )

    def run_script() -> int:
        return subprocess.run(["bash"], input=text, env=env, text=True, check=False, timeout=60).returncode

    assert run_script() == (0 if requeues else code)
    assert (tmp_path / "asked").exists() is requeues
    (run / "attempts" / "1" / "cancelled").touch()
    assert run_script() == code


@pytest.mark.parametrize(
    "worker", ["trap 'exit 130' TERM; while kill -0 $PPID; do sleep 0.1; done", "exit 1"], ids=["waits", "fails first"]
)
def test_a_ray_that_ends_is_a_failure_and_no_turn_to_ask_for(tmp_path: Path, worker: str) -> None:
    """The worker is told to end, and says 130: that would queue the job again, for ever where Ray cannot start. Or it
    fails for want of Ray before the watch looks again: the log has the reason all the same.
    """
    (tmp_path / "attempts" / "1" / "logs").mkdir(parents=True)
    (tmp_path / "srun").write_text(
        f"#!/bin/bash\ncase $* in *engines.worker*) ;; *) /bin/sleep 0.1; exit 1 ;; esac\n{worker}\n"
    )
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\ntouch {tmp_path}/asked\n")
    (tmp_path / "sleep").write_text("#!/bin/bash\nexec /bin/sleep 0.2\n")
    for name in ("srun", "scontrol", "sleep"):
        (tmp_path / name).chmod(0o755)
    profile = SlurmProfile.model_validate({"executor": "slurm", "nodes": 2})
    text = batch_script(profile, name="nemotron-r-1", run_dir=str(tmp_path), number=1, how=How(), ray=True)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=text, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, (tmp_path / "asked").exists()) == (9, False)
    assert "Ray has ended on a node of this job" in done.stderr


def test_a_signal_becomes_a_notice_and_the_task_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "attempts" / "1").mkdir(parents=True)
    notice = run / "attempts" / "1" / "notice"
    (tmp_path / "srun").write_text(
        f"#!/bin/bash\nkill -USR1 $PPID\nwhile [ ! -e {notice} ]; do sleep 0.05; done\nexit 5\n"
    )
    (tmp_path / "srun").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash"], input=script(run_dir=str(run)), env=env, text=True, check=False, timeout=60)
    assert done.returncode == 5
    assert notice.exists()


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Invalid account or account/partition combination specified", "lists your accounts"),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "wait until some"),
        ("Reached limit for pending or running jobs", "wait until some"),
        ("invalid partition specified: x", "lists the partitions"),
        ("Required partition not available (inactive or drain)", "lists the partitions"),
        ("Requested node configuration is not available", "what a node of that partition has"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "lower `time`"),
        ("Invalid qos specification", "qos"),
        ("Invalid job array specification", "`array = false`"),
        ("Unable to create job record, try again", "queue is full"),
        ("Resource temporarily unavailable", "queue is full"),
        ("MaxJobCount limit reached", "queue is full"),
    ],
)
def test_what_slurm_refuses_has_the_hint_for_that(said: str, hint: str) -> None:
    """A limit of jobs was answered with where accounts are listed: its text has the word `accounting` in it."""
    with pytest.raises(ExecutorError, match=re.escape(f"Slurm refuses the job: {said}")) as caught:
        _job_id(Done(1, b"", f"sbatch: error: Batch job submission failed: {said}\n"))
    assert hint in str(caught.value.hint)


def test_a_command_that_waits_says_for_what(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: Slurm job queue full, sleeping' >&2\nexec sleep 30\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(ExecutorError, match="gave no answer for 1 s: sbatch: error: Slurm job queue full, sleeping"):
        Here().run([str(tmp_path / "sbatch")], timeout_s=1.0)


@pytest.mark.parametrize("word", sorted(STATES))
def test_every_state_of_slurm_is_mapped(word: str) -> None:
    state = job_state(word, "None", "0:0")
    assert state.state != "unknown"
    assert job_state(f"{word}+").state == state.state
    assert job_state(f"{word} by 1000").state == state.state


def test_an_unknown_state_is_not_over() -> None:
    state = job_state("NEVER_HEARD", "", "0:0")
    assert (state.state, state.is_over, state.reason) == ("unknown", False, "NEVER_HEARD")


def test_a_line_of_scontrol() -> None:
    line = "JobId=12 JobName=a JobState=x UserId=me(1) JobState=FAILED Reason=NonZeroExitCode ExitCode=7:0 Comment=x"
    found = of_scontrol(line)
    assert found is not None
    job, state = found
    assert (job, state.state, state.reason, state.exit_code) == ("12", "failed", "NonZeroExitCode", 7)
    assert of_scontrol("slurm_load_jobs error: Invalid job id specified") is None
    killed = of_scontrol("JobId=1 JobState=FAILED Reason=None ExitCode=0:9")
    assert killed is not None
    assert killed[1].exit_code == 137


def test_images_by_name() -> None:
    def of(image: str | None) -> str | None:
        values = {"executor": "slurm", "remote_job_dir": "/s", "container_image": image}
        return image_file(SlurmProfile.model_validate(values))

    assert of(None) is of("/images/x.sqsh") is None
    assert of("nvcr.io/nvidia/nemo-rl:v0.7.0") == "/s/images/nvcr.io+nvidia+nemo-rl+v0.7.0.sqsh"
    assert of("ubuntu") == "/s/images/ubuntu.sqsh"


def test_ray_over_the_nodes(snapshot: SnapshotAssertion) -> None:
    values = {"executor": "slurm", "nodes": 2, "gpus_per_node": 8, "cpus_per_task": 64, "remote_job_dir": "/s"}
    profile = SlurmProfile.model_validate({**values, "container_image": "nvcr.io/nvidia/nemo-rl:v0.7.0"})
    text = batch_script(profile, name="nemotron-r-1", run_dir="/s/runs/r", number=1, how=How(), ray=True)
    assert text == snapshot
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    one = profile.model_copy(update={"nodes": 1})
    alone = batch_script(one, name="nemotron-r-1", run_dir="/s/runs/r", number=1, how=How(), ray=True)
    assert "ray" not in alone.replace("nemo-rl", "")


AWKWARD = st.one_of(
    st.integers(-2, 99),
    st.booleans(),
    st.text(st.sampled_from("ab/ '\"$`\\(){};&|<>*?[]!#%~=-,:\n\tü漢"), max_size=12),
    st.lists(st.text(st.sampled_from("ab/ '\"$`\\(){};&|:=-\n"), max_size=8), max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(SlurmProfile.model_fields)), AWKWARD, max_size=10), st.booleans())
def test_any_profile_that_is_taken_gives_a_script(given_values: dict[str, Any], several: bool) -> None:
    """Bash can read it, and Slurm finds its options: nothing of a value ends its line, or begins one."""
    values: dict[str, Any] = {"executor": "slurm"}
    for key, value in given_values.items():
        try:
            SlurmProfile.model_validate({**values, key: value})
        except ValueError:
            continue
        values[key] = value
    # Shell lines are the user's own, and may be wrong.
    values.pop("startup_commands", None)
    profile = SlurmProfile.model_validate(values)
    name, run_dir = "nemotron-r-1", "/lustre/runs/r"
    text = batch_script(profile, name=name, run_dir=run_dir, number=1, how=How(), two_sided=several, ray=not several)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, capture_output=True)
    head, _, body = text.partition("\n\n")
    assert all(line.startswith(("#!/bin/bash", "#SBATCH ")) for line in head.split("\n"))
    assert "#SBATCH" not in body
    assert f"nemotron.engines.worker {run_dir} --attempt 1" in body

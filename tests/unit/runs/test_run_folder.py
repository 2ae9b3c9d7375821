"""Run folders: whole or absent, one process each, found by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron import __version__
from nemotron.disk import lock
from nemotron.errors import ArtifactError, NotFoundError, OutputError
from nemotron.executors import goes_on, state_of
from nemotron.job import Input
from nemotron.runs.folder import LOCK, RunFolder, find_run, list_runs, new_run_id, newest_of_job
from tests.compiled_jobs import compiled
from tests.unit.runs.run_records import MakeRun, fill

STEP = "rl/nemo_rl/rlhf"
ROOT = str(Path(__file__).parents[3])


def test_create_writes_job_and_status(make_run: MakeRun) -> None:
    run = make_run(inputs=[Input(key="data.train.data_path", type="training_jsonl", path="a.jsonl")])
    job = run.job()
    assert re.fullmatch(r"\d{8}-\d{6}-rlhf-tiny-[0-9a-f]{4}", run.id)
    assert (job.format, job.version, job.id, job.step, job.config_name) == (1, __version__, run.id, STEP, "tiny")
    assert [one.path for one in job.inputs] == ["a.jsonl"]
    assert job.provenance.python == sys.version.split()[0]
    status = run.status()
    assert (status.state, status.pid, status.steps_done) == ("starting", os.getpid(), 0)
    assert sorted(child.name for child in run.path.iterdir()) == [
        "checkpoints",
        "job.json",
        "run.lock",
        "status.json",
    ]
    assert [child.name for child in run.path.parent.iterdir()] == [run.id]


@pytest.mark.parametrize(
    ("config", "slug"), [("tiny", "tiny"), ("my configs/a b.yaml", "a-b"), ("../x.yaml", "x"), ("ü", "run")]
)
def test_run_ids_are_plain_file_names(config: str, slug: str) -> None:
    assert re.fullmatch(rf"[0-9-]+-rlhf-{slug}-[0-9a-f]{{4}}", new_run_id(STEP, config))


def test_an_id_given_beforehand_is_used_once(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(run_id="mine")
    with pytest.raises(OutputError):
        make_run(run_id="mine")
    assert run.path == tmp_path / "runs" / "mine"
    assert [child.name for child in run.path.parent.iterdir()] == ["mine"]


def test_status_keeps_fields_and_stamps_the_end(make_run: MakeRun) -> None:
    run = make_run()
    run.write_status(state="running", steps_total=40)
    run.write_status(steps_done=3, heldout_before={"fully_right": 0.1})
    status = run.status()
    assert (status.state, status.steps_done, status.steps_total) == ("running", 3, 40)
    assert status.finished_at is None
    run.write_status(state="failed", error="no judge", exit_code=7)
    assert run.status().finished_at is not None
    run.write_status(state="running", error=None)
    assert (run.status().finished_at, run.status().error) == (None, None)


def test_files_follow_the_umask(make_run: MakeRun) -> None:
    before = os.umask(0o077)
    try:
        run = make_run()
    finally:
        os.umask(before)
    assert (run.path / "job.json").stat().st_mode & 0o777 == 0o600


def test_a_field_that_does_not_exist_is_a_programming_error(make_run: MakeRun) -> None:
    with pytest.raises(TypeError):
        make_run().write_status(stepsdone=3)


def test_a_status_of_a_later_version_can_be_read(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "invented_later": 1}))
    assert run.status().state == "starting"


def test_truncation_for_resume(make_run: MakeRun) -> None:
    run = fill(make_run(), steps=6)
    with run.metrics.open("ab") as file:
        file.write(b'{"step": 7, "tr')
    run.truncate_metrics(4)
    run.truncate_samples(4)
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4]
    assert run.metrics.read_bytes().endswith(b"}\n")
    kept = [(row["phase"], row["step"]) for row in run.read_samples()]
    assert set(kept) == {("heldout_before", 0), *(("train", step) for step in range(1, 5))}
    run.truncate_samples(-1)
    assert list(run.read_samples()) == []


def test_answers_after_training_are_dropped_even_at_the_last_step(make_run: MakeRun) -> None:
    run = fill(make_run(), steps=6)
    run.truncate_samples(6)
    assert {row["phase"] for row in run.read_samples()} == {"heldout_before", "train"}


def test_damaged_files_are_named(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "status.json").write_text("")
    with pytest.raises(ArtifactError) as caught:
        run.status()
    assert str(caught.value.origin) == str(run.path / "status.json")


_HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.compiled_jobs import compiled
from nemotron.runs.folder import LOCK, RunFolder
run = RunFolder.create(Path(sys.argv[1]), compiled(fingerprint="abc"))
run.write_status(state="running")
run.append_metrics({"step": 1})
print(run.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path: Path):
    """A live process that holds a run; (process, path of the run)."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "runs"), ROOT], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_run_belongs_to_one_live_process(other_process: tuple[subprocess.Popen[str], Path]) -> None:
    process, path = other_process
    run = RunFolder.open(path)
    assert goes_on(run)
    assert state_of(run) == "running"
    found = newest_of_job(path.parent, STEP, "abc")
    assert found is not None
    assert found.path == path
    with pytest.raises(OutputError, match=rf"is in use by process {process.pid} on "), run.lock():
        pass


def test_a_killed_run_is_reported_and_can_be_taken_over(other_process: tuple[subprocess.Popen[str], Path]) -> None:
    process, path = other_process
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = RunFolder.open(path)
    assert not goes_on(run)
    assert run.status().state == "running"
    assert state_of(run) == "killed"
    for folder in (path, path / "cache", path / "attempts"):
        folder.mkdir(exist_ok=True)
        (folder / ".status.json.0123abcd.tmp").write_text('{"state": "ru')
    found = newest_of_job(path.parent, STEP, "abc")
    assert found is not None
    assert found.path == path
    with found.lock():
        # How to find an attempt may just be written by the command that started it.
        assert [*path.rglob(".*")] == [path / "attempts" / ".status.json.0123abcd.tmp"]
        assert goes_on(found)
        assert state_of(found) == "running"
        found.append_metrics({"step": 2})
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


def test_one_process_may_open_its_run_twice(make_run: MakeRun) -> None:
    run = make_run()
    with RunFolder.open(run.path).lock():
        assert goes_on(run)
    assert not goes_on(run)


def test_newest_of_job_takes_the_newest_of_the_same_step_and_config(make_run: MakeRun, tmp_path: Path) -> None:
    made = {}
    for day, (name, fingerprint, state) in enumerate(
        [("done", "a", "finished"), ("old", "a", "failed"), ("new", "a", "interrupted"), ("other", "b", "failed")]
    ):
        run = make_run(run_id=f"2025010{day}-000000-{name}", fingerprint=fingerprint)
        run.write_status(state=state)
        lock.release(run.path / LOCK)
        made[name] = run
    found = newest_of_job(tmp_path / "runs", STEP, "a")
    assert found is not None
    assert found.id == made["new"].id
    assert newest_of_job(tmp_path / "runs", "rl/other", "a") is None
    assert newest_of_job(tmp_path / "nowhere", STEP, "a") is None


def test_list_is_by_age_and_skips_what_is_not_a_run(make_run: MakeRun, tmp_path: Path) -> None:
    ids = ["20250103-000000-z-0001", "20250101-000000-z-ffff", "20250103-000000-a-0002"]
    for run_id in ids:
        make_run(run_id=run_id)
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / ".half.tmp").mkdir()
    (tmp_path / "runs" / ".half.tmp" / "job.json").write_text("{}")
    assert [run.id for run in list_runs(tmp_path / "runs")] == [ids[1], ids[0], ids[2]]


def test_find_by_id_beginning_end_path_and_last(make_run: MakeRun, tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    first = make_run(run_id="20250101-000000-rlhf-tiny-aaaa")
    second = make_run(run_id="20250102-000000-rlhf-tiny-bbbb")
    assert find_run(runs_dir, first.id).id == first.id
    assert find_run(runs_dir, "20250101").id == first.id
    assert find_run(runs_dir, "bbbb").id == second.id
    assert find_run(runs_dir, "last").id == second.id
    assert find_run(runs_dir, str(first.path)).id == first.id


def test_a_run_folder_here_is_named_as_a_path(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a slash is an id: who means the folder beside is told how to say so."""
    run = make_run(run_id="20250101-000000-rlhf-tiny-aaaa")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.path, tmp_path / "copy")
    for runs_dir in (tmp_path / "runs", tmp_path / "none"):
        with pytest.raises(NotFoundError) as error:
            find_run(runs_dir, "copy")
        told = re.search(r"`(\S+)`", error.value.hint or "")
        assert told is not None
        assert find_run(runs_dir, told[1]).path == tmp_path / "copy"


def test_a_lost_file_is_no_reason_to_delete_checkpoints(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "status.json").unlink()
    with pytest.raises(ArtifactError) as error:
        run.status()
    assert "delete the folder" in (error.value.hint or "")
    (run.checkpoints / "step_2").mkdir()
    (run.path / "job.json").unlink()
    for read in (run.status, run.job):
        with pytest.raises(ArtifactError) as error:
            read()
        assert "delete" not in (error.value.hint or "")
        assert str(run.checkpoints) in (error.value.hint or "")


def test_the_last_run_of_a_step(make_run: MakeRun, tmp_path: Path) -> None:
    """`last` is of any step; `last:STEP` is what a user means who works on one."""
    runs_dir = tmp_path / "runs"
    old, dpo, prep = (
        RunFolder.create(runs_dir, compiled(step=step, run_id=f"2025010{day}-000000-x-aaaa"))
        for day, step in enumerate((STEP, "rl/nemo_rl/dpo", "data_prep/rl_prep"), 1)
    )
    names = {"last": prep, "last:rlhf": old, "last:nemo_rl/rlhf": old, f"last:{STEP}": old, "last:dpo": dpo}
    assert {name: find_run(runs_dir, name).id for name in names} == {name: run.id for name, run in names.items()}
    for wrong, hint in (
        ("last:dop", "did you mean `last:dpo`?"),
        ("last:lhf", "did you mean `last:rlhf`?"),
        ("last:audit", "there are: `last:rl_prep`, `last:dpo`, `last:rlhf`"),
    ):
        with pytest.raises(NotFoundError) as caught:
            find_run(runs_dir, wrong)
        assert caught.value.hint == hint


def test_names_that_fit_no_run_or_several(make_run: MakeRun, tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    with pytest.raises(NotFoundError, match="there are no runs in"):
        find_run(runs_dir, "last")
    make_run(run_id="20250101-000000-rlhf-tiny-aaaa")
    make_run(run_id="20250102-000000-rlhf-tiny-bbbb")
    with pytest.raises(NotFoundError, match="`2025` fits 2 runs") as caught:
        find_run(runs_dir, "2025")
    assert "20250101-000000-rlhf-tiny-aaaa" in str(caught.value.hint)
    with pytest.raises(NotFoundError) as caught:
        find_run(runs_dir, "20250101-000000-rlhf-tiny-aaab")
    assert caught.value.hint == "did you mean `20250101-000000-rlhf-tiny-aaaa`?"
    with pytest.raises(NotFoundError) as caught:
        find_run(runs_dir, "zzz")
    assert str(caught.value.hint).startswith("there are: `20250102")
    with pytest.raises(NotFoundError, match="no run in"):
        find_run(runs_dir, "./nowhere")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OutputError) as caught:
        RunFolder.create(tmp_path / "runs", compiled())
    assert "--runs-dir" in str(caught.value.hint)
    assert [child.name for child in tmp_path.iterdir()] == ["runs"]


_CREATE = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.compiled_jobs import compiled
from nemotron.errors import OutputError
from nemotron.runs.folder import LOCK, RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    RunFolder.create(Path(sys.argv[1]), compiled(config={"text": "x" * 5000}))
except OutputError as error:
    print(error.message)
"""


def test_no_half_written_run_when_the_disk_refuses(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CREATE, str(tmp_path / "runs"), ROOT], capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("job.json`: file too large")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("runs_mode", "umask", "mode"), [(0o755, 0o022, 0o700), (0o777, 0, 0o700), (0o2775, 0o077, 0o2750)]
)
def test_nobody_else_reads_a_run_unless_its_group_is_handed_on(
    tmp_path: Path, runs_mode: int, umask: int, mode: int
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(runs_mode)
    before = os.umask(umask)
    try:
        run = RunFolder.create(runs, compiled())
    finally:
        os.umask(before)
    assert oct(run.path.stat().st_mode & 0o7777) == oct(mode)

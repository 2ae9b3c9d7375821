"""A preparation that is killed, or meets a full disk, loses nothing and leaves no half-truths."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemotron.errors import OutputError
from tests.unit.data.prep_data import config, files_of, prompts, run, write_rows

# The blocks are made small so that there is something to kill between.
PROGRAM = """
import json, sys
from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.prep.prepare import prepare
prepare(DataPrepConfig.model_validate(json.loads(sys.argv[1])), block_bytes=16384)
"""


def start(settings: str, *, file_limit: int | None = None) -> subprocess.Popen[bytes]:
    def limit() -> None:
        import resource

        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    words = [sys.executable, "-c", PROGRAM, settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stderr=subprocess.PIPE, env=environment, preexec_fn=limit, start_new_session=True)


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_any_moment(tmp_path: Path, moments: int) -> None:
    rows = [*prompts(6000), b"broken", b"", *prompts(50)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    blend = {"datasets": [{"path": str(source), "weight": 1.5}]}
    changes = {"num_processes": 2, "num_shards_per_split": 5, "remove_duplicates": True, "compression": "gzip"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    settings = config(whole, blend, **changes).model_dump_json()
    assert start(settings).wait() == 0
    duration = time.monotonic() - began
    expected = files_of(whole)
    draw = random.Random(20)
    settings = config(killed, blend, **changes).model_dump_json()
    kills = 0
    for moment in range(200):
        process = start(settings)
        try:
            process.wait(timeout=draw.uniform(0.15, 0.95) * duration)
        except subprocess.TimeoutExpired:
            # Mostly this process alone, whose helper must notice; sometimes both at once.
            kill = os.killpg if moment % 3 == 0 else os.kill
            kill(process.pid, signal.SIGKILL)
            process.wait()
            group_is_gone(process.pid)
            kills += 1
            if (killed / "manifest.json").exists():
                assert files_of(killed) == expected
        else:
            assert process.returncode == 0, process.stderr.read() if process.stderr else ""
        if kills == moments:
            break
        if (killed / "manifest.json").exists():
            assert files_of(killed) == expected
            killed = tmp_path / f"killed{moment}"
            settings = config(killed, blend, **changes).model_dump_json()
    assert kills == moments
    assert start(settings).wait() == 0
    assert files_of(killed) == expected
    assert left_at_work(killed) == ["lock", "state.json"]


def left_at_work(output: Path) -> list[str]:
    return sorted(path.name for path in (output / ".rl_prep").iterdir())


def group_is_gone(group: int) -> None:
    """The helper of a killed command notices and ends; what it does until then, no later command has to expect."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("a helper outlives its command")


DIES_BETWEEN = """
import os, signal, sys
seen = []

def die(event, arguments):
    # The manifest and the state of the output appear by a rename each: one of them has, the other has not.
    if event == "os.rename" and os.path.basename(arguments[1]) in ("manifest.json", "state.json"):
        if seen:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(arguments[1])

sys.addaudithook(die)
"""


def test_killed_between_manifest_and_state(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(300))
    run(tmp_path / "whole", source)
    out = tmp_path / "out"
    words = [sys.executable, "-c", DIES_BETWEEN + PROGRAM, config(out, source).model_dump_json()]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    run(out, source)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not run(out, source).fresh


def test_a_manifest_whose_state_an_older_version_did_not_write_is_recognised(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(300))
    out = tmp_path / "out"
    run(out, source)
    state = out / ".rl_prep" / "state.json"
    (out / ".rl_prep" / json.loads(state.read_bytes())["plan"]).mkdir()
    state.unlink()
    for _ in range(2):
        assert not run(out, source).fresh
        assert left_at_work(out) == ["lock", "state.json"]


def test_work_files_of_who_was_killed_after_the_manifest_go(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(300))
    out = tmp_path / "out"
    run(out, source)
    state = out / ".rl_prep" / "state.json"
    left = out / ".rl_prep" / json.loads(state.read_bytes())["plan"] / "pieces"
    left.mkdir(parents=True)
    (left / "piece").write_bytes(b"x" * 1000)
    assert not run(out, source).fresh
    assert left_at_work(out) == ["lock", "state.json"]


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    from nemotron.data.prep import prepare

    source = write_rows(tmp_path / "in.jsonl", prompts(4000))
    settings = config(tmp_path / "out", source, num_shards_per_split=4)
    stages = []

    def stop_when_writing(stage: str, rows: int, size: int, total: int) -> None:
        stages.append((stage, rows))
        if stage == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(settings, progress=stop_when_writing, block_bytes=16384)
    assert ("reading", 4000) in stages
    stages.clear()
    prepare.prepare(settings, progress=lambda *now: stages.append(now[:2]), block_bytes=16384)
    assert not any(stage == "reading" and rows for stage, rows in stages)


def test_what_a_killed_writer_left_goes_with_the_next_command(tmp_path: Path) -> None:
    """Whether it has something to do or not; what else looks like that in the folder is the user's."""
    source, output = write_rows(tmp_path / "in.jsonl", prompts(50)), tmp_path / "out"
    run(output, source)
    (output / ".own.tmp").write_text("not ours")
    for fresh in (False, True):
        if fresh:
            (output / "manifest.json").unlink()
        for folder in (output, output / ".rl_prep"):
            (folder / ".state.json.0123abcd.tmp").write_text('{"pl')
        assert run(output, source).fresh is fresh
        assert [path.name for path in output.rglob(".*.tmp")] == [".own.tmp"]


@pytest.mark.parametrize(("limit", "stage"), [(20_000, "piece"), (120_000, "shard")])
def test_a_full_disk_is_said_and_leaves_no_manifest(tmp_path: Path, limit: int, stage: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(6000))
    settings = config(tmp_path / "out", source).model_dump_json()
    process = start(settings, file_limit=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    last = errors.decode().strip().splitlines()[-1]
    assert last.startswith("nemotron.errors.OutputError: cannot write")
    assert stage_of(last) == stage
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert start(settings).wait() == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_bytes())["splits"]["train"]["rows"] > 5000


def stage_of(message: str) -> str:
    return "piece" if ".piece" in message else "shard"


def test_two_preparations_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    from nemotron.data.prep import prepare, workspace

    (tmp_path / "out" / ".rl_prep").mkdir(parents=True)
    monkeypatch.setattr(workspace, "LOCK_PATIENCE_S", 0.1)
    with open(tmp_path / "out" / ".rl_prep" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run prepares data"):
            prepare.prepare(config(tmp_path / "out", write_rows(tmp_path / "in.jsonl", prompts(3))))

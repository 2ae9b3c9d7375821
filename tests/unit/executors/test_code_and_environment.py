"""The code that goes along, the environment of a job, and runs beside the terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import nemotron
from nemotron import snapshot
from nemotron.disk.untar import unpack_files
from nemotron.errors import NotAvailableError
from nemotron.executors.environment import job_environment, shown_environment
from nemotron.executors.lepton.payload import job_name
from nemotron.executors.shells import Here, Ssh
from nemotron.profiles.load import Profile, Profiles
from tests.compiled_jobs import compiled
from tests.in_process import nemotron as command

SECRET = "planted-secret-91b2"


def test_the_copy_is_the_package_and_the_same_bytes_every_time() -> None:
    archive = snapshot.archive(assets=False)
    assert archive == snapshot.archive(assets=False)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = set(tar.getnames())
        worker = tar.extractfile("nemotron/engines/worker.py")
        assert worker is not None
        assert worker.read() == (snapshot.PACKAGE / "engines" / "worker.py").read_bytes()
    assert "nemotron/steps/rl/nemo_rl/rlhf/config/tiny.yaml" in names
    assert not any("__pycache__" in name or name.startswith("nemotron/assets") for name in names)
    with tarfile.open(fileobj=io.BytesIO(snapshot.archive(assets=True))) as tar:
        assert any(name.startswith("nemotron/assets/tiny_world/") for name in tar.getnames())


def test_a_copy_runs_and_knows_what_it_is(tmp_path: Path) -> None:
    unpack_files(snapshot.archive(assets=False), tmp_path)
    say = "from nemotron import snapshot; print(snapshot.digest(), snapshot.PACKAGE)"
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", say], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [snapshot.digest(), str(tmp_path / "nemotron")]
    (tmp_path / "nemotron" / "errors.py").write_text((snapshot.PACKAGE / "errors.py").read_text() + "# changed\n")
    changed = subprocess.run([sys.executable, "-c", say], env=env, capture_output=True, text=True, check=True)
    assert changed.stdout.split()[0] != snapshot.digest()


def test_the_worker_refuses_another_code() -> None:
    snapshot.check_this_is(None)
    snapshot.check_this_is(snapshot.digest())
    snapshot.check_this_is(nemotron.__version__)
    with pytest.raises(NotAvailableError, match="the job was sent by the code `0123`"):
        snapshot.check_this_is("0123")


def profile(folder: Path, lines: str) -> Profile:
    (folder / "env.toml").write_text(f'[a]\nexecutor = "slurm"\n{lines}\n')
    return Profiles(folder, {}).get("a")


def test_values_go_along_and_are_shown_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", SECRET)
    monkeypatch.setenv("JUDGE_KEY", SECRET + "2")
    found = profile(tmp_path, 'env_vars = { A = "b c", T = "${oc.env:PLANTED}" }\npass_env = ["PLANTED", "GONE"]')
    job = compiled().model_copy(update={"secret_variables": {"judge.api_key": "JUDGE_KEY"}})
    values = job_environment(found, job, "/code/x", {}, {"PLANTED": SECRET, "JUDGE_KEY": SECRET + "2", "OTHER": "x"})
    assert values["PLANTED"] == values["T"] == SECRET
    assert values["JUDGE_KEY"] == SECRET + "2"
    assert values["PYTHONPATH"] == "/code/x"
    assert values[snapshot.VARIABLE] == snapshot.digest()
    assert not {"OTHER", "GONE"} & set(values)
    shown = shown_environment(found, job, "/code/x")
    assert set(shown) == set(values)
    assert SECRET not in str(shown)
    assert shown["A"] == "b c"
    assert shown["T"] == "<PLANTED of this environment>"


def test_modules_of_ones_own_are_found_behind_the_shipped_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PYTHONPATH that was passed on was lost, one that was set was not."""
    monkeypatch.setenv("PYTHONPATH", "/my/libs")
    passed = profile(tmp_path, 'pass_env = ["PYTHONPATH"]')
    values = job_environment(passed, compiled(), "/code/x", {}, {"PYTHONPATH": "/my/libs"})
    assert values["PYTHONPATH"] == "/code/x:/my/libs"
    assert shown_environment(passed, compiled(), "/code/x")["PYTHONPATH"].startswith("/code/x:")
    written = profile(tmp_path, 'env_vars = { PYTHONPATH = "/my/libs" }')
    assert job_environment(written, compiled(), "/code/x", {}, {})["PYTHONPATH"] == "/code/x:/my/libs"


def test_the_path_of_the_job_is_not_that_of_the_command_that_sends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_here = tmp_path / "bin" / "submit-it"
    command_here.parent.mkdir()
    command_here.write_text('#!/bin/bash\necho "$PATH $1"\n')
    command_here.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command_here.parent}:{os.environ['PATH']}")
    job = {"PATH": "/only/of/the/job"}
    assert Here().run(["submit-it", "x y"], environment=job).text == "/only/of/the/job x y"
    # What ssh is told, run by the shell that stands at its other end.
    (tmp_path / "bin" / "ssh").write_text("#!/bin/bash\nexec bash -s\n")
    (tmp_path / "bin" / "ssh").chmod(0o755)
    assert Ssh("login").run(["submit-it", "x y"], environment=job).text == "/only/of/the/job x y"


def test_installed_code_is_asked_for_its_version(tmp_path: Path) -> None:
    found = profile(tmp_path, 'code = "installed"')
    values = job_environment(found, compiled(), None, {}, {})
    assert values[snapshot.VARIABLE] == nemotron.__version__
    assert "PYTHONPATH" not in values


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("20261128-094524-rlhf-tiny-a9df", "nemotron-20261128-094524-a9df-1"),
        ("20261128-094524-a-very-long-name-of-a-config-a9df", "nemotron-20261128-094524-a9df-1"),
        ("Some_Other.Name", "nemotron-some-other-name-1"),
    ],
)
def test_names_that_lepton_takes(run: str, name: str) -> None:
    assert job_name(run, 1) == name
    assert len(name) <= 36


def test_beside_the_terminal(tmp_path: Path) -> None:
    """`-b local` to its end: the id on stdout, the log in the run, the state by the lock."""
    words = ("steps", "run", "data_prep/rl_prep", "-c", "tiny", "output_dir=out", "-b", "local")
    submitted = command(*words, cwd=tmp_path)
    assert submitted.code == 0, submitted.stderr
    run = submitted.stdout.strip()
    end = time.monotonic() + 240
    while True:
        rows = json.loads(command("runs", "list", "--json", cwd=tmp_path).stdout)
        if rows[0]["status"] not in ("starting", "running"):
            break
        assert time.monotonic() < end
        time.sleep(0.2)
    assert [(row["id"], row["status"]) for row in rows] == [(run, "finished")]
    assert "train" in command("runs", "logs", run, cwd=tmp_path).stdout
    again = command("runs", "cancel", run, cwd=tmp_path)
    assert (again.code, "is finished: there is nothing to cancel" in again.stderr) == (4, True)
    handle = json.loads((tmp_path / "runs" / run / "attempts" / "1" / "handle.json").read_text())
    assert handle["executor"] == "detached"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'ModuleNotFoundError: no nemotron here' >&2; exit 1", "ModuleNotFoundError: no nemotron here"),
        ("echo 0.0.1", "has nemotron 0.0.1, and this command is"),
        ("exit 3", "exit code 3"),
    ],
)
def test_a_python_that_cannot_be_the_worker_is_found_before_anything_is_sent(
    tmp_path: Path, script: str, why: str
) -> None:
    _local_profile(tmp_path, script)
    words = ("steps", "run", "data_prep/rl_prep", "-c", "tiny", "output_dir=out", "-b", "lq")
    for done in (command("profiles", "check", "lq", cwd=tmp_path), command(*words, cwd=tmp_path)):
        assert done.code == 3
        assert why in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_worker_that_ends_by_itself_before_it_begins_was_not_killed(tmp_path: Path) -> None:
    version = f"[ $1 = -c ] && echo {nemotron.__version__} && exit 0"
    _local_profile(tmp_path, f"{version}\necho 'it broke' >&2; exit 4")
    assert command("profiles", "check", "lq", cwd=tmp_path).code == 0
    done = command("steps", "run", "data_prep/rl_prep", "-c", "tiny", "output_dir=out", "-b", "lq", cwd=tmp_path)
    assert done.code == 11
    assert "exit code 4: it broke" in done.stderr
    (row,) = json.loads(command("runs", "list", "--json", cwd=tmp_path).stdout)
    assert row["status"] == "failed"
    _local_profile(tmp_path, "exit 3")
    again = command("runs", "resume", "last", cwd=tmp_path)
    assert (again.code, "cannot import nemotron" in again.stderr) == (3, True)
    (row,) = json.loads(command("runs", "list", "--json", cwd=tmp_path).stdout)
    assert row["status"] == "failed"


def _local_profile(folder: Path, script: str) -> None:
    """A profile of this machine whose Python is a script."""
    python = folder / "own-python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (folder / "env.toml").write_text(f'[lq]\nexecutor = "local"\npython = "{python}"\n')

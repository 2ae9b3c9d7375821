"""``nemotron doctor``: one page, the fixes, an exit code; and what a dry run says on a machine with nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nemotron.compile.jobs.base import EMBEDDED_MODULES
from nemotron.place import Place
from nemotron.profiles.load import SHIPPED, Profiles
from tests.in_process import nemotron

PROFILE = """
[mine]
executor = "slurm"
account = "a"
partition = "batch"
remote_job_dir = "{shared}"
mounts = ["{shared}", "/nowhere/at/all"]
container_image = "nvcr.io/nvidia/nemo-rl:{version}"
pass_env = ["HF_TOKEN"]
nodes = 2
gpus_per_node = 8
"""


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the extras, NeMo-RL, a GPU and a network."""
    none = dict.fromkeys((*EMBEDDED_MODULES, "nemo_rl"), False)
    monkeypatch.setattr(Place, "this_machine", classmethod(lambda cls: cls(modules=none, hub_cache=tmp_path / "hub")))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("nothing")
def test_a_machine_with_nothing_is_told_what_it_lacks_and_how_to_get_it() -> None:
    done = nemotron("doctor")
    assert done.code == 10
    lines = done.stdout.splitlines()
    assert len(lines) < 25
    states = {line.split("  ")[0]: line.split()[-4:] for line in lines if line.startswith("engine")}
    assert states == {name: ["lacks", "cannot", "run", "here"] for name in ("engine embedded", "engine nemo_rl")}
    assert "[local]" in done.stdout
    assert "nvcr.io/nvidia/nemo-rl:v0.7.0" in done.stdout
    assert "127.0.0.1 does not answer" in done.stdout


@pytest.mark.usefixtures("nothing")
def test_a_dry_run_there_says_it_in_under_25_lines() -> None:
    done = nemotron("steps", "run", "rl/nemo_rl/rlhf", "-c", "default", "--dry-run")
    assert done.code == 10
    said = done.stdout + done.stderr
    assert len(said.splitlines()) < 25
    for words in ("`torch`", "[local]", "NeMo-RL is not installed here", "no", "CUDA device", "`nemotron doctor`"):
        assert words in said


def test_this_machine_can_run_the_embedded_engine() -> None:
    done = nemotron("doctor", "--json")
    found = json.loads(done.stdout)
    assert (done.code, found["place"], found["engines"]["embedded"]) == (0, "here", True)
    by_name = {check["what"]: check for check in found["checks"]}
    assert by_name["libraries"]["state"] == "ok"
    assert by_name["nemotron"]["found"].endswith(".".join(map(str, sys.version_info[:3])))
    assert by_name["disk of runs"]["state"] in ("ok", "lacks")


@pytest.mark.parametrize("version", ["v0.7.0", "v0.6.0"])
def test_a_place_is_told_by_its_profile_and_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Here no Slurm answers, so the page says that, with what the profile says beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_planted_0123456789")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "p.toml").write_text(PROFILE.format(shared=tmp_path, version=version))
    done = nemotron("doctor", "mine", "--json")
    assert done.code == 10
    assert "hf_planted" not in done.stdout
    checks = {check["what"]: (check["state"], check["found"]) for check in json.loads(done.stdout)["checks"]}
    assert checks["profile"] == ("ok", "slurm: 2 x 8 GPUs")
    assert checks["NeMo-RL"][0] == ("ok" if version == "v0.7.0" else "unknown")
    assert checks[f"mount {tmp_path}"] == ("ok", "is here, too")
    assert checks["mount /nowhere/at/all"][0] == "unknown"
    assert checks["variable HF_TOKEN"] == ("ok", "set here")
    assert checks["slurm"][0] == "lacks"


def test_a_profile_that_is_not_filled_in_lacks_that() -> None:
    done = nemotron("doctor", "slurm_rl_nemo_rl_rlhf")
    assert done.code == 10
    assert "placeholders" in done.stdout
    assert "nemotron profiles init" in done.stdout


@pytest.mark.parametrize("name", Profiles(SHIPPED, {}).names())
def test_every_shipped_profile_has_a_page(name: str, tmp_path: Path) -> None:
    done = nemotron("doctor", name, "--json", cwd=tmp_path, bare=True)
    lacks = {check["what"] for check in json.loads(done.stdout)["checks"] if check["state"] == "lacks"}
    lacks -= {"NeMo-RL"} if name == "local" else set()
    assert (done.code, lacks) == ((0, set()) if name == "local" else (10, {"placeholders"})), done.stderr


def test_a_volume_of_lepton_is_named_with_where_jobs_see_it(tmp_path: Path) -> None:
    done = nemotron("doctor", "lepton_rl_nemo_rl_rlhf", "--json", cwd=tmp_path, bare=True)
    checks = {check["what"]: (check["state"], check["found"]) for check in json.loads(done.stdout)["checks"]}
    assert checks["mount /mnt/nemotron"] == ("unknown", "volume `<volume>` of the workspace")


@pytest.mark.parametrize("name", Profiles(SHIPPED, {}).names())
def test_keys_that_the_page_says_to_set_are_keys_of_the_profile(name: str, tmp_path: Path) -> None:
    """`has_nemo_rl` of this machine is what the machine has, and a profile that says it is refused."""
    done = nemotron("doctor", name, "--json", cwd=tmp_path, bare=True)
    fixes = [check["fix"] or "" for check in json.loads(done.stdout)["checks"]]
    if any("`has_nemo_rl`" in fix for fix in fixes):
        (tmp_path / "env.toml").write_text(f'[mine]\nextends = "{name}"\nhas_nemo_rl = true\n')
        assert nemotron("profiles", "show", "mine", cwd=tmp_path, bare=True).code == 0

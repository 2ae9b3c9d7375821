"""`-r`, `-b` and `nemotron profiles` as far as they go without a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from ruamel.yaml import YAML

from nemotron.executors.environment import job_environment
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profiles
from tests.in_process import Result
from tests.in_process import nemotron as run

JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.model"
DOCUMENTED = [
    ("-c", "default"),
    (
        "-c",
        "default",
        "-r",
        "lepton_rl_nemo_rl_rlhf",
        f"{JUDGE}=nvidia/Nemotron-Reward-Model",
        "grpo.num_generations_per_prompt=16",
    ),
    (
        *("-c", "default", "-b", "slurm_rl_nemo_rl_rlhf", "grpo.max_num_steps=1000"),
        *("data.train.data_path=/lustre/rlhf/train.jsonl", "data.validation.data_path=/lustre/rlhf/val.jsonl"),
    ),
    ("-c", "tiny"),
]


def nemotron(*words: str, cwd: Path) -> Result:
    return run(*words, cwd=cwd, bare=True)


def rlhf(cwd: Path, *words: str) -> Result:
    return nemotron("steps", "run", "rl/nemo_rl/rlhf", *words, cwd=cwd)


@pytest.mark.parametrize("words", DOCUMENTED, ids=lambda words: " ".join(words[:4]))
def test_the_documented_commands_dry_run_anywhere(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = rlhf(tmp_path, *words, "--dry-run")
    assert done.code == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"
    if "slurm" in str(words):
        assert "#SBATCH --gpus-per-node=8" in done.stdout
        assert "nemotron.engines.worker" in done.stdout
        assert "sbatch --parsable" in done.stdout
    if "lepton" in str(words):
        assert '"method": "POST"' in done.stdout
        assert '"image": "nvcr.io/nvidia/nemo-rl:v0.7.0"' in done.stdout


def test_the_plan_as_json_holds_the_submission(tmp_path: Path) -> None:
    done = rlhf(tmp_path, *DOCUMENTED[2], "--dry-run", "--json")
    submission = json.loads(done.stdout)["submission"]
    assert submission["executor"] == "slurm"
    assert submission["files"]["job.sh"].startswith("#!/bin/bash\n#SBATCH")
    assert submission["request"]["argv"][:2] == ["sbatch", "--parsable"]


@pytest.mark.parametrize(("flag", "profile"), [("-b", "slurm_rl_nemo_rl_dpo"), ("-r", "lepton_rl_nemo_rl_rlhf")])
def test_placeholders_are_not_submitted(tmp_path: Path, flag: str, profile: str) -> None:
    done = rlhf(tmp_path, "-c", "tiny", "engine=embedded", flag, profile)
    assert done.code == 3
    assert "still are placeholders" in done.stderr
    assert "`nemotron profiles init`" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash reads what bash runs")
@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["module load cuda", "if true; then", "echo x"], "syntax error: unexpected end of file"),
        (["echo $(date"], "unexpected EOF while looking for matching `)'"),
        (["if true; then", "echo x", "fi", "cat <<END", "a line", "END"], None),
        (["source <your environment>"], None),
    ],
)
def test_lines_that_bash_cannot_read_are_found_before_the_submission(
    tmp_path: Path, lines: list[str], says: str | None
) -> None:
    profile = f'[far]\nexecutor = "slurm"\nremote_job_dir = "/lustre/me"\nstartup_commands = {json.dumps(lines)}\n'
    (tmp_path / "env.toml").write_text(profile)
    words = ("-c", "tiny", "engine=embedded", "-b", "far")
    done = rlhf(tmp_path, *words, "--dry-run")
    assert done.code == 0
    assert ("bash cannot read" in done.stderr) is (says is not None)
    if says is None:
        return
    assert says in done.stderr
    assert "--> env.toml [far]" in done.stderr
    sent = rlhf(tmp_path, *words)
    assert sent.code == 3
    assert "error: profile `far`: bash cannot read `startup_commands`" in sent.stderr


def test_a_path_of_the_laptop_is_found_before_the_submission(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    (tmp_path / "env.toml").write_text(
        '[far]\nexecutor = "slurm"\ntunnel = "ssh"\nhost = "login"\n'
        'remote_job_dir = "/lustre/me"\nshared = ["/lustre"]\n'
    )
    words = ("-c", "tiny", "engine=embedded", "-b", "far", f"data.train.data_path={rows}")
    done = rlhf(tmp_path, *words)
    assert done.code == 3
    assert f"train data: `{rows}` is a path of this machine, and cannot be read on `far`" in done.stderr
    assert "below `/lustre`, `/lustre/me`" in done.stderr
    assert done.stderr.count("error:") == 2, "the finding, and the sum"
    rehearsed = rlhf(tmp_path, *words, "--dry-run")
    assert rehearsed.code == 0
    assert "a submission refuses this" in rehearsed.stderr


def test_what_is_written_outside_of_the_mounts_is_found(tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text(
        '[pod]\nexecutor = "lepton"\nremote_job_dir = "/mnt/x"\nmounts = [{from = "v", mount_path = "/mnt/x"}]\n'
    )
    done = rlhf(tmp_path, "-c", "tiny", "engine=embedded", "-b", "pod", "checkpointing.checkpoint_dir=/data/ckpt")
    assert done.code == 3
    assert "`/data/ckpt` is outside of what the job can reach, and cannot be kept after the job on `pod`" in done.stderr
    assert "the shipped sample data stay here" in done.stderr


def test_list_show_init(tmp_path: Path) -> None:
    listed = json.loads(nemotron("profiles", "list", "--json", cwd=tmp_path).stdout)
    assert {"slurm_rl_nemo_rl_ppo", "lepton_rl_nemo_rl_rm", "local"} <= {row["name"] for row in listed}
    made = nemotron("profiles", "init", cwd=tmp_path)
    assert made.stdout.split() == [
        "profiles/lepton.toml",
        "profiles/local.toml",
        "profiles/ray.toml",
        "profiles/slurm.toml",
    ]
    slurm = tmp_path / "profiles" / "slurm.toml"
    slurm.write_text(re.sub(r"<shared \w+>", "/lustre/me", slurm.read_text()).replace("<account>", "mine"))
    again = nemotron("profiles", "init", cwd=tmp_path)
    assert again.stdout == ""
    assert "mine" in slurm.read_text()
    shown = nemotron("profiles", "show", "slurm_rl_nemo_rl_rlhf", cwd=tmp_path)
    assert "account: mine" in shown.stdout
    assert "placeholder: `partition`, written in profiles/slurm.toml [slurm_base]" in shown.stderr
    check = nemotron("profiles", "check", "slurm_rl_nemo_rl_rlhf", cwd=tmp_path)
    assert (check.code, "`partition`" in check.stderr) == (3, True)
    missing = nemotron("profiles", "show", "slurm_rl_nemo_rl_rlfh", cwd=tmp_path)
    assert (missing.code, "did you mean `slurm_rl_nemo_rl_rlhf`" in missing.stderr) == (4, True)


def test_a_broken_profile_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text('[a]\nexecutor = "slurm"\nnodez = 2\n[b]\nexecutor = "local"\n')
    done = nemotron("profiles", "list", cwd=tmp_path)
    assert done.code == 0
    assert re.search(r"^a +broken", done.stdout, re.MULTILINE)
    assert re.search(r"^b +local", done.stdout, re.MULTILINE)


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "env.toml").write_text(f'[here]\nexecutor = "slurm"\nremote_job_dir = "{tmp_path}/far"\n')
    done = rlhf(tmp_path, "-c", "tiny", "engine=embedded", "-b", "here")
    assert done.code == 10
    assert "there is no command `" in done.stderr
    state = json.loads(nemotron("runs", "list", "--json", cwd=tmp_path).stdout)[0]["status"]
    assert state == "failed"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('pass_env = ["PLANTED"]', "`pass_env` takes PLANTED along"),
        ('env_vars = { TOKEN = "${oc.env:PLANTED}" }', "`env_vars.TOKEN` is read from PLANTED"),
    ],
)
def test_no_value_of_this_environment_stands_in_a_lepton_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, why: str
) -> None:
    monkeypatch.setenv("PLANTED", "planted-secret")
    profile = '[pod]\nexecutor = "lepton"\nremote_job_dir = "/x"\nmounts = [{from = "v", mount_path = "/x"}]\n'
    (tmp_path / "env.toml").write_text(profile + line)
    words = ("-c", "default", "-b", "pod", "data.train.data_path=/x/a.jsonl", "data.validation.data_path=/x/b.jsonl")
    done = rlhf(tmp_path, *words)
    assert done.code == 3
    assert f"{why}, and its value would stand in the job's description" in done.stderr
    dry = rlhf(tmp_path, *words, "--dry-run")
    assert "planted-secret" not in dry.stdout + dry.stderr + done.stderr
    (tmp_path / "env.toml").write_text(f'{profile}{line}\nsecrets = {{ PLANTED = "s", TOKEN = "s" }}')
    assert "would stand in" not in rlhf(tmp_path, *words, "--dry-run").stderr


@pytest.mark.parametrize(
    "line",
    [
        'pass_env = ["PLANTED"]\nsecrets = { PLANTED = "s" }',
        'env_vars = { TOKEN = "${oc.env:PLANTED}", T = "1" }\nsecrets = { TOKEN = "s" }',
    ],
)
def test_what_is_a_secret_of_the_workspace_is_sent_by_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """The hint says to name it in `secrets`; the value went along beside it."""
    monkeypatch.setenv("PLANTED", "planted-secret")
    profile = '[pod]\nexecutor = "lepton"\nmounts = [{from = "v", mount_path = "/x"}]\n'
    (tmp_path / "env.toml").write_text(profile + line)
    words = ("-c", "default", "-b", "pod", *FAR, "--dry-run", "--json")
    sent = json.loads(rlhf(tmp_path, *words).stdout)["submission"]["request"]["body"]["spec"]["envs"]
    names = [variable["name"] for variable in sent]
    assert len(names) == len(set(names))
    [secret] = [variable for variable in sent if "value_from" in variable]
    assert secret["value_from"] == {"secret_name_ref": "s"}
    found = Profiles(tmp_path).get("pod")
    job = SimpleNamespace(secret_variables={"judge.api_key": "PLANTED"})
    kept = set(line.partition("secrets")[2].split('"')[0].split()) & {"PLANTED", "TOKEN"}
    values = job_environment(found, cast(CompiledJob, job), None, {"judge.api_key": "planted-secret"}, os.environ)
    assert not kept & set(values)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            'remote_job_dir = "/other"\nmounts = [{from = "v", mount_path = "/x"}]',
            "`remote_job_dir` `/other` lies in none of its mounts",
        ),
        ("", "it has no `mounts`"),
    ],
)
def test_a_job_of_lepton_writes_into_a_volume(tmp_path: Path, lines: str, says: str) -> None:
    (tmp_path / "env.toml").write_text(f'[pod]\nexecutor = "lepton"\n{lines}\n')
    words = ("-c", "default", "-b", "pod", *FAR)
    done = rlhf(tmp_path, *words)
    assert done.code == 3
    assert f"error: profile `pod`: {says}" in done.stderr
    dry = rlhf(tmp_path, *words, "--dry-run")
    assert "a submission refuses this" in dry.stderr
    assert "`container_image` is not set" in dry.stderr
    assert "below nothing" not in dry.stderr


FAR = ("data.train.data_path=/lustre/a", "data.validation.data_path=/lustre/b")


def test_nemo_rl_over_several_nodes_of_lepton_gets_a_ray_cluster(tmp_path: Path) -> None:
    base = '[lepton_big]\nextends = "lepton_base"\nnodes = 4\n'
    words = ("-c", "default", "-b", "lepton_big", *FAR, "engine=nemo_rl", "cluster.num_nodes=4", "--dry-run")
    (tmp_path / "env.toml").write_text(f'{base}ray_version = "2.58.0"\n')
    done = rlhf(tmp_path, *words, "--json")
    assert done.code == 0, done.stderr
    sent = json.loads(done.stdout)["submission"]["request"]
    assert (sent["path"], sent["body"]["spec"]["ray_version"]) == ("/rayclusters", "2.58.0")
    head, [workers] = sent["body"]["spec"]["head_group_spec"], sent["body"]["spec"]["worker_group_specs"]
    assert (head["min_replicas"], workers["min_replicas"]) == (1, 3)
    for key in ("container", "envs", "mounts", "resource_shape", "affinity"):
        assert head[key] == workers[key], key
    assert [call["method"] for call in sent["then"]] == ["GET", "PUT", "POST", "DELETE"]
    assert "nemotron.engines.worker" in sent["then"][2]["body"]["entrypoint"]
    # Ray's version is not to be guessed; a batch job has no Ray over its nodes.
    (tmp_path / "env.toml").write_text(base)
    unsaid = rlhf(tmp_path, *words)
    assert "`ray_version` is not set, and the job gets a Ray cluster; a submission refuses this" in unsaid.stderr
    (tmp_path / "env.toml").write_text(f'{base}launch = "job"\n')
    refused = rlhf(tmp_path, *words)
    assert refused.code == 3
    assert "NeMo-RL over 4 nodes needs Ray across them" in refused.stderr
    assert "env.toml [lepton_big]" in refused.stderr
    # One node is one container: NeMo-RL starts its Ray there by itself.
    (tmp_path / "env.toml").write_text(base.replace("4", "1"))
    alone = rlhf(tmp_path, *words[:-2], "--dry-run", "--json")
    assert json.loads(alone.stdout)["submission"]["request"]["path"] == "/jobs"


def test_the_critics_token_is_in_no_script_and_its_way_is_said(tmp_path: Path) -> None:
    """It is made in the job, and crosses the network between its machines."""
    profile = f'[two]\nexecutor = "slurm"\nremote_job_dir = "{tmp_path}/far"\ncritic = {{ cpus_per_task = 1 }}\n'
    (tmp_path / "env.toml").write_text(profile)
    words = ("steps", "run", "rl/nemo_rl/ppo", "-c", "tiny", "engine=embedded", "-b", "two", "--dry-run", "--json")
    done = nemotron(*words, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "actor and critic talk over plain HTTP between their machines, token included" in done.stderr
    submission = json.loads(done.stdout)["submission"]
    assert "NEMOTRON_CRITIC_TOKEN=$(od -An -N32 -tx1 /dev/urandom" in submission["files"]["job.sh"]
    assert "NEMOTRON_CRITIC_TOKEN" not in submission["environment"]


@pytest.mark.parametrize(
    ("url", "said"), [("http://lepton.lan/ws", True), ("https://x/ws", False), ("http://[::1]/w", False)]
)
def test_a_token_of_lepton_in_the_clear_is_said(tmp_path: Path, url: str, said: bool) -> None:
    (tmp_path / "env.toml").write_text(f'[pod]\nextends = "lepton_rl_nemo_rl_rlhf"\nworkspace_url = "{url}"\n')
    done = rlhf(tmp_path, "-c", "default", "-b", "pod", *FAR, "--dry-run")
    assert done.code == 0, done.stderr
    assert (f"the token goes to {url} in the clear" in done.stderr) is said


def test_slurm_brings_up_ray_and_leaves_the_judge_a_node(tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text('[slurm_big]\nextends = "slurm_rl_nemo_rl_rlhf"\nnodes = 9\n')
    words = ("-c", "default", "-b", "slurm_big", *FAR, "engine=nemo_rl", "--dry-run")
    done = rlhf(tmp_path, *words, "cluster.num_nodes=8")
    assert done.code == 0, done.stderr
    assert "judge-without-gpus" not in done.stderr
    assert "nemotron.executors.slurm.ray_node up" in done.stdout
    (tmp_path / "env.toml").write_text('[slurm_big]\nextends = "slurm_rl_nemo_rl_rlhf"\nnodes = 8\n')
    full = rlhf(tmp_path, *words, "cluster.num_nodes=8")
    assert "the judge needs 1 of its own; a submission refuses this" in full.stderr
    wrong = rlhf(tmp_path, *words, "cluster.num_nodes=2")
    assert (wrong.code, "`cluster.num_nodes` is 2, the profile `slurm_big` gives 8" in wrong.stderr) == (3, True)


def test_a_profile_that_is_shown_says_where_each_key_was_written(tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text(
        '[base]\nexecutor = "slurm"\naccount = "a"\npartition = "p"\nenv_vars = {A = "1", B = "2"}\n'
        '[mine]\nextends = "base"\npartition = "q"\nenv_vars = {B = "3"}\n'
    )
    shown = nemotron("profiles", "show", "mine", cwd=tmp_path)
    found = json.loads(nemotron("profiles", "show", "mine", "--json", cwd=tmp_path).stdout)
    assert YAML(typ="safe").load(shown.stdout) == found["settings"]
    written: dict[str, str] = {}
    place = ""
    for line in shown.stdout.splitlines():
        place, key = (line.strip("# "), None) if "# " in line else (place, line.partition(":")[0].strip())
        written |= {key: place} if key else {}
    base, mine = "env.toml [base]", "env.toml [mine]"
    expected = {"executor": base, "account": base, "partition": mine, "env_vars": base, "A": base, "B": mine}
    assert written == expected
    assert {key.rpartition(".")[2]: origin for key, origin in found["origins"].items()} == expected


def test_a_folder_of_profiles_that_cannot_be_written_is_moved_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = nemotron("profiles", "init", "file/profiles", cwd=tmp_path)
    assert done.code == 8
    assert "name a folder that you may write to" in done.stderr

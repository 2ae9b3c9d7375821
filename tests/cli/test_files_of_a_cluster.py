"""Files of a cluster that this machine cannot look at: every step notes their paths, and checks what is shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron.compile.plan import compile_job
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.engines.worker import work
from nemotron.errors import NemotronError
from nemotron.manifest import declaration, find_step
from nemotron.place import Place
from nemotron.runs.folder import RunFolder
from tests.in_process import Result, nemotron

PROFILES = """\
[pod]
executor = "lepton"
remote_job_dir = "/mnt/far/runs"
mounts = [{{from = "v", mount_path = "/mnt/far"}}]
[pod_seen]
extends = "pod"
shared = ["{here}"]
[ssh]
executor = "slurm"
tunnel = "ssh"
host = "login"
remote_job_dir = "/mnt/far"
[ssh_seen]
extends = "ssh"
shared = ["{here}"]
[ray]
executor = "ray"
address = "http://localhost:8265"
remote_job_dir = "/mnt/far"
[ray_seen]
extends = "ray"
shared = ["{here}"]
"""
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.base_url=https://judge/v1"
STEPS = {
    "rl_prep": (("blend_path={}/a.jsonl",), 5, "a.jsonl"),
    "rl_prep of a blend": (("blend_path=null", "blend={{train: [{{path: {}/a.jsonl}}]}}"), 5, "a.jsonl"),
    "rl_prep of a folder": (("blend_path={}/rows",), 5, "rows"),
    "megatron_to_hf": (("megatron_path={}/step_1",), 6, "step_1"),
    "megatron_to_hf with a model": (("megatron_path={}/step_1", "hf_model={}/model"), 6, "step_1"),
    "hf_to_megatron": (("hf_model={}/model",), 6, "model"),
    "merge_lora": (("adapter={}/adapter", "base={}/model"), 6, "adapter"),
    "merge_lora without base": (("adapter={}/adapter",), 6, "adapter"),
    "reward_audit": (("data.manifest_path={}/manifest.json", JUDGE), 5, "manifest.json"),
    "reward_audit of a file": (("data.data_path={}/a.jsonl", JUDGE), 5, "a.jsonl"),
    "reward_audit of a model": (("reward_model.path={}/rm", "data.data_path={}/a.jsonl"), 6, "rm"),
}


def dry(cwd: Path, step: str, folder: str | Path, *more: str) -> Result:
    """The plan of one of these steps whose files lie in ``folder``."""
    (cwd / "env.toml").write_text(PROFILES.format(here=cwd / "seen"))
    words = (word.format(folder, folder) for word in STEPS[step][0])
    return nemotron("steps", "run", step.split()[0], *words, *more, "--dry-run", cwd=cwd, bare=True)


@pytest.mark.parametrize("profile", ["pod", "ssh", "ray"])
@pytest.mark.parametrize("step", STEPS)
def test_what_cannot_be_looked_at_is_a_note(tmp_path: Path, step: str, profile: str) -> None:
    done = dry(tmp_path, step, "/mnt/far", "output_dir=/mnt/far/out", "-b", profile)
    assert done.code == 0, done.stderr
    path = f"/mnt/far/{STEPS[step][2]}"
    assert f"note: `{path}` lies on `{profile}` and was not looked at from here" in done.stderr
    assert "a submission refuses" not in done.stderr


def test_a_home_that_only_the_cluster_has_is_left_to_it(tmp_path: Path) -> None:
    done = dry(tmp_path, "rl_prep", "~colleague", "output_dir=/mnt/far/out", "-b", "ssh")
    assert done.code == 0, done.stderr
    assert "note: `~colleague/a.jsonl` lies on `ssh`" in done.stderr
    assert "a submission refuses" not in done.stderr


@pytest.mark.parametrize("profile", ["pod", "ssh", "ray"])
@pytest.mark.parametrize("step", STEPS)
def test_what_is_shared_is_looked_at(tmp_path: Path, step: str, profile: str) -> None:
    """It is the same folder on both sides: what is not here is not there."""
    here = dry(tmp_path, step, tmp_path / "seen", "output_dir=out")
    there = dry(tmp_path, step, tmp_path / "seen", f"output_dir={tmp_path}/seen/out", "-b", f"{profile}_seen")
    assert here.code == there.code == STEPS[step][1]
    errors = [[line for line in one.stderr.splitlines() if line.startswith("error: ")] for one in (here, there)]
    assert errors[0] == errors[1]
    assert str(tmp_path / "seen" / STEPS[step][2]) in errors[0][0]
    assert "not looked at" not in here.stderr + there.stderr


def test_what_this_machine_has_there_does_not_count(tmp_path: Path) -> None:
    """The same path is another file on the cluster."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("no row\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    (tmp_path / "env.toml").write_text(PROFILES.format(here="/elsewhere"))
    words = ("rl_prep", f"blend_path={rows}", f"output_dir={tmp_path}/out", "-b", "ssh", "--dry-run")
    done = nemotron("steps", "run", *words, cwd=tmp_path, bare=True)
    assert f"note: `{rows}` lies on `ssh`" in done.stderr
    words = ("hf_to_megatron", f"hf_model={tmp_path}", f"output_dir={tmp_path}/out", "-b", "ssh", "--dry-run")
    done = nemotron("steps", "run", *words, cwd=tmp_path, bare=True)
    assert f"note: `{tmp_path}` lies on `ssh`" in done.stderr


@pytest.mark.parametrize("step", sorted(STEPS))
def test_the_run_looks_where_it_is(tmp_path: Path, step: str) -> None:
    """A job that was compiled from afar ends with the path and the exit code that the preflight has at home."""
    words, exit_code, _ = STEPS[step]
    found, folder = find_step(step.split()[0]), tmp_path / "far"
    code = declaration(found)
    given = [*(word.format(folder, folder) for word in words), f"output_dir={tmp_path}/out"]
    overrides = parse_overrides(list(enumerate(given, start=4)))
    resolved = load(found.config_dir, "default", overrides, run_dir=str(tmp_path / "RUN_ID"), model=code.config)
    place = Place(name="far", is_here=False)
    plan = compile_job(found, resolved, code, runs_dir=tmp_path / "runs", place=place)
    assert plan.ok, plan.errors
    run = RunFolder.create(tmp_path / "runs", plan.job())
    with pytest.raises(NemotronError) as caught:
        work(run, {})
    # An audit reads its pairs before it loads a model, and here both are missing.
    expected = 5 if step.startswith("reward_audit") else exit_code
    assert (run.status().state, run.status().exit_code) == ("failed", expected)
    assert str(folder) in caught.value.message
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("step", "words", "said"),
    [
        ("rl_prep", ("output_dir=/mnt/far",), "the input `/mnt/far/a.jsonl` is inside `output_dir`"),
        ("megatron_to_hf", ("output_dir=/mnt/far",), "`/mnt/far` holds the checkpoint to convert"),
        ("hf_to_megatron", ("output_dir=/mnt/far",), "`/mnt/far` holds the checkpoint to convert"),
        ("merge_lora", ("output_dir=/mnt/far",), "`/mnt/far` holds the checkpoint to convert"),
    ],
)
def test_what_names_alone_tell_is_an_error(tmp_path: Path, step: str, words: tuple[str, ...], said: str) -> None:
    done = dry(tmp_path, step, "/mnt/far", *words, "-b", "ssh")
    assert done.code in (5, 8)
    assert f"error: {said}" in done.stderr


def test_of_an_unseen_checkpoint_the_model_beside_it_tells_the_family(tmp_path: Path) -> None:
    model = tmp_path / "seen" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    done = dry(tmp_path, "megatron_to_hf", "/mnt/far", f"hf_model={model}", "output_dir=/mnt/far/out", "-b", "ssh_seen")
    assert done.code == 6
    assert "gpt2" in done.stderr

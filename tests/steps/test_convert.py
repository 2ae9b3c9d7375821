"""The convert steps and `artifacts`, as commands: from a model to a model that generates, and every way not to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nemotron as package
from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.record import read_record
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.validate import validate
from nemotron.manifest import declaration, find_step
from tests.in_process import Result, nemotron

POLICY = Path(package.__file__).parent / "assets" / "tiny_world" / "policy"


def command(*words: str, cwd: Path) -> Result:
    return nemotron(*words, cwd=cwd, env={"HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``megatron`` made from the shipped policy, and ``hf`` made from that."""
    folder = tmp_path_factory.mktemp("convert")
    for words in (
        ("convert/hf_to_megatron", f"hf_model={POLICY}", "output_dir=megatron"),
        ("convert/megatron_to_hf", "megatron_path=megatron", "output_dir=hf"),
    ):
        done = command("steps", "run", *words, cwd=folder)
        assert (done.code, done.stdout) == (0, ""), done.stderr
        assert "read back bit for bit" in done.stderr
    return folder


def test_there_and_back_is_the_same_model(world: Path) -> None:
    assert (world / "hf" / "model.safetensors").read_bytes() == (POLICY / "model.safetensors").read_bytes()
    assert fingerprint(world / "hf") == fingerprint(POLICY)


def test_the_result_generates(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "hf")
    message = [{"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = []
    for folder in (world / "hf", POLICY):
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            said.append(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0].tolist())
    assert said[0] == said[1]
    assert len(said[0]) > prompt["input_ids"].shape[1]


def test_the_run_and_the_record_say_where_it_came_from(world: Path) -> None:
    runs = json.loads(command("runs", "list", "--json", cwd=world).stdout)
    assert [(run["step"], run["status"]) for run in runs] == [
        ("convert/hf_to_megatron", "finished"),
        ("convert/megatron_to_hf", "finished"),
    ]
    assert [run["checkpoint"] for run in runs] == [str(world / "megatron"), str(world / "hf")]
    jobs = [json.loads((Path(run["run_dir"]) / "job.json").read_text()) for run in runs]
    [used] = jobs[1]["inputs"]
    content = fingerprint(world / "megatron")
    assert used == {
        "key": "megatron_path",
        "type": "checkpoint_megatron",
        "path": str(world / "megatron"),
        "fingerprint": content,
    }
    record = read_record(world / "hf")
    assert record is not None
    assert (record["step"], record["run"]) == ("convert/megatron_to_hf", runs[1]["id"])
    assert record["inputs"] == [
        {"type": "checkpoint_megatron", "path": str(world / "megatron"), "fingerprint": content}
    ]
    shown = command("runs", "show", "last", cwd=world).stdout
    assert "finished  in " in shown
    assert "KL" not in shown


@pytest.mark.parametrize(
    ("step", "result", "kind"),
    [
        ("convert/hf_to_megatron", "megatron", "checkpoint_megatron"),
        ("convert/megatron_to_hf", "hf", "checkpoint_hf"),
    ],
)
def test_the_tiny_configs_run(tmp_path: Path, step: str, result: str, kind: str) -> None:
    done = command("steps", "run", step, "-c", "tiny", cwd=tmp_path)
    assert (done.code, done.stdout) == (0, ""), done.stderr
    assert "logits compared" in done.stderr
    [run] = (tmp_path / "runs").iterdir()
    found = json.loads(command("artifacts", "verify", str(run / result), "--json", cwd=tmp_path).stdout)
    assert (found["type"], found["recorded"]) == (kind, True)
    assert json.loads((run / "status.json").read_text())["checkpoint"] == result


def test_inspect_and_verify(world: Path) -> None:
    for name, kind in (("megatron", "checkpoint_megatron"), ("hf", "checkpoint_hf")):
        done = command("artifacts", "inspect", name, "--json", cwd=world)
        found = json.loads(done.stdout)
        assert (found["type"], found["family"], found["vocabulary"]) == (kind, "llama", 768)
        assert found["record"]["type"] == kind
        text = command("artifacts", "inspect", name, cwd=world).stdout
        assert f"{found['parameters']:,}" in text
        verified = json.loads(command("artifacts", "verify", name, "--json", cwd=world).stdout)
        assert verified["recorded"] is True
        assert verified["fingerprint"] == found["record"]["fingerprint"]


def test_verify_of_a_changed_checkpoint(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "hf", tmp_path / "hf")
    with (tmp_path / "hf" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    done = command("artifacts", "verify", "hf", cwd=tmp_path)
    assert (done.code, done.stdout) == (6, "")
    assert done.stderr.startswith("error: `hf` was changed after it was written")


def test_dry_run_writes_nothing(world: Path, tmp_path: Path) -> None:
    for step, source in (
        ("convert/hf_to_megatron", f"hf_model={POLICY}"),
        ("convert/megatron_to_hf", f"megatron_path={world / 'megatron'}"),
    ):
        done = command("steps", "run", step, source, "output_dir=out", "--dry-run", "--json", cwd=tmp_path)
        plan = json.loads(done.stdout)
        assert (done.code, plan["ok"], plan["engine"]["name"]) == (0, True, "plain")
        assert [file["key"] for file in plan["inputs"]] == [source.partition("=")[0]]
        assert [file["key"] for file in plan["outputs"]] == [None, "output_dir"]
    assert list(tmp_path.iterdir()) == []


def lost_shard(world: Path, here: Path) -> str:
    shutil.copytree(world / "megatron", here / "broken")
    next((here / "broken").rglob("*.distcp")).unlink()
    return "megatron_path=broken"


def mixture_of_experts(world: Path, here: Path) -> str:
    shutil.copytree(POLICY, here / "moe")
    config = json.loads((POLICY / "config.json").read_text())
    config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}
    (here / "moe" / "config.json").write_text(json.dumps(config))
    return "hf_model=moe"


def cut_short(world: Path, here: Path) -> str:
    shutil.copytree(POLICY, here / "cut")
    os.truncate(here / "cut" / "model.safetensors", 100_000)
    return "hf_model=cut"


def of_the_other_kind(world: Path, here: Path) -> str:
    return f"megatron_path={POLICY}"


def absent(world: Path, here: Path) -> str:
    return "hf_model=./absent"


def absent_megatron(world: Path, here: Path) -> str:
    return "megatron_path=absent"


def not_downloaded(world: Path, here: Path) -> str:
    return "hf_model=nobody/nothing-of-that-name"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lost_shard, "is missing: a shard of the checkpoint is lost"),
        (mixture_of_experts, "MoE"),
        (cut_short, "is corrupt or cut short"),
        (of_the_other_kind, "is not a Megatron-Core checkpoint"),
        (absent, "there is no folder `./absent`"),
        (absent_megatron, "there is no checkpoint at `absent`"),
        (not_downloaded, "is not on this machine and downloads are switched off"),
    ],
)
def test_wrong_models(world: Path, tmp_path: Path, make: Callable[[Path, Path], str], message: str) -> None:
    word = make(world, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    step = "hf_to_megatron" if word.startswith("hf_model") else "megatron_to_hf"
    done = command("steps", "run", f"convert/{step}", word, "output_dir=out", cwd=tmp_path)
    assert (done.code, done.stdout) == (6, ""), done.stderr
    assert message in done.stderr.splitlines()[0]
    assert "  --> command line, argument 4" in done.stderr
    assert "hint: " in done.stderr
    assert "error: 1 problem found, nothing was started" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_megatron_checkpoint_is_not_converted_to_one(world: Path, tmp_path: Path) -> None:
    megatron = POLICY.parent / "policy_megatron"
    for model in (megatron, megatron / "iter_0000000"):
        done = command("steps", "run", "hf_to_megatron", f"hf_model={model}", "output_dir=out", cwd=tmp_path)
        assert done.code == 6
        assert "is a Megatron checkpoint already" in done.stderr
        assert "Megatron-Bridge" not in done.stderr


def test_outputs_that_cannot_be_made(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    source = shutil.copytree(POLICY, tmp_path / "models" / "policy")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for words, message in (
        (["output_dir=full"], "`full` exists already"),
        (["output_dir=file"], "`file` exists already"),
        (["output_dir=file/below"], "is not a folder"),
        (["output_dir=models", "overwrite=true"], "`models` holds the checkpoint to convert, which would be lost"),
        (["output_dir=runs", "overwrite=true"], "`runs` is the folder of this run, or holds it"),
        (["output_dir=.", "overwrite=true", "hf_model=" + str(POLICY)], "`.` is the folder of this run, or holds it"),
        (["output_dir=${run_dir:}", "overwrite=true"], "is the folder of this run, or holds it"),
        (["output_dir=out", "--runs-dir=file"], "`file` cannot be made: "),
    ):
        model = () if any(word.startswith("hf_model=") for word in words) else (f"hf_model={source}",)
        done = command("steps", "run", "convert/hf_to_megatron", *model, *words, cwd=tmp_path)
        assert (done.code, done.stdout) == (8, ""), done.stderr
        assert message in done.stderr.splitlines()[0]
        assert "error: 1 problem found, nothing was started" in done.stderr
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    done = command("steps", "run", "hf_to_megatron", f"hf_model={POLICY}", "output_dir=locked/out", cwd=tmp_path)
    assert done.code == 8
    assert "is not writable" in done.stderr


def test_overwrite_replaces(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    words = ("convert/hf_to_megatron", f"hf_model={POLICY}", "output_dir=out", "overwrite=true", "verify=none")
    done = command("steps", "run", *words, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert not (tmp_path / "out" / "old").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "runs"]


def test_both_paths_must_be_given(tmp_path: Path) -> None:
    for step, keys in (
        ("convert/hf_to_megatron", ("hf_model", "output_dir")),
        ("convert/megatron_to_hf", ("megatron_path", "output_dir")),
    ):
        done = command("steps", "run", step, cwd=tmp_path)
        assert (done.code, done.stdout) == (3, "")
        for key in keys:
            assert f"error: `{key}` has no default and must be given" in done.stderr
            assert f"hint: add `{key}=...` to the command line" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_plan_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'safetensors', 'numpy')))\n"
        "from nemotron.cli.main import main\n"
        "sys.exit(main())\n"
    )
    argv = [sys.executable, "-c", program, "steps", "run", "hf_to_megatron", "-c", "tiny", "--dry-run"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 10
    assert done.stderr.startswith("error: a conversion needs the modules `torch`, `safetensors`, `numpy`")
    assert "[local]" in done.stderr


@pytest.mark.parametrize(
    ("step_id", "source_key"), [("convert/hf_to_megatron", "hf_model"), ("convert/megatron_to_hf", "megatron_path")]
)
def test_manifest_and_default_config_agree(step_id: str, source_key: str) -> None:
    step = find_step(step_id)
    model = declaration(step).config
    assert step.configs == ["default", "tiny"]
    words = parse_overrides([(1, f"{source_key}=in"), (2, "output_dir=out")])
    resolved = load(step.config_dir, "default", words, run_dir="run", model=model)
    config, findings = validate(resolved, model)
    assert not findings
    assert config is not None
    given = {source_key: "in", "output_dir": "out", "dtype": "auto", "verify": "weights", "overwrite": False}
    assert config.model_dump() | given == config.model_dump()

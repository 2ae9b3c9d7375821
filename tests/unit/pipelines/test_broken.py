"""Broken pipelines: each is one clear error with its line, before anything starts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.in_process import nemotron

PAIRS = """\
  pairs:
    step: data_prep/rl_prep
    config: tiny
    overrides:
      blend.train: ["${asset:tiny_world/data/pairs_train.jsonl}"]
      blend.validation: ["${asset:tiny_world/data/pairs_validation.jsonl}"]
      blend.heldout: ["${asset:tiny_world/data/pairs_heldout.jsonl}"]
"""
"""A node of preference pairs."""
WHOLE = (
    f"title: Pairs to a policy\nnodes:\n{PAIRS}"
    + """\
  prompts:
    step: data_prep/rl_prep
    config: tiny
  rm:
    step: rl/nemo_rl/rm
    config: tiny
    takes: {prepared_data: pairs}
  audit:
    step: eval/reward_audit
    config: tiny
    overrides:
      data.split: heldout
    takes:
      prepared_data: pairs
      reward_model.path: rm.checkpoint_hf
  ppo:
    step: rl/nemo_rl/ppo
    config: tiny
    overrides:
      checkpointing.save_consolidated: false
    takes:
      prepared_data: prompts
      reward_model.model_name: rm.checkpoint_hf
    after: audit
  hf:
    step: convert/megatron_to_hf
    takes: {checkpoint_megatron: ppo}
"""
)


@dataclass(frozen=True)
class Broken:
    """What is written instead, what is said of it, and in which line."""

    was: str
    now: str
    says: str
    at: str | None = ""
    """Where it is said: what that line holds; empty: the last line of ``now``. None: in whatever line."""
    code: int = 3
    hint: str = ""
    result: str = ""
    """The nodes that the pipeline is for."""
    split: str = "heldout"
    """The one that is audited."""


BROKEN = {
    "a type that nobody knows": Broken(
        "{checkpoint_megatron: ppo}",
        "{checkpoint_megatronn: ppo}",
        "takes nothing by `checkpoint_megatronn`",
        hint="`checkpoint_megatron`",
    ),
    "a type that the step does not take": Broken(
        "{checkpoint_megatron: ppo}",
        "{eval_results: ppo}",
        "takes no `eval_results`",
    ),
    "a type that the node does not make": Broken(
        "{checkpoint_megatron: ppo}",
        "{checkpoint_megatron: pairs}",
        "`pairs` makes none",
        hint="`ppo` makes it",
        result="[ppo, hf]",
    ),
    "a type that the key does not carry": Broken(
        "reward_model.path: rm.checkpoint_hf",
        "reward_model.path: rm.checkpoint_megatron",
        "not `checkpoint_megatron`",
    ),
    "shards taken for a file": Broken(
        "{prepared_data: pairs}",
        "{preference_jsonl: pairs}",
        "needs `preference_jsonl`",
        hint="`prepared_data: pairs`",
    ),
    "a type with two meanings": Broken(
        "reward_model.model_name: rm.checkpoint_hf",
        "checkpoint_hf: rm",
        "more than one purpose",
        hint="`policy.model_name: rm`",
    ),
    "a misspelt type behind the node": Broken(
        "reward_model.path: rm.checkpoint_hf",
        "reward_model.path: rm.checkpoint_fh",
        "no artifact type",
        hint="`checkpoint_hf`",
    ),
    "a key that carries nothing": Broken(
        "reward_model.path: rm",
        "reward_model.paht: rm",
        "takes nothing by `reward_model.paht`",
        hint="`reward_model.path`",
    ),
    "a node that is not there": Broken("prepared_data: prompts", "prepared_data: prompt", "no node `prompt`"),
    "a gate that is not there": Broken("after: audit", "after: audti", "no node `audti`", hint="`audit`"),
    "a result that is not there": Broken("title: Pairs", "result: fh\ntitle: Pairs", "no node `fh`", at="result:"),
    "a circle": Broken(
        "  rm:\n", "    after: hf\n  rm:\n", "in a circle", at="takes: {checkpoint_megatron: ppo}", hint="arrows"
    ),
    "a node that needs itself": Broken("after: audit", "after: ppo", "in a circle"),
    "a node that nobody needs": Broken("    after: audit\n", "", "nobody takes what `audit` makes", at="  audit:"),
    "two nodes that write one folder": Broken(
        "  rm:\n",
        "    overrides: {output_dir: output/one}\n  rm:\n",
        "both write into",
        at="{output_dir:",
    ),
    "a folder inside another's": Broken(
        "  rm:\n",
        "    overrides: {output_dir: output/one/inner}\n  rm:\n",
        "both write into",
        at="{output_dir:",
    ),
    "an unknown step": Broken(
        "eval/reward_audit", "eval/reward_audti", "no step `eval/reward_audti`", at="  audit:", code=4
    ),
    "an unknown config": Broken(
        "convert/megatron_to_hf", "convert/megatron_to_hf\n    config: tyni", "tyni", at="  hf:", code=4
    ),
    "an unknown key of a node": Broken("after: audit", "waits: audit", "has no key `waits`"),
    "an unknown key of the pipeline": Broken("title: Pairs", "tilte: Pairs", "has no key `tilte`", hint="`title`"),
    "a node without a step": Broken("    step: convert/megatron_to_hf\n", "", "has no `step`", at="  hf:"),
    "a name that is none": Broken("  hf:\n", "  HF!:\n", "no name of a node"),
    "no nodes": Broken(WHOLE, "title: nothing\n", "a pipeline has `nodes`", at=None),
    "a list of nodes": Broken(WHOLE, "nodes: [rm]\n", "a pipeline has `nodes`"),
    "broken YAML": Broken("nodes:", "nodes: {", "broken YAML", at=None),
    "a node twice": Broken("  hf:\n", "  ppo:\n", "duplicate key `ppo`", at=None),
    "a typo in the last node's override": Broken(
        "    takes: {checkpoint_megatron",
        "    overrides: {dtpye: bfloat16}\n    takes: {checkpoint_megatron",
        "`dtpye`",
        at="dtpye",
        hint="`dtype`",
    ),
    "a value of the wrong type in the last node": Broken(
        "    takes: {checkpoint_megatron",
        "    overrides: {verify: maybe}\n    takes: {checkpoint_megatron",
        "`verify`",
        at="maybe",
    ),
    "a split that will not be there": Broken(
        "data.split: heldout",
        "data.split: holdout",
        "no rows of the split `holdout`",
        at="    takes:\n      prepared",
        code=5,
        hint="heldout",
    ),
    "prompts for a step that learns from pairs": Broken(
        "{prepared_data: pairs}",
        "{prepared_data: prompts}",
        "of the kind `nemo_gym`",
        code=5,
    ),
    "an audit of prompts": Broken(
        "prepared_data: pairs\n",
        "prepared_data: prompts\n",
        "of the kind `nemo_gym`",
        code=5,
        split="validation",
    ),
    "a promised model that is too short": Broken(
        "checkpointing.save_consolidated: false",
        "checkpointing.save_consolidated: false\n      policy.max_total_sequence_length: 100000",
        "positions of the model",
    ),
    "a policy where a reward model is wanted": Broken(
        "reward_model.model_name: rm.checkpoint_hf",
        "reward_model.model_name: warm.checkpoint_hf",
        "is a `Llama",
        code=6,
    ),
    "a model whose weights come from elsewhere": Broken(
        "reward_model.model_name: rm.checkpoint_hf",
        "reward_model.model_name: rm.checkpoint_hf\n      policy.model_name: warm.checkpoint_hf",
        "its weights come from `policy.pretrained_checkpoint`",
    ),
    "a key that is taken and set": Broken(
        "data.split: heldout",
        "reward_model.path: elsewhere",
        "`takes` of `audit` gives it too",
    ),
    "a reward model for a conversion of policies": Broken(
        "{checkpoint_megatron: ppo}",
        "{checkpoint_megatron: rm}",
        "is a `LlamaForSequenceClassification`",
        code=6,
        result="[ppo, hf]",
    ),
    "a profile that is not there": Broken(
        "title: Pairs", "profile: nowhere\ntitle: Pairs", "no profile `nowhere`", at="  pairs:", code=4
    ),
    "a profile for a cluster whose jobs cannot wait": Broken(
        "title: Pairs",
        "profile: lepton_base\ntitle: Pairs",
        "`lepton_base` is a profile for Lepton",
        at="  pairs:",
        hint='`executor = "slurm"`',
    ),
    "a node of its own on such a cluster": Broken(
        "    after: audit\n",
        "    after: audit\n    profile: ray_base\n",
        "node `ppo`: a pipeline runs on this machine or on Slurm, and `ray_base` is a profile for Ray",
        at="  ppo:",
        hint="nemotron steps run STEP -r ray_base",
    ),
    "a profile for this machine": Broken(
        "title: Pairs", "profile: local\ntitle: Pairs", "without a profile", at="  pairs:", hint="leave `local` out"
    ),
}
WARM = """\
  warm:
    step: rl/nemo_rl/dpo
    config: tiny
    takes: {prepared_data: pairs}
"""


def written(case: Broken) -> str:
    assert case.was in WHOLE
    text = WHOLE.replace(case.was, case.now, 1).replace("data.split: heldout", f"data.split: {case.split}")
    if "both write" in case.says:
        text = text.replace("      blend.train", "      output_dir: output/one\n      blend.train", 1)
    if "warm" in case.now:
        return f"{text}{WARM}result: hf\n"
    return f"{text}result: {case.result}\n" if case.result else text


def line_of(case: Broken, text: str) -> int | None:
    if case.at is None:
        return None
    mark = case.at or case.now.strip().splitlines()[-1].strip()
    return text[: text.index(mark)].count("\n") + 1


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_one_clear_error_before_anything_starts(case: Broken, tmp_path: Path) -> None:
    text = written(case)
    (tmp_path / "mine.yaml").write_text(text)
    done = nemotron("pipelines", "run", "mine.yaml", cwd=tmp_path, bare=True)
    assert done.code == case.code, done.stderr
    assert case.says in done.stderr
    assert case.hint in done.stderr
    told = done.stderr.count("error: ")
    assert told == 1 or (told == 2 and "1 problem found, nothing was started" in done.stderr), done.stderr
    if (line := line_of(case, text)) is not None:
        assert any(f"mine.yaml:{number}:" in done.stderr for number in (line, line + 1)), (line, done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


@pytest.mark.parametrize(
    ("option", "says", "hint", "code"),
    [
        ("-b lepton_base", "`lepton_base` is a profile for Lepton", 'with `executor = "slurm"`', 3),
        ("--batch=ray_base", "`ray_base` is a profile for Ray", "steps run STEP -r ray_base", 3),
        ("-b local", "run on this machine without a profile", "leave `local` out", 3),
        ("-b nowhere", "there is no profile `nowhere`", "profiles list", 4),
        ("-r slurm_base", "unknown option `-r`", "`-b PROFILE` submits all of them to Slurm", 2),
        ("--run=lepton_base", "unknown option `--run`", "`-b PROFILE` submits all of them to Slurm", 2),
    ],
)
def test_a_pipeline_is_not_sent_where_its_jobs_cannot_wait(
    option: str, says: str, hint: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(WHOLE)
    done = nemotron("pipelines", "run", "mine.yaml", *option.split(), cwd=tmp_path, bare=True)
    assert done.code == code, done.stderr
    assert says in done.stderr
    assert hint in done.stderr
    # Once, however many nodes there are.
    assert done.stderr.count("error: ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def test_the_whole_one_compiles(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(WHOLE)
    done = nemotron("pipelines", "run", "mine.yaml", "--dry-run", cwd=tmp_path, bare=True)
    assert done.code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


OWN = """\
title = "Count"
description = "It counts."
launch = "python"
[[consumes]]
type = "preference_jsonl"
description = "Pairs"
bind = ["data_path"]
"""


def test_a_step_that_takes_no_manifest_is_not_told_to_take_one(tmp_path: Path) -> None:
    step = tmp_path / "steps" / "mine" / "count"
    (step / "config").mkdir(parents=True)
    (step / "step.toml").write_text(OWN)
    (step / "step.py").write_text("STEP = None\n")
    (step / "config" / "default.yaml").write_text("data_path: ???\n")
    (tmp_path / "p.yaml").write_text(
        f"nodes:\n{PAIRS}  count:\n    step: mine/count\n    takes: {{preference_jsonl: pairs}}\n"
    )
    done = nemotron("--steps-dir", "steps", "pipelines", "run", "p.yaml", "--dry-run", cwd=tmp_path)
    assert done.code == 3
    assert "`pairs` makes none" in done.stderr
    assert "`mine/count` takes none: let its `step.toml` consume `prepared_data`" in done.stderr


def test_machines_are_told_what_is_wrong_and_in_which_node(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(written(BROKEN["a typo in the last node's override"]))
    for words in (("run", "p.yaml", "--dry-run"), ("show", "p.yaml")):
        done = nemotron("pipelines", *words, "--json", cwd=tmp_path)
        told = json.loads(done.stdout)
        assert (told["ok"], told["exit_code"]) == (False, done.code) == (False, 3)
        [found] = told["findings"]
        assert (found["name"], found["key"]) == ("unknown-key", "hf.dtpye")
    (tmp_path / "p.yaml").write_text(WHOLE)
    told = json.loads(nemotron("pipelines", "show", "p.yaml", "--json", cwd=tmp_path).stdout)
    assert (told["ok"], told["exit_code"], told["findings"]) == (True, 0, [])
    assert [node["name"] for node in told["nodes"]] == ["pairs", "prompts", "rm", "audit", "ppo", "hf"]

"""Shipped configs compile for a node with NeMo-RL, a dry run shows what it would be given, rows become its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemotron.compile.plan import Plan, compile_job
from nemotron.config.dump import dump_yaml
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.schema.rewards import RewardConfig
from nemotron.engines.nemo_rl.config import nemo_rl_config
from nemotron.engines.nemo_rl.folder import launch_words
from nemotron.engines.nemo_rl.rows import pair_sets, write_rows
from nemotron.errors import DataError
from nemotron.manifest import declaration, find_step
from nemotron.place import Place
from tests.in_process import nemotron
from tests.unit.compile.compile_world import NODE, write_manifest
from tests.unit.compile.compile_world import write_rows as write_jsonl

# What the config of PPO has to change: what only our actor does, and batches for the GPUs that a reward model leaves.
PPO = (
    *("reward_model.standardize=false", "actor.exclude_truncated=false", "ppo.overlong_filtering=true"),
    *("ppo.num_prompts_per_step=56", "policy.train_global_batch_size=112"),
)
CONFIGS = [
    *(("sft", "default", ()), ("dpo", "default", ()), ("rm", "default", ()), ("ppo", "default", PPO)),
    *(("rlvr", "default", ()), ("rlvr", "nemo_gym", ()), ("rlhf", "default", ()), ("rlhf", "nemo_gym", ())),
]
BOXED = "rewards.functions=[{name: math, extract: boxed}]"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]


def plan_of(runs: Path, step: str, name: str, *words: str, place: Place = NODE) -> Plan:
    found = find_step(step)
    code = declaration(found)
    overrides = parse_overrides(list(enumerate(words, start=5)))
    resolved = load(found.config_dir, name, overrides, run_dir=str(runs / "RUN_ID"), model=code.config)
    env = {"TORCH_CUDA_ARCH_LIST": "9.0"}
    return compile_job(found, resolved, code, runs_dir=runs, place=replace(place, memory_bytes=None), env=env)


@pytest.mark.parametrize(("step", "name", "words"), CONFIGS)
def test_a_shipped_config_starts_on_a_node(tmp_path: Path, step: str, name: str, words: tuple[str, ...]) -> None:
    """`auto` picks NeMo-RL there."""
    plan = plan_of(tmp_path, step, name, *words)
    assert plan.engine == "nemo_rl"
    assert plan.has_entry
    assert plan.errors == ()
    assert {f.name for f in plan.findings if f.severity == "warning"} <= {"sample-data"}


def test_gyms_own_comparison_is_named_with_its_faults(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "rlhf", "default", "judge.comparison_server=nemo_gym", "judge.score_range=[1, 5]")
    [found] = [f for f in plan.findings if f.name == "gym-comparison"]
    assert (found.severity, found.key) == ("warning", "judge.comparison_server")
    assert all(word in found.message for word in ("loses comparisons", "default score", "waits for ever"))
    assert [f.key for f in plan.errors] == ["judge.score_range"]
    assert not [
        f
        for f in plan_of(tmp_path, "rlhf", "default", "judge.score_range=[1, 5]").findings
        if f.key == "judge.score_range"
    ]


def test_ppo_as_it_is_says_what_nemo_rl_cannot_honour(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "ppo", "default")
    assert [(f.name, f.key) for f in plan.errors] == [
        ("not-in-nemo-rl", "reward_model.standardize"),
        ("not-in-nemo-rl", "actor.exclude_truncated"),
        ("data-parallel-batch", "policy.train_global_batch_size"),
    ]
    assert "7 data-parallel ranks" in plan.errors[-1].message


@pytest.mark.parametrize(
    ("step", "word", "key"),
    [
        ("dpo", "eval.heldout={data_path: h.jsonl, verifier: tiny_world, max_samples: 1}", "eval.heldout"),
        ("rm", "data.use_tokens=true", "data.use_tokens"),
        ("rlvr", "env.should_use_nemo_gym=true", "rewards"),
        ("rlvr", "grpo.adv_estimator.name=raw_reward", "grpo.adv_estimator.name"),
        ("rlhf", "grpo.adv_estimator.name=raw_reward", "grpo.adv_estimator.name"),
        ("dpo", "data.add_bos=false", "data.add_bos"),
        ("dpo", "data.add_eos=false", "data.add_eos"),
        ("rm", "data.add_eos=false", "data.add_eos"),
        ("rlvr", f"{BOXED}; policy.generation.top_k=5", "policy.generation.top_k"),
        ("rlvr", f"{BOXED}; policy.generation.stop_strings=[x]", "policy.generation.stop_strings"),
    ],
)
def test_what_is_ours_alone_is_refused(tmp_path: Path, step: str, word: str, key: str) -> None:
    found = [f for f in plan_of(tmp_path, step, "default", *word.split("; ")).errors if f.name == "not-in-nemo-rl"]
    assert [f.key for f in found] == [key]
    assert all(f.exit_code == 10 and f.hint for f in found)


def test_how_a_judge_is_asked_is_refused_only_where_gym_asks_it(tmp_path: Path) -> None:
    words = ("judge.prompt=instruct", "judge.verdict=schema")
    key = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.base_url"
    served = plan_of(tmp_path, "rlhf", "default", *words)
    assert [f.key for f in served.errors if f.name == "not-in-nemo-rl"] == ["judge.prompt", "judge.verdict"]
    elsewhere = plan_of(tmp_path, "rlhf", "default", *words, f"{key}=http://judge:8000/v1")
    assert elsewhere.errors == ()
    gyms = plan_of(tmp_path, "rlhf", "default", *words, f"{key}=http://h:8000/v1", "judge.comparison_server=nemo_gym")
    assert [f.key for f in gyms.errors if f.name == "not-in-nemo-rl"] == ["judge.prompt", "judge.verdict"]


SERVED = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.vllm_serve_kwargs"
CLUSTER = replace(NODE, is_here=False, name="slurm", judge_gpus=8)


def test_a_judge_beside_the_job_wants_a_machine_in_the_profile(tmp_path: Path) -> None:
    """Until now `judge.server=vllm` was passed over without a word, and NeMo-Gym took GPUs of the cluster."""
    words = ("judge.server=vllm", "judge.vllm_command=null")
    [none] = plan_of(tmp_path, "rlhf", "default", *words).errors
    assert (none.name, none.key) == ("judge-server", "judge.server")
    assert none.hint is not None
    assert all(way in none.hint for way in ("judge = { gpus_per_node", "judge.server=auto", "base_url"))
    beside = plan_of(tmp_path, "rlhf", "default", *words, f"{SERVED}={{tensor_parallel_size: 8}}", place=CLUSTER)
    assert beside.errors == ()
    placement = {process.role: process.where for process in beside.processes}
    assert "`vllm serve` on a machine besides `cluster`" in placement["judge"]
    assert "8 GPU(s)" in placement["judge"]
    assert "allocation" not in placement, "nothing of the cluster is the judge's"
    sizes = plan_of(tmp_path, "rlhf", "default", *words, f"{SERVED}={{tensor_parallel_size: 16}}", place=CLUSTER)
    assert [f.key for f in sizes.errors] == [f"{SERVED}.tensor_parallel_size"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("judge.server=vllm", "judge.comparison_server=nemo_gym"), "not-in-nemo-rl"),
        (("judge.server=external",), "judge-server"),
        (("judge.server=vllm", f"{SERVED.rpartition('.')[0]}.base_url=http://h:1/v1"), "judge-server"),
        (("judge.server=embedded",), "not-in-nemo-rl"),
        (("judge.server=vllm", "judge.dtype=float64"), "judge-server"),
        (("judge.server=vllm", "judge.max_restarts=2"), "judge-server"),
    ],
)
def test_a_judge_that_nemo_rl_cannot_have_so_is_an_error(tmp_path: Path, words: tuple[str, ...], name: str) -> None:
    found = plan_of(tmp_path, "rlhf", "default", *words, place=CLUSTER).errors
    assert [f.name for f in found] == [name]
    assert all(f.hint for f in found)


def test_servers_of_ones_own_are_not_nemo_rls(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "rlvr", "nemo_gym", "gym.servers.math.base_url=http://h:1", "gym.servers.math.kind=null")
    assert [f.key for f in plan.errors if f.name == "not-in-nemo-rl"] == ["gym.servers.math.base_url"]


def test_a_dry_run_shows_config_and_launch(tmp_path: Path) -> None:
    """Also where NeMo-RL is not: there it says so, and what it would be."""
    words = ("steps", "run", "rl/nemo_rl/dpo", "-c", "default", "engine=nemo_rl", "--dry-run", "--json")
    done = nemotron(*words, "--runs-dir", str(tmp_path / "runs"))
    assert (done.code, (tmp_path / "runs").exists()) == (10, False)
    shown = json.loads(done.stdout)["nemo_rl"]
    run = Path(shown["config"]["checkpointing"]["checkpoint_dir"]).parent
    assert run.parent == (tmp_path / "runs").resolve()
    assert shown["config"]["data"]["train"] == {
        "dataset_name": "PreferenceDataset",
        "data_path": str(run / "nemo_rl" / "data" / "train.jsonl"),
    }
    assert shown["launch"]["argv"][0] == str(run / "nemo_rl" / "entry.py")
    assert shown["launch"]["argv"][3:] == ["examples/run_dpo.py", "--config", str(run / "nemo_rl" / "config.yaml")]
    assert (shown["launch"]["version"], shown["launch"]["cwd"]) == ("v0.7.0", "/opt/nemo-rl")


def written(tmp_path: Path, step: str, *words: str, name: str = "default") -> dict[str, list[dict[str, Any]]]:
    """The rows that NeMo-RL is given, by file; every file is one that its config names."""
    plan = plan_of(tmp_path, step, name, *words)
    folder = tmp_path / "out"
    found = write_rows(plan.config, plan.values, folder / "data")
    config = nemo_rl_config(plan.values, folder=str(folder), secrets={}, pair_sets=pair_sets(plan.config))
    named = json.dumps(config["data"])
    rows = {}
    for files in found.values():
        for one in files:
            path = folder / "data" / one.file
            assert str(path) in named
            rows[one.file] = [json.loads(line) for line in path.read_text().splitlines()]
            assert len(rows[one.file]) == one.rows
    return rows


def train_on(path: Path, *rows: dict[str, Any]) -> tuple[str, ...]:
    return (f"data.train.data_path={write_jsonl(path, rows)}", "data.validation=null")


def test_pairs_of_any_form_become_ranked_completions(tmp_path: Path) -> None:
    words = train_on(tmp_path / "p.jsonl", {"prompt": "Q", "chosen": "good", "rejected": "bad"})
    for step in ("dpo", "rm"):
        [row] = written(tmp_path, step, *words)["train.jsonl"]
        assert row["context"] == [{"role": "user", "content": "Q"}]
        assert [(one["rank"], one["completion"][0]["content"]) for one in row["completions"]] == [
            (0, "good"),
            (1, "bad"),
        ]


def test_several_files_of_pairs_are_one_to_train_on_and_named_to_validate(tmp_path: Path) -> None:
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name, "chosen": "x", "rejected": "y"}]) for name in "ab"
    ]
    sets = "[" + ", ".join(f"{{dataset_name: PreferenceDataset, data_path: {path}}}" for path in paths) + "]"
    words = ("~data.train", f"+data.train={sets}", "~data.validation", f"+data.validation={sets}")
    rows = written(tmp_path, "rm", *words)
    assert {name: len(found) for name, found in rows.items()} == {
        **{"train.jsonl": 2, "validation-0.jsonl": 1, "validation-1.jsonl": 1}
    }


def test_prepared_pairs_are_one_file(tmp_path: Path) -> None:
    pairs = [[{"prompt": f"{i}", "chosen": "x", "rejected": "y"}] for i in range(3)]
    manifest = write_manifest(tmp_path / "prep", {"train": pairs, "validation": pairs[:1]}, "preference")
    words = ("~data.train.data_path", "~data.validation.data_path", f"data.manifest_path={manifest}")
    rows = written(tmp_path, "dpo", *words)
    assert {name: len(found) for name, found in rows.items()} == {"train.jsonl": 3, "validation.jsonl": 1}


def test_conversations_are_messages(tmp_path: Path) -> None:
    turns = [*TALK, {"role": "assistant", "content": "Done."}]
    rows = ({"conversations": turns}, {"instruction": "Go", "output": "Done."})
    assert written(tmp_path, "sft", *train_on(tmp_path / "c.jsonl", *rows))["train.jsonl"] == [
        {"messages": turns},
        {"messages": [TALK[2], turns[3]]},
    ]
    spared = {"messages": [TALK[0], {**TALK[1], "weight": 0}, TALK[2], turns[3]]}
    with pytest.raises(DataError, match="turn 2 of this one is not to be learned") as caught:
        written(tmp_path, "sft", *train_on(tmp_path / "c.jsonl", spared))
    assert str(caught.value.origin) == f"{tmp_path / 'c.jsonl'}:1"
    last = written(tmp_path, "sft", "sft.only_unmask_final=true", *train_on(tmp_path / "c.jsonl", spared))
    assert last["train.jsonl"] == [{"messages": turns}]


def test_questions_become_input_and_output(tmp_path: Path) -> None:
    row = {"question": "2+2?", "expected_answer": "4"}
    assert written(tmp_path, "rlvr", *train_on(tmp_path / "q.jsonl", row))["train.jsonl"] == [
        {"input": "2+2?", "output": "4"}
    ]
    # PPO's reward model reads no answer.
    assert written(tmp_path, "ppo", *train_on(tmp_path / "q.jsonl", {"prompt": "2+2?"}))["train.jsonl"] == [
        {"input": "2+2?", "output": ""}
    ]


@pytest.mark.parametrize(
    "functions",
    [
        *(
            "[{name: math, weight: 2.0}]",
            "[{name: math, extract: boxed}]",
            "[{name: math}, {name: math, label: again}]",
        ),
        *(
            '[{name: regex, pattern: "^x"}]',
            "[{name: math, strip_thinking: false}]",
            "[{name: choice, options_field: null}]",
        ),
    ],
)
def test_functions_that_nemo_rl_has_not_run_as_a_server_of_ours(tmp_path: Path, functions: str) -> None:
    """What the server is told is what the embedded engine would read, null values and dollars included."""
    plan = plan_of(tmp_path, "rlvr", "default", f"rewards.functions={functions}")
    assert not [f for f in plan.errors if f.name == "not-in-nemo-rl"]
    config: Any = OmegaConf.create(dump_yaml(nemo_rl_config(plan.values, folder="/r/nemo_rl", secrets={})))
    config = OmegaConf.to_container(config, resolve=True)
    gym: Any = OmegaConf.to_container(OmegaConf.create(config["env"]["nemo_gym"]), resolve=True)
    [block] = gym["nemotron_rewards"]["resources_servers"].values()
    assert RewardConfig.model_validate(block["nemotron"]["rewards"]) == plan.config.rewards
    agent = gym["nemotron_rewards_simple_agent"]["responses_api_agents"]["simple_agent"]
    assert agent["resources_server"] == {"type": "resources_servers", "name": "nemotron_rewards"}
    vllm = config["policy"]["generation"]["vllm_cfg"]
    assert (vllm["async_engine"], vllm["expose_http_server"]) == (True, True)
    assert config["data"]["train"]["dataset_name"] == "NemoGymDataset"
    assert (config["grpo"]["max_val_samples"], "math" in config["env"]) == (None, False)
    launch = launch_words(plan.values, Path("/r/nemo_rl"), Path("/r/m"))
    assert launch[3] == "examples/nemo_gym/run_grpo_nemo_gym.py"


def test_plain_mathematics_stays_nemo_rls_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "rlvr", "default", "rewards.functions=[{name: math, label: m, answer_field: gold}]")
    config = nemo_rl_config(plan.values, folder="/r/nemo_rl", secrets={})
    assert ("nemo_gym" in config["env"], "math" in config["env"]) == (False, True)


def test_rows_of_our_functions_keep_every_field_and_say_which_they_are(tmp_path: Path) -> None:
    rows = [{"messages": TALK, "expected_answer": str(k), "more": k} for k in range(4)]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    words = (f"data.train.data_path={path}", f"data.validation.data_path={path}", "grpo.max_val_samples=3")
    found = written(tmp_path, "rlvr", *words, BOXED)
    assert found["train.jsonl"][1] == {
        **rows[1],
        "responses_create_params": {"input": TALK},
        "agent_ref": {"type": "responses_api_agents", "name": "nemotron_rewards_simple_agent"},
        "nemotron_row": {"id": "train/q.jsonl:2", "group": 16},
    }
    assert [row["nemotron_row"]["group"] for row in found["validation.jsonl"]] == [1, 1, 1]


def test_a_row_that_our_functions_cannot_score_is_refused_or_left_out(tmp_path: Path) -> None:
    words = train_on(tmp_path / "q.jsonl", {"question": "a", "expected_answer": "1"}, {"question": "b"})
    with pytest.raises(DataError, match="the row cannot be scored") as caught:
        written(tmp_path, "rlvr", *words, BOXED)
    assert str(caught.value.origin).endswith("q.jsonl:2")
    left = written(tmp_path, "rlvr", *words, BOXED, "rewards.unusable_rows=leave_out")
    assert len(left["train.jsonl"]) == 1


SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
SPARED = {"messages": [TALK[0], {**TALK[1], "weight": 0}, TALK[2], {"role": "assistant", "content": "Done."}]}
ANSWERED = {"question": "a", "answer": "b"}
AGENT = {"agent_ref": {"type": "responses_api_agents", "name": "x"}}
# (step, config, a row that can be used, another, why NeMo-RL cannot be given it; None: it can)
GIVEN: list[tuple[str, str, dict[str, Any], dict[str, Any], str | None]] = [
    ("rlvr", "default", ANSWERED, {"question": "2+2?", "expected_answer": "4"}, None),
    ("rlvr", "default", ANSWERED, {"question": "2+2?", "expected_answer": [4, 4.0, "4"]}, None),
    ("rlvr", "default", ANSWERED, {"question": "root of 4?", "answer": ["-2", "2"]}, "this row has several"),
    ("rlvr", "default", ANSWERED, {"messages": SYSTEM, "answer": "4"}, "one turn of a user"),
    ("rlvr", "default", ANSWERED, {"messages": TALK, "answer": "4"}, "one turn of a user"),
    ("rlvr", "default", ANSWERED, {"question": "2+2?"}, "no `expected_answer` or `answer`"),
    ("rlvr", "default", ANSWERED, {"question": "2+2?", "answer": " "}, "is blank"),
    ("rlvr", "nemo_gym", {**ANSWERED, **AGENT}, ANSWERED, "names no agent"),
    ("rlhf", "default", ANSWERED, {"messages": SYSTEM}, None),
    ("rlhf", "default", ANSWERED, {"prompt": "Hi", "agent_ref": {"name": ""}}, "names no agent"),
    ("rlhf", "default", ANSWERED, {"prompt": "Hi", "agent_ref": "mine"}, "names no agent"),
    ("rlhf", "default", ANSWERED, {"prompt": "Hi", "task_source": "math"}, "does not know `task_source`"),
    ("ppo", "default", ANSWERED, {"prompt": "2+2?"}, None),
    ("ppo", "default", ANSWERED, {"prompt": SYSTEM}, "one turn of a user"),
    ("sft", "default", {"prompt": "a", "answer": "b"}, SPARED, "turn 2 of this one is not to be learned"),
]


@pytest.mark.parametrize(("step", "name", "usable", "other", "why"), GIVEN)
def test_the_dry_run_and_the_run_refuse_the_same_rows(
    tmp_path: Path, step: str, name: str, usable: dict[str, Any], other: dict[str, Any], why: str | None
) -> None:
    """Both with the line, for the same reason: a cluster does not start for a row that it cannot be given."""
    rows = [{**usable, "question": f"{i}"} if "question" in usable else usable for i in range(400)]
    path = write_jsonl(tmp_path / "q.jsonl", [rows[0], other, *rows[1:]])
    words = (f"data.train.data_path={path}", "data.validation=null", *(PPO if step == "ppo" else ()))
    plan = plan_of(tmp_path, step, name, *words)
    found = [f for f in plan.errors if f.origin is not None and f.origin.source == str(path)]
    if why is None:
        assert found == []
        assert len(written(tmp_path, step, *words, name=name)["train.jsonl"]) == len(rows) + 1
        return
    [told] = {(f.message, str(f.origin)) for f in found if f.name != "gym-row"}
    assert why in told[0]
    assert told[1] == f"{path}:2"
    with pytest.raises(DataError, match=why) as caught:
        written(tmp_path, step, *words, name=name)
    assert str(caught.value.origin) == told[1]


def test_rows_that_are_left_out_are_left_out_of_plain_mathematics_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [ANSWERED, {"messages": TALK}, {"question": "c", "answer": []}] * 64)
    words = (f"data.train.data_path={path}", f"data.validation.data_path={path}", "rewards.unusable_rows=leave_out")
    assert plan_of(tmp_path, "rlvr", "default", *words).errors == ()
    assert written(tmp_path, "rlvr", *words)["train.jsonl"] == [{"input": "a", "output": "b"}] * 64


def test_what_nemo_rl_refuses_the_embedded_engine_takes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"messages": SYSTEM, "answer": ["-2", "2"]}] * 64)
    words = (f"data.train.data_path={path}", "data.validation=null", "engine=embedded")
    assert not [f for f in plan_of(tmp_path, "rlvr", "default", *words).errors if f.name == "data-row"]


def test_rows_of_the_gym_stay_and_others_become_such(tmp_path: Path) -> None:
    given = {
        "responses_create_params": {"input": [{"role": "user", "content": "Hi"}]},
        "agent_ref": {"type": "responses_api_agents", "name": "mine"},
        "principle": "be brief",
    }
    path = tmp_path / "g.jsonl"
    path.write_text(f"{json.dumps(given)}\n\n{json.dumps({'messages': TALK})}\n")
    first, second = written(tmp_path, "rlhf", f"data.train.data_path={path}", "data.validation=null")["train.jsonl"]
    assert first == given
    assert second["responses_create_params"] == {"input": TALK}
    assert second["agent_ref"]["name"] == "genrm_simple_agent"

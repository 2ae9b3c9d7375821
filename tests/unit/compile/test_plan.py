"""The plan as a whole: shipped configs, JSON, text, secrets, fingerprints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from nemotron.compile.plan import Plan, render_plan
from nemotron.config.schema.extras import JudgedGrpoConfig
from nemotron.place import Place
from tests.unit.compile.compile_world import NODE, Compile, named

JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"


def text(plan: Plan, width: int = 80, *, with_config: bool = False) -> str:
    console = Console(width=width, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(render_plan(plan, with_config=with_config))
    return captured.get()


def test_tiny(compiled: Compile) -> None:
    plan = compiled("tiny")
    assert isinstance(plan.config, JudgedGrpoConfig)
    assert [f.name for f in plan.findings] == ["nemo-rl-settings"]
    assert plan.engine == "embedded"
    assert [p.role for p in plan.processes] == ["policy", "judge"]
    assert plan.work is not None
    assert (plan.work.prompts, plan.work.generations, plan.work.updates) == (8, 8, 1)
    assert plan.work.judge_calls == 64
    assert [(f.role, f.detail) for f in plan.inputs if "data" in f.role] == [
        ("train data", "400 rows"),
        ("validation data", "40 rows"),
        ("heldout data", "200 rows"),
    ]
    assert [f.role for f in plan.outputs] == ["run folder", "checkpoints"]


def test_bare_default_compiles_with_one_warning(compiled: Compile) -> None:
    plan = compiled("default")
    assert plan.exit_code == 0
    assert [f.name for f in plan.findings if f.severity == "warning"] == ["sample-data"]


def test_nemo_gym_compiles_on_a_node(compiled: Compile) -> None:
    plan = compiled("nemo_gym", place=NODE)
    always = {"limits-from-outside"}
    assert [f.name for f in plan.findings if f.name not in always] == ["model-files", "model-files", "sample-data"]
    assert plan.exit_code == 0
    assert [p.role for p in plan.processes] == ["policy", "generation", "comparison", "judge", "allocation"]
    blocks = plan.values["env"]["nemo_gym"]
    assert (
        blocks["genrm_simple_agent"]["responses_api_agents"]["simple_agent"]["model_server"]["name"] == "policy_model"
    )
    assert compiled("nemo_gym").exit_code == 10


def test_a_broken_config_gives_a_plan_with_its_findings_only(compiled: Compile) -> None:
    plan = compiled("tiny", "grpo.max_num_steps=many")
    assert (plan.ok, plan.exit_code, plan.config, plan.work) == (False, 3, None, None)
    assert "0 optimizer" not in text(plan)
    assert plan.to_json()["ok"] is False


def test_all_errors_at_once_in_the_order_of_the_checks(compiled: Compile) -> None:
    Path("taken").write_text("")
    plan = compiled(
        "own.yaml",
        "data.train.data_path=nowhere.jsonl",
        "policy.model_name=/no/model",
        "policy.train_global_batch_size=500",
        runs_dir="taken/runs",
    )
    assert [f.exit_code for f in plan.errors] == [3, 8, 6, 5]
    assert plan.exit_code == 3


def test_json_is_plain_and_complete(compiled: Compile) -> None:
    plan = json.loads(json.dumps(compiled("own.yaml", "policy.train_global_batch_size=256").to_json()))
    assert plan["engine"]["name"] == "embedded"
    assert plan["work"]["updates"] == 2
    warning = next(f for f in plan["findings"] if f["name"] == "off-policy-updates")
    assert warning["origin"] == "command line, argument 5"
    assert plan["config"]["grpo"]["num_prompts_per_step"] == 64
    assert plan["memory_bytes"]["total"] > 0


def test_text_is_80_columns_and_cuts_nothing(compiled: Compile, world: Path) -> None:
    plan = compiled("tiny")
    shown = text(plan)
    assert max(map(len, shown.splitlines())) <= 80
    joined = "".join(line.strip() for line in shown.splitlines())
    for file in (*plan.inputs, *plan.outputs):
        assert file.path in joined
    assert plan.fingerprint in joined
    assert "num_generations_per_prompt: 8" not in shown
    whole = text(plan, with_config=True)
    assert whole.index("num_generations_per_prompt: 8") < whole.index(plan.fingerprint[:40])


def test_the_fingerprint_is_of_the_config_alone(compiled: Compile) -> None:
    one = compiled("tiny")
    assert compiled("tiny", place=NODE).fingerprint == one.fingerprint
    assert compiled("tiny", runs_dir="elsewhere/runs").fingerprint == one.fingerprint
    assert compiled("tiny", "grpo.seed=7").fingerprint != one.fingerprint


def test_the_job_file_names_its_own_run_folder(compiled: Compile) -> None:
    plan = compiled("tiny")
    job = plan.job()
    folder = Path("runs").resolve() / plan.run_id
    config = job.settings(JudgedGrpoConfig)
    assert config.checkpointing.checkpoint_dir == f"{folder}/checkpoints"
    assert config.logger.log_dir == f"{folder}/logs"
    assert (job.engine, job.fingerprint, job.place.name) == ("embedded", plan.fingerprint, "here")


@pytest.mark.parametrize(
    "words",
    [
        ("grpo.seed=x",),
        (f"+{JUDGE}.api_keys=[sk-very-secret]", "grpo.seed=x"),
        ("policy.model_name=of-sk-very-secret",),
        (f"{JUDGE}.base_url=http://user:sk-very-secret@host/v1",),
        (f"{JUDGE}.base_url=http://user:sk-very-secret@host/v1", "grpo.seed=x"),
    ],
)
def test_a_plan_that_is_refused_shows_no_secret(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Which values are secrets, a config that does not compile says only by their names."""
    monkeypatch.setenv("RL_REWARD_API_KEY", "sk-very-secret")
    plan = compiled("tiny", *words)
    assert not plan.ok
    assert "sk-very-secret" not in json.dumps(plan.to_json()) + text(plan, with_config=True)


def test_secrets_are_nowhere_but_where_they_are_needed(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_REWARD_API_KEY", "sk-very-secret")
    leak = compiled("tiny", f"{JUDGE}.base_url='http://host/v1?key=sk-very-secret'")
    assert [f.key for f in leak.errors] == [f"{JUDGE}.base_url"]
    plan = compiled("tiny", f"{JUDGE}.base_url='http://host/v1'")
    everything = (
        json.dumps([plan.to_json(), plan.job().model_dump(mode="json"), leak.to_json()])
        + text(plan)
        + text(leak)
        + repr((plan, leak))
    )
    assert "sk-very-secret" not in everything
    assert plan.secrets() == {"env.nemo_gym.genrm_model.responses_api_models.vllm_model.api_key": "sk-very-secret"}
    monkeypatch.setenv("RL_REWARD_API_KEY", "another-secret")
    assert compiled("tiny").fingerprint == compiled("tiny").fingerprint


def test_overrides_that_change_nothing_are_errors_on_this_engine_only(compiled: Compile) -> None:
    assert named(compiled("own.yaml", "cluster.num_nodes=2"), "override-without-effect")
    assert compiled("own.yaml", "cluster.num_nodes=2", "engine=nemo_rl", place=NODE).ok


def test_compiling_imports_no_engine() -> None:
    heavy = ("torch", "transformers", "ray", "rich", "aiohttp")
    code = f"import sys, nemotron.compile.plan; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_this_machine() -> None:
    here = Place.this_machine()
    assert here.memory_bytes is None or here.memory_bytes > 2**28

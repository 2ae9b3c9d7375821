"""What a node is compiled against while its inputs are only promised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nemotron.compile.probes.model_files import read_model, template_problem, tokenizer_at
from nemotron.config.resolvers import ASSETS
from nemotron.job import CompiledJob
from nemotron.pipelines.chain import Chain, compile_chain
from nemotron.pipelines.draw import svg
from nemotron.pipelines.file import read_pipeline, shipped
from nemotron.pipelines.start import planned
from nemotron.place import Place
from nemotron.promises import DataPromise, ModelPromise, Promise
from tests.in_process import nemotron

POLICY = str(ASSETS / "tiny_world" / "policy")
PROMISED = "/pipeline/node/checkpoint_hf"
PAIRS = "${asset:tiny_world/data/pairs_train.jsonl}"


def place(**promised: Promise) -> Place:
    return replace(Place.this_machine(), promised={PROMISED: next(iter(promised.values()))})


def compiled(folder: Path, text: str) -> Chain:
    path = folder / "mine.yaml"
    path.write_text(text)
    return compile_chain(read_pipeline(path), folder / "runs")


def promise(chain: Chain, node: str, kind: str) -> Promise:
    return next(one for one in chain.node(node).plan.promises if one.type == kind)


def test_a_promised_model_is_looked_at_through_the_one_that_it_is_made_of() -> None:
    made = read_model(POLICY, Place.this_machine())
    here = place(model=ModelPromise("checkpoint_hf", POLICY, POLICY, {"architectures": ["X"]}))
    promised = read_model(PROMISED, here)
    assert made is not None
    assert promised is not None
    assert (promised.parameters, promised.positions, promised.tokens) == (made.parameters, made.positions, made.tokens)
    assert promised.config == {**made.config, "architectures": ["X"]}
    assert not here.sees(Path(PROMISED))
    assert read_model(PROMISED, Place.this_machine()) is None


@pytest.mark.parametrize(("template", "fault"), [("{{ messages }}", False), ("{% for", True)])
def test_the_template_that_a_config_gives_is_the_one_that_will_be_stored(template: str, fault: bool) -> None:
    here = place(model=ModelPromise("checkpoint_hf", POLICY, POLICY, template=template))
    facts = tokenizer_at(PROMISED, here)
    assert facts is not None
    assert facts.chat_template == template
    assert (template_problem(PROMISED, here) is not None) is fault


def test_a_promise_is_written_into_no_job(tmp_path: Path) -> None:
    done = nemotron("steps", "run", "convert/megatron_to_hf", "-c", "tiny", "verify=none", cwd=tmp_path)
    assert done.code == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("*/job.json")
    job = CompiledJob.model_validate_json(path.read_bytes())
    promised = {PROMISED: ModelPromise("checkpoint_hf", POLICY, POLICY)}
    later = job.model_copy(update={"place": replace(job.place, promised=promised)})
    assert later.to_bytes() == job.to_bytes()
    assert "promised" not in json.loads(path.read_text())["place"]


@pytest.mark.parametrize(
    ("blend", "kind", "splits"),
    [
        ({"train": [PAIRS]}, "preference", ("train",)),
        ({"train": [PAIRS], "val": [PAIRS]}, "preference", ("train", "validation")),
        ({"train": [PAIRS], "odd": ["${asset:tiny_world/data/train.jsonl}"]}, "mixed", ("odd", "train")),
        ({"train": [PAIRS], "test": ["${asset:tiny_world/data/train.jsonl}"]}, "mixed", ("test", "train")),
        ({"train": ["hf://nobody/nothing"]}, None, None),
    ],
)
def test_promised_data_have_the_kind_and_the_splits_of_their_sources(
    blend: Mapping[str, Any], kind: str | None, splits: tuple[str, ...] | None, tmp_path: Path
) -> None:
    node = {"step": "rl_prep", "overrides": {"blend_path": None, "blend": dict(blend)}}
    chain = compiled(tmp_path, json.dumps({"nodes": {"data": node}}))
    assert promise(chain, "data", "prepared_data") == DataPromise("prepared_data", kind, splits)


def test_what_is_made_of_a_promise_is_promised_too(tmp_path: Path) -> None:
    chain = compile_chain(read_pipeline(shipped()["dpo_then_rlvr"]), tmp_path / "runs")
    assert [node.name for node in chain.nodes if node.inserted] == ["dpo_hf"]
    last = chain.node("hf").plan
    tasks = read_model(str(ASSETS / "tiny_world" / "policy_tasks"), Place.this_machine())
    found = read_model("/pipeline/hf/checkpoint_hf", replace(Place.this_machine(), promised=chain.promised))
    assert last.ok
    assert tasks is not None
    assert found is not None
    assert (found.config, found.parameters) == (tasks.config, tasks.parameters)


@pytest.mark.parametrize(("pairs", "told"), [(None, "every pair"), (40, "at most 40 pairs")])
def test_of_pairs_that_are_only_promised_the_plan_says_no_number(pairs: int | None, told: str, tmp_path: Path) -> None:
    done = nemotron("pipelines", "run", "ppo", f"audit.audit.pairs={json.dumps(pairs)}", "--dry-run", cwd=tmp_path)
    assert f"this process: scores both answers of {told}\n" in done.stdout


def test_every_shipped_pipeline_compiles_and_can_be_drawn(tmp_path: Path) -> None:
    assert sorted(shipped()) == ["dpo_then_rlvr", "ppo", "rlhf"]
    for path in shipped().values():
        chain = compile_chain(read_pipeline(path), tmp_path / "runs")
        drawn = ElementTree.fromstring(svg(planned(chain)))
        texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert texts[::2] == [node.name for node in chain.nodes]
        lines = [one for one in drawn.iter("{http://www.w3.org/2000/svg}path") if one.get("marker-end")]
        assert len(lines) == sum(len(node.needs) for node in chain.nodes)
    assert list(tmp_path.iterdir()) == []


def test_show_and_dry_run_say_the_same_as_text_and_as_json(tmp_path: Path) -> None:
    shown = json.loads(nemotron("pipelines", "show", "ppo", "--json", cwd=tmp_path).stdout)
    told = json.loads(nemotron("pipelines", "run", "ppo", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert {key: told[key] for key in shown} == shown
    assert list(told["plans"]) == [node["name"] for node in shown["nodes"]]
    assert all(plan["ok"] for plan in told["plans"].values())
    text = nemotron("pipelines", "run", "ppo", "--dry-run", cwd=tmp_path).stdout
    for node in shown["nodes"]:
        assert f"--- {node['name']}" in text
        for taken in node["takes"]:
            assert f"{taken['key']} <- {taken['node']} ({taken['type']})" in text
    assert list(tmp_path.iterdir()) == []


def test_overrides_of_the_command_line_win_and_go_to_their_node(tmp_path: Path) -> None:
    told = json.loads(
        nemotron("pipelines", "run", "ppo", "rm.rm.max_num_epochs=1", "-d", "--json", cwd=tmp_path).stdout
    )
    assert told["plans"]["rm"]["config"]["rm"]["max_num_epochs"] == 1
    for word, code in (("rmm.rm.seed=1", 4), ("rm=1", 4), ("seed", 2), ("rm.rm.sede=1", 3)):
        done = nemotron("pipelines", "run", "ppo", word, "-d", cwd=tmp_path)
        assert done.code == code, done.stderr
        assert "command line, argument 4" in done.stderr

"""Against nemo-gym 0.4.0's own mcqa, math_with_judge and simple_agent, in a venv of its own.

Install it with tests/integration/nemo_gym/install.sh VENV. ``NEMOTRON_NEMO_GYM_VENV`` names it, else it is
``build/nemo-gym`` of the repository.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.schema.gym import GymConfig
from nemotron.contracts.rewards import GroupRewards
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.gym.client import GymClient
from nemotron.gym.source import GymSource

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_NEMO_GYM_VENV", ROOT / "build" / "nemo-gym"))
DATA = ROOT / "src" / "nemotron" / "assets" / "tiny_world" / "data"
READY_S = 180

OPTIONS = [{"A": "Rome"}, {"B": "the lamp"}, {"C": "Monday"}, {"D": "Anna"}]
LETTERS = [
    r"\boxed{B}", r"so \boxed{ (B) }", r"\boxed{b}", r"\boxed{Z}", r"\boxed{the lamp}", r"\boxed{The  Lamp}", "B", "",
    r"\boxed{A} no, \boxed{B}", r"\boxed{\text{the lamp}}", r"\boxed{Rome or Monday}", "Answer: B", "answer : b",
    "Answer: the lamp", "Answer: it is B", "**Answer**: B", "__Answer__: B", "Answer: Bees", "ANSWER:B", "final: B",
    "final: a final: B", "final: the lamp", "final: Z", r"\boxed{1. B}", "Answer: (B)", "</think> \\boxed{B}",
]  # fmt: skip
OURS = {"mcqa": "mcqa_0_4_0", "math": "math"}
MODES = ("strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon")
TEMPLATES = (None, {"output_regex": r"final: (.+?)(?:$| final)"}, {"output_regex": [r"nothing (\w)", r"final: (\w)"]})
READ_ON = {("lenient_boxed", r"\boxed{b}")}
SUMS = [("4", r"\boxed{4}"), ("4", "The result is 4."), ("4", "5"), ("1/2", r"\boxed{\frac{1}{2}}"), ("0.5", "1/2")]
SUMS += [("12", '{"result": 12}'), ("12", "I do not know"), ("-3", r"\boxed{-3}"), ("$7$", r"\boxed{7}")]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    if not (VENV / ".ready").exists():
        pytest.fail(f"no nemo-gym in {VENV}; run tests/integration/nemo_gym/install.sh {VENV}")
    folder = tmp_path_factory.mktemp("gym")
    said = folder / "ports.json"
    argv = [str(VENV / "bin" / "python"), str(ROOT / "tests" / "integration" / "nemo_gym" / "serve.py"), str(said)]
    quiet = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, env=quiet, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + READY_S
        while not said.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield json.loads(said.read_text())
    finally:
        process.terminate()
        process.wait(30)


def config(ports: dict[str, int] | None) -> GymConfig:
    """The real servers, or without ``ports`` our own."""
    agents = {"mcqa": "mcqa_simple_agent", "math": "math_with_judge_simple_agent"}
    servers: dict[str, Any] = {
        kind: {
            "agents": [agent],
            **({"base_url": f"http://127.0.0.1:{ports[kind]}"} if ports else {"kind": OURS[kind]}),
        }
        for kind, agent in agents.items()
    }
    return GymConfig.model_validate({"servers": servers})


def rewards(settings: GymConfig, rows: list[tuple[PromptRow, list[str]]]) -> list[GroupRewards]:
    with GymSource(settings) as source:
        futures = [
            source.submit(row, texts, [Completion([1], [0.0], truncated=False)] * len(texts), seed=number)
            for number, (row, texts) in enumerate(rows)
        ]
        return [future.result(120) for future in futures]


def choice(mode: str, template: Any) -> PromptRow:
    fields = {
        "responses_create_params": {"input": [{"role": "user", "content": "Which?"}]},
        "agent_ref": {"name": "mcqa_simple_agent"},
        "options": OPTIONS,
        "expected_answer": "B",
        "grading_mode": mode,
        "uuid": "u",
        **({"template_metadata": template} if template else {}),
    }
    return PromptRow("rows:1", [], None, fields)


def test_what_multiple_choice_reads_ours_reads_alike(ports: dict[str, int]) -> None:
    rows = [(choice(mode, template), LETTERS) for mode in MODES for template in TEMPLATES]
    theirs, ours = rewards(config(ports), rows), rewards(config(None), rows)
    more = set()
    for (row, texts), real, own in zip(rows, theirs, ours, strict=True):
        for number, text in enumerate(texts):
            said = [
                (result.rewards[number], result.details[number]["verified"].get("extracted_answer"))
                for result in (real, own)
            ]
            if said[0][1] is not None:
                assert said[0] == said[1], (row.fields["grading_mode"], text)
            elif said[0] != said[1]:
                more.add((row.fields["grading_mode"], text))
    # Where NeMo-Gym finds no letter, ours reads on.
    assert more == READ_ON
    assert any(1.0 in result.rewards for result in theirs)


def test_mathematics_says_what_ours_says(ports: dict[str, int]) -> None:
    rows = []
    for answer, text in SUMS:
        fields = {
            "responses_create_params": {"input": "?"},
            "agent_ref": {"name": "math_with_judge_simple_agent"},
            "question": "?",
            "expected_answer": answer,
        }
        rows.append((PromptRow("rows:1", [], None, fields), [text]))
    theirs, ours = rewards(config(ports), rows), rewards(config(None), rows)
    assert [list(result.rewards) for result in theirs] == [list(result.rewards) for result in ours]
    assert [result.missing for result in theirs] == [0] * len(rows)


def test_shipped_rows_are_accepted(ports: dict[str, int]) -> None:
    rows = []
    for name in ("tasks_heldout", "choices_heldout"):
        for line in (DATA / f"{name}.jsonl").read_text().splitlines()[:4]:
            fields = json.loads(line)
            answer = f"\\boxed{{{fields['expected_answer']}}}"
            rows.append((PromptRow("rows:1", [], None, fields), [answer, r"\boxed{nothing}"]))
    found = rewards(config(ports), rows)
    assert [list(result.rewards) for result in found] == [[1.0, 0.0]] * len(rows)


def test_a_row_that_the_server_refuses_is_missing(ports: dict[str, int]) -> None:
    fields = {"responses_create_params": {"input": "?"}, "agent_ref": {"name": "math_with_judge_simple_agent"}}
    [found] = rewards(config(ports), [(PromptRow("rows:1", [], None, fields), ["4"])])
    assert (list(found.rewards), found.failure) == ([None], "status 422")


def test_an_agent_runs_a_row(ports: dict[str, int]) -> None:
    async def run(say: str) -> Any:
        settings = config(ports)
        async with GymClient(settings, {"agent": f"http://127.0.0.1:{ports['agent']}"}) as client:
            row = choice("strict_single_letter_boxed", None).fields
            params = {**row["responses_create_params"], "metadata": {"say": say}}
            return await client.run("agent", {**row, "responses_create_params": params})

    asked, answer = asyncio.run(run(r"\boxed{B}"))
    assert asked.verified.reward == 1.0
    assert answer["response"]["output"][0]["content"][0]["text"] == r"\boxed{B}"
    asked, _ = asyncio.run(run(r"\boxed{C}"))
    assert asked.verified.reward == 0.0


def test_an_agent_is_given_what_was_sampled(ports: dict[str, int]) -> None:
    server = {
        "base_url": f"http://127.0.0.1:{ports['replaying_agent']}",
        "protocol": "run",
        "agents": ["mcqa_simple_agent"],
    }
    settings = {"servers": {"mcqa": server}, "policy_endpoint": {"port": ports["replay"]}}
    texts = [r"\boxed{B}", r"\boxed{C}", r"<think>hm</think>\boxed{B}", "B"]
    [found] = rewards(GymConfig.model_validate(settings), [(choice(MODES[0], None), texts)])
    assert (list(found.rewards), found.failure) == ([1.0, 0.0, 1.0, 0.0], None)

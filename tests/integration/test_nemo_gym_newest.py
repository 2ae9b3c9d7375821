"""Against the mcqa and genrm_compare of nemo-gym 0.7.0, in a venv of its own.

Install it with tests/integration/nemo_gym/install_newest.sh VENV. ``NEMOTRON_NEMO_GYM_NEWEST_VENV`` names it, else it
is ``build/nemo-gym-newest`` of the repository.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.schema.gym import GymConfig
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.gym.mcqa import grade
from nemotron.gym.protocol import response_object
from nemotron.gym.source import GymSource

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_NEMO_GYM_NEWEST_VENV", ROOT / "build" / "nemo-gym-newest"))
READY_S = 180
GROUP = 4
OPTIONS = [{"A": "Rome"}, {"B": "the lamp"}, {"C": "Monday"}, {"D": "Anna"}]
DONE = Completion([1], [0.0], truncated=False)
SAID = [
    r"\boxed{B}", r"so \boxed{ (B) }", r"\boxed{b}", r"\boxed{Z}", r"\boxed{the lamp}", r"\boxed{The  Lamp}", "B", "x",
    r"\boxed{A} no, \boxed{B}", r"\boxed{B} no, \boxed{A}", r"\boxed{\text{the lamp}}", r"\boxed{Rome or Monday}",
    "Answer: B", "answer : b", "Answer: the lamp", "Answer: it is B", "**Answer**: B", "Answer: Bees", "ANSWER:B",
    r"\boxed{1. B}", "Answer: (B)", r"\boxed{\text{B}}", r"\boxed{B) lamp}", r"\boxed{B: the lamp}", r"\boxed{A and B}",
    r"\boxed{B} \boxed{", r"\boxed{{B}}", "Answer: A\nAnswer: B", "Answer: A or B", "Answer: B, because A is wrong",
    r"\boxed{Rome} \boxed{lamp the lamp}", "Answer: ب",
]  # fmt: skip
MODES = ("strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon", "lenient_answer_colon_md")


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    if not (VENV / ".ready").exists():
        pytest.fail(f"no nemo-gym 0.7.0 in {VENV}; run tests/integration/nemo_gym/install_newest.sh {VENV}")
    folder = tmp_path_factory.mktemp("gym")
    said = folder / "ports.json"
    program = ROOT / "tests" / "integration" / "nemo_gym" / "serve_newest.py"
    quiet = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [VENV / "bin" / "python", program, said, str(GROUP)],
            cwd=folder, env=quiet, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + READY_S
        while not said.exists():
            assert process.poll() is None, (folder / "log").read_text()[-6000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield json.loads(said.read_text())
    finally:
        process.terminate()
        process.wait(30)


def source_of(port: int, *, run: str, **more: Any) -> GymSource:
    server = {"base_url": f"http://127.0.0.1:{port}", "agents": ["a"], **more}
    return GymSource(GymConfig.model_validate({"servers": {"s": server}, "max_retries": 0}), run=run)


def test_multiple_choice_on_128_answers_is_ours(ports: dict[str, int]) -> None:
    cases = list(itertools.product(MODES, SAID))
    assert len(cases) == 128
    wrong = []
    for mode in MODES:
        # The last mode is the server's own in 0.7.0, and refused in a row.
        in_row = {} if mode == MODES[3] else {"grading_mode": mode}
        fields = {"responses_create_params": {"input": "Which?"}, "agent_ref": {"name": "a"}, "uuid": "u", **in_row}
        fields |= {"options": OPTIONS, "expected_answer": "B"}
        with source_of(ports["mcqa_md" if mode == MODES[3] else "mcqa"], run="r/1") as source:
            row = PromptRow("rows:1", [], None, fields)
            found = source.submit(row, SAID, [DONE] * len(SAID), seed=1).result(120)
        for text, reward, details in zip(SAID, found.rewards, found.details, strict=True):
            theirs = reward, details["verified"].get("extracted_answer")
            ours = grade({**fields, "grading_mode": mode}, text)
            if theirs != ours:
                wrong.append((mode, text, theirs, ours))
    assert wrong == []


def answers(*numbers: int) -> list[str]:
    return [f"answer {number}" for number in numbers]


def submitted(source: GymSource, texts: list[str], seed: int = 3) -> list[float | None]:
    fields = {"responses_create_params": {"input": [{"role": "user", "content": "Which?"}]}, "agent_ref": {"name": "a"}}
    row = PromptRow("rows:1", [{"role": "user", "content": "Which?"}], None, fields)
    return list(source.submit(row, texts, [DONE] * len(texts), seed=seed).result(120).rewards)


def test_groups_are_verified_and_a_second_attempt_is_no_conflict(ports: dict[str, int]) -> None:
    for run, texts in (("r/1", answers(1, 5, 3, 2)), ("r/2", answers(4, 2, 2, 1)), ("q/1", answers(5, 5, 1, 1))):
        with source_of(ports["compare"], run=run, group_timeout_s=60) as source:
            assert submitted(source, texts) == [float(text[-1]) for text in texts], run
    with source_of(ports["compare"], run="r/1", group_timeout_s=60) as source:
        # Other answers under the same names are what a run id keeps apart.
        assert submitted(source, answers(2, 1, 1, 1)) == [None] * 4


def test_what_is_compared_at_once_has_the_rewards_of_our_own_server(ports: dict[str, int]) -> None:
    body = {
        "conversation_history": [{"role": "user", "content": "Which?"}],
        "response_objs": [response_object(text, ended=True, response_id="1") for text in answers(1, 5, 3, 2)],
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{ports['compare']}/compare", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["rewards"] == [1.0, 5.0, 3.0, 2.0]

"""`judge.server=vllm`: a run that starts the real vLLM for its judge, keeps it running, and leaves nothing of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.vllm_runs import (
    AUDIT,
    BLOCK,
    READY_S,
    RLHF,
    VENV,
    engine_of,
    finished,
    heldout,
    marked,
    nothing_is_left,
    of_run,
    rows,
    running,
    server_of,
    wait_for,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200), pytest.mark.usefixtures("vllm")]

VLLM = ("judge.server=vllm", f"judge.vllm_command={VENV}")
MORE = pytest.mark.skipif("EVERY_MOMENT" not in os.environ, reason="EVERY_MOMENT asks for it")


def test_a_policy_learns_from_it_as_from_our_own_server(tmp_path: Path, temporary: Path) -> None:
    short = ("grpo.max_num_steps=20", "checkpointing.enabled=false")
    theirs = finished(tmp_path / "vllm", *RLHF, *VLLM, *short, marked(tmp_path / "vllm"))
    nothing_is_left(tmp_path / "vllm", temporary)
    ours = finished(tmp_path / "ours", *RLHF, *short)
    assert [row["judge/missing_share"] for row in rows(theirs) if "judge/missing_share" in row] == [0.0] * 20
    gains = [heldout(run, "after") - heldout(run, "before") for run in (theirs, ours)]
    assert heldout(theirs, "before") == heldout(ours, "before")
    assert min(gains) > 0.3
    assert abs(gains[0] - gains[1]) < 0.1


def test_verdicts_that_are_held_to_their_schema_always_parse(tmp_path: Path) -> None:
    small = ("audit.pairs=60", "audit.repeats=0", "judge.verdict=schema", "audit.compare_verdicts=[text]")
    run = finished(tmp_path, *AUDIT, *VLLM, *small)
    judgements = [
        one for line in (run / "samples.jsonl").read_text().splitlines() for one in json.loads(line)["judgements"]
    ]
    assert len(judgements) == 2 * 2 * 60
    assert sum(one["unparseable"] for one in judgements) == 0
    assert all(one["verdict"] for one in judgements)


def test_an_instruct_model_gives_expected_scores(tmp_path: Path, smollm2: Path) -> None:
    few = ("audit.pairs=4", "audit.repeats=0", "judge.request_timeout_s=900", f"{BLOCK}.model={smollm2}")
    settings = f"{BLOCK}.vllm_serve_kwargs={{max_model_len: 1024}}"
    run = finished(tmp_path, *AUDIT, *VLLM, *few, settings, "audit.compare_verdicts=[logits,schema]")
    judgements = [
        one for line in (run / "samples.jsonl").read_text().splitlines() for one in json.loads(line)["judgements"]
    ]
    assert len(judgements) == 2 * 2 * 4
    assert all(one["verdict"] for one in judgements)
    expected = [one["verdict"]["score_1"] for one in judgements if one["requests"] == 2]
    assert len(expected) == 8
    assert any(score != round(score) for score in expected)


# That of a sampler is the engine: test_vllm_sampler.py.
@pytest.mark.parametrize("victim", ["server", pytest.param("engine", marks=MORE)])
def test_one_that_is_killed_comes_back_and_nothing_is_lost(tmp_path: Path, victim: str) -> None:
    words = (*RLHF, *VLLM, "grpo.max_num_steps=12", "eval.heldout=null", "judge.max_retries=0", marked(tmp_path))
    with running(tmp_path, *words) as run:
        # It is looked for beforehand: a run does a step or two in the time that it takes to find it.
        wait_for(lambda: any(len(rows(folder)) > 0 for folder in tmp_path.iterdir()), READY_S, "no row")
        chosen = server_of(tmp_path) if victim == "server" else engine_of(server_of(tmp_path))
        wait_for(lambda: any(len(rows(folder)) > 3 for folder in tmp_path.iterdir()), READY_S, "no step")
        os.kill(chosen, signal.SIGKILL)
        said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    assert "started again (1 of 3)" in said
    [folder] = tmp_path.iterdir()
    steps = [row for row in rows(folder) if "judge/missing_share" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert [row["judge/missing_share"] for row in steps] == [0.0] * 12
    assert (folder / "attempts" / "1" / "logs" / "judge.2.log").exists()
    nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "training"),
        (signal.SIGINT, "loading"),
        pytest.param(signal.SIGKILL, "loading", marks=MORE),
        pytest.param(signal.SIGINT, "training", marks=MORE),
    ],
)
def test_a_run_that_is_killed_leaves_no_vllm(
    tmp_path: Path, temporary: Path, moment: str, number: signal.Signals
) -> None:
    words = (*RLHF, *VLLM, "grpo.max_num_steps=1000", "eval.heldout=null", marked(tmp_path))
    with running(tmp_path, *words) as run:
        if moment == "loading":
            wait_for(lambda: len(of_run(tmp_path)) > 1, READY_S, "no vLLM")
        else:
            wait_for(lambda: any(len(rows(folder)) > 2 for folder in tmp_path.iterdir()), READY_S, "no step")
        assert of_run(tmp_path)
        run.send_signal(number)
        run.communicate(timeout=120)
    nothing_is_left(tmp_path, temporary)

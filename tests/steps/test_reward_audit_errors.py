"""What is wrong with an audit before or while it runs: one clear error each, and nothing lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from audit_commands import JUDGE, PAIRS, audit, command, judging, knows_the_labels, remote, results, samples
from commands import Result, only_run, run_command
from scripted_judge import Scripted
from syrupy.assertion import SnapshotAssertion

import nemotron

POLICY = Path(nemotron.__file__).parent / "assets" / "tiny_world" / "policy"
BROKEN = {"no.jsonl": None, "empty.jsonl": "", "bad.jsonl": "{}\n", "text.jsonl": '{"prompt": "hi", "chosen": "a"\n'}


def readable(result: Result, tmp_path: Path) -> str:
    assert "Traceback" not in result.stderr, result.stderr
    text = re.sub(r"^\d+ of \d+ pairs.*\n", "", result.stderr, flags=re.MULTILINE)
    text = text[text.index("error:") :].replace(str(tmp_path), "TMP").replace(str(POLICY), "POLICY")
    return f"exit code: {result.code}\n{re.sub(r'127.0.0.1:[0-9]+', '127.0.0.1:PORT', text)}"


@pytest.mark.parametrize(
    "words",
    [
        ["audit.repeats=1"],
        ["limits.min_agreement=2"],
        ["limits.max_bias=0.1"],
        ["judge.max_retries=1", "reward_model.path=TMP/rm"],
        ["reward_model.batch_size=4"],
        ["reward_model.path=TMP/gone"],
        ["reward_model.path=POLICY"],
        [f"{JUDGE}.model=TMP/gone"],
        [f"{JUDGE}.base_url=localhost"],
        ["data.data_path=TMP/no.jsonl"],
        ["data.data_path=TMP/empty.jsonl"],
        ["data.data_path=TMP/bad.jsonl"],
        ["data.data_path=TMP/text.jsonl"],
        ["data.chosen_key=better"],
        ["output_dir=TMP/bad.jsonl/below"],
    ],
    ids=" ".join,
)
def test_wrong_configs(words: list[str], tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    for name, text in BROKEN.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    before = sorted(tmp_path.iterdir())
    filled = [word.replace("TMP", str(tmp_path)).replace("POLICY", str(POLICY)) for word in words]
    result = run_command([*command(tmp_path / "runs", *filled), "--dry-run"])
    assert readable(result, tmp_path) == snapshot
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_warnings_that_do_not_stop(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()[:6]]
    rows.append({**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]})
    data = tmp_path / "few.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = command(tmp_path / "runs", f"data.data_path={data}", "audit.repeat_temperature=0", "--dry-run", "--json")
    plan = json.loads(run_command(argv).stdout)
    assert plan["ok"]
    names = [finding["name"] for finding in plan["findings"]]
    assert names == ["greedy-repeats", "data-clash", "few-pairs"]
    assert plan["processes"][0]["where"] == "this process: asks 56 questions about 7 pairs"


def test_an_endpoint_that_is_down(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    words = (f"{JUDGE}.base_url=http://127.0.0.1:9/v1", f"{JUDGE}.model=judge", "judge.ready_timeout_s=1")
    result = audit(tmp_path, *words)
    assert readable(result, tmp_path) == snapshot
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 7)


def test_a_judge_that_refuses_keeps_what_was_answered(tmp_path: Path) -> None:
    play = judging(knows_the_labels)
    with Scripted(play, token="right") as judge:
        words = (*remote(judge), "audit.pairs=20", "audit.repeats=0")
        refused = audit(tmp_path / "refused", *words)
        assert refused.code == 7
        assert "refused the request with status 401" in refused.stderr
        done = audit(tmp_path / "done", *words, f"{JUDGE}.api_key=right")
        assert done.code == 0, done.stderr
    assert results(tmp_path / "done")["metrics"]["agreement"] == 1
    assert len(samples(tmp_path / "done")) == 20
    files = [path for path in only_run(tmp_path / "done").rglob("*") if path.is_file()]
    assert not [path for path in files if b"api_key=right" in path.read_bytes()]
    assert (
        json.loads((only_run(tmp_path / "done") / "job.json").read_text())["config"]["env"]["nemo_gym"]["genrm_model"][
            "responses_api_models"
        ]["vllm_model"]["api_key"]
        is None
    )

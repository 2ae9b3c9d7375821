"""What is wrong with an audit before or while it runs: one clear error each, and nothing lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import nemotron
from nemotron.cli.main import main
from tests.steps.audit_commands import JUDGE, PAIRS, audit, command, judging, knows_the_labels, remote, results, samples
from tests.steps.commands import Result, only_run, run_here
from tests.unit.judge.scripted_judge import Scripted

POLICY = Path(nemotron.__file__).parent / "assets" / "tiny_world" / "policy"
TOKEN = "the-right-token"
BROKEN = {"no.jsonl": None, "empty.jsonl": "", "bad.jsonl": "{}\n", "text.jsonl": '{"prompt": "hi", "chosen": "a"\n'}


def readable(result: Result, tmp_path: Path) -> str:
    assert "Traceback" not in result.stderr, result.stderr
    text = re.sub(r"^\d+ of \d+ pairs.*\n", "", result.stderr, flags=re.MULTILINE)
    text = (
        text[text.index("error:") :]
        .replace(str(tmp_path), "TMP")
        .replace(str(POLICY), "POLICY")
        .replace(str(PAIRS), "PAIRS")
    )
    return f"exit code: {result.code}\n{re.sub(r'127.0.0.1:[0-9]+', '127.0.0.1:PORT', text)}"


def prepare(folder: Path) -> None:
    """Prepared pairs with the one split `validation`."""
    blend = folder / "blend.json"
    blend.write_text(json.dumps({"validation": [str(PAIRS)]}))
    words = (f"blend_path={blend}", f"output_dir={folder / 'prepared'}", "num_processes=1")
    assert main(["steps", "run", "data_prep/rl_prep", "--runs-dir", str(folder / "prep"), *words]) == 0


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
        ["data.manifest_path=TMP/gone"],
        ["data.manifest_path=TMP/prepared", "data.split=train"],
        ["data.manifest_path=TMP/prepared", "data.data_path=TMP/bad.jsonl"],
        [f"{JUDGE}.api_key=a-long-secret", "output_dir=TMP/a-long-secret"],
        ["output_dir=TMP/bad.jsonl/below"],
    ],
    ids=" ".join,
)
def test_wrong_configs(
    words: list[str],
    tmp_path: Path,
    snapshot: SnapshotAssertion,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RL_PREP_MANIFEST", raising=False)
    for name, text in BROKEN.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    if any("prepared" in word for word in words):
        prepare(tmp_path)
        capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    filled = [word.replace("TMP", str(tmp_path)).replace("POLICY", str(POLICY)) for word in words]
    code = main([*command(tmp_path / "runs", *filled)[3:], "--dry-run"])
    result = Result(code, *capsys.readouterr())
    assert readable(result, tmp_path) == snapshot
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_prepared_pairs_are_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path)
    capsys.readouterr()
    with Scripted(judging(knows_the_labels)) as judge:
        words = (*remote(judge), "audit.pairs=30", "audit.repeats=0", f"data.manifest_path={tmp_path / 'prepared'}")
        assert main(command(tmp_path / "runs", *words)[3:]) == 0
    metrics = results(tmp_path / "runs")["metrics"]
    assert (metrics["pairs"], metrics["pairs_in_data"], metrics["agreement"]) == (30, 200, 1)


def test_warnings_that_do_not_stop(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()[:6]]
    rows.append({**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]})
    data = tmp_path / "few.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = command(tmp_path / "runs", f"data.data_path={data}", "audit.repeat_temperature=0", "--dry-run", "--json")
    plan = json.loads(run_here(argv).stdout)
    assert plan["ok"]
    names = [finding["name"] for finding in plan["findings"]]
    assert names == ["greedy-repeats", "contradictory-pairs", "few-pairs"]
    assert plan["processes"][0]["where"] == "this process: asks 56 questions about 7 pairs"


def test_an_endpoint_that_is_down(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    words = (f"{JUDGE}.base_url=http://127.0.0.1:9/v1", f"{JUDGE}.model=judge", "judge.ready_timeout_s=1")
    result = audit(tmp_path, *words)
    assert readable(result, tmp_path) == snapshot
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 7)


def test_a_judge_that_refuses_keeps_what_was_answered(tmp_path: Path) -> None:
    with Scripted(judging(knows_the_labels), token=TOKEN) as judge:
        words = (*remote(judge), "audit.pairs=20", "audit.repeats=0")
        refused = audit(tmp_path / "refused", *words)
        assert refused.code == 7
        assert "refused the request with status 401" in refused.stderr
        done = audit(tmp_path / "done", *words, f"{JUDGE}.api_key={TOKEN}")
        assert done.code == 0, done.stderr
    assert results(tmp_path / "done")["metrics"]["agreement"] == 1
    assert len(samples(tmp_path / "done")) == 20
    for path in only_run(tmp_path / "done").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_the_token_comes_back_from_its_variable_on_resume(tmp_path: Path) -> None:
    with Scripted(judging(knows_the_labels), token=TOKEN) as judge:
        words = (*remote(judge), "audit.pairs=20", "audit.repeats=0")
        argv = command(tmp_path, *words)
        wrong = run_here(argv, env={"RL_REWARD_API_KEY": "another-token"})
        assert wrong.code == 7
        resume = [*argv[:3], "runs", "resume", "last", "--runs-dir", str(tmp_path)]
        done = run_here(resume, env={"RL_REWARD_API_KEY": TOKEN})
        assert done.code == 0, done.stderr
    assert results(tmp_path)["metrics"]["pairs"] == 20

"""A reward model audited: its own scores, calibration, pairs too long for it, killed and resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import nemotron
from nemotron.cli.main import main
from nemotron.data.rows import read_pairs
from nemotron.rl.chat import Chat
from nemotron.rl.pairs import pair_group
from nemotron.rl.scalar_model import ScalarModel
from tests.steps.audit_commands import PAIRS, audit, command, result_file, results, samples
from tests.steps.commands import kill_when, only_run, run_here

POLICY = Path(nemotron.__file__).parent / "assets" / "tiny_world" / "policy"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a head that nobody trained."""
    folder = tmp_path_factory.mktemp("model") / "reward_model"
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    ScalarModel.from_policy(POLICY, seed=3, device="cpu").save(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with one audit of it."""
    runs = tmp_path_factory.mktemp("whole")
    done = audit(runs, f"reward_model.path={model}")
    assert (done.code, done.stdout) == (0, ""), done.stderr
    return runs


def test_figures_of_a_reward_model(whole: Path) -> None:
    found = results(whole)
    metrics = found["metrics"]
    assert found["kind"] == "reward_model"
    assert (metrics["pairs"], metrics["missing_share"]) == (200, 0)
    for name in ("position_bias", "flip_share", "self_consistency", "unparseable_share", "verdict_agreement"):
        assert metrics[name] is None, name
    assert metrics["agreement_low"] < metrics["agreement"] < metrics["agreement_high"]
    bins = found["details"]["calibration"]["bins"]
    assert sum(one["n"] for one in bins) == 200
    error = sum(one["n"] * abs(one["agreement"]["value"] - one["confidence"]) for one in bins) / 200
    assert metrics["expected_calibration_error"] == pytest.approx(error)
    # A head of small random numbers knows nothing.
    assert metrics["log_loss"] > 0.6
    page = (only_run(whole) / "report.html").read_text()
    assert '<section id="disagreements">' in page
    assert 'id="plot-calibration"' in page
    assert 'id="plot-position"' not in page


def test_the_scores_are_those_of_transformers(model: Path, whole: Path) -> None:
    """Recomputed without our model code: one answer at a time through the saved classifier."""
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    chat = Chat.load(str(model), "default", None)
    source = {row.id: row for row in read_pairs(PAIRS)}
    for line in samples(whole)[:8]:
        row = json.loads(line)
        group = pair_group(source[row["row_id"]], chat)
        for answer, name in zip(group.completions, ("reward_chosen", "reward_rejected"), strict=True):
            with torch.no_grad():
                score = classifier(input_ids=torch.tensor([[*group.prompt_ids, *answer.token_ids]])).logits.item()
            assert row[name] == pytest.approx(score, abs=1e-5)


def test_a_killed_audit_scores_only_what_is_left(model: Path, whole: Path, tmp_path: Path) -> None:
    argv = command(tmp_path, f"reward_model.path={model}")
    if kill_when(argv, lambda: len(samples(tmp_path)) >= 16) != -signal.SIGKILL:
        pytest.fail("it was not killed")
    folder = only_run(tmp_path)
    before = samples(tmp_path)
    # A batch that is there in part is scored again as a whole: rounding depends on what shares a batch.
    torn = before[: len(before) - len(before) % 16 - 3]
    (folder / "samples.jsonl").write_bytes(b"".join(torn))
    resumed = run_here([*argv, "--resume"])
    assert resumed.code == 0, resumed.stderr
    assert f"{len(torn) // 16 * 16} of 200 pairs were done before" in resumed.stderr or len(torn) < 16
    assert result_file(tmp_path).read_bytes() == result_file(whole).read_bytes()
    assert sorted(samples(tmp_path)) == sorted(samples(whole))


def test_a_pair_beyond_its_positions_is_missing(model: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()[:40]]
    rows[7]["chosen"] = "Sure, your kettle is on the way. " * 200
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command(tmp_path / "runs", f"reward_model.path={model}", f"data.data_path={data}")[3:]) == 0
    assert results(tmp_path / "runs")["metrics"]["missing_share"] == 1 / 40
    [lost] = [row for row in map(json.loads, samples(tmp_path / "runs")) if row["reward_chosen"] is None]
    assert lost["row_id"] == "pairs.jsonl:8"


def test_a_model_that_cannot_be_loaded(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    assert main(command(tmp_path / "runs", f"reward_model.path={broken}")[3:]) == 6
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"`model.safetensors` of the reward model `{broken}` is broken" in said

"""`runs compare`: what differs, mean and spread over seeds, and a page with all curves."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import pytest
from click.testing import CliRunner

from nemotron.cli.runs import app
from nemotron.errors import NotFoundError, OutputError, UsageError
from nemotron.job import Asked, SweepMember
from nemotron.runs.folder import RunFolder
from tests.unit.reports.test_run_report import HOSTILE, Page
from tests.unit.runs.run_records import MakeRun, fill

LENGTHS = {("1e-06", "1"): 3, ("1e-06", "2"): 5, ("3e-06", "1"): 6}


@pytest.fixture
def swept(make_run: MakeRun, tmp_path: Path) -> dict[tuple[str, str], RunFolder]:
    """A sweep of two learning rates; the second has one seed only. Runs of other lengths have other figures."""
    made = {}
    for number, ((lr, seed), steps) in enumerate(LENGTHS.items(), 1):
        values = (("policy.optimizer.kwargs.lr", lr), ("grpo.seed", seed))
        member = SweepMember(id="20250101-000000-rlhf-tiny-sweep-aaaa", number=number, count=3, values=values)
        config = {
            "limits": {"max_kl": 0.5},
            "grpo": {"seed": int(seed)},
            "judge": {"seed": int(seed)},
            "policy": {"optimizer": {"kwargs": {"lr": lr}}},
            "checkpointing": {"checkpoint_dir": str(tmp_path / "runs" / f"r{number}" / "checkpoints")},
        }
        folder = str(tmp_path / "runs" / f"r{number}")
        job = {"config": config, "folder": folder, "asked": Asked(sweep=member)}
        made[lr, seed] = fill(make_run(run_id=f"r{number}", **job), steps=steps)
    return made


def compare(*words: str, folder: Path) -> tuple[str, str]:
    arguments = ["compare", *words]
    result = CliRunner().invoke(app, arguments, env={"NEMOTRON_RUNS_DIR": str(folder)}, catch_exceptions=False)
    return result.stdout, result.stderr


def test_groups_over_seeds(swept: dict[tuple[str, str], RunFolder], tmp_path: Path) -> None:
    found = json.loads(compare("--sweep", "aaaa", "--json", folder=tmp_path / "runs")[0])
    # Neither what follows a swept key (the judge's seed) nor the run's own folder is a difference.
    assert (found["differs"], found["seeds"]) == (["policy.optimizer.kwargs.lr", "grpo.seed"], ["grpo.seed"])
    assert [one["id"] for one in found["runs"]] == ["r1", "r2", "r3"]
    first, second = found["groups"]
    assert (first["values"], first["runs"]) == ({"policy.optimizer.kwargs.lr": "1e-06"}, ["r1", "r2"])
    kls = [0.01 * 3, 0.01 * 5]
    assert first["figures"]["kl"] == pytest.approx({"mean": mean(kls), "spread": stdev(kls)})
    assert second["figures"]["kl"] == {"mean": pytest.approx(0.06), "spread": None}
    assert list(first["figures"])[:3] == ["heldout.after", "heldout.before", "kl"]


def test_the_table_leads_with_what_says_whether_the_reward_was_earned(
    swept: dict[tuple[str, str], RunFolder], tmp_path: Path
) -> None:
    out, _ = compare("r1", "r3", folder=tmp_path / "runs")
    header = out.splitlines()[0]
    order = ["held-out", "KL", "reward spread", "length", "reward"]
    places = [header.index(name) for name in order[:-1]] + [header.rindex("reward")]
    assert places == sorted(places)
    assert "over seeds" not in out
    both, _ = compare("--sweep", "last", folder=tmp_path / "runs")
    assert f"{mean([0.03, 0.05]):.4f} ± {stdev([0.03, 0.05]):.4f}" in both


def test_the_page_has_the_curves_over_each_other(swept: dict[tuple[str, str], RunFolder], tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    _, err = compare("--sweep", "aaaa", "--html", str(target), folder=tmp_path / "runs")
    assert str(target.name) in err
    page = Page(target.read_text(encoding="utf-8"))
    drawn = {figure["id"]: figure for figure in page.figures()}
    kl = drawn["train-kl-penalty"]
    lines = [trace for trace in kl["data"] if "fill" not in trace and trace.get("line", {}).get("width")]
    assert [line["name"] for line in lines] == ["lr=1e-06", "lr=3e-06"]
    assert (lines[0]["x"], lines[1]["x"]) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    # The band of two seeds: none where one of them is left, or there is one alone.
    [band] = [trace for trace in kl["data"] if "fill" in trace]
    assert band["legendgroup"] == "lr=1e-06"
    assert {"train-reward", "train-reward-std", "train-mean-gen-tokens-per-sample", "heldout"} <= set(drawn)
    assert len(page.scripts) == 3
    assert not [tag for tag, attrs in page.tags if attrs.get("src") or str(attrs.get("href")).startswith("http")]


def test_hostile_values_stay_text(make_run: MakeRun, tmp_path: Path) -> None:
    for number in (1, 2):
        fill(make_run(run_id=f"r{number}", config={"name": f"{HOSTILE}{number}"}))
    target = tmp_path / "page.html"
    compare("r1", "r2", "--html", str(target), folder=tmp_path / "runs")
    page = Page(target.read_text(encoding="utf-8"))
    assert len(page.scripts) == 3
    assert "img" not in {tag for tag, _ in page.tags}
    assert f"{HOSTILE}1" in page.text


def test_runs_of_different_steps_and_inputs(make_run: MakeRun, tmp_path: Path) -> None:
    for number, (step, view) in enumerate([("rl/nemo_rl/rlhf", "judged_grpo"), ("rl/nemo_rl/dpo", "dpo")], 1):
        fingerprint = f"sha256:{str(number) * 64}"
        inputs = [{"key": "data.train", "type": "prompt_jsonl", "path": "/d", "fingerprint": fingerprint}]
        fill(make_run(run_id=f"r{number}", step=step, view=view, inputs=inputs))
    found = json.loads(compare("r1", "r2", "--json", folder=tmp_path / "runs")[0])
    assert found["runs"][0]["values"] == {"step": "rl/nemo_rl/rlhf", "data.train (content)": "1" * 12}


def test_a_run_without_steps_has_dashes_and_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    fill(make_run(run_id="r1"))
    make_run(run_id="r2")
    target = tmp_path / "page.html"
    out, _ = compare("r1", "r2", "--html", str(target), folder=tmp_path / "runs")
    assert "–" in out.splitlines()[2]
    assert target.exists()


def test_a_run_that_cannot_be_read_is_none_of_a_mean(swept: dict[tuple[str, str], RunFolder], tmp_path: Path) -> None:
    """It is in the table of runs, and no figure comes from it."""
    (swept["1e-06", "2"].path / "status.json").write_text("{")
    found = json.loads(compare("--sweep", "aaaa", "--json", folder=tmp_path / "runs")[0])
    assert [one["status"] for one in found["runs"]] == ["finished", "unreadable", "finished"]
    assert [group["runs"] for group in found["groups"]] == [["r1"], ["r3"]]
    assert "over seeds" not in compare("--sweep", "aaaa", folder=tmp_path / "runs")[0]


def test_too_few_and_unknown(swept: dict[tuple[str, str], RunFolder], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for words in ((), ("r1",), ("r1", "r1")):
        with pytest.raises(UsageError, match="two runs or more"):
            compare(*words, folder=runs)
    with pytest.raises(NotFoundError, match="no sweep `zzzz`"):
        compare("--sweep", "zzzz", folder=runs)
    with pytest.raises(NotFoundError, match="no run `zzzz`"):
        compare("r1", "zzzz", folder=runs)
    with pytest.raises(OutputError):
        compare("r1", "r2", "--html", str(tmp_path / "gone" / "page.html"), folder=runs)


@pytest.mark.parametrize("place", ["", ".", "/", "runs"])
def test_a_page_is_a_file(
    swept: dict[tuple[str, str], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--html"):
        compare("r1", "r2", "--html", place, folder=tmp_path / "runs")


def test_a_page_that_cannot_be_written_moves_by_its_own_option(
    swept: dict[tuple[str, str], RunFolder], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        compare("r1", "r2", "--html", str(tmp_path / "file" / "page.html"), folder=tmp_path / "runs")
    assert "`--html`" in str(caught.value.hint)
    assert "--runs-dir" not in str(caught.value.hint)


def test_the_list_shows_the_sweep(swept: dict[tuple[str, str], RunFolder], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["list"], env={"NEMOTRON_RUNS_DIR": str(tmp_path / "runs")})
    assert result.stdout.splitlines()[1].rstrip().endswith("aaaa lr=1e-06 seed=1")

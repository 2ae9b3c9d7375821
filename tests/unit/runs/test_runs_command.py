"""`nemotron runs`: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nemotron.cli.runs import app
from nemotron.disk import lock
from nemotron.errors import NotFoundError
from nemotron.runs.folder import LOCK
from tests.unit.runs.run_records import MakeRun, fill


@pytest.fixture
def runs_dir(make_run: MakeRun, tmp_path: Path) -> Path:
    """Two runs, the newer one killed at step 2."""
    fill(make_run(run_id="20250101-000000-rlhf-tiny-aaaa"))
    killed = make_run(run_id="20250102-000000-rlhf-tiny-bbbb")
    killed.write_status(state="running", steps_total=40)
    killed.append_metrics({"step": 2, "train/kl_penalty": 0.01})
    lock.release(killed.path / LOCK)
    return tmp_path / "runs"


def invoke(*arguments: str, runs_dir: Path) -> tuple[str, str]:
    result = CliRunner().invoke(app, [*arguments], env={"NEMOTRON_RUNS_DIR": str(runs_dir)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_list(runs_dir: Path) -> None:
    out, err = invoke("list", runs_dir=runs_dir)
    assert [" ".join(line.split()) for line in out.splitlines()[1:]] == [
        "20250101-000000-rlhf-tiny-aaaa finished 6/6 3.0 s 0.0600 26.5 25.0% → 75.0% 3.350",
        "20250102-000000-rlhf-tiny-bbbb killed 2/40 – 0.0100 – – → – –",
    ]
    assert err == ""


@pytest.mark.parametrize("columns", [20, 50, 80])
def test_a_narrow_terminal_cuts_neither_id_nor_state(runs_dir: Path, columns: int) -> None:
    """Both are copied from there."""
    terminal = {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": str(columns)}
    env = {"NEMOTRON_RUNS_DIR": str(runs_dir), **terminal}
    out = CliRunner().invoke(app, ["list"], env=env, catch_exceptions=False).stdout
    for words in ("20250101-000000-rlhf-tiny-aaaa  finished", "20250102-000000-rlhf-tiny-bbbb  killed"):
        assert words in out
    assert "…" not in out


def test_list_json_and_empty(runs_dir: Path, tmp_path: Path) -> None:
    out, _ = invoke("list", "--json", runs_dir=runs_dir)
    assert [(run["id"][-4:], run["status"]) for run in json.loads(out)] == [("aaaa", "finished"), ("bbbb", "killed")]
    out, err = invoke("list", runs_dir=tmp_path / "none")
    assert (out, "no runs in" in err) == ("", True)
    assert json.loads(invoke("list", "--json", runs_dir=tmp_path / "none")[0]) == []


def test_show(runs_dir: Path) -> None:
    summary = json.loads(invoke("show", "aaaa", "--json", runs_dir=runs_dir)[0])
    asked = ("id", "step", "status", "wall_s", "heldout", "kl", "reward", "checkpoint", "report")
    assert set(asked) <= set(summary)
    assert summary["heldout"]["delta"] == 0.5
    out, err = invoke("show", "last", runs_dir=runs_dir)
    assert out.startswith("20250102-000000-rlhf-tiny-bbbb  killed  2 of 40 steps")
    assert err == f"last = {runs_dir}/20250102-000000-rlhf-tiny-bbbb, rl/nemo_rl/rlhf\n"
    assert invoke("show", "last:rlhf", runs_dir=runs_dir) == (out, "")


def test_report_prints_its_path(runs_dir: Path) -> None:
    out, _ = invoke("report", "aaaa", runs_dir=runs_dir)
    assert Path(out.strip()).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_run_that_measured_nothing_has_no_report(make_run: MakeRun, runs_dir: Path) -> None:
    """As `runs report last` after a conversion; it wrote a page of dashes."""
    made = make_run(run_id="20250103-000000-hf-tiny-cccc", engine="plain", view=None)
    with pytest.raises(NotFoundError, match="has no report"):
        invoke("report", "last", runs_dir=runs_dir)
    assert not made.report.exists()


def test_unknown_run(runs_dir: Path) -> None:
    with pytest.raises(NotFoundError, match="no run `zzzz`"):
        invoke("show", "zzzz", runs_dir=runs_dir)


def test_help_is_light() -> None:
    code = (
        "import sys, nemotron.cli.runs\n"
        "heavy = {'torch', 'transformers', 'plotly', 'jinja2', 'pydantic_core', 'rich.live', 'rich.progress'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

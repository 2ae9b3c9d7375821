"""The page of a real audit in a real browser: every plot is drawn, nothing fails, hostile pairs stay text.

Needs Chromium (Debian package `chromium`).
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nemotron.reports.audit_figures import audit_figures
from nemotron.reports.report import write_report
from nemotron.runs.folder import RunFolder
from tests.integration.test_report_chromium import HOSTILE, open_page

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished audit of the shipped judge, with a hostile pair among its worst."""
    runs = tmp_path_factory.mktemp("audit")
    words = ("steps", "run", "eval/reward_audit", "-c", "tiny", "--runs-dir", str(runs))
    quick = ("audit.pairs=60", "audit.repeat_pairs=10")
    subprocess.run([sys.executable, "-m", "nemotron", *words, *quick], check=True, timeout=240, capture_output=True)
    [folder] = [path for path in runs.iterdir() if not path.name.startswith(".")]
    path = folder / "results" / "eval_results.json"
    found = json.loads(path.read_bytes())
    pair = {"row_id": HOSTILE, "prompt": [{"role": HOSTILE, "content": HOSTILE}], "principle": HOSTILE}
    said = {"chosen": HOSTILE, "rejected": HOSTILE, "reward_chosen": -1.0, "reward_rejected": None, "verdicts": []}
    found["details"]["worst"].append(pair | said)
    found["details"]["failures"][HOSTILE] = 1
    path.write_text(json.dumps(found))
    return RunFolder.open(folder)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_plot_is_drawn(run: RunFolder, theme: str) -> None:
    page = open_page(write_report(run), *(["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []))
    assert (page.errors, page.console, page.title) == (None, [], run.id)
    results = json.loads((run.path / "results" / "eval_results.json").read_bytes())
    drawn = audit_figures(results)
    assert list(page.plots) == [f"plot-{figure.id}" for figure in drawn]
    for figure in drawn:
        bars = sum(len([y for y in trace["y"] if y]) for trace in figure.data if trace["type"] == "bar")
        lines = sum("lines" in trace.get("mode", "") for trace in figure.data)
        assert bars + lines + sum(trace.get("mode") == "markers" for trace in figure.data) > 0, figure.id
        assert page.plots[f"plot-{figure.id}"] >= bars + lines, figure.id

"""report.html in a real browser: every plot is drawn, nothing fails, nothing is fetched, hostile samples stay text.

Needs Chromium (Debian package `chromium`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nemotron.disk import lock
from nemotron.reports.figures import Figure, figures
from nemotron.reports.report import write_report
from nemotron.runs.folder import LOCK, RunFolder
from nemotron.runs.metrics import by_step
from tests.compiled_jobs import compiled

pytestmark = pytest.mark.integration

STEPS = 12
METRICS = (
    "train/reward",
    "train/reward_std",
    "train/kl_penalty",
    "train/mean_gen_tokens_per_sample",
    "train/truncation_rate",
    "train/missing_share",
    "train/grad_norm",
    "train/lr",
    "train/probs_ratio",
    "train/clip_fraction",
    "train/approx_entropy",
    "train/token_mult_prob_error",
    "train/gen_kl_error",
    "train/reward_length_correlation",
    "judge/retries",
    "judge/unparseable",
    "judge/tie_share",
    "judge/first_position_share",
    "validation/accuracy",
    "heldout/fully_right",
    "validation/avg_length",
    "timing/train/generation",
    "timing/train/reward_calculation",
    "timing/train/policy_and_reference_logprobs",
    "timing/train/policy_training",
    "timing/train/checkpointing",
    "timing/train/total_step_time",
)
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with every metric that is plotted, gaps, and samples that try to break out of the page."""
    made = RunFolder.create(tmp_path / "runs", compiled(run_id="the-run", view="judged_grpo"))
    for step in range(1, STEPS + 1):
        row = {name: 0.1 + 0.01 * ((step * 7 + index) % 10) for index, name in enumerate(METRICS)}
        made.append_metrics({"step": step, **row, "train/approx_entropy": float("nan") if step == 5 else 1.0})
    shares = {"fully_right": 0.2, HOSTILE: 0.4}
    sample = {"prompt": HOSTILE, "response": HOSTILE, "reward": 1.0, "row_id": 1, "verdict": {HOSTILE: True}}
    made.append_samples(
        {**sample, "step": STEPS, "phase": phase} for phase in ("heldout_before", "heldout_after", "train")
    )
    made.write_status(state="finished", heldout_before=shares, heldout_after=shares)
    lock.release(made.path / LOCK)
    return made


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the browser made of a page."""

    title: str
    errors: str | None
    plots: dict[str, int]
    """Plot id -> number of drawn marks: lines, filled bands and bars inside its SVG."""
    console: list[str]
    """Messages of the browser's console: script errors, blocked scripts, failed loads."""


@dataclass(frozen=True, slots=True)
class _Tag:
    name: str
    classes: tuple[str, ...]
    plot: str | None


class _Dom(HTMLParser):
    _VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.errors: str | None = None
        self.plots: dict[str, int] = {}
        self._open: list[_Tag] = [_Tag("", (), None)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        classes = tuple((values.get("class") or "").split())
        parent = self._open[-1]
        plot = parent.plot
        if tag == "html":
            self.errors = values.get("data-errors")
        if "plot" in classes and (values.get("id") or "").startswith("plot-"):
            plot = str(values["id"])
            self.plots[plot] = 0
        mark = "js-line" in classes or "js-fill" in classes or "point" in parent.classes
        if plot and tag == "path" and values.get("d") and mark:
            self.plots[plot] += 1
        if tag not in self._VOID:
            self._open.append(_Tag(tag, classes, plot))

    def handle_endtag(self, tag: str) -> None:
        while len(self._open) > 1 and self._open.pop().name != tag:
            continue

    def handle_data(self, data: str) -> None:
        if [tag.name for tag in self._open[-2:]] == ["head", "title"]:
            self.title += data


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a headless browser without a network."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "install Chromium (Debian: apt-get install chromium)"
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    quiet = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", f"--user-data-dir={profile}"]
    return subprocess.run(
        [program, *fixed, *quiet, *arguments], capture_output=True, text=True, timeout=120, check=True
    )


def open_page(path: Path, *arguments: str) -> Drawn:
    """Load a page and read the document that its scripts made."""
    done = chromium(path.parent / "profile", *arguments, "--dump-dom", path.as_uri())
    dom = _Dom()
    dom.feed(done.stdout)
    return Drawn(dom.title, dom.errors, dom.plots, re.findall(r"CONSOLE.*", done.stderr))


def expected(run: RunFolder) -> list[Figure]:
    """The figures of a run that have something to draw."""
    status = run.status()
    drawn = figures(
        by_step(run.read_metrics()),
        kl_limit=0.5,
        heldout_before=status.heldout_before,
        heldout_after=status.heldout_after,
    )
    assert all(figure.data for figure in drawn)
    return drawn


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_plot_is_drawn(run: RunFolder, theme: str) -> None:
    page = open_page(write_report(run), *(["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []))
    assert page.errors is None
    assert page.console == []
    assert page.title == "the-run"
    figures_of_run = expected(run)
    assert list(page.plots) == [f"plot-{figure.id}" for figure in figures_of_run]
    for figure in figures_of_run:
        bars = sum(len([y for y in trace["y"] if y is not None]) for trace in figure.data if trace["type"] == "bar")
        lines = sum(trace["type"] == "scatter" and trace.get("line", {}).get("width") != 0 for trace in figure.data)
        assert page.plots[f"plot-{figure.id}"] >= bars + lines, figure.id


def test_a_failing_plot_is_noticed(run: RunFolder) -> None:
    report = write_report(run)
    broken = report.with_name("broken.html")
    script = report.read_text(encoding="utf-8").replace("Plotly.react(", "Plotly.reakt(")
    broken.write_text(script, encoding="utf-8")
    page = open_page(broken)
    assert page.console != []
    assert set(page.plots.values()) == {0}


def test_a_run_without_steps_opens_without_an_error(tmp_path: Path) -> None:
    empty = RunFolder.create(tmp_path / "runs", compiled(run_id="empty", config={}, view="judged_grpo"))
    page = open_page(write_report(empty))
    lock.release(empty.path / LOCK)
    assert (page.title, page.errors, page.plots, page.console) == ("empty", None, {}, [])


def test_it_prints(run: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    chromium(tmp_path / "profile", f"--print-to-pdf={target}", write_report(run).as_uri())
    assert target.read_bytes().startswith(b"%PDF-")
    assert target.stat().st_size > 50_000

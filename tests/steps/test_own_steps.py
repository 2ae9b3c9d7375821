"""The step of docs/guides/write-a-step.md, made from the guide itself: it runs like a shipped one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from nemotron import api
from nemotron.config.resolvers import ASSETS
from nemotron.errors import NotFoundError
from nemotron.manifest import VARIABLE
from nemotron.runs.folder import list_runs
from tests.in_process import Result, nemotron

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "write-a-step.md"
PAIRS = f"data_path={ASSETS / 'tiny_world' / 'data' / 'pairs_heldout.jsonl'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the guide shows, each under the name that stands before it."""
    text = GUIDE.read_text()
    named = re.findall(r"^`(steps/\S+)`.*?\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in named] == [
        f"steps/mine/lengths/{name}" for name in ("step.toml", "config/default.yaml", "step.py")
    ]
    for name, content in named:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def own(folder: Path, *words: str) -> Result:
    return nemotron("--steps-dir", "steps", *words, cwd=folder)


def test_it_is_listed_explained_planned_and_run(folder: Path) -> None:
    assert [row["id"] for row in json.loads(own(folder, "steps", "list", "--tag", "mine", "--json").stdout)] == [
        "mine/lengths"
    ]
    assert "Fewer pairs than this are an error" in own(folder, "steps", "show", "mine/lengths", "--all").stdout
    dry = own(folder, "steps", "run", "lengths", PAIRS, "--dry-run")
    assert dry.code == 0, dry.stderr
    assert not (folder / "runs").exists()
    done = own(folder, "steps", "run", "lengths", PAIRS)
    assert done.code == 0, done.stderr
    (run,) = list_runs(folder / "runs")
    assert run.status().state == "finished"
    assert [one.key for one in run.job().inputs] == ["data_path"]
    assert json.loads((run.path / "results" / "eval_results.json").read_text())["metrics"]["chosen"] > 0
    # Without the folder nobody knows it.
    assert nemotron("steps", "show", "mine/lengths", cwd=folder).code == 4
    assert VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((PAIRS, "min_row=3"), 3, "`min_rows`"),
        ((PAIRS, "min_rows=0"), 3, "min_rows"),
        (("data_path=gone.jsonl",), 5, "there is no file `gone.jsonl`"),
        ((), 3, "`data_path`"),
        ((PAIRS, "min_rows=100000"), 5, "has 200 pairs"),
        ((PAIRS, "-b", "slurm_rl_nemo_rl_rm"), 10, "does not go along"),
    ],
)
def test_mistakes_are_told_as_of_any_step(folder: Path, words: tuple[str, ...], code: int, says: str) -> None:
    done = own(folder, "steps", "run", "lengths", *words)
    assert done.code == code, done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("step.py", "STEP = ", "step = "), "it declares no `STEP`"),
        (("step.py", "def run(", "def run("), ""),
        (("step.py", "class Config(Strict):", "class Config(Strict)"), "broken Python"),
        (("step.py", "from pathlib import Path", "import nosuchmodule"), "`nosuchmodule`, which is not installed"),
        (("step.toml", "[[consumes]]", "[[consumse]]"), "unknown key `consumse`"),
        (("step.toml", '"data_path"', '"data_pth"'), "`data_pth`"),
        (("step.py", "STEP = PlainStep(", "STEP = 5\nother = PlainStep("), "a `int` without a model of its config"),
        (("step.py", "min_rows: Count", "min_rows: 'Cuont'"), "`Config` cannot be read"),
        (("step.py", ':run"', ':runn"'), "did you mean `run`?"),
    ],
    ids=[
        *("no STEP", "whole", "broken", "a module that is missing", "a manifest with a slip", "a key that is none"),
        *("a number", "a type that is none", "a function that is none"),
    ],
)
def test_a_broken_step_says_where(folder: Path, change: tuple[str, str, str], says: str) -> None:
    name, old, new = change
    path = folder / "steps" / "mine" / "lengths" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    done = own(folder, "steps", "run", "mine/lengths", PAIRS, "--dry-run")
    assert done.code == (3 if says else 0), done.stderr
    assert says in done.stderr
    assert "unexpected" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    config = attempt", "    open('nope')\n    config = attempt", "raised FileNotFoundError: "),
        ("    config = attempt", "    import sys; sys.exit(3)\n    config = attempt", "`sys.exit(3)`"),
        ("    if job.place", "    1 / 0\n    if job.place", "raised ZeroDivisionError: division by zero"),
        ("class Config", "raise ValueError('mine')\n\n\nclass Config", "raised ValueError: mine"),
        ("class Config", "import sys; sys.exit(0)\n\n\nclass Config", "`sys.exit(0)`"),
        ("Rules[Job] = Rules(", "Rules[Job] = Ruls(", "raised NameError: name 'Ruls' is not defined"),
    ],
    ids=["its run", "its run ends", "a rule", "its import", "its import ends", "a name"],
)
def test_what_its_code_raises_is_told_as_its_own(folder: Path, old: str, new: str, says: str) -> None:
    """Neither a bug of nemotron nor an end without a word: step, file and line, and the status says the same."""
    path = folder / "steps" / "mine" / "lengths" / "step.py"
    path.write_text(path.read_text().replace(old, new, 1))
    line = path.read_text()[: path.read_text().index(new)].count("\n") + 1
    done = own(folder, "steps", "run", "mine/lengths", PAIRS)
    assert done.code == 1, done.stderr
    assert "error: the step `mine/lengths` " in done.stderr
    assert says in done.stderr
    assert f"{path}:{line}" in done.stderr
    assert "bug in nemotron" not in done.stderr
    for run in list_runs(folder / "runs"):
        assert run.status().state == "failed"
        assert says in (run.status().error or "")


def test_a_step_that_does_not_say_that_it_ended_has(folder: Path) -> None:
    path = folder / "steps" / "mine" / "lengths" / "step.py"
    path.write_text(path.read_text().replace('    attempt.run.write_status(state="finished", exit_code=0)\n', ""))
    done = own(folder, "steps", "run", "mine/lengths", PAIRS)
    assert done.code == 0
    assert "without a last `write_status`" in done.stderr
    (run,) = list_runs(folder / "runs")
    assert (run.status().state, run.status().exit_code) == ("finished", 0)


def test_it_runs_behind_the_terminal_of_this_machine(folder: Path) -> None:
    """`-b local` is this machine, where its code is."""
    done = own(folder, "steps", "run", "lengths", PAIRS, "-b", "local")
    assert done.code == 0, done.stderr
    assert own(folder, "runs", "logs", "-f", done.stdout.strip()).code == 0
    (run,) = list_runs(folder / "runs")
    assert run.status().state == "finished"


def test_a_shipped_id_is_not_taken_over_and_a_folder_has_to_be_there(folder: Path) -> None:
    (folder / "steps" / "mine").rename(folder / "steps" / "convert")
    (folder / "steps" / "convert" / "lengths").rename(folder / "steps" / "convert" / "hf_to_megatron")
    listed = own(folder, "steps", "list")
    assert "there is a step `convert/hf_to_megatron` already" in listed.stderr
    assert own(folder, "steps", "show", "hf_to_megatron").code == 0
    gone = nemotron("--steps-dir", "nosuch", "steps", "list", cwd=folder)
    assert gone.code == 4
    assert "no folder of steps" in gone.stderr


@pytest.mark.parametrize("before", [None, "steps"])
def test_a_folder_that_is_not_there_is_not_kept(
    folder: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    if before is None:
        monkeypatch.delenv(VARIABLE)
    else:
        api.use_steps(folder / before)
    with pytest.raises(NotFoundError):
        api.use_steps(folder / "nosuch")
    assert os.environ.get(VARIABLE) == (str(folder / before) if before else None)
    assert api.compile("dpo", "tiny", runs_dir=folder / "runs").ok


def test_it_is_a_node_of_a_pipeline_and_its_code_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    api.use_steps(folder / "steps")
    (folder / "one.yaml").write_text(
        f"nodes:\n  len: {{step: mine/lengths, overrides: {{{PAIRS.replace('=', ': ')}}}}}\n"
    )
    pipeline = api.Pipeline(str(folder / "one.yaml"), runs_dir=folder / "runs")
    first = pipeline.run()
    assert first.states == {"len": "finished"}
    assert first.runs["len"].artifacts["eval_results"].is_file()
    assert pipeline.run().states == {"len": "reused"}
    code = folder / "steps" / "mine" / "lengths" / "step.py"
    code.write_text(code.read_text() + "\n# another version\n")
    assert pipeline.run().states == {"len": "finished"}


BARE = """\
from dataclasses import dataclass

from nemotron.compile.declaration import PlainStep
from nemotron.compile.jobs.step import PlainJob
from nemotron.compile.rules.base import Rules
from nemotron.config.schema.base import Strict


class Config(Strict):
    \"""Nothing to choose.\"""


@dataclass(frozen=True)
class Job(PlainJob[Config]):
    \"""Nothing to know.\"""


def run(attempt):
    attempt.run.write_status(state="finished", exit_code=0)


STEP = PlainStep(config=Config, job=Job, rules=((Rules("bare"),),), run=f"{__name__}:run")
"""


def test_a_step_of_which_there_is_little_to_say_is_shown_without_empty_titles(tmp_path: Path) -> None:
    step = tmp_path / "steps" / "mine" / "bare"
    (step / "config").mkdir(parents=True)
    (step / "step.toml").write_text('title = "Nothing"\ndescription = "It ends."\nlaunch = "python"\n')
    (step / "step.py").write_text(BARE)
    (step / "config" / "default.yaml").write_text("{}\n")
    for words in ((), ("--all",), ("--json",)):
        shown = own(tmp_path, "steps", "show", "mine/bare", *words)
        assert shown.code == 0, shown.stderr
        assert shown.stdout.startswith("{" if words == ("--json",) else "mine/bare: Nothing")
        lines = [*shown.stdout.splitlines(), ""]
        titles = [at for at, line in enumerate(lines) if line and not line.startswith((" ", "mine/bare", "{", "}"))]
        assert all(lines[at + 1].startswith("  ") for at in titles), shown.stdout
    done = own(tmp_path, "steps", "run", "mine/bare")
    assert done.code == 0, done.stderr
    told = own(tmp_path, "runs", "show", "last").stdout.splitlines()[0]
    assert told.split()[-1] == "finished", "nobody measured how long it took"

"""What the command line offers, what it costs, and how it behaves on pipes and terminals."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from syrupy.assertion import SnapshotAssertion

from nemotron.cli import steps
from nemotron.cli.main import app
from nemotron.config.describe import parameters, value_of
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.manifest import Step, declaration, load_catalog
from tests import in_process
from tests.cli.cli_process import environment, nemotron


def here(*words: str, cwd: Path) -> in_process.Result:
    """The command in this process, in the environment of the command in one of its own."""
    return in_process.nemotron(*words, cwd=cwd, bare=True)


SURFACE = {
    "nemotron": ["--steps-dir", "--version"],
    "nemotron artifacts inspect": ["--json", "PATH"],
    "nemotron artifacts lineage": ["--json", "PATH"],
    "nemotron artifacts list": ["--json", "--runs-dir", "--type"],
    "nemotron artifacts verify": ["--json", "PATH"],
    "nemotron doctor": ["--json", "[PROFILE]"],
    "nemotron pipelines cancel": ["--runs-dir", "ID"],
    "nemotron pipelines list": ["--json"],
    "nemotron pipelines resume": ["--runs-dir", "ID"],
    "nemotron pipelines run": [
        *("--batch", "--dry-run", "--force", "--from", "--json", "--runs-dir", "--side-by-side", "--until"),
        *("-b", "-d", "NODE.KEY=VALUE", "PIPELINE"),
    ],
    "nemotron pipelines show": ["--json", "--runs-dir", "--svg", "NODE.KEY=VALUE", "PIPELINE"],
    "nemotron pipelines status": ["--json", "--runs-dir", "ID"],
    "nemotron profiles check": ["PROFILE"],
    "nemotron profiles init": ["FOLDER"],
    "nemotron profiles list": ["--json"],
    "nemotron profiles show": ["--json", "PROFILE"],
    "nemotron runs cancel": ["--runs-dir", "RUN"],
    "nemotron runs compare": ["--html", "--json", "--runs-dir", "--sweep", "RUN"],
    "nemotron runs list": ["--json", "--runs-dir"],
    "nemotron runs logs": ["--follow", "--runs-dir", "-f", "RUN"],
    "nemotron runs report": ["--runs-dir", "RUN"],
    "nemotron runs resume": ["--accept-changed-inputs", "--attach", "--max-steps", "--runs-dir", "RUN"],
    "nemotron runs show": ["--json", "--runs-dir", "RUN"],
    "nemotron steps list": ["--category", "--consumes", "--json", "--produces", "--tag"],
    "nemotron steps run": [
        *(
            "--accept-changed-inputs",
            "--batch",
            "--config",
            "--dry-run",
            "--explain",
            "--force-squash",
            "--json",
            "--no-probe-judge",
            "--only",
            "--probe-judge",
            "--resume",
            "--run",
            "--runs-dir",
        ),
        *("--show-config", "--sweep", "-b", "-c", "-d", "-r", "KEY=VALUE", "STEP"),
    ],
    "nemotron steps show": ["--all", "--json", "--params", "STEP"],
}


def surface(ctx: click.Context) -> dict[str, list[str]]:
    command = ctx.command
    names = [
        name if name.startswith("-") else parameter.human_readable_name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]
    found = {ctx.command_path: sorted(names)} if names else {}
    for name in command.list_commands(ctx) if isinstance(command, click.Group) else ():
        child = command.get_command(ctx, name)
        assert child is not None
        found |= surface(click.Context(child, parent=ctx, info_name=name))
    return found


def test_the_command_line_is_what_we_promised() -> None:
    """A new option is a promise: add it here and to the reference page with intent."""
    assert surface(click.Context(app, info_name="nemotron")) == SURFACE


def test_every_run_option_is_recognised_when_misplaced() -> None:
    options = [name for name in SURFACE["nemotron steps run"] if name.startswith("-")]
    assert sorted(steps.RUN_OPTIONS) == options


HEAVY = {"torch", "transformers", "ray", "nemo_run", "numpy", "aiohttp", "httpx", "tenacity", "paramiko"}
LIGHT = HEAVY | {"omegaconf", "ruamel", "rich", "jinja2", "plotly", "pydantic", "typer"}
CLIENTS = {"http.client", "urllib.request", "ssl", "requests", "urllib3", "nemotron.executors.http"}
SSH = "nemotron.executors.shells"


# In one process: what is not there after a command was not imported by any of those before it either.
IMPORTS = """
import json, sys
from nemotron.cli.main import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(f"MODULES {json.dumps([code, [*sys.modules]])}", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "commands",
    [
        [
            (["--help"], LIGHT),
            (["steps", "--help"], LIGHT),
            (["steps", "list"], LIGHT),
            (["steps", "list", "--json"], LIGHT),
            (["artifacts", "--help"], LIGHT),
            (["runs", "list"], HEAVY),
            (["profiles", "list"], HEAVY),
            (["steps", "show", "rlhf"], HEAVY),
            (["steps", "run", "rlhf", "-c", "tiny", "--dry-run"], HEAVY),
            (["steps", "run", "reward_audit", "-c", "tiny", "--dry-run"], HEAVY),
            (["steps", "run", "rlvr", "-c", "tiny", "--dry-run"], HEAVY),
            (["steps", "run", "rlvr", "-c", "nemo_gym", "--dry-run"], HEAVY),
            (["steps", "run", "rlhf", "-c", "default", "-b", "slurm_rl_nemo_rl_rlhf", "--dry-run"], HEAVY),
        ],
        [(["steps", "run", "convert/hf_to_megatron", "-c", "tiny", "--dry-run"], HEAVY - {"numpy"})],
    ],
    ids=["light", "with numpy"],
)
def test_light_commands_import_nothing_heavy(tmp_path: Path, commands: list[tuple[list[str], set[str]]]) -> None:
    argv = [sys.executable, "-c", IMPORTS, json.dumps([words for words, _ in commands])]
    result = subprocess.run(
        argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    told = [line.partition(" ")[2] for line in result.stderr.splitlines() if line.startswith("MODULES ")]
    for (words, banned), (code, names) in zip(commands, map(json.loads, told), strict=True):
        assert code == 0, (words, result.stderr[-2000:])
        modules = {name.partition(".")[0] for name in names}
        assert "nemotron" in modules
        assert not modules & banned, words
        assert not set(names) & CLIENTS, words
        assert SSH not in names or "slurm" in str(words), words


def test_only_the_group_that_is_asked_for_is_imported(tmp_path: Path) -> None:
    program = "import sys; from nemotron.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    argv = [sys.executable, "-c", program, "runs", "list"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    groups = {f"nemotron.cli.{name}" for name in app.list_commands(click.Context(app))}
    assert groups & set(done.stderr.split()) == {"nemotron.cli.runs"}


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["it's"], "unknown command `it's`\n  --> command line, argument 1\n", "there are `steps`, `pipelines`"),
        (
            ["steps", "lst"],
            "unknown command `lst`\n  --> command line, argument 2\n",
            "did you mean `nemotron steps list`?",
        ),
        (
            ["steps", "list", "--tagg"],
            "unknown option `--tagg`\n  --> command line, argument 3\n",
            "did you mean `--tag`?",
        ),
        (
            ["steps", "list", "--tag"],
            "option `--tag` requires an argument\n",
            "`nemotron steps list --help` shows the usage",
        ),
        (
            ["steps", "run", "dpo", "-c", "tiny", "--config=default"],
            "`-c/--config` is given more than once\n  --> command line, argument 6\n",
            "keep one of them",
        ),
        (
            ["runs", "list", "--runs-dir", "a", "--runs-dir", "a"],
            "`--runs-dir` is given more than once\n  --> command line, argument 5\n",
            "keep one of them",
        ),
        (
            ["pipelines", "run", "ppo", "-b", "a", "--batch", "b"],
            "`-b/--batch` is given more than once\n  --> command line, argument 6\n",
            "keep one of them",
        ),
        (["steps", "list", "x"], "got unexpected extra argument (x)\n", "`nemotron steps list --help` shows the usage"),
        (["runs", "show"], "missing argument `RUN`\n", "`nemotron runs show --help` shows the usage"),
        (
            ["pipelines", "run", "rlhf", "--side-by-side", "two"],
            "invalid value for `--side-by-side`: `two` is not a valid integer\n",
            "`nemotron pipelines run --help` shows the usage",
        ),
        (
            ["pipelines", "run", "rlhf", "--side-by-side", "0"],
            "invalid value for `--side-by-side`: 0 is not in the range x>=1\n",
            "`nemotron pipelines run --help` shows the usage",
        ),
    ],
)
def test_a_wrong_word_is_told_with_its_place_and_a_fix(
    tmp_path: Path, words: list[str], message: str, hint: str
) -> None:
    said = here(*words, cwd=tmp_path)
    assert (said.code, said.stdout) == (2, "")
    assert said.stderr.startswith(f"error: {message}")
    assert f"\nhint: {hint}" in said.stderr


def test_the_help_explains_arguments_and_defaults(run: Callable[..., str], snapshot: SnapshotAssertion) -> None:
    assert run("runs", "resume", "--help", COLUMNS="80") == snapshot
    assert run("profiles", "init", "--help", COLUMNS="80") == snapshot


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["steps", "run", "-h"], ["steps", "list", "--help"], ["--version"]]
)
def test_help_goes_to_stdout(tmp_path: Path, words: list[str]) -> None:
    result = nemotron(*words, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "nemotron" in result.stdout


@pytest.mark.parametrize("words", [[], ["steps"], ["runs"], ["artifacts"]])
def test_no_command_shows_the_help_as_an_error(tmp_path: Path, words: list[str]) -> None:
    result = here(*words, cwd=tmp_path)
    assert (result.code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


def test_list_json(tmp_path: Path) -> None:
    steps = json.loads(here("steps", "list", "--json", "--consumes", "prompt_jsonl", cwd=tmp_path).stdout)
    step = next(step for step in steps if step["id"] == "rl/nemo_rl/rlhf")
    assert step["category"] == "rl"
    assert step["configs"][0] == "default"
    assert {"checkpoint_hf", "prompt_jsonl"} <= {artifact["type"] for artifact in step["consumes"]}
    assert all(artifact["bind"] for artifact in step["consumes"])


def test_show_json_has_every_parameter_with_its_meaning(tmp_path: Path) -> None:
    step = json.loads(here("steps", "show", "rlhf", "--json", cwd=tmp_path).stdout)
    rows = {row["name"]: row for row in step["parameters"]}
    steps_key = rows["grpo.num_generations_per_prompt"]
    assert (steps_key["default"], steps_key["type"], steps_key["source"]) == (8, "integer >= 1", "yaml")
    judge = rows["env.nemo_gym.genrm_model.responses_api_models.vllm_model.model"]
    assert judge["default"] == "${oc.env:RL_REWARD_MODEL,meta-llama/Llama-3.2-1B-Instruct}"
    assert [name for name, row in rows.items() if not row["description"] and not row["section"]] == []
    assert step["strategies"]
    assert step["errors"]


@pytest.mark.parametrize("step", ["rlhf", "ppo", "rl_prep", "hf_to_megatron"])
def test_show_is_one_screen(run: Callable[..., str], snapshot: SnapshotAssertion, step: str) -> None:
    said = run("steps", "show", step)
    assert len(said.splitlines()) <= 50
    assert said == snapshot


def test_show_all(tmp_path: Path) -> None:
    result = here("steps", "show", "rlhf", "--all", cwd=tmp_path)
    assert result.code == 0
    for part in (
        "consumes",
        "produces",
        "examples",
        "parameters",
        "strategies",
        "errors",
        "grpo.num_prompts_per_step =",
    ):
        assert part in result.stdout


def test_show_parameters_below_a_key(run: Callable[..., str], snapshot: SnapshotAssertion) -> None:
    assert run("steps", "show", "dpo", "--params", "policy.generation.colocated") == snapshot


def test_show_every_parameter(tmp_path: Path) -> None:
    names = {
        row["name"] for row in json.loads(here("steps", "show", "rm", "--json", cwd=tmp_path).stdout)["parameters"]
    }
    shown = here("steps", "show", "rm", "--params", "", cwd=tmp_path).stdout
    lines = [line.strip() for line in shown.splitlines()]
    assert {name for name in names if not any(line.startswith((f"{name} = ", f"{name}.*")) for line in lines)} == set()
    some = json.loads(here("steps", "show", "rm", "--json", "--params", "rm.val", cwd=tmp_path).stdout)
    assert {row["name"] for row in some["parameters"]} == {name for name in names if name.startswith("rm.val")}


@pytest.mark.parametrize(
    "words", [["--params", "grop"], ["--params", "policy.optimiser"], ["--all", "--params", "grpo"]]
)
def test_show_parameters_that_are_not_there(
    run: Callable[..., str], snapshot: SnapshotAssertion, words: list[str]
) -> None:
    assert run("steps", "show", "rlhf", *words) == snapshot


@pytest.mark.parametrize("step", load_catalog().steps, ids=lambda step: str(step.id))
def test_what_is_often_changed_can_be_changed(step: Step) -> None:
    """Each key of `common` has a value in default.yaml and takes an override; those of artifacts are shown above it."""
    model = declaration(step).config
    assert step.common
    for key in step.common:
        assert value_of(step.config_dir, parameters(model, step.config_dir), key) != "not set", key
        value = load(step.config_dir, "tiny", [], run_dir="r", model=model).get(key)
        words = parse_overrides([(1, f"{key}={json.dumps(value)}")])
        load(step.config_dir, "tiny", words, run_dir="r", model=model)
    assert not set(step.common) & {key for artifact in step.consumes for key in artifact.bind}


def test_a_dry_run_ends_with_plan_and_findings(run: Callable[..., str], tmp_path: Path) -> None:
    """Hundreds of lines of config would push them off the screen."""
    words = ["steps", "run", "dpo", "-c", "tiny", "--dry-run"]
    text = on_a_terminal(words, tmp_path, NO_COLOR="1")
    assert len(text.splitlines()) <= 30
    assert text.index("job ") < text.index("findings ") < text.index("note:")
    assert "`--show-config` prints it" in text
    whole = on_a_terminal([*words, "--show-config"], tmp_path, NO_COLOR="1")
    assert whole.index("resolved config") < whole.index("max_num_steps: 60") < whole.index("job  ")
    assert whole.index("findings ") < whole.index("note:")
    assert "--show-config" not in whole
    refused = run("steps", "run", "dpo", "-c", "tiny", "--show-config")
    assert "`--show-config` prints the config of a plan, so it needs `--dry-run`" in refused


def test_a_caller_has_its_own_collection_of_garbage_back(tmp_path: Path) -> None:
    """What is not looked at any more when the process ends would stay for ever in one that goes on."""
    before = gc.get_threshold(), gc.get_freeze_count()
    here("steps", "list", cwd=tmp_path)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_closed_pipe_is_no_crash(tmp_path: Path) -> None:
    """As `nemotron steps show rlhf | head -1` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nemotron", "steps", "show", "rlhf"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 1
    assert said == b""


def on_a_terminal(words: list[str], cwd: Path, **extra: str) -> str:
    """Output of a command whose stdout and stderr are a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nemotron", *words],
        cwd=cwd,
        env=environment(TERM="xterm", **extra),
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not chunk:
            break
        chunks.append(chunk)
    process.wait(60)
    os.close(master)
    return b"".join(chunks).decode()


@pytest.mark.parametrize(
    "words",
    [
        ["steps", "list"],
        ["steps", "lst"],
        ["steps", "run", "rlhf", "-c", "tiny", "--dry-run", "grpo.max_num_steps=0"],
        ["steps", "run", "rlhf", "-c", "tiny", "--dry-run", "policy.model_name=./gone", "--json"],
    ],
    ids=" ".join,
)
def test_a_process_of_its_own_says_the_same(tmp_path: Path, words: list[str]) -> None:
    """The cases of this folder run in the process of the tests."""
    real = nemotron(*words, cwd=tmp_path)
    said = here(*words, cwd=tmp_path)
    timeless = [re.sub(r"\d{8}-\d{6}-([\w-]+)-[0-9a-f]{4}", r"RUN-\1", text) for text in (real.stdout, said.stdout)]
    assert (real.returncode, timeless[0], real.stderr) == (said.code, timeless[1], said.stderr)


@pytest.mark.parametrize("words", [["steps", "list"], ["steps", "run", "rlhff"]])
def test_colour_only_where_it_is_wanted(tmp_path: Path, words: list[str]) -> None:
    assert "\033[" in on_a_terminal(words, tmp_path)
    assert "\033[" not in on_a_terminal(words, tmp_path, NO_COLOR="1")
    result = nemotron(*words, cwd=tmp_path)
    assert "\033[" not in result.stdout + result.stderr


def test_dry_run_on_a_terminal_without_colour(tmp_path: Path) -> None:
    """NO_COLOR rules out colours, not bold; the plan must be readable either way."""
    text = on_a_terminal(["steps", "run", "rlhf", "-c", "tiny", "--dry-run"], tmp_path, NO_COLOR="1")
    assert "tokens" in text
    assert "\033[3" not in text


def test_a_bug_is_short_and_leaves_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nemotron.cli import main as cli

    def broken(words: tuple[str, ...]) -> int:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli, "_dispatch", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["steps", "run", "rlhf", "a.api_key=secret"]) == 1
    said = capsys.readouterr().err
    (log,) = tmp_path.glob("nemotron-crash-*.log")
    assert said == (
        "error: unexpected ZeroDivisionError: division by zero\n"
        f"hint: this is a bug in nemotron; please report it with `{log}`\n"
    )
    assert "Traceback" in log.read_text()
    assert "secret" not in log.read_text()
    monkeypatch.setenv("NEMOTRON_TRACEBACK", "1")
    cli.main(["steps"])
    assert "Traceback" in capsys.readouterr().err


ENGINE_LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "aiohttp", "tenacity", "jinja2", "plotly")


def test_an_install_without_the_engine_can_do_everything_but_run(tmp_path: Path) -> None:
    """Without the extra `local` the dry run still proves the config, and says what to install."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({ENGINE_LIBRARIES}))\n"
        "from nemotron.cli.main import main\n"
        "sys.exit(main())\n"
    )

    def without_engine(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", program, *words]
        return subprocess.run(
            argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )

    for words in (["steps", "list"], ["steps", "show", "rlhf"], ["runs", "list"]):
        assert without_engine(*words).returncode == 0
    result = without_engine("steps", "run", "rlhf", "-c", "tiny", "--dry-run")
    assert result.returncode == 10, result.stderr
    assert result.stderr.startswith("error: the embedded engine needs the modules `torch`")
    assert "[local]" in result.stderr
    assert without_engine("steps", "run", "rlhf", "-c", "tiny", "--dry-run", "grpo.sed=1").returncode == 3

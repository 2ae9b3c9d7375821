"""`nemotron steps`: list, show and run steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemotron.cli.group import Invocation, argument, as_json, flag, group, option, runs_dir
from nemotron.cli.render import print_columns, print_rendered, print_submission
from nemotron.errors import CompileError, Origin, UsageError
from nemotron.outcome import print_error, print_findings
from nemotron.suggest import closest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from nemotron.compile.plan import Plan
    from nemotron.config.describe import Parameter
    from nemotron.config.overrides import Override
    from nemotron.executors.launch import Launch
    from nemotron.profiles.load import Profile

app = group("List, explain and run steps.")

step_id = argument("step", metavar="STEP", help="A step id, or a unique tail of one: `rlhf`.")

RUN_OPTIONS = (
    *("-c", "--config", "-r", "--run", "-b", "--batch", "-d", "--dry-run"),
    *(
        "--json",
        "--force-squash",
        "--only",
        "--probe-judge",
        "--no-probe-judge",
        "--resume",
        "--accept-changed-inputs",
        "--runs-dir",
        "--show-config",
        "--explain",
        "--sweep",
    ),
)
"""Options of `steps run`, to recognise one that was written before the command."""


@app.command("list")
@option("--category", help="Only steps of this category.")
@option("--consumes", metavar="TYPE", help="Only steps that take this type.")
@option("--produces", metavar="TYPE", help="Only steps that make this type.")
@option("--tag", help="Only steps with this tag.")
@as_json
def list_command(
    category: str | None, consumes: str | None, produces: str | None, tag: str | None, as_json: bool
) -> None:
    """List steps. Type filters honour `is_a` of types.toml."""
    from nemotron.manifest import as_json as step_json
    from nemotron.manifest import load_catalog, select_steps

    catalog = load_catalog()
    for problem in catalog.problems.values():
        print_error(problem, label="warning")
    found = select_steps(catalog, category=category, consumes=consumes, produces=produces, tag=tag)
    if as_json:
        _print_json([step_json(step) for step in found])
    elif found:
        rows = [(step.id, ", ".join(step.configs), step.title) for step in found]
        print_columns(rows, header=("STEP", "CONFIGS", "WHAT IT DOES"))
    else:
        print("no step matches", file=sys.stderr)


@app.command("show")
@step_id
@option("--params", metavar="PREFIX", help="Explain the parameters below a key: `grpo`, `''`.")
@flag("--all", "everything", help="Everything: all parameters, strategies, known errors.")
@as_json
def show_command(step: str, params: str | None, everything: bool, as_json: bool) -> None:
    """Explain a step: what it takes and makes, what is usually changed, its parameters."""
    from nemotron.cli.show import print_everything, print_overview, print_parameters
    from nemotron.config.describe import below, parameters
    from nemotron.manifest import as_json as step_json
    from nemotron.manifest import declaration, find_step

    found = find_step(step)
    if everything and params is not None:
        raise UsageError("`--all` and `--params` exclude each other", hint="`--all` shows every parameter")
    rows = parameters(declaration(found).config, found.config_dir)
    if params is not None:
        rows = below(rows, params)
    if as_json:
        advice = {name: [asdict(one) for one in getattr(found, name)] for name in ("strategies", "errors")}
        _print_json({**step_json(found), **advice, "parameters": [_parameter_json(row) for row in rows]})
    elif params is not None:
        print_parameters(rows)
    elif everything:
        print_everything(found, rows)
    else:
        print_overview(found, rows)


def _parameter_json(row: Parameter) -> dict[str, Any]:
    names = ("name", "type", "default", "source", "description", "section")
    return {name: getattr(row, name) for name in names}


config_name = option(
    "-c",
    "--config",
    metavar="NAME|PATH",
    default="default",
    show_default=True,
    help="A config of the step, or a YAML file of your own.",
)
overrides = argument("overrides", metavar="KEY=VALUE", nargs=-1, help="Overrides: a.b=v, +a.b=v, ++a.b=v, ~a.b")
run = option("-r", "--run", metavar="PROFILE", help="Run on a profile and stay attached.")
batch = option("-b", "--batch", metavar="PROFILE", help="Submit to a profile and return.")
show_config = flag("--show-config", help="With --dry-run: print the resolved config first.")
explain = option("--explain", metavar="KEY", help="Print every layer that wrote a key, and start nothing.")
dry_run = flag("-d", "--dry-run", help="Compile, print the plan, write nothing.")
plan_as_json = flag("--json", "as_json", help="With --dry-run: print the plan as JSON.")
force_squash = flag("--force-squash", help="With a profile: import its container image anew.")
resume = flag("--resume", help="Go on with the newest unfinished run of this config.")
accept_changed = flag(
    "--accept-changed-inputs",
    "accept_changed",
    help="With --resume: go on although data or models are not what they were; it is noted.",
)
only = option("--only", metavar="SIDE", help="Run one side of a step that has two: `critic` or `actor` of ppo.")
probe_judge = flag(
    "--probe-judge/--no-probe-judge",
    default=None,
    help="Ask the judge about known pairs first, and start only if it is fit; on unless the config says otherwise.",
)
sweep = option(
    "--sweep",
    metavar="KEY=V1,V2",
    multiple=True,
    help="Run once with each value of a key; given more than once, with all combinations.",
)


@app.command("run")
@step_id
@overrides
@config_name
@run
@batch
@dry_run
@show_config
@plan_as_json
@force_squash
@only
@probe_judge
@explain
@sweep
@resume
@accept_changed
@runs_dir
@click.pass_obj
def run_command(
    invocation: Invocation,
    step: str,
    overrides: tuple[str, ...],
    config: str,
    run: str | None,
    batch: str | None,
    dry_run: bool,
    show_config: bool,
    as_json: bool,
    force_squash: bool,
    only: str | None,
    probe_judge: bool | None,
    explain: str | None,
    sweep: tuple[str, ...],
    resume: bool,
    accept_changed: bool,
    runs_dir: Path,
) -> int:
    """Compile the config of a step and run it. Words after `--` go to the step's own script."""
    from nemotron.executors.request import Request
    from nemotron.manifest import declaration, find_step

    found = find_step(step)
    _refuse_clashes(run, batch, dry_run=dry_run, as_json=as_json, force_squash=force_squash, resume=resume)
    _refuse_useless(show_config=show_config, dry_run=dry_run, accept_changed=accept_changed, resume=resume)
    code = declaration(found)
    words = invocation.words
    parsed = _overrides(words, overrides)
    if only is not None:
        parsed.append(_only(words, only, found.id, code.config))
    if probe_judge is not None:
        parsed.append(_probe(words, probe_judge, found.id, code.config))
    request = Request(found, code, config, _profile(run or batch), runs_dir, words, invocation.passthrough, resume)
    if sweep:
        from nemotron.cli.sweeps import SweepOptions, run_sweep

        _refuse_with_sweep(explain=explain is not None, only=only is not None)
        options = SweepOptions(dry_run, as_json, show_config, run is not None, force_squash, accept_changed)
        return run_sweep(request, parsed, sweep, options)
    if explain is not None:
        from nemotron.cli.show import print_explained
        from nemotron.config.explain import explain as explain_key

        resolved = request.load(parsed)
        if request.profile is not None:
            from nemotron.executors.elsewhere import of_time_limit

            if (limit := of_time_limit(request.profile, resolved)) is not None:
                parsed.append(limit)
                resolved = request.load(parsed)
        print_explained(explain_key(resolved, found.config_dir, config, parsed, code.config, explain))
        if resolved.findings:
            raise CompileError(resolved.findings)
        return 0
    plan = request.compile(parsed)
    launch: Launch | None = None
    if request.profile is not None:
        from nemotron.executors.base import How
        from nemotron.executors.elsewhere import launch_of

        how = How(attached=run is not None, force_squash=force_squash)
        plan, launch = launch_of(plan, request.asked, request.profile, how, rehearsal=dry_run)
    say_plan(plan, launch, as_json=as_json, dry_run=dry_run, show_config=show_config)
    if dry_run:
        return 0
    if launch is not None:
        from nemotron.executors.elsewhere import start

        attached = run is not None
        return start(launch, plan, runs_dir, attached=attached, resume=resume, accept_changed=accept_changed)
    from nemotron.executors import goes_on
    from nemotron.executors.local import launch as launch_here

    said = request.asked(plan)
    return launch_here(plan, said, runs_dir=runs_dir, resume=resume, goes_on=goes_on, accept_changed=accept_changed)


def say_plan(plan: Plan, launch: Launch | None, *, as_json: bool, dry_run: bool, show_config: bool) -> None:
    """Print the plan where it is asked for, and what was found.

    Raises:
        CompileError: the plan does not hold.
    """
    from nemotron.compile.plan import render_plan

    if as_json:
        said = {"submission": launch.submission.to_json()} if launch else {}
        _print_json({**plan.to_json(), **_for_nemo_rl(plan), **said})
    if not plan.ok:
        raise CompileError(plan.findings)
    if dry_run and not as_json:
        # What a person must see comes last, where the terminal still shows it: config, plan, findings.
        print_rendered(render_plan(plan, with_config=show_config))
        if launch is not None:
            print_submission(launch.submission)
        sys.stdout.flush()
        if plan.findings:
            print(file=sys.stderr)
    print_findings(plan.findings)


def _for_nemo_rl(plan: Plan) -> dict[str, Any]:
    """What NeMo-RL would be given, where it is the engine: its own config, and how its script is started."""
    if plan.engine != "nemo_rl" or plan.config is None:
        return {}
    from nemotron.compile.paths import with_absolute_paths
    from nemotron.compile.secrets import redact, secret_variables
    from nemotron.engines.nemo_rl.folder import shown

    named, secrets = secret_variables(plan.config, plan.resolved.raw), plan.secrets()
    run = str(plan.runs_dir.resolve() / plan.run_id)
    values = redact(plan.resolved.in_run_dir(run).values, secrets)
    if plan.place.is_here:
        values = with_absolute_paths(values, plan.config)
    return {"nemo_rl": shown(values, plan.config, secrets=secrets, named=named, run=run)}


def _profile(name: str | None) -> Profile | None:
    """The profile of `-r` or `-b`; attached on this machine is what runs without one."""
    if name is None:
        return None
    from nemotron.profiles.load import Profiles

    return Profiles().get(name)


def _refuse_useless(*, show_config: bool, dry_run: bool, accept_changed: bool, resume: bool) -> None:
    """Options that need another one. Raises UsageError."""
    if show_config and not dry_run:
        raise UsageError("`--show-config` prints the config of a plan, so it needs `--dry-run`")
    if accept_changed and not resume:
        raise UsageError("`--accept-changed-inputs` is for a run that goes on, so it needs `--resume`")


def _refuse_with_sweep(*, explain: bool, only: bool) -> None:
    """Options that are about one run. Raises UsageError."""
    if explain:
        raise UsageError("`--explain` explains the config of one run", hint="leave `--sweep` away")
    if only:
        raise UsageError("`--only` and `--sweep` exclude each other", hint="the sides of a run are started one by one")


def _refuse_clashes(
    run: str | None, batch: str | None, *, dry_run: bool, as_json: bool, force_squash: bool, resume: bool
) -> None:
    """Options that exclude each other, or would have no effect.

    Raises:
        UsageError: naming both options.
    """
    if run is not None and batch is not None:
        raise UsageError(
            "`-r` and `-b` exclude each other",
            hint="`-r PROFILE` stays attached until the job ends, `-b PROFILE` returns at once",
        )
    if as_json and not dry_run:
        raise UsageError("`--json` prints the plan, so it needs `--dry-run`")
    if resume and dry_run:
        raise UsageError("`--resume` has no effect on a dry run", hint="drop one of the two")
    if force_squash and run is None and batch is None:
        raise UsageError("`--force-squash` has no effect without a profile", hint="give one with `-r` or `-b`")


def _overrides(words: Sequence[str], found: Sequence[str]) -> list[Override]:
    """Parse override words with their positions; a word that is none gets a fix.

    Raises:
        UsageError: a bare word, or a malformed override.
    """
    from nemotron.config.overrides import is_override, parse_overrides, shown_word

    tokens, start = [], 0
    for word in found:
        start = words.index(word, start) + 1
        tokens.append((start, word))
        if not is_override(word):
            guess = closest(f"--{word}", [name for name in RUN_OPTIONS if name.startswith("--")])
            hint = "write `key=value`; words for the step's own script go after `--`"
            raise UsageError(
                f"`{shown_word(word)}` is not an override",
                hint=f"did you mean `{guess}`?" if guess else hint,
                origin=Origin("command line", argument=start),
            )
    return parse_overrides(tokens)


def _only(words: Sequence[str], side: str, step: str, model: type[BaseModel]) -> Override:
    """``--only SIDE`` as the override ``only=SIDE`` that it stands for.

    Raises:
        UsageError: the step has no sides.
    """
    from nemotron.config.overrides import parse_overrides

    place = next(i for i, word in enumerate(words, 1) if word.partition("=")[0] == "--only")
    if "only" not in model.model_fields:
        raise UsageError(
            f"`{step}` runs as a whole, so `--only` has no use",
            hint="`rl/nemo_rl/ppo` has sides that run apart",
            origin=Origin("command line", argument=place),
        )
    return parse_overrides([(place, f"only={side}")])[0]


def _probe(words: Sequence[str], enabled: bool, step: str, model: type[BaseModel]) -> Override:
    """``--probe-judge`` and ``--no-probe-judge`` as the override that they stand for.

    Raises:
        UsageError: the step trains with no judge.
    """
    from nemotron.config.overrides import parse_overrides

    option = f"--{'' if enabled else 'no-'}probe-judge"
    place = words.index(option) + 1
    judge = model.model_fields.get("judge")
    if judge is None or "probe" not in getattr(judge.annotation, "model_fields", {}):
        raise UsageError(
            f"`{step}` trains with no judge, so `{option}` has no use",
            hint="`eval/reward_audit` measures a judge" if "judge" in model.model_fields else None,
            origin=Origin("command line", argument=place),
        )
    return parse_overrides([(place, f"judge.probe.enabled={str(enabled).lower()}")])[0]


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))

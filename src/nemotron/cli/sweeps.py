"""`steps run --sweep`: all runs are compiled before the first one starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from nemotron.cli.render import print_columns, print_rendered, print_submission, print_title
from nemotron.compile.plan import Plan, render_plan
from nemotron.compile.sweep import Member, compile_all, findings_of
from nemotron.config.overrides import Override
from nemotron.config.sweep import combinations
from nemotron.errors import CompileError, UsageError
from nemotron.executors.launch import Launch, shown_together
from nemotron.executors.request import Request
from nemotron.executors.sweep import SweepRun, name_of, run_here, submit_all
from nemotron.job import Asked
from nemotron.outcome import print_findings


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Options of `steps run` that a sweep honours."""

    dry_run: bool
    as_json: bool
    show_config: bool
    attached: bool
    force_squash: bool
    accept_changed: bool


def run_sweep(request: Request, overrides: Sequence[Override], words: Sequence[str], options: SweepOptions) -> int:
    """Compile all runs, then print them or start them; returns the exit code.

    Raises:
        UsageError: the words make no sweep.
        CompileError: one of the runs has errors; none was started.
    """
    chosen = combinations(_placed(request.words, words), overrides)
    profile = request.profile
    if profile is not None and profile.settings.kind == "local":
        raise UsageError(
            f"with `{profile.name}` this machine would start all {len(chosen)} runs at once",
            hint="without a profile a sweep runs here, one after the other",
        )
    # What is wrong with the command whatever the values are says so without naming any.
    request.load(overrides)
    members = compile_all(chosen, overrides, request.compile)
    sweep = name_of(request.runs_dir, members, resume=request.resume)

    def asked(member: Member) -> Asked:
        part = member.part_of(sweep, len(members))
        return request.asked(member.plan).model_copy(update={"sweep": part})

    launches: dict[int, Launch] = {}
    if profile is not None:
        from nemotron.executors.base import How
        from nemotron.executors.elsewhere import launch_of

        how = How(attached=options.attached, force_squash=options.force_squash)
        for index, member in enumerate(members):
            said = partial(_said, asked, member)
            plan, launch = launch_of(member.plan, said, profile, how, rehearsal=options.dry_run)
            members[index] = replace(member, plan=plan)
            if launch is not None:
                launches[member.number] = launch
    _say(members, list(launches.values()), options)
    if options.dry_run:
        return 0
    runs = [SweepRun(member, asked(member), launches.get(member.number)) for member in members]
    go = {"resume": request.resume, "accept_changed": options.accept_changed}
    if profile is not None:
        return submit_all(runs, sweep, request.runs_dir, attached=options.attached, **go)
    return run_here(runs, sweep, request.runs_dir, **go)


def _said(asked: Callable[[Member], Asked], member: Member, plan: Plan) -> Asked:
    """What was asked for does not depend on what the profile finds."""
    return asked(member)


def _placed(words: Sequence[str], found: Sequence[str]) -> list[tuple[int, str]]:
    """The words of ``--sweep`` with their positions on the command line."""
    positions = [
        position + 1 if word == "--sweep" else position
        for position, word in enumerate(words, 1)
        if word == "--sweep" or word.startswith("--sweep=")
    ]
    return list(zip(positions, found, strict=True))


def _say(members: Sequence[Member], launches: Sequence[Launch], options: SweepOptions) -> None:
    """Print the runs where they are asked for, what would be sent, and what was found.

    Raises:
        CompileError: one of the plans does not hold.
    """
    findings = findings_of(members)
    first = launches[0] if launches else None
    arrays = shown_together(launches) if options.as_json or options.dry_run else []
    if options.as_json:
        import json

        shown = {
            "sweep": [{"values": dict(member.combination.values), **member.plan.to_json()} for member in members],
            **({"submission": first.submission.to_json()} if first else {}),
            **({"arrays": [array.to_json() for array in arrays]} if arrays else {}),
        }
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    if any(finding.severity == "error" for finding in findings):
        raise CompileError(findings)
    if options.dry_run and not options.as_json:
        print_rendered(render_plan(replace(members[0].plan, findings=findings), with_config=options.show_config))
        if first is not None:
            print_submission(first.submission)
        for array in arrays:
            print_title(f"--- job array of {len(array.request['tasks'])} runs, each with a script like that")
            print_submission(array)
        print_title(f"--- sweep of {len(members)} runs; above is the first one")
        keys = [key for key, _ in members[0].combination.values]
        rows = [[str(one.number), *(value for _, value in one.combination.values), _steps(one)] for one in members]
        print_columns(rows, header=["RUN", *keys, "STEPS"])
        sys.stdout.flush()
        if findings:
            print(file=sys.stderr)
    print_findings(findings)


def _steps(member: Member) -> str:
    steps = member.plan.work.steps if member.plan.work else None
    return "?" if steps is None else str(steps)

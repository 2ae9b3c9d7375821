"""Check and run the step: a judge or a reward model, measured on labelled pairs."""

from __future__ import annotations

from nemotron.compile.declaration import PlainStep
from nemotron.compile.plan import FileRef, Preflight, Process, Surroundings
from nemotron.compile.probes.model_files import read_model
from nemotron.compile.secrets import secrets_in
from nemotron.config.layers import Resolved
from nemotron.config.schema.reward_audit import RewardAuditConfig
from nemotron.engines.base import Attempt
from nemotron.steps.eval.reward_audit.checks import DATA, MANIFEST, MODEL, REWARD_MODEL, Checks


def preflight(config: RewardAuditConfig, resolved: Resolved, where: Surroundings) -> Preflight:
    """Everything that can be known before anything is asked."""
    checks = Checks(config, resolved, where.place, where.runs_dir)
    return Preflight(
        engine="plain",
        engine_reason="an audit trains nothing: plain Python in this process",
        findings=tuple(checks.findings()),
        processes=_processes(checks),
        inputs=_inputs(checks),
        outputs=(
            FileRef("run folder", None, str(where.runs_dir), "samples.jsonl with every verdict, report.html"),
            FileRef("results", "output_dir", config.output_dir, "eval_results.json"),
        ),
        secrets=secrets_in(config),
    )


def run(attempt: Attempt) -> None:
    """Ask, measure, report.

    Raises:
        LimitError: a figure crosses a limit. DataError, ArtifactError, JudgeError, OutputError: as they say.
    """
    from nemotron.rl.threads import plan_threads, set_environment

    config = attempt.settings(RewardAuditConfig)
    # With a reward model this process computes; with a judge it only asks.
    judge = config.env.judge_model if config.reward_model.path is None else None
    serves = judge is not None and judge.base_url is None
    set_environment(plan_threads(helper=config.judge.server_threads if serves else 0).policy)
    from nemotron.audit.run import run_audit

    run_audit(attempt, config)


def _processes(checks: Checks) -> tuple[Process, ...]:
    config, pairs = checks.config, checks.pairs
    if not checks.audits_judge:
        return (Process("audit", f"this process: scores both answers of {pairs:,} pairs"),)
    model = checks.judge_model
    orders = 2 if config.audit.both_orders else 1
    again = min(pairs, config.audit.repeat_pairs) * config.audit.repeats
    calls = orders * (pairs * checks.compare.num_judges_per_comparison + again)
    asker = Process("audit", f"this process: asks {calls:,} questions about {pairs:,} pairs")
    if model is None:
        return (asker,)
    served = "child process: serves the judge model on a free loopback port"
    return asker, Process("judge", served if model.base_url is None else f"endpoint {model.base_url}")


def _inputs(checks: Checks) -> tuple[FileRef, ...]:
    config, found = checks.config, checks.survey
    inputs = []
    model = checks.judge_model
    named = (
        ("reward model", REWARD_MODEL, config.reward_model.path)
        if not checks.audits_judge
        else ("judge model", f"{MODEL}.model", model.model if model and model.base_url is None else None)
    )
    role, key, name = named
    if name is not None:
        files = read_model(name, checks.place)
        detail = f"{files.parameters:,} parameters" if files and files.parameters else "size unknown"
        inputs.append(FileRef(role, key, name, detail))
    data = config.data
    place = (DATA, data.data_path) if data.manifest_path is None else (MANIFEST, data.manifest_path)
    inputs.append(FileRef("pairs", *place, found.problem or f"{found.rows} rows"))
    return tuple(inputs)


STEP = PlainStep(config=RewardAuditConfig, check=preflight, run="nemotron.steps.eval.reward_audit.step:run")

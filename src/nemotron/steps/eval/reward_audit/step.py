"""Check and run the step: a judge or a reward model, measured on labelled pairs."""

from __future__ import annotations

from nemotron.compile.declaration import PlainStep
from nemotron.config.schema.reward_audit import RewardAuditConfig
from nemotron.engines.base import Attempt
from nemotron.steps.eval.reward_audit.job import AuditJob
from nemotron.steps.eval.reward_audit.rules import STAGES


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


STEP = PlainStep(config=RewardAuditConfig, job=AuditJob, rules=STAGES, run="nemotron.steps.eval.reward_audit.step:run")

"""One audit from its run folder to its end: ask what has not been answered, measure, write, hold to the limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.record import write_record
from nemotron.config.schema.judge import GenrmCompareConfig, GenrmModelConfig
from nemotron.config.schema.reward_audit import RewardAuditConfig
from nemotron.errors import ConfigError, LimitError
from nemotron.rewards.audit import scoring
from nemotron.rewards.audit.progress import PairsBar
from nemotron.rewards.audit.records import Audited, Pair, by_index, from_row, to_row
from nemotron.rewards.audit.results import crossed, results
from nemotron.rewards.audit.sample import Sample, draw
from nemotron.runs.atomic import output_errors, write_atomic
from nemotron.runs.audit_report import RESULTS
from nemotron.runs.folder import RunFolder
from nemotron.runs.jsonl import JsonLines, Row, to_json
from nemotron.runs.report import write_report
from nemotron.runs.summary import print_summary

if TYPE_CHECKING:
    from nemotron.rewards.audit.judging import Questions

JUDGE_MODEL = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
"""Where the config names the judge."""


def run_audit(run: RunFolder, config: RewardAuditConfig, secrets: Mapping[str, str]) -> None:
    """Do the audit of ``run`` from where it stands. ``secrets``: by config key.

    Raises:
        LimitError: a figure crosses a limit of the config; results and report are written before.
        DataError, ArtifactError, JudgeError, OutputError: what keeps it from its end; answered pairs stay answered.
    """
    Audit(run, config, secrets).run_to_end()


@dataclass(frozen=True)
class Audit:
    """The parts of one audit."""

    run: RunFolder
    config: RewardAuditConfig
    secrets: Mapping[str, str]

    @cached_property
    def sample(self) -> Sample:
        """The pairs."""
        return draw(self.config.data, self.config.audit.pairs, self.config.audit.seed)

    @property
    def kind(self) -> str:
        """``judge`` or ``reward_model``."""
        return "reward_model" if self.config.reward_model.path else "judge"

    def run_to_end(self) -> None:
        """See :func:`run_audit`."""
        began = time.monotonic() - (self.run.status().wall_s or 0.0)
        total = len(self.sample.pairs)
        known = self.known()
        self.run.write_status(
            state="running", phase="asking", steps_total=total, steps_done=len(known), error=None, exit_code=None
        )
        with PairsBar(total, len(known)) as bar:
            if self.kind == "judge":
                self._ask_judge(known, bar)
            else:
                self._ask_reward_model(known, bar)
        self.run.write_status(phase="report", steps_done=total, wall_s=time.monotonic() - began)
        found = self.write_results(by_index(list(known.values())))
        self.run.truncate_metrics(0)
        self.run.append_metrics({"step": total, **{f"audit/{name}": v for name, v in found["metrics"].items()}})
        beyond = crossed(found["metrics"], self.config.limits)
        if not beyond:
            self.run.write_status(state="finished", phase=None, wall_s=time.monotonic() - began)
        write_report(self.run)
        print_summary(self.run)
        if beyond:
            raise LimitError(
                f"the {self.kind.replace('_', ' ')} is not good enough: {'; '.join(beyond)}",
                hint=f"look at `{self.run.report}`, better the reward, or change the limits",
            )

    def known(self) -> dict[int, Audited]:
        """Pairs that an earlier attempt has done, by index. Rows that belong to other questions are dropped."""
        wanted = {self.key(pair): pair for pair in self.sample.pairs}
        kept: dict[str, Row] = {row["key"]: row for row in self.run.read_samples() if row.get("key") in wanted}
        if self.kind == "reward_model":
            for batch in scoring.batches(self.sample.pairs, self.config.reward_model.batch_size):
                keys = [self.key(pair) for pair in batch]
                if not all(key in kept for key in keys):
                    kept = {key: row for key, row in kept.items() if key not in keys}
        # A torn last line goes as well.
        JsonLines(self.run.samples).keep(lambda row: row.get("key") in kept)
        return {wanted[key].index: from_row(row) for key, row in kept.items()}

    def key(self, pair: Pair) -> str:
        """What a row of this pair answers."""
        if self.kind == "reward_model":
            return scoring.key(self.config.reward_model, pair)
        return self._questions.key(pair)

    def write_results(self, rows: list[Audited]) -> dict[str, Any]:
        """``eval_results.json`` with its record beside it."""
        found = results(rows, kind=self.kind, pairs_in_data=self.sample.rows, worst=self.config.audit.worst)
        folder = Path(self.config.output_dir).expanduser()
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / RESULTS, to_json(found, indent=2) + b"\n")
        job = self.run.job()
        with output_errors(folder):
            write_record(
                folder,
                kind="eval_results",
                step=job["step"],
                fingerprint=fingerprint(folder / RESULTS, "eval_results"),
                inputs=job.get("inputs", []),
                details={"run": self.run.id, "config_fingerprint": job.get("fingerprint")},
            )
        return found

    @cached_property
    def _judge_model(self) -> GenrmModelConfig:
        gym = self.config.env.nemo_gym
        if gym is None or gym.genrm_model is None:
            raise ConfigError("the config names no judge", hint="set `env.nemo_gym.genrm_model`")
        model = gym.genrm_model.responses_api_models.vllm_model
        secret = self.secrets.get(f"{JUDGE_MODEL}.api_key")
        return model.model_copy(update={"api_key": SecretStr(secret)}) if secret else model

    @cached_property
    def _questions(self) -> Questions:
        # The judge's client needs aiohttp, which scoring with a reward model does not.
        from nemotron.judge.groups import JudgeSettings
        from nemotron.rewards.audit.judging import Questions

        gym = self.config.env.nemo_gym
        server = gym.genrm_compare_resources_server if gym else None
        compare = server.resources_servers.genrm_compare if server else GenrmCompareConfig()
        model = self._judge_model
        settings = JudgeSettings(compare, self.config.judge, model.supports_principle_role)
        return Questions(settings, self.config.audit, model.model)

    def _ask_judge(self, known: dict[int, Audited], bar: PairsBar) -> None:
        from nemotron.judge.local import running_judge
        from nemotron.rewards.audit.judging import judge_pairs

        todo = [pair for pair in self.sample.pairs if pair.index not in known]
        if not todo:
            return

        def done(audited: Audited) -> None:
            self.run.append_samples([to_row(audited, self.key(audited.pair))])
            known[audited.pair.index] = audited
            bar.advance(1)

        with running_judge(self._judge_model, self.config.judge, log_path=self.run.logs / "judge.log") as judge:
            judge_pairs(judge, self._questions, todo, done)

    def _ask_reward_model(self, known: dict[int, Audited], bar: PairsBar) -> None:
        model = self.config.reward_model
        cut = scoring.batches(self.sample.pairs, model.batch_size)
        todo = [batch for batch in cut if any(pair.index not in known for pair in batch)]
        if not todo:
            return

        def done(batch: list[Audited]) -> None:
            self.run.append_samples([to_row(one, self.key(one.pair)) for one in batch])
            known.update({one.pair.index: one for one in batch})
            bar.advance(len(batch))

        scoring.score_pairs(model, todo, done)

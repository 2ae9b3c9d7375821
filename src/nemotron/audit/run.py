"""One audit from its run folder to its end: ask what has not been answered, measure, write, hold to the limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.record import write_record
from nemotron.audit import scoring
from nemotron.audit.progress import PairsBar
from nemotron.audit.records import Audited, Pair, by_index, from_row, to_row
from nemotron.audit.results import crossed, results
from nemotron.audit.sample import Sample, draw
from nemotron.config.schema.judge import JUDGE_MODEL, GenrmModelConfig
from nemotron.config.schema.reward_audit import RewardAuditConfig
from nemotron.disk.atomic import write_atomic
from nemotron.disk.faults import output_errors
from nemotron.disk.home import expanded
from nemotron.engines.base import Attempt
from nemotron.errors import LimitError
from nemotron.reports.audit_report import RESULTS
from nemotron.reports.report import report_or_warn
from nemotron.runs.folder import RunFolder
from nemotron.runs.jsonl import JsonLines, Row, to_json
from nemotron.runs.summary import print_summary

if TYPE_CHECKING:
    from nemotron.audit.judging import Questions


def run_audit(attempt: Attempt, config: RewardAuditConfig) -> None:
    """Do the audit of ``attempt`` from where it stands.

    Raises:
        LimitError: a figure crosses a limit of the config; results and report are written before.
        DataError, ArtifactError, JudgeError, OutputError: what keeps it from its end; answered pairs stay answered.
    """
    Audit(attempt, config).run_to_end()


@dataclass(frozen=True)
class Audit:
    """The parts of one audit."""

    attempt: Attempt
    config: RewardAuditConfig

    @property
    def run(self) -> RunFolder:
        """The run."""
        return self.attempt.run

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
        # Each form of verdict goes through all pairs.
        total = len(self.sample.pairs) * len(self.forms)
        known = self.known()
        done = sum(map(len, known.values()))
        self.run.write_status(
            state="running", phase="asking", steps_total=total, steps_done=done, error=None, exit_code=None
        )
        with PairsBar(total, done) as bar:
            if self.kind == "judge":
                self._ask_judge(known, bar)
            else:
                self._ask_reward_model(known[self.forms[0]], bar)
        self.run.write_status(phase="report", steps_done=total, wall_s=time.monotonic() - began)
        found = self.write_results({form: by_index(list(rows.values())) for form, rows in known.items()})
        self.run.truncate_metrics(0)
        self.run.append_metrics({"step": total, **{f"audit/{name}": v for name, v in found["metrics"].items()}})
        beyond = crossed(found["metrics"], self.config.limits)
        if not beyond:
            self.run.write_status(state="finished", phase=None, wall_s=time.monotonic() - began)
        report_or_warn(self.run)
        print_summary(self.run)
        if beyond:
            raise LimitError(
                f"the {self.kind.replace('_', ' ')} is not good enough: {'; '.join(beyond)}",
                hint=f"look at `{self.run.report}`, better the reward, or change the limits",
            )

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """The forms of verdict that the pairs are asked in, the judge's own first; of a reward model there is one."""
        if self.kind == "reward_model":
            return ("score",)
        return tuple(dict.fromkeys([self._questions.settings.form.verdict, *self.config.audit.compare_verdicts]))

    def known(self) -> dict[str, dict[int, Audited]]:
        """Pairs that an earlier attempt has done, by form and index. Rows of other questions are dropped."""
        wanted = {self.key(pair, form): (form, pair) for form in self.forms for pair in self.sample.pairs}
        kept: dict[str, Row] = {row["key"]: row for row in self.run.read_samples() if row.get("key") in wanted}
        if self.kind == "reward_model":
            for batch in scoring.batches(self.sample.pairs, self.config.reward_model.batch_size):
                keys = [self.key(pair, self.forms[0]) for pair in batch]
                if not all(key in kept for key in keys):
                    kept = {key: row for key, row in kept.items() if key not in keys}
        # A torn last line goes as well.
        JsonLines(self.run.samples).keep(lambda row: row.get("key") in kept)
        found: dict[str, dict[int, Audited]] = {form: {} for form in self.forms}
        for key, row in kept.items():
            form, pair = wanted[key]
            found[form][pair.index] = from_row(row)
        return found

    def key(self, pair: Pair, form: str) -> str:
        """What a row of this pair answers."""
        if self.kind == "reward_model":
            return scoring.key(self.config.reward_model, pair)
        return self._questions_of(form).key(pair)

    def write_results(self, rows: dict[str, list[Audited]]) -> dict[str, Any]:
        """``eval_results.json`` with its record beside it."""
        found = results(
            rows[self.forms[0]],
            kind=self.kind,
            pairs_in_data=self.sample.rows,
            worst=self.config.audit.worst,
            forms=rows if len(rows) > 1 else None,
        )
        folder = expanded(self.config.output_dir)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / RESULTS, to_json(found, indent=2) + b"\n")
        job = self.attempt.job
        with output_errors(folder):
            write_record(
                folder,
                kind="eval_results",
                step=job.step,
                fingerprint=fingerprint(folder / RESULTS, "eval_results"),
                inputs=[one.model_dump(mode="json") for one in self.attempt.inputs],
                details={"run": self.run.id, "config_fingerprint": job.fingerprint},
            )
        return found

    @cached_property
    def _judge_model(self) -> GenrmModelConfig:
        return self.config.env.required_judge(self.attempt.secrets.get(f"{JUDGE_MODEL}.api_key"))

    @cached_property
    def _questions(self) -> Questions:
        # The judge's client needs aiohttp, which scoring with a reward model does not.
        from nemotron.audit.judging import Questions
        from nemotron.judge.groups import JudgeSettings

        settings = JudgeSettings.of(self.config.env, self.config.judge)
        return Questions(settings, self.config.audit, self._judge_model.model)

    def _questions_of(self, form: str) -> Questions:
        own = self._questions
        return own if form == own.settings.form.verdict else self._others[form]

    @cached_property
    def _others(self) -> dict[str, Questions]:
        own = self._questions
        compared = self.config.audit.compare_verdicts
        return {verdict: own.answered_as(verdict) for verdict in compared if verdict != own.settings.form.verdict}

    def _ask_judge(self, known: dict[str, dict[int, Audited]], bar: PairsBar) -> None:
        from nemotron.audit.judging import judge_pairs
        from nemotron.judge.local import running_judge

        todo = {form: [pair for pair in self.sample.pairs if pair.index not in rows] for form, rows in known.items()}
        if not any(todo.values()):
            return
        place, log = self.attempt.job.place, self.attempt.logs / "judge.log"
        with running_judge(self._judge_model, self.config.judge, place, log_path=log) as judge:
            endpoint = judge.wait(bar.say, bar.say)
            for form, pairs in todo.items():
                if pairs:
                    judge_pairs(judge, endpoint, self._questions_of(form), pairs, self._keeping(form, known[form], bar))

    def _keeping(self, form: str, known: dict[int, Audited], bar: PairsBar) -> Callable[[Audited], None]:
        def done(audited: Audited) -> None:
            self.run.append_samples([to_row(audited, self.key(audited.pair, form))])
            known[audited.pair.index] = audited
            bar.advance(1)

        return done

    def _ask_reward_model(self, known: dict[int, Audited], bar: PairsBar) -> None:
        model = self.config.reward_model
        cut = scoring.batches(self.sample.pairs, model.batch_size)
        todo = [batch for batch in cut if any(pair.index not in known for pair in batch)]
        if not todo:
            return

        def done(batch: list[Audited]) -> None:
            self.run.append_samples([to_row(one, self.key(one.pair, self.forms[0])) for one in batch])
            known.update({one.pair.index: one for one in batch})
            bar.advance(len(batch))

        scoring.score_pairs(model, todo, done)

"""One attempt at a run with NeMo-RL: its folder, its process, what it measures, and whether it did what it should.

The exit code of NeMo-RL proves little: asynchronous GRPO swallows every exception and exits with 0, so does a run whose
data make no step, and so does one whose time is up. A run has succeeded when the process exits with 0 *and* the planned
step was reached *and* its checkpoint is there.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron.checkpoints import owner
from nemotron.checkpoints.store import CheckpointStore
from nemotron.engines.base import Attempt
from nemotron.engines.nemo_rl.config import section_of, uses_gym
from nemotron.engines.nemo_rl.folder import NAME, Prepared, Tree, find_tree, prepare, secret_variables_of
from nemotron.engines.nemo_rl.gym import served_beside
from nemotron.engines.nemo_rl.lines import MetricLines, StepRow, last_words
from nemotron.engines.nemo_rl.version import CURRENT
from nemotron.engines.recorder import RunRecorder, recording
from nemotron.errors import DataError, EngineError, LimitError, NemotronError, OutOfTimeError
from nemotron.gym.protocol import MISSING
from nemotron.judge.announced import Announced, variables
from nemotron.manifest import declaration, find_step
from nemotron.processes import notice
from nemotron.processes.child import Child
from nemotron.reports.report import report_or_warn
from nemotron.runs import health
from nemotron.runs.metrics import by_step
from nemotron.runs.summary import print_summary

LOG = "nemo_rl.log"
_OF_MISSING = re.compile(rf"train/[^/]+/{MISSING}/mean")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a process may say nothing before it counts as hanging."""

    start_s: float = 3600.0
    """Until the first metric: containers, models, servers. A Gym server that does not come up is waited for without
    end by NeMo-RL itself, which keeps on writing to its log."""
    silence_s: float = 7200.0
    """Afterwards: neither a metric nor a word in the log."""
    poll_s: float = 1.0


@dataclass
class Watch:
    """What is known of a process while it works."""

    attempt: Attempt
    config: Any
    store: CheckpointStore
    recorder: RunRecorder
    lines: MetricLines
    log: Path
    total: int
    done: int
    patience: Patience
    judge: Announced | None = None
    """The judge of this job, where it has one on another machine."""
    clock: Callable[[], float] = time.monotonic
    checkpoint: int = 0
    signs: health.Watch = field(init=False)
    _heard: float = field(init=False)
    _log_size: int = field(default=0, init=False)
    _spoke: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._heard = self.clock()
        limits = health.Bounds.of(getattr(self.config, "limits", None))
        self.signs = health.Watch(limits, by_step(self.attempt.run.read_metrics()))

    def follow(self, child: Child) -> int:
        """Stay with the process until it ends; returns its exit code.

        Raises:
            LimitError: a step crossed a limit of ours.
            OutOfTimeError: a scheduler gave notice, and there is a checkpoint to go on from.
            EngineError: it hangs.
            JudgeError: the judge of this job has ended.
        """
        while True:
            ended = child.ended()
            before = self.lines.size
            if self.judge is not None:
                # Before anything else is said: NeMo-RL would end with an answer of the comparison that has no judge.
                self.judge.mind()
            # First: a checkpoint is renamed before its step is told.
            self._look_for_checkpoints()
            for row in self.lines.read():
                self._note(row)
            if ended is not None:
                for row in self.lines.rest():
                    self._note(row)
                self._look_for_checkpoints()
                return ended
            self._notice()
            self._mind_silence(heard=self.lines.size > before)
            time.sleep(self.patience.poll_s)

    def _note(self, row: StepRow) -> None:
        if row.trained:
            self.done = max(self.done, row.step)
            self.recorder.step(row.step, row.metrics)
            self.attempt.run.write_status(phase=None, steps_done=self.done, wall_s=self.recorder.wall_s)
            self._mind_limits(row)
        else:
            self.recorder.write(row.step, row.metrics)

    def _mind_limits(self, row: StepRow) -> None:
        """NeMo-RL has no place for a limit of ours: the step that crosses it is the last one that counts."""
        self._mind_missing(row)
        most = getattr(getattr(self.config, "limits", None), "max_kl", None)
        kl = row.metrics.get("train/kl_penalty")
        if most is not None and kl is not None and kl > most:
            raise LimitError(
                f"stopped after step {row.step}: KL to the reference is {kl:.4g}, above `limits.max_kl` {most:g}",
                hint=f"{self._from()}; lower the learning rate, or raise `loss_fn.reference_policy_kl_penalty`",
            )

        crossed = next((s for s in self.signs.see({"step": row.step, **row.metrics}) if s.limit), None)
        if crossed is not None:
            raise LimitError(
                f"stopped after step {row.step} by `{crossed.limit}`: {crossed.text}",
                hint=f"{self._from()}; {crossed.hint}; or change `{crossed.limit}`",
            )

    def _mind_missing(self, row: StepRow) -> None:
        """What our own servers under NeMo-Gym say of rewards that did not come."""
        most = getattr(getattr(self.config, "limits", None), "max_missing_share", None)
        told = [value for name, value in row.metrics.items() if _OF_MISSING.fullmatch(name)]
        if most is not None and told and max(told) > most:
            raise LimitError(
                f"stopped after step {row.step}: {max(told):.0%} of what the rewards asked for is missing, above "
                f"`limits.max_missing_share` {most:.0%}",
                hint=f"{self._from()}; `failure_reason` in NeMo-RL's `train_data` files has what failed",
            )

    def _look_for_checkpoints(self) -> None:
        steps = self.store.steps()
        if steps and steps[-1] > self.checkpoint:
            self.checkpoint = steps[-1]
            self.attempt.run.sync_rows()
            self.recorder.checkpoint(self.store.folder / f"step_{self.checkpoint}")

    def _notice(self) -> None:
        if notice.given() and self.checkpoint:
            raise OutOfTimeError(
                f"stopped at step {self.done}: the scheduler gave notice, and NeMo-RL saves at its own steps only",
                hint=f"{self._from()}: `nemotron runs resume {self.attempt.run.id}`",
            )

    def _mind_silence(self, *, heard: bool) -> None:
        size = self.log.stat().st_size if self.log.exists() else 0
        now, patience = self.clock(), self.patience
        self._spoke |= heard
        # Before the first metric the log is no sign of life: waiting for a server is written down, too.
        if heard or (self._spoke and size != self._log_size):
            self._heard = now
        self._log_size = size
        allowed = patience.silence_s if self._spoke else patience.start_s
        if now - self._heard > allowed:
            when = f"after step {self.done}" if self._spoke else "before its first step"
            raise EngineError(
                f"NeMo-RL hangs {when}: nothing was measured for {allowed:.0f} s{last_words(self.log)}",
                hint=f"the whole log is `{self.log}`",
            )

    def _from(self) -> str:
        if not self.checkpoint:
            return "there is no checkpoint to go on from"
        return f"the run goes on from `step_{self.checkpoint}`"

    def verdict(self, code: int) -> None:
        """Whether it did what it should.

        Raises:
            OutOfTimeError: the time that the config allows is over; a checkpoint is there.
            EngineError: it did not.
        """
        settings = self.config.checkpointing
        log = f"the whole log is `{self.log}`"
        if code:
            died = (
                f"by signal {-code}" if code < 0 else f"by signal {code - 128}" if code > 128 else f"with code {code}"
            )
            raise EngineError(f"NeMo-RL ended {died} after step {self.done}{last_words(self.log)}", hint=log)
        if self.done < self.total:
            if settings.checkpoint_must_save_by and self.done and self.checkpoint == self.done:
                raise OutOfTimeError(
                    f"stopped after step {self.done}: `checkpointing.checkpoint_must_save_by` leaves no time for "
                    "another step",
                    hint=f"`nemotron runs resume {self.attempt.run.id}` goes on from there",
                )
            raise EngineError(
                f"NeMo-RL ended with code 0 after step {self.done} of {self.total}; asynchronous GRPO hides its errors "
                f"so{last_words(self.log)}",
                hint=log,
            )
        if settings.enabled and self.checkpoint < self.total:
            raise EngineError(
                f"NeMo-RL ended with code 0 after step {self.done}, and `step_{self.total}` is not in "
                f"`{settings.checkpoint_dir}`{last_words(self.log)}",
                hint=log,
            )


def train(attempt: Attempt, *, patience: Patience = Patience()) -> None:
    """Run a training step with NeMo-RL. Raises NemotronError of every kind."""
    run, job = attempt.run, attempt.job
    config: Any = attempt.settings(declaration(find_step(job.step)).config)
    named = secret_variables_of(attempt.secrets, job.secret_variables)
    tree = find_tree(CURRENT.script(section_of(job.config), gym=uses_gym(job.config)), os.environ)
    folder = run.path / NAME
    metrics = folder / f"metrics-{attempt.folder.number}.jsonl"
    run.write_status(phase="writing rows")
    ready = prepare(folder, config, job.config, secrets=named, metrics=metrics)
    total = _planned(config, ready)
    store = _store(attempt, config)
    done = store.steps()[-1] if store.steps() else 0
    attempt.logs.mkdir(parents=True, exist_ok=True)
    log = attempt.logs / LOG
    # Old lines are those of a folder that was copied: this attempt's own have not been written yet.
    metrics.unlink(missing_ok=True)
    with recording(run, total=total, done=done, copies=False) as recorder:
        recorder.phase(f"NeMo-RL: {ready.argv[3]}")
        watch = Watch(
            attempt, config, store, recorder, MetricLines(metrics), log, total, done, patience, checkpoint=done
        )
        if done < total:
            secrets = {variable: attempt.secrets[key] for key, variable in named.items()}
            if served_beside(job.config):
                secrets |= _judge(watch, recorder)
            _work(tree, ready, watch, secrets)
        recorder.phase("report")
        run.write_status(state="finished", phase=None, steps_done=watch.done, wall_s=recorder.wall_s)
        report_or_warn(run)
    print_summary(run)


def _judge(watch: Watch, recorder: RunRecorder) -> dict[str, str]:
    """Wait for the judge of this job; what those who ask it are told."""
    recorder.phase("waiting for the judge")
    watch.judge = Announced.of(os.environ)
    address = watch.judge.wait(watch.config.judge.vllm_ready_s)
    recorder.phase(f"NeMo-RL, with the judge at {address}")
    return variables(os.environ, address)


def _work(tree: Tree, ready: Prepared, watch: Watch, secrets: Mapping[str, str]) -> None:
    hidden = [value for value in secrets.values() if len(value) >= 8]
    child = Child("NeMo-RL driver", hidden=hidden, log_path=watch.log, log_stdout=True)
    words = [sys.executable, "-m", "nemotron.processes.leash"]
    # The interpreter is the one that was found: Ray must not make another with `uv` for it.
    environment = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", **os.environ, **secrets, "PYTHONUNBUFFERED": "1"}
    try:
        # The leash is ours; the interpreter and the folder are NeMo-RL's.
        child.start([*words, tree.python, "-u", *ready.argv], environment, cwd=tree.root)
        try:
            watch.verdict(watch.follow(child))
        except OutOfTimeError:
            raise
        except EngineError:
            if watch.judge is not None:
                watch.judge.blame()
            raise
    except NemotronError as error:
        for value in hidden:
            error.message = error.message.replace(value, "[secret]")
        raise
    except OSError as error:
        raise EngineError(f"NeMo-RL cannot be started with `{tree.python}`: {error.strerror}") from error
    finally:
        child.close(patience_s=0.0)


def _planned(config: Any, ready: Prepared) -> int:
    """Steps of the whole run."""
    steps: int = config.steps(ready.training_rows)
    if steps < 1:
        raise DataError(
            f"{ready.training_rows} training rows make no step of {config.rows_per_step} rows; NeMo-RL would end with "
            "success at once",
            hint="add rows, or take fewer a step",
        )
    return steps


def _store(attempt: Attempt, config: Any) -> CheckpointStore:
    settings, run = config.checkpointing, attempt.run
    folder = Path(settings.checkpoint_dir)
    store = CheckpointStore(folder, settings.keep_top_k, settings.metric_name, settings.higher_is_better)
    owner.claim(folder, owner.Owner(run.id, str(run.path)))
    attempt.closing.callback(owner.release, folder)
    store.recover()
    return store

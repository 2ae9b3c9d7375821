"""The embedded engine's supervised fine-tuning: builds from a compiled job what ``rl/loops/sft.py`` works with."""

from __future__ import annotations

from functools import cached_property

from nemotron.config.schema.sft import SftRunConfig
from nemotron.data.inputs import Role, training_conversations
from nemotron.data.stream import RowStream
from nemotron.engines.base import Attempt
from nemotron.engines.embedded.left_out import RowsLeftOut
from nemotron.engines.embedded.parts import TrainingParts
from nemotron.engines.embedded.prompts import heldout_metric
from nemotron.engines.embedded.session import session
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import DataError
from nemotron.rl.conversations import TokenConversation, Writing, tokenise
from nemotron.rl.left_out import LeftOut
from nemotron.rl.loops.sft import Sft, train
from nemotron.rl.policy import Policy
from nemotron.rl.saving import POLICY, Progress
from nemotron.rl.threads import ThreadPlan


def run_sft(attempt: Attempt, config: SftRunConfig, threads: ThreadPlan) -> None:
    """Run the job of ``attempt`` from where it stands to its end: loop, held-out metric, report, summary.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    parts = SftParts(attempt, config)
    parts.prove_optimizer()
    with session(
        attempt,
        threads,
        seed=config.course.seed,
        total=config.steps(len(parts.training[0])),
        done=parts.progress_on_disk,
    ) as work:
        recorder = work.recorder
        recorder.phase("reading conversations")
        sets = {"train": parts.training, "validation": parts.validation}
        parts.left_out.report(attempt.run, sets, recorder if work.first else None)
        recorder.phase("loading policy")
        policy, _ = parts.load_models(reference=False)
        heldout = heldout_metric(parts, config.eval.heldout, config.sft.seed)
        work.before((lambda: heldout.measure(parts.untrained(policy))) if heldout else None)
        setup = parts.sft(policy, recorder)
        progress = setup.saver.load(parts.checkpoint) if parts.checkpoint else Progress()
        recorder.phase("training")
        progress = train(setup, progress)
        work.after(progress.step, (lambda: heldout.measure(policy)) if heldout else None)


class SftParts(TrainingParts[SftRunConfig]):
    """The parts of supervised fine-tuning."""

    @cached_property
    def training(self) -> tuple[list[TokenConversation], list[LeftOut]]:
        """Training conversations, and those that are left out.

        Raises:
            DataError: rows are missing or broken, fewer than a batch are left, or too many are left out.
        """
        sides = self._tokenise("train")
        self.left_out.check(sides, self.config.limits.max_rejected_share)
        return sides

    @cached_property
    def validation(self) -> tuple[list[TokenConversation], list[LeftOut]]:
        """The same to validate on, as many as one validation uses; several data sets are one, as in NeMo-RL.

        Raises:
            DataError: rows are missing or broken, or none can be used.
        """
        if not self.config.validates or not self.config.data.validation_sets():
            return [], []
        rows, refused = self._tokenise("validation")
        if not rows:
            raise DataError(
                f"no validation conversation can be used: they {self.left_out.why(refused)}"
                if refused
                else "there is no validation conversation",
                hint="raise `policy.max_total_sequence_length` and `data.max_input_seq_length`, or take other rows",
            )
        return rows[: self.config.validation_rows], refused

    @property
    def left_out(self) -> RowsLeftOut:
        """How conversations that cannot be used are spoken of."""
        rewritten = "an answer that the chat template writes otherwise once others follow"
        return RowsLeftOut("conversations", self.config.longest_row, rewritten)

    def sft(self, policy: Policy, recorder: RunRecorder) -> Sft:
        """Everything the loop needs."""
        config = self.config
        stream = RowStream(
            self.training[0],
            batch_size=config.policy.train_global_batch_size,
            seed=config.sft.seed,
            shuffle=config.data.shuffle,
            kind="conversations",
            batch_key="policy.train_global_batch_size",
        )
        optimization = self.optimization(policy.parameters())
        return Sft(
            config=config.sft,
            global_batch_size=config.policy.train_global_batch_size,
            micro_batch_size=config.policy.train_micro_batch_size,
            save_period=self.save_period,
            policy=policy,
            optimization=optimization,
            stream=stream,
            validation=self.validation[0],
            saver=self.saver({POLICY: self.trained(policy, optimization)}, stream),
            recorder=recorder,
            deadline=self.deadline,
        )

    def _tokenise(self, role: Role) -> tuple[list[TokenConversation], list[LeftOut]]:
        data = self.config.data
        writing = Writing(
            self.chat,
            add_bos=data.add_bos is not False,
            add_eos=data.add_eos is not False,
            generation_prompt=bool(data.add_generation_prompt),
            only_last=self.config.sft.only_unmask_final,
        )
        return tokenise(training_conversations(data, role), writing, limit=self.config.longest_row)

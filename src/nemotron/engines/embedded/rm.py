"""Reward models on the embedded engine: builds from a compiled job what ``rl/loops/reward_model.py`` works with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar

from nemotron.config.schema.data import DataConfig
from nemotron.config.schema.rm import RmRunConfig
from nemotron.data.inputs import Role, heldout_paths, token_split, training_pairs
from nemotron.data.rows import PairRow, read_pairs
from nemotron.data.stream import RowStream
from nemotron.disk.atomic import write_atomic
from nemotron.engines.base import Attempt
from nemotron.engines.embedded.parts import TrainingParts, precision
from nemotron.engines.embedded.session import session
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import DataError
from nemotron.rl.chat import Chat
from nemotron.rl.evaluate import HeldOut
from nemotron.rl.loops.reward_model import RewardTraining, score_pairs, train
from nemotron.rl.lora import ADAPTER, add_scalar_adapters, read_adapter
from nemotron.rl.optim import Optimization
from nemotron.rl.reward_pairs import Kept, RewardPair, from_rows, from_tokens
from nemotron.rl.saving import HF, POLICY, WEIGHTS, Progress, of_own_checkpoint
from nemotron.rl.scalar_model import ScalarModel, padding_token
from nemotron.rl.threads import ThreadPlan
from nemotron.rl.tokenized import TokenizedDataset


def run_reward_model(attempt: Attempt, config: RmRunConfig, threads: ThreadPlan) -> None:
    """Run the job of ``attempt`` from where it stands to its end: loop, held-out accuracy, report, summary.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    parts = Parts(attempt, config)
    parts.prove_optimizer()
    stream = parts.stream()
    heldout = parts.heldout_pairs()
    with session(
        attempt, threads, seed=config.course.seed, total=config.steps(len(stream.rows)), done=parts.progress_on_disk
    ) as work:
        recorder = work.recorder
        recorder.phase("loading policy")
        model = parts.model()
        if work.first:
            parts.report_rejects()
            recorder.write(0, parts.data_metrics())
        measure = (lambda: compare(model, heldout, parts.chat)) if heldout else None
        work.before(measure if work.first else None)
        optimization = parts.optimization(model.parameters())
        setup = parts.training(model, optimization, stream, recorder)
        progress = setup.saver.load(parts.checkpoint) if parts.checkpoint else Progress()
        recorder.phase("training")
        progress = train(setup, progress)
        work.after(progress.step, measure)


_TOO_LONG_HINT = "raise `policy.max_total_sequence_length` and `data.max_input_seq_length`, or drop those rows"
_REWRITTEN = "have a prompt that the chat template writes otherwise once an answer follows"
REJECTS = "rejected_pairs.jsonl"
HELDOUT_BATCH = 64
"""Held-out pairs scored at a time."""


def compare(model: ScalarModel, pairs: list[RewardPair], chat: Chat) -> HeldOut:
    """Share of pairs whose chosen answer has the higher score (a tie is wrong), and a record a pair."""
    scores = score_pairs(model, pairs, HELDOUT_BATCH)
    rows = []
    for pair, chosen, rejected in zip(pairs, scores[::2].tolist(), scores[1::2].tolist(), strict=True):
        prompt, better, worse = pair.texts(chat)
        rows.append(
            {
                "row_id": pair.id,
                "prompt": prompt,
                "response": better,
                "rejected": worse,
                "reward": chosen,
                "rejected_reward": rejected,
                "accuracy": chosen > rejected,
            }
        )
    return HeldOut({"accuracy": sum(bool(row["accuracy"]) for row in rows) / len(rows)}, rows)


@dataclass(frozen=True)
class Parts(TrainingParts[RmRunConfig]):
    """The parts of reward model training."""

    samples: ClassVar[bool] = False

    @cached_property
    def chat(self) -> Chat:
        """Tokenizer and chat template of the policy, with a padding token that can stand behind a score."""
        chat = super().chat
        chat.tokenizer.pad_token = padding_token(chat.tokenizer)
        return chat

    def model(self) -> ScalarModel:
        """The reward model of the newest checkpoint, or the policy with a fresh head. Raises ArtifactError."""
        number = precision(self.config.policy.precision)
        if self.lora is not None:
            fresh = ScalarModel.from_policy(self.load_start(), seed=self.config.rm.seed)
            model = add_scalar_adapters(fresh, self.lora, seed=self.adapter_seed)
            if self.checkpoint is not None:
                with of_own_checkpoint(self.checkpoint):
                    read_adapter(model, self.checkpoint / ADAPTER)
        elif self.checkpoint is not None:
            with of_own_checkpoint(self.checkpoint):
                model = ScalarModel.load(self.checkpoint / POLICY / WEIGHTS / HF, precision=number)
        else:
            model = ScalarModel.from_policy(self.load_start(), seed=self.config.rm.seed)
        model.recompute = self.config.policy.activation_checkpointing
        model.model.config.pad_token_id = self.chat.tokenizer.pad_token_id
        return model

    @cached_property
    def train_pairs(self) -> Kept:
        """The training pairs. Raises DataError when a row is no pair, or none is left."""
        return self._pairs(self.config.data, "train")

    def stream(self) -> RowStream[RewardPair]:
        """The training pairs in their order. Raises DataError when rows are missing, broken or too few."""
        kept = self.train_pairs
        size = self.config.policy.train_global_batch_size
        everything = len(kept.pairs) + kept.rejected
        if kept.rejected > self.config.limits.max_rejected_share * everything or len(kept.pairs) < size <= everything:
            raise DataError(
                f"{kept.rejected} of {everything} training pairs cannot be used: {len(kept.too_long)} have more than "
                f"{self.config.longest_row} tokens, {len(kept.same)} have two equal answers"
                + (f", {len(kept.rewritten)} {_REWRITTEN}" if kept.rewritten else ""),
                hint=f"{_TOO_LONG_HINT}, or raise `limits.max_rejected_share`",
            )
        return RowStream(
            kept.pairs,
            size,
            self.config.rm.seed,
            self.config.data.shuffle,
            kind="pairs",
            batch_key="policy.train_global_batch_size",
        )

    def report_rejects(self) -> None:
        """Name every training pair that is left out in the run folder."""
        kept = self.train_pairs
        reasons = {"too-long": kept.too_long, "template-rewrites-prompt": kept.rewritten, "same-answers": kept.same}
        rows = [json.dumps({"id": name, "reason": reason}) + "\n" for reason, ids in reasons.items() for name in ids]
        if rows:
            write_atomic(self.attempt.run.path / REJECTS, "".join(rows).encode())

    def data_metrics(self) -> dict[str, float]:
        """How many training pairs there are, and how many were left out."""
        kept = self.train_pairs
        return {
            "data/pairs": float(len(kept.pairs)),
            "data/rejected_pairs": float(kept.rejected),
        }

    def training(
        self, model: ScalarModel, optimization: Optimization, stream: RowStream[RewardPair], recorder: RunRecorder
    ) -> RewardTraining:
        """Everything the loop needs."""
        config, measured = self.config, self.config.bradley_terry.statistics_pairs
        return RewardTraining(
            config=config.rm,
            centring=config.bradley_terry.center_rewards_coefficient,
            global_batch_size=config.policy.train_global_batch_size,
            micro_batch_size=config.policy.train_micro_batch_size,
            save_period=self.save_period,
            model=model,
            optimization=optimization,
            chat=self.chat,
            stream=stream,
            validation=dict(self._validation()),
            statistics=stream.rows if measured is None else stream.rows[:measured],
            saver=self.saver({POLICY: self.trained(model, optimization, layout="hf")}, stream),
            recorder=recorder,
            deadline=self.deadline,
        )

    def heldout_pairs(self) -> list[RewardPair]:
        """The first `eval.heldout.max_samples` held-out pairs that are not too long; none when none are asked for."""
        heldout, data = self.config.eval.heldout, self.config.data
        if heldout is None:
            return []
        if heldout.split and data.use_tokens:
            kept = self._token_shards(heldout.split)
        else:
            kept = self._tokens(chain.from_iterable(map(read_pairs, heldout_paths(data, heldout, verify=True))))
        if not kept.pairs:
            raise DataError("no held-out pair can be used", hint=_TOO_LONG_HINT)
        return kept.pairs[: heldout.max_samples]

    def _validation(self) -> Iterator[tuple[str, list[RewardPair]]]:
        data, most = self.config.data, self.config.validation_rows
        if not self.config.validates:
            return
        for name, entry in data.named_validation_sets().items():
            pairs = self._pairs(data.model_copy(update={"validation": entry}), "validation").pairs
            if not pairs:
                raise DataError(f"no pair of the validation data `{name}` can be used", hint=_TOO_LONG_HINT)
            yield name, pairs[:most]

    def _pairs(self, data: DataConfig, role: Role) -> Kept:
        if data.use_tokens:
            return self._token_shards(role)
        return self._tokens(training_pairs(data, role))

    def _token_shards(self, split: str) -> Kept:
        return from_tokens(
            TokenizedDataset(*token_split(self.config.data, split)), split, limit=self.config.longest_row
        )

    def _tokens(self, rows: Iterable[PairRow]) -> Kept:
        data = self.config.data
        return from_rows(
            rows,
            self.chat,
            limit=self.config.longest_row,
            margin_key=self.config.bradley_terry.margin_key,
            add_bos=data.add_bos is not False,
            add_eos=data.add_eos is not False,
        )

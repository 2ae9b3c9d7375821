"""The embedded engine's DPO: builds from a compiled job what ``rl/loops/dpo.py`` works with, and runs it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache as cache_result
from functools import cached_property

from nemotron.config.schema.dpo import DpoRunConfig
from nemotron.data.inputs import pair_keys, training_pairs
from nemotron.data.rows import PairRow, read_pairs
from nemotron.data.stream import RowStream
from nemotron.disk.home import expanded
from nemotron.engines.base import Attempt
from nemotron.engines.embedded.left_out import RowsLeftOut
from nemotron.engines.embedded.parts import TrainingParts
from nemotron.engines.embedded.prompts import heldout_metric
from nemotron.engines.embedded.session import session
from nemotron.engines.recorder import RunRecorder
from nemotron.rl.left_out import LeftOut
from nemotron.rl.loops.dpo import Dpo, train
from nemotron.rl.pairs import TokenPair, tokenise
from nemotron.rl.policy import Policy
from nemotron.rl.reference_cache import ReferenceCache
from nemotron.rl.saving import POLICY, Progress
from nemotron.rl.threads import ThreadPlan


def run_dpo(attempt: Attempt, config: DpoRunConfig, threads: ThreadPlan) -> None:
    """Run the job of ``attempt`` from where it stands to its end: loop, held-out metric, report, summary.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    parts = DpoParts(attempt, config)
    parts.prove_optimizer()
    with session(
        attempt,
        threads,
        seed=config.course.seed,
        total=config.steps(len(parts.training[0])),
        done=parts.progress_on_disk,
    ) as work:
        recorder = work.recorder
        recorder.phase("reading pairs")
        sets = {"train": parts.training, **parts.validation}
        parts.left_out.report(attempt.run, sets, recorder if work.first else None)
        recorder.phase("loading policy")
        policy, _ = parts.load_models(reference=False)
        heldout = heldout_metric(parts, config.eval.heldout, config.dpo.seed)
        work.before((lambda: heldout.measure(parts.untrained(policy))) if heldout else None)
        setup = parts.dpo(policy, recorder)
        progress = setup.saver.load(parts.checkpoint) if parts.checkpoint else Progress()
        recorder.phase("training")
        progress = train(setup, progress)
        work.after(progress.step, (lambda: heldout.measure(policy)) if heldout else None)


class DpoParts(TrainingParts[DpoRunConfig]):
    """The parts of DPO."""

    @cached_property
    def training(self) -> tuple[list[TokenPair], list[LeftOut]]:
        """Training pairs, and those that are left out.

        Raises:
            DataError: rows are missing or broken, fewer than a batch are left, or too many are left out.
        """
        sides = self._tokenise(training_pairs(self.config.data, "train"))
        self.left_out.check(sides, self.config.limits.max_rejected_share)
        return sides

    @cached_property
    def validation(self) -> dict[str, tuple[list[TokenPair], list[LeftOut]]]:
        """The same of every validation set, as many pairs as one validation uses, by the name of the set."""
        if not self.config.validates:
            return {}
        most = self.config.validation_rows
        found = {}
        for name, rows in self._validation_rows().items():
            pairs, refused = self._tokenise(rows)
            found[name] = pairs[:most], refused
        return {name: sides for name, sides in found.items() if sides[0]}

    @property
    def left_out(self) -> RowsLeftOut:
        """How pairs that cannot be used are spoken of."""
        rewritten = "a prompt that the chat template writes otherwise once an answer follows"
        return RowsLeftOut("pairs", self.config.longest_row, rewritten)

    def dpo(self, policy: Policy, recorder: RunRecorder) -> Dpo:
        """Everything the loop needs; computes the reference log-probs that are not on disk yet."""
        config = self.config
        cache = ReferenceCache(
            folder=self.attempt.run.path / "cache",
            weights=self._weights_of_reference(),
            load=cache_result(lambda: self.untrained(policy)),
            batch_size=config.policy.logprob_rows,
            report=recorder.phase,
        )
        stream = self._stream(self._with_reference(cache))
        validation = {name: cache.fill(f"validation-{name}", pairs) for name, (pairs, _) in self.validation.items()}
        optimization = self.optimization(policy.parameters())
        return Dpo(
            config=config.dpo,
            global_batch_size=config.policy.train_global_batch_size,
            micro_batch_size=config.policy.train_micro_batch_size,
            save_period=self.save_period,
            policy=policy,
            optimization=optimization,
            stream=stream,
            validation=validation,
            saver=self.saver({POLICY: self.trained(policy, optimization)}, stream),
            recorder=recorder,
            deadline=self.deadline,
        )

    def _stream(self, pairs: Sequence[TokenPair]) -> RowStream[TokenPair]:
        return RowStream(
            pairs,
            batch_size=self.config.policy.train_global_batch_size,
            seed=self.config.dpo.seed,
            shuffle=self.config.data.shuffle,
            kind="pairs",
            batch_key="policy.train_global_batch_size",
        )

    def _with_reference(self, cache: ReferenceCache) -> list[TokenPair]:
        """The training pairs; those that a short run never reaches stay without reference.

        They are computed in the order of the first pass. What shares a batch changes the last bits, so a run that is
        extended later must have computed its first pairs in the batches of a run that was longer from the start.
        """
        pairs = list(self.training[0])
        reached = self.config.dpo.max_num_steps * self.config.policy.train_global_batch_size
        places = {id(pair): place for place, pair in enumerate(pairs)}
        order = [places[id(pair)] for pair in self._stream(pairs).upcoming(len(pairs))]
        wanted = order[: cache.in_whole_batches(reached)]
        for place, pair in zip(wanted, cache.fill("train", [pairs[i] for i in wanted]), strict=True):
            pairs[place] = pair
        return pairs

    def _weights_of_reference(self) -> str:
        """Content hashes of what the reference is loaded from, or its name on the hub; and the arithmetic."""
        policy = self.config.policy
        known = {entry["key"]: entry["fingerprint"] for entry in self.provenance.inputs}
        keys = ("policy.model_name", "policy.pretrained_checkpoint.path")
        return json.dumps([policy.model_name, policy.precision, *(known.get(key) for key in keys)])

    def _validation_rows(self) -> dict[str, Iterable[PairRow]]:
        data, sets = self.config.data, self.config.data.named_validation_sets()
        if len(sets) < 2:
            return {name: training_pairs(data, "validation") for name in sets}
        return {
            name: read_pairs(expanded(entry.data_path), pair_keys(entry))
            for name, entry in sets.items()
            if entry.data_path
        }

    def _tokenise(self, rows: Iterable[PairRow]) -> tuple[list[TokenPair], list[LeftOut]]:
        data = self.config.data
        bos, eos = data.add_bos is not False, data.add_eos is not False
        return tokenise(rows, self.chat, limit=self.config.longest_row, add_bos=bos, add_eos=eos)

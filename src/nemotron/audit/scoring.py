"""Scores labelled pairs with a reward model. torch is imported when it is asked to work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nemotron.audit.records import Audited, Pair, digest
from nemotron.config.schema.reward_audit import AuditedRewardModel
from nemotron.data.rows import PairRow
from nemotron.disk.home import expanded

if TYPE_CHECKING:
    from nemotron.contracts.samples import Group
    from nemotron.rl.chat import Chat

DoneBatch = Callable[[list[Audited]], None]


def key(model: AuditedRewardModel, pair: Pair) -> str:
    """Says what a pair's rewards depend on; batches are cut alike in every attempt, so their size is part of it."""
    return digest({"pair": [pair.content, pair.index], "model": model.model_dump(mode="json")})


def batches(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """The sample in batches. A resumed run scores whole batches, as rounding depends on what shares one."""
    return [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]


def score_pairs(model: AuditedRewardModel, todo: Sequence[Sequence[Pair]], done: DoneBatch) -> None:
    """Reward of both answers of every pair; ``done`` gets each batch.

    A pair beyond the model's positions has none, nor has one whose prompt the template writes otherwise once an answer
    follows.

    Raises:
        ArtifactError: the model or its tokenizer cannot be loaded. DataError: the chat template refuses a row.
    """
    import torch

    from nemotron.rl.chat import Chat
    from nemotron.rl.scalar_model import ScalarModel

    folder = expanded(str(model.path))
    name = str(folder)
    scorer = ScalarModel.load(name, precision=model.precision)
    chat = Chat.load(name, "default", None, model=folder)
    chat.check_rows(scorer.model.get_input_embeddings().weight.shape[0], name)
    for batch in todo:
        groups = [_group(pair, chat) for pair in batch]
        longest = scorer.max_length or math.inf
        fits = [
            group is not None
            and len(group.prompt_ids) + max(len(answer.token_ids) for answer in group.completions) <= longest
            for group in groups
        ]
        kept = [group for group, fitting in zip(groups, fits, strict=True) if fitting and group is not None]
        with torch.no_grad():
            scores = iter(scorer.sequence_scores(kept).tolist() if kept else [])
        done(
            [
                _audited(pair, next(scores), next(scores)) if fit else Audited(pair, None, None)
                for pair, fit in zip(batch, fits, strict=True)
            ]
        )


def _group(pair: Pair, chat: Chat) -> Group | None:
    from nemotron.rl.left_out import RewrittenError
    from nemotron.rl.pairs import pair_group

    try:
        return pair_group(PairRow(pair.row_id, pair.messages, pair.chosen, pair.rejected, {}), chat)
    except RewrittenError:
        return None


def _audited(pair: Pair, chosen: float, rejected: float) -> Audited:
    """A reward that is no number is missing, never a score."""
    return Audited(pair, chosen if math.isfinite(chosen) else None, rejected if math.isfinite(rejected) else None)

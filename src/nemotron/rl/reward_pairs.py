"""Preference pairs as a reward model sees them: one prompt, two answers, as tokens, from text or from prepared shards.

A pair that is longer than the limit is left out and counted. NeMo-RL cuts such a pair and masks it, so it costs time
and teaches nothing; cut answers would teach the wrong thing.

What both rows begin with counts as prompt, the same first words of two answers included: it is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemotron.contracts.samples import Completion, Group
from nemotron.data.rows import PairRow
from nemotron.errors import DataError
from nemotron.rl.chat import Chat
from nemotron.rl.left_out import RewrittenError
from nemotron.rl.pairs import pair_group
from nemotron.rl.tokenized import TokenizedDataset


@dataclass(frozen=True, slots=True)
class RewardPair:
    """A pair ready for training."""

    id: str
    """``file name:line``, or ``split:row`` of a tokenised data set."""
    group: Group
    """What both rows begin with, and two completions: chosen, rejected."""
    margin: float = 0.0
    """By how much the chosen answer should lead at least."""
    source: PairRow | None = None
    """The row as read, where it was text."""

    def texts(self, chat: Chat) -> tuple[str, str, str]:
        """Last turn of the prompt, chosen and rejected answer, for people."""
        if self.source is not None:
            return self.source.messages[-1]["content"], self.source.chosen, self.source.rejected
        chosen, rejected = (chat.decode(answer.token_ids) for answer in self.group.completions)
        return chat.decode(self.group.prompt_ids), chosen, rejected

    @property
    def row_lengths(self) -> list[int]:
        """Tokens of both rows, the prompt included."""
        prompt = len(self.group.prompt_ids)
        return [prompt + len(answer.token_ids) for answer in self.group.completions]


@dataclass(slots=True)
class Kept:
    """The pairs of a data set that can be used, and how many cannot."""

    pairs: list[RewardPair] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    """Ids of pairs with more tokens than the limit, and of rows that were cut when the data were prepared."""
    rewritten: list[str] = field(default_factory=list)
    """Ids of pairs whose prompt the chat template writes otherwise once an answer follows."""
    same: list[str] = field(default_factory=list)
    """Ids of pairs whose two answers are the same tokens: they have no gradient."""

    @property
    def rejected(self) -> int:
        """Pairs that were left out."""
        return len(self.too_long) + len(self.rewritten) + len(self.same)

    def extend(self, other: Kept) -> Kept:
        """Add those of another data set; returns itself."""
        self.pairs += other.pairs
        self.too_long += other.too_long
        self.rewritten += other.rewritten
        self.same += other.same
        return self

    def add(self, pair: RewardPair, limit: int) -> None:
        """Sort a pair in."""
        chosen, rejected = (answer.token_ids for answer in pair.group.completions)
        if max(pair.row_lengths) > limit:
            self.too_long.append(pair.id)
        elif chosen == rejected:
            self.same.append(pair.id)
        else:
            self.pairs.append(pair)


def from_rows(
    rows: Iterable[PairRow],
    chat: Chat,
    *,
    limit: int,
    margin_key: str | None = None,
    add_bos: bool = True,
    add_eos: bool = True,
) -> Kept:
    """Pairs of text rows, tokenised as NeMo-RL's preference data is.

    Args:
        limit: tokens of the prompt and the longer answer at most.
        margin_key: field of a row with its margin.

    Raises:
        DataError: the chat template refuses a row, or a row has no number under ``margin_key``.
    """
    kept = Kept()
    for row in rows:
        try:
            group = pair_group(row, chat, add_bos=add_bos, add_eos=add_eos)
        except RewrittenError:
            kept.rewritten.append(row.id)
            continue
        sides = [group.prompt_ids + answer.token_ids for answer in group.completions]
        kept.add(RewardPair(row.id, _shared(sides, row.id), _margin(row, margin_key), row), limit)
    return kept


def from_tokens(dataset: TokenizedDataset, name: str, *, limit: int) -> Kept:
    """Pairs of a tokenised split; ``name`` is that of the split.

    Raises:
        DataError: the rows are prompts, not pairs, or two answers have no common prompt.
    """
    kept = Kept()
    for index in range(len(dataset)):
        item = dataset[index]
        if "chosen_input_ids" not in item:
            raise DataError(
                f"the split `{name}` holds prompts, a reward model learns from pairs",
                hint="prepare rows with `prompt`, `chosen` and `rejected`",
            )
        sides = [item[f"{side}_input_ids"][: int(item[f"{side}_length"])].tolist() for side in ("chosen", "rejected")]
        pair = RewardPair(f"{name}:{index}", _shared(sides, f"{name}:{index}"))
        if float(item["loss_multiplier"]) == 0.0:
            kept.too_long.append(pair.id)
        else:
            kept.add(pair, limit)
    return kept


def groups_of(pairs: Sequence[RewardPair]) -> list[Group]:
    """The token groups of pairs."""
    return [pair.group for pair in pairs]


def _shared(sides: Sequence[list[int]], name: str) -> Group:
    """Two rows as what they begin with and what follows, at least a token each: a score needs one to stand on."""
    chosen, rejected = sides
    shortest = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if shared < 1:
        raise DataError(
            f"the two answers of pair {name} do not begin with the same prompt",
            hint="a pair is two answers to one prompt",
        )
    return Group(chosen[:shared], [Completion(ids[shared:], [], truncated=False) for ids in sides])


def _margin(row: PairRow, key: str | None) -> float:
    if key is None:
        return 0.0
    value: Any = row.fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"pair {row.id} has no number under `{key}`",
            hint="give every row its margin, or set `bradley_terry.margin_key=null`",
        )
    return float(value)

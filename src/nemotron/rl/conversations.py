"""Conversations as tokens: what is learned of them, and what stands before it.

A conversation is rendered once, as a whole, and cut where its turns end, so what is trained on is the text that the
chat template writes. Every piece is tokenised by itself, as NeMo-RL does it. A turn that is learned begins with the
header of the assistant (with ``data.add_generation_prompt`` behind it, where sampling begins) and ends with its
end-of-turn token; line breaks that a template writes behind that token are nobody's answer.

A conversation of which the template writes a learned turn otherwise once others follow (Qwen3's drops earlier thoughts)
is left out: it holds two texts for one turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.contracts.samples import Completion, Group
from nemotron.data.conversations import ConversationRow
from nemotron.errors import DataError
from nemotron.rl.chat import Chat
from nemotron.rl.left_out import LeftOut, RewrittenError, sort_rows


@dataclass(frozen=True, slots=True)
class TokenConversation:
    """A conversation ready for training."""

    source: ConversationRow
    group: Group
    """What stands before the first learned token, and one completion: all tokens from there on."""
    learned: tuple[bool, ...]
    """Whether the loss counts each token of the completion."""

    @property
    def length(self) -> int:
        """Tokens of the whole conversation."""
        return len(self.group.prompt_ids) + len(self.learned)


@dataclass(frozen=True, slots=True)
class Writing:
    """How conversations become tokens."""

    chat: Chat
    add_bos: bool = True
    add_eos: bool = True
    generation_prompt: bool = False
    """The header of an answer belongs to what stands before it."""
    only_last: bool = False
    """Only the last answer is learned."""


def tokenise(
    rows: Iterable[ConversationRow], writing: Writing, *, limit: int
) -> tuple[list[TokenConversation], list[LeftOut]]:
    """The conversations that can be used within ``limit`` tokens, and those that cannot: never cut, always counted.

    Raises:
        DataError: the chat template refuses a row.
    """
    return sort_rows(rows, lambda row: token_conversation(row, writing), limit)


def token_conversation(row: ConversationRow, writing: Writing) -> TokenConversation:
    """``row`` as tokens. Source of the cut into turns: NeMo-RL v0.7.0, ``get_formatted_message_log``.

    Raises:
        RewrittenError: the chat template writes a learned turn otherwise once others follow.
        DataError: the chat template refuses the row, or nothing stands before the first answer.
    """
    tokenizer = writing.chat.tokenizer
    ids: list[int] = []
    learned: list[bool] = []
    pieces = _pieces(row, writing)
    for number, (piece, counts) in enumerate(pieces):
        if number == 0 and writing.add_bos and tokenizer.bos_token and not piece.startswith(tokenizer.bos_token):
            piece = tokenizer.bos_token + piece
        if number == len(pieces) - 1 and writing.add_eos and not piece.endswith(writing.chat.end):
            piece += writing.chat.end
        tokens = tokenizer.encode(piece, add_special_tokens=False)
        ids += tokens
        learned += [counts] * len(tokens)
    start = learned.index(True) if True in learned else 0
    if start == 0:
        raise DataError(
            f"the chat template writes nothing before the first answer of {row.id}",
            hint="set `data.add_bos=true`, or a template that writes the turns of others",
        )
    answer = Completion(ids[start:], [], truncated=False)
    return TokenConversation(row, Group(ids[:start], [answer]), tuple(learned[start:]))


def _pieces(row: ConversationRow, writing: Writing) -> list[tuple[str, bool]]:
    """The rendered conversation in pieces, each with whether it is learned; the last one is."""
    whole = writing.chat.render(row.messages, f"conversation {row.id}")
    last = len(row.messages) - 1
    wanted = {last} if writing.only_last else set(row.answers)
    pieces: list[tuple[str, bool]] = []
    at = 0
    for number in range(len(row.messages)):
        end = len(whole) if number == last else _end_of(row, writing, number, whole, wanted)
        if end is None or end < at:
            continue  # written otherwise there: it stays with the turn that follows
        if number in wanted:
            text = whole[at:end].rstrip("\n")
            header = _header(row, writing, number, whole, at)
            pieces += [(whole[at : at + header], False)] if header else []
            pieces.append((text[header:], True))
            at += len(text)
        else:
            pieces.append((whole[at:end], False))
            at = end
    return [piece for piece in pieces if piece[0]]


def _end_of(row: ConversationRow, writing: Writing, number: int, whole: str, wanted: set[int]) -> int | None:
    """Where turn ``number`` ends in the whole text; None: the template writes it otherwise there."""
    text = writing.chat.render(row.messages[: number + 1], f"conversation {row.id}")
    if whole.startswith(text):
        return len(text)
    if number in wanted or number + 1 in wanted:
        raise RewrittenError(
            f"the chat template writes turn {number + 1} of {row.id} otherwise once others follow",
            hint="set `sft.only_unmask_final=true`, or `policy.tokenizer.chat_template`",
        )
    return None


def _header(row: ConversationRow, writing: Writing, number: int, whole: str, at: int) -> int:
    """Characters behind ``at`` that a sampler is given, not asked for."""
    if not writing.generation_prompt:
        return 0
    prompt = writing.chat.render(row.messages[:number], f"conversation {row.id}", generation_prompt=True)
    if not whole.startswith(prompt):
        raise RewrittenError(
            f"what the chat template writes before the answer in turn {number + 1} of {row.id} is not what it writes "
            "for sampling there",
            hint="set `data.add_generation_prompt=false`",
        )
    return max(len(prompt) - at, 0)


def learned_mask(conversations: Sequence[TokenConversation], width: int) -> Tensor:
    """[N,width+1] 1.0 on the learned tokens; column 0 stands for the last token before them, as losses want it."""
    mask = torch.zeros(len(conversations), width + 1)
    for row, conversation in enumerate(conversations):
        mask[row, 1 : 1 + len(conversation.learned)] = torch.tensor(conversation.learned, dtype=torch.float32)
    return mask

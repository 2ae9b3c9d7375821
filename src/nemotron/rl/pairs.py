"""Preference pairs as tokens: one prompt, two answers, tokenised as NeMo-RL's preference data is.

Every message is the text by which it makes the rendered conversation longer, tokenised by itself. So the header of the
assistant belongs to the answer (no generation prompt is added), and the answer ends with the end-of-sequence token.
Only the last answer is trained on; earlier turns of the assistant are prompt, written as the template writes them
once others follow (Qwen3's, for one, drops their thoughts). So prompt and answer together are always the whole
conversation as the template renders it. A pair whose prompt the template writes otherwise before an answer than with it
is left out: what is sampled from there and what would be trained on are two conversations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.contracts.samples import Completion, Group
from nemotron.data.rows import PairRow
from nemotron.rl.chat import Chat
from nemotron.rl.left_out import LeftOut, RewrittenError, sort_rows


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A pair ready for training."""

    source: PairRow
    group: Group
    """The prompt with two completions: chosen, rejected."""
    reference: tuple[Tensor, Tensor] | None = None
    """Log-probabilities of both answers under the reference, each [its length]; ``None`` before they are computed."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return len(self.group.prompt_ids) + max(len(answer.token_ids) for answer in self.group.completions)


def tokenise(
    rows: Iterable[PairRow], chat: Chat, *, limit: int, add_bos: bool = True, add_eos: bool = True
) -> tuple[list[TokenPair], list[LeftOut]]:
    """The pairs that can be used within ``limit`` tokens, and those that cannot: never cut or spliced, always counted.

    Raises:
        DataError: the chat template refuses a row.
    """
    return sort_rows(rows, lambda row: TokenPair(row, pair_group(row, chat, add_bos=add_bos, add_eos=add_eos)), limit)


def pair_group(row: PairRow, chat: Chat, *, add_bos: bool = True, add_eos: bool = True) -> Group:
    """Prompt and answers of ``row`` as tokens. Source: NeMo-RL v0.7.0, ``get_formatted_message_log``.

    Raises:
        RewrittenError: the chat template writes the prompt otherwise once an answer follows.
        DataError: the chat template refuses the row.
    """
    tokenizer, name = chat.tokenizer, f"pair {row.id}"
    prompt = chat.render(row.messages, name)
    prompt_ids: list[int] = []
    for number, piece in enumerate(_turns(chat, row, prompt)):
        if number == 0 and add_bos and tokenizer.bos_token and not piece.startswith(tokenizer.bos_token):
            piece = tokenizer.bos_token + piece
        prompt_ids += tokenizer.encode(piece, add_special_tokens=False)
    answers = []
    for answer in (row.chosen, row.rejected):
        text = chat.render([*row.messages, {"role": "assistant", "content": answer}], name)
        if not text.startswith(prompt):
            raise RewrittenError(
                f"the chat template writes the prompt of {name} otherwise once an answer follows",
                hint="drop the row, or set `policy.tokenizer.chat_template`",
            )
        # Some templates end a turn with a line break behind the end-of-sequence token.
        piece = text[len(prompt) :].rstrip("\n")
        if add_eos and not piece.endswith(chat.end):
            piece += chat.end
        answers.append(Completion(tokenizer.encode(piece, add_special_tokens=False), [], truncated=False))
    return Group(prompt_ids, answers)


def _turns(chat: Chat, row: PairRow, prompt: str) -> list[str]:
    """``prompt`` in the pieces that its messages are; those that the template writes otherwise there stay together."""
    pieces, start = [], 0
    for end in range(1, len(row.messages)):
        text = chat.render(row.messages[:end], f"pair {row.id}")
        if len(text) >= start and prompt.startswith(text):
            pieces.append(prompt[start : len(text)])
            start = len(text)
    return [*pieces, prompt[start:]]


def reference_rows(pairs: Sequence[TokenPair], width: int) -> Tensor:
    """Reference log-probabilities [2n,width] of n pairs, chosen and rejected interleaved, 0.0 beyond an answer's end.

    Raises:
        ValueError: a pair has none.
    """
    out = torch.zeros(2 * len(pairs), width)
    for i, pair in enumerate(pairs):
        if pair.reference is None:
            raise ValueError(f"pair {pair.source.id} has no reference log-probabilities")
        for side, values in enumerate(pair.reference):
            out[2 * i + side, : values.shape[0]] = values
    return out


def answer_mask(groups: Sequence[Group], width: int) -> Tensor:
    """[N,width+1] 1.0 on the tokens of each answer; column 0 stands for the last prompt token, as losses want it."""
    lengths = torch.tensor([len(answer.token_ids) for group in groups for answer in group.completions])
    columns = torch.arange(width + 1)
    return ((columns >= 1) & (columns <= lengths[:, None])).float()

"""Conversations as tokens: what is learned, what stands before it, what is left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.data.conversations import ConversationRow
from nemotron.errors import DataError
from nemotron.rl.conversations import (
    TokenConversation,
    Writing,
    learned_mask,
    token_conversation,
    tokenise,
)
from nemotron.rl.left_out import Rewritten, RewrittenError, TooLong
from tests.unit.rl.test_token_pairs import HEADERS, chat

NO_THOUGHTS = (
    "{% for m in messages %}{{ m['role'][0] }}"
    "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% else %}x{% endif %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def row(*turns: str, answers: tuple[int, ...] | None = None) -> ConversationRow:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return ConversationRow("f:1", messages, answers or tuple(range(1, len(turns), 2)), {})


def shown(tokens: TokenConversation, template: str = HEADERS) -> tuple[str, list[tuple[bool, str]]]:
    """The prompt, and the runs of what is learned and what is not."""
    tokenizer = chat(template).tokenizer
    runs: list[tuple[bool, list[int]]] = []
    for token, learned in zip(tokens.group.completions[0].token_ids, tokens.learned, strict=True):
        if not runs or runs[-1][0] != learned:
            runs.append((learned, []))
        runs[-1][1].append(token)

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids).replace(" ", "").replace("<unk>", "/")

    return text(tokens.group.prompt_ids), [(learned, text(ids)) for learned, ids in runs]


def test_the_header_of_an_answer_is_learned_as_in_nemo_rl() -> None:
    tokens = token_conversation(row("hi", "yes"), Writing(chat()))
    assert shown(tokens) == ("uhi<eos>/", [(True, "ayes<eos>")])


def test_with_a_generation_prompt_learning_begins_where_sampling_does() -> None:
    made = chat()
    tokens = token_conversation(row("hi", "yes"), Writing(made, generation_prompt=True))
    assert shown(tokens) == ("uhi<eos>/a", [(True, "yes<eos>")])
    assert tokens.group.prompt_ids == made.encode([{"role": "user", "content": "hi"}])


def test_every_answer_is_learned_and_nothing_between() -> None:
    tokens = token_conversation(row("hi", "yes", "more", "no"), Writing(chat()))
    assert shown(tokens) == ("uhi<eos>/", [(True, "ayes<eos>"), (False, "/umore<eos>/"), (True, "ano<eos>")])
    assert tokens.length == len(tokens.group.prompt_ids) + len(tokens.learned)


def test_only_the_last_answer() -> None:
    tokens = token_conversation(row("hi", "yes", "more", "no"), Writing(chat(), only_last=True))
    assert shown(tokens) == ("uhi<eos>/ayes<eos>/umore<eos>/", [(True, "ano<eos>")])


def test_answers_that_the_row_spares() -> None:
    tokens = token_conversation(row("hi", "yes", "more", "no", answers=(3,)), Writing(chat()))
    assert shown(tokens)[1] == [(True, "ano<eos>")]


def test_an_answer_that_is_written_otherwise_later_leaves_the_row_out() -> None:
    many = row("hi", "yes", "more", "no")
    with pytest.raises(RewrittenError, match="turn 2"):
        token_conversation(many, Writing(chat(NO_THOUGHTS)))
    last = token_conversation(many, Writing(chat(NO_THOUGHTS), only_last=True))
    assert shown(last, NO_THOUGHTS) == ("uhi<eos>ax<eos>umore<eos>", [(True, "ano<eos>")])


def test_left_out_rows_are_counted_and_never_cut() -> None:
    rows = [row("hi", "yes"), row("hi", "y" * 50), row("hi", "yes", "more", "no")]
    kept, refused = tokenise(rows, Writing(chat(NO_THOUGHTS)), limit=20)
    assert len(kept) == 1
    assert [type(one) for one in refused] == [TooLong, Rewritten]


def test_the_end_is_added_once() -> None:
    bare = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{% endfor %}"
    assert shown(token_conversation(row("hi", "yes"), Writing(chat(bare))), bare)[1] == [(True, "ayes<eos>")]
    without = token_conversation(row("hi", "yes"), Writing(chat(bare), add_eos=False))
    assert shown(without, bare)[1] == [(True, "ayes")]


def test_a_template_that_refuses_is_the_users_error() -> None:
    refused = ConversationRow(
        "f:1", [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}], (1,), {}
    )
    with pytest.raises(DataError, match="the chat template refuses conversation f:1"):
        token_conversation(refused, Writing(chat()))


def test_the_mask_has_a_column_for_the_token_before() -> None:
    tokens = [token_conversation(row(*turns), Writing(chat())) for turns in (("hi", "yes"), ("hi", "y", "q", "n"))]
    width = max(len(one.learned) for one in tokens)
    mask = learned_mask(tokens, width)
    assert mask.shape == (2, width + 1)
    assert torch.equal(mask.sum(1), torch.tensor([float(sum(one.learned)) for one in tokens]))
    assert mask[:, 0].sum() == 0


@settings(max_examples=60, deadline=None)
@given(
    exchanges=st.lists(st.tuples(*[st.text("abcdefgh", min_size=1, max_size=6)] * 2), min_size=1, max_size=4),
    only_last=st.booleans(),
    generation_prompt=st.booleans(),
)
def test_together_the_pieces_are_what_the_template_writes(
    exchanges: list[tuple[str, str]], only_last: bool, generation_prompt: bool
) -> None:
    made = chat()
    turns = [text for exchange in exchanges for text in exchange]
    conversation = row(*turns)
    tokens = token_conversation(conversation, Writing(made, only_last=only_last, generation_prompt=generation_prompt))
    whole = made.tokenizer.apply_chat_template(conversation.messages, tokenize=False).rstrip("\n")
    ids = tokens.group.prompt_ids + tokens.group.completions[0].token_ids
    assert ids == made.tokenizer.encode(whole, add_special_tokens=False)
    answers = turns[-1:] if only_last else turns[1::2]
    header = 0 if generation_prompt else 1
    assert sum(tokens.learned) == sum(len(text) + header + 1 for text in answers)

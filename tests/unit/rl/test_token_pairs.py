"""Pairs as tokens: what is prompt, what is answer, what is too long."""

from __future__ import annotations

import pytest
import torch

from nemotron.data.rows import PairRow
from nemotron.errors import DataError
from nemotron.rl.chat import Chat
from nemotron.rl.pairs import TokenPair, answer_mask, pair_group, reference_rows, tokenise
from tests.unit.rl.tiny_policy import tiny_chat

HEADERS = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m['role'][0] }}{{ m['content'] }}<eos>\n{% endfor %}{% if add_generation_prompt %}a{% endif %}"
)


def chat(template: str = HEADERS) -> Chat:
    made = tiny_chat()
    made.tokenizer.chat_template = template
    return made


def row(*turns: str, chosen: str = "yes", rejected: str = "no") -> PairRow:
    roles = ("user", "assistant")
    return PairRow("f:1", [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)], chosen, rejected, {})


def texts(pair: PairRow, template: str = HEADERS, **options: bool) -> list[str]:
    made = chat(template)
    group = pair_group(pair, made, **options)
    return [made.tokenizer.decode(ids) for ids in (group.prompt_ids, *(a.token_ids for a in group.completions))]


def test_the_header_of_the_assistant_belongs_to_the_answer() -> None:
    assert [text.replace(" ", "") for text in texts(row("hi"))] == ["uhi<eos><unk>", "ayes<eos>", "ano<eos>"]


def test_earlier_turns_of_the_assistant_are_prompt() -> None:
    prompt, chosen, _ = texts(row("hi", "what", "more"))
    assert prompt.replace(" ", "") == "uhi<eos><unk>awhat<eos><unk>umore<eos><unk>"
    assert chosen.replace(" ", "") == "ayes<eos>"


def test_an_answer_ends_once() -> None:
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert [t.replace(" ", "") for t in texts(row("hi"), plain)] == ["hi", "yes<eos>", "no<eos>"]
    assert [t.replace(" ", "") for t in texts(row("hi"), plain, add_eos=False)] == ["hi", "yes", "no"]


def test_a_template_that_rewrites_an_earlier_turn_adds_what_differs() -> None:
    # The user's turn gets a mark once an answer follows.
    template = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}z{% else %}w{% endif %}{% endfor %}"
    assert [t.replace(" ", "") for t in texts(row("hi"), template)] == ["hiw", "zyesw<eos>", "znow<eos>"]


def test_the_beginning_is_marked_once() -> None:
    made = chat("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    made.tokenizer.bos_token = "z"
    z = made.tokenizer.bos_token_id
    assert pair_group(row("hi"), made).prompt_ids.count(z) == 1
    assert pair_group(row("zhi"), made).prompt_ids.count(z) == 1
    assert z not in pair_group(row("hi"), made, add_bos=False).prompt_ids


def test_too_long_is_left_out_and_named_never_cut() -> None:
    rows = [row("hi"), row("hi", rejected="a very long answer"), row("hi", chosen="yeah")]
    pairs, refused = tokenise(rows, chat(), limit=10)
    assert [pair.source.chosen for pair in pairs] == ["yes"]
    assert [(r.tokens, r.limit) for r in refused] == [(5 + len("aa very long answer") + 1, 10), (11, 10)]


def test_a_template_that_refuses_a_role_names_the_row() -> None:
    bad = PairRow("f:7", [{"role": "tool", "content": "x"}], "a", "b", {})
    with pytest.raises(DataError, match="refuses pair f:7: no tools"):
        tokenise([bad], chat(), limit=99)


def test_tensors_of_a_batch() -> None:
    pairs, _ = tokenise([row("hi"), row("hi", chosen="y")], chat(), limit=99)
    filled = [
        TokenPair(p.source, p.group, tuple(torch.ones(len(a.token_ids)) for a in p.group.completions)) for p in pairs
    ]  # type: ignore[arg-type]
    mask = answer_mask([pair.group for pair in pairs], 6)
    assert mask.tolist()[2] == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert torch.equal(reference_rows(filled, 6), mask[:, 1:])
    with pytest.raises(ValueError, match="no reference"):
        reference_rows(pairs, 6)

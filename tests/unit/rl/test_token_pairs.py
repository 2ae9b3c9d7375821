"""Pairs as tokens: what is prompt, what is answer, what is too long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.data.rows import PairRow
from nemotron.errors import DataError
from nemotron.rl.chat import Chat
from nemotron.rl.left_out import Rewritten, RewrittenError, TooLong
from nemotron.rl.pairs import (
    TokenPair,
    answer_mask,
    pair_group,
    reference_rows,
    tokenise,
)
from nemotron.rl.reward_pairs import from_rows
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


DROPS_THOUGHTS = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' and loop.index < last.user %}"
    "{% set said = m.content.split('</think>') | last %}{% else %}{% set said = m.content %}{% endif %}"
    "{{ m.role[0] }}{{ said }}<eos>\n{% endfor %}{% if add_generation_prompt %}a{% endif %}"
)
"""Earlier answers lose their thoughts once a user goes on, as in the family of Qwen3."""
MARKS_THE_LAST = "{% for m in messages %}{{ m['content'] }}{% if loop.last %}w{% else %}z{% endif %}<eos>\n{% endfor %}"
"""A prompt reads otherwise once an answer follows."""
COUNTS = "{{ messages | length }}" + HEADERS


def test_earlier_turns_are_written_once_as_the_whole_conversation_has_them() -> None:
    """It was the prompt that held the earlier answer twice: with its thought, and again without."""
    prompt, chosen, _ = texts(row("hi", "<think>hm</think>what", "more"), DROPS_THOUGHTS)
    assert prompt.replace(" ", "") == "uhi<eos><unk>awhat<eos><unk>umore<eos><unk>"
    assert chosen.replace(" ", "") == "ayes<eos>"


def test_a_prompt_that_changes_when_an_answer_follows_is_left_out_and_counted() -> None:
    rows = [row("hi"), row("hi", "a", "b")]
    for template in (MARKS_THE_LAST, COUNTS):
        pairs, refused = tokenise(rows, chat(template), limit=99)
        assert (pairs, refused) == ([], [Rewritten("f:1"), Rewritten("f:1")])
        kept = from_rows(rows, chat(template), limit=99)
        assert (kept.pairs, kept.rewritten, kept.rejected) == ([], ["f:1", "f:1"], 2)
        with pytest.raises(RewrittenError, match="pair f:1 otherwise once an answer follows"):
            pair_group(rows[0], chat(template))


TEXTS = st.text("abc <>/", min_size=1, max_size=6).map(lambda text: text.strip() or "a")
SAID = st.one_of(TEXTS, TEXTS.map(lambda text: f"<think>{text}</think>{text}"))
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TRIMS = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(SAID, min_size=1, max_size=5),
    answers=st.lists(SAID, min_size=2, max_size=2, unique=True),
    template=st.sampled_from([HEADERS, PLAIN, TRIMS, DROPS_THOUGHTS, MARKS_THE_LAST, COUNTS]),
)
def test_prompt_and_answer_are_the_conversation_as_the_template_renders_it(
    turns: list[str], answers: list[str], template: str
) -> None:
    """The kind: whatever a template does to earlier turns, nothing is trained on that no rendering holds."""
    made, spoken = chat(template), []

    class Tokenizer:
        """The tokenizer, that also says which texts became tokens."""

        def __getattr__(self, name: str) -> Any:
            return getattr(made.tokenizer, name)

        def encode(self, text: str, **options: Any) -> Any:
            spoken.append(text)
            return made.tokenizer.encode(text, **options)

    pair = row(*turns, chosen=answers[0], rejected=answers[1])
    try:
        pair_group(pair, Chat(Tokenizer(), {}), add_eos=False)
    except RewrittenError:
        assert template in (MARKS_THE_LAST, COUNTS, DROPS_THOUGHTS)
        # The family that drops thoughts only changes a prompt that an answer ends.
        assert template != DROPS_THOUGHTS or len(turns) % 2 == 0
        return
    *prompt, chosen, rejected = spoken
    for answer, text in zip(answers, (chosen, rejected), strict=True):
        messages = [*pair.messages, {"role": "assistant", "content": answer}]
        whole = made.tokenizer.apply_chat_template(messages, tokenize=False)
        assert "".join(prompt) + text == whole.rstrip("\n") or "".join(prompt) + text == whole


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
    assert [(r.tokens, r.limit) for r in refused if isinstance(r, TooLong)] == [
        (5 + len("aa very long answer") + 1, 10),
        (11, 10),
    ]


def test_a_template_that_refuses_a_role_names_the_row() -> None:
    bad = PairRow("f:7", [{"role": "tool", "content": "x"}], "a", "b", {})
    with pytest.raises(DataError, match="refuses pair f:7: no tools"):
        tokenise([bad], chat(), limit=99)


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ("messages[0].content + 1", "can only concatenate str"),
        ("messages[7].content", "has no element 7"),
        ("1 // (messages|length - 1)", "integer division or modulo by zero"),
        ("messages[0].content.format(9, '{}').split('')", "empty separator"),
    ],
)
def test_a_template_that_fails_in_any_way_names_the_row(says: str, error: str) -> None:
    broken = chat("{{ " + says + " }}")
    with pytest.raises(DataError, match=f"refuses pair f:1: .*{error}"):
        tokenise([row("hi")], broken, limit=99)
    with pytest.raises(DataError, match=f"refuses prompt f:1: .*{error}"):
        broken.encode(row("hi").messages, "prompt f:1")


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

"""What counts as an answer: one definition, whoever asks."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemotron.contracts.answers import answer_of, complete_reply, split_reply
from nemotron.gym.protocol import output_text, response_object
from nemotron.judge.parsing import parse_verdict
from nemotron.judge.source import judged_response
from nemotron.judge.types import Verdict
from nemotron.rewards.text import answer_part
from nemotron.rl.chat import Chat

WRITTEN = st.lists(
    st.sampled_from(["<think>", "</think>", "a", " b\n", '{"score_1": 1, "score_2": 2, "ranking": 3}']), max_size=8
).map("".join)


def answer_by_definition(text: str) -> str:
    """Tag by tag: a closing tag makes a thought of all before it; after an opening one nothing is said any more."""
    said, open_thought = "", False
    while text:
        if text.startswith("</think>"):
            said, open_thought, text = "", False, text[len("</think>") :]
        elif text.startswith("<think>"):
            open_thought, text = True, text[len("<think>") :]
        else:
            said, text = said + ("" if open_thought else text[0]), text[1:]
    return said


@given(WRITTEN)
@example("<think>a")
@example("a</think>b</think>c<think>d")
def test_everyone_reads_the_same_answer(text: str) -> None:
    answer = answer_by_definition(text)
    assert answer_of(text) == answer_part(text, True) == answer
    assert judged_response(text).answer.strip() == answer.strip()
    assert output_text(response_object(text, ended=True, response_id="1")) == answer.strip()
    assert parse_verdict(text, default_score=None, default_ranking=3.5) == (
        Verdict(1, 2, 3) if "score" in answer else None
    )
    assert answer_part(text, False) == text


@given(WRITTEN)
def test_a_thought_that_the_prompt_opens_is_no_answer(text: str) -> None:
    read = complete_reply("assistant\n<think>\n", text)
    assert answer_of(read) == (answer_by_definition(text) if "</think>" in text else "")
    for closed in ("assistant\n", "<think>\n\n</think>\n\n", "say <think> and go on\nassistant:"):
        assert complete_reply(closed, text) == text


def test_both_parts_of_a_reply() -> None:
    reply = split_reply("<think>one</think> two <think>three")
    assert (reply.reasoning, reply.answer) == ("one\nthree", " two ")


def chat(*, special: bool) -> Chat:
    words = {word: i for i, word in enumerate(["<unk>", "</s>", "user", "hm", "5", "<think>", "</think>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    made.add_tokens(["<think>", "</think>"], special_tokens=special)
    return Chat(made, {})


def test_replies_keep_the_tags_of_thinking_whatever_kind_of_token_they_are() -> None:
    for special in (False, True):
        made = chat(special=special)
        ids = {token: made.tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "user", "hm", "5")}
        opened, closed = map(made.tokenizer.convert_tokens_to_ids, ("<think>", "</think>"))
        prompt = [ids["user"], opened]
        assert answer_of(made.reply(prompt, [ids["hm"], closed, ids["5"], ids["</s>"]])).strip() == "5"
        assert answer_of(made.reply(prompt, [ids["hm"], ids["5"], ids["</s>"]])) == ""
        assert answer_of(made.reply([ids["user"]], [opened, ids["5"]])) == ""
        assert made.reply([ids["user"]], [ids["5"], ids["</s>"]]) == "5"

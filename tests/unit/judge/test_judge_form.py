"""How a judge is asked: by its chat template, in words that a user can replace, and in both orders."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.schema.judge import GenrmCompareConfig, GenrmModelConfig, JudgeConfig
from nemotron.errors import ConfigError, JudgeError
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.form import Form, choose, form_of, problem
from nemotron.judge.groups import JudgeSettings, summarise
from nemotron.judge.instruct import SHIPPED, instruct_messages, own_template
from nemotron.judge.local import LocalJudge
from nemotron.judge.pool import JudgePool
from nemotron.judge.questions import expectation
from nemotron.judge.types import GroupRequest, GroupResult, JudgedResponse
from tests import forked
from tests.unit.judge.scripted_judge import Scripted, says, verdict
from tests.unit.judge.tiny_judge_model import make_tiny_judge

GENRM, PLAIN = "{{ message.role in ['response_1', 'response_2'] }}", "{{ message.role }}"
OURS, THEIRS = GenrmModelConfig(model="judge"), GenrmModelConfig(model="judge", base_url="http://host/v1")
QUICK = JudgeConfig(max_retries=0, request_timeout_s=20)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOUNDLESS = "{{ response_1 * 10 ** 10 }}"
REQUEST = GroupRequest([{"role": "user", "content": "Q"}], [JudgedResponse("", f"answer {k}") for k in range(8)])


@pytest.mark.parametrize(
    ("model", "asked", "template", "expected"),
    [
        (OURS, {}, GENRM, ("genrm", "text")),
        (OURS, {}, PLAIN, ("instruct", "logits")),
        (OURS, {}, None, ("genrm", "text")),
        (OURS, {"prompt": "instruct"}, GENRM, ("instruct", "logits")),
        (OURS, {"prompt": "genrm"}, PLAIN, ("genrm", "text")),
        (OURS, {"verdict": "schema"}, GENRM, ("genrm", "schema")),
        (OURS, {"verdict": "text"}, PLAIN, ("instruct", "text")),
        (THEIRS, {}, None, ("genrm", "text")),
        (THEIRS, {}, PLAIN, ("instruct", "schema")),
        (THEIRS, {"prompt": "instruct"}, None, ("instruct", "schema")),
    ],
)
def test_the_choice(
    model: GenrmModelConfig, asked: dict[str, Any], template: str | None, expected: tuple[str, str]
) -> None:
    form = choose(model, JudgeConfig(**asked), template)
    assert (form.prompt, form.verdict) == expected
    assert form.why_prompt in form.told
    assert form.why_verdict in form.told


def test_a_run_looks_at_the_judge_s_own_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    model = GenrmModelConfig(model=str(tmp_path))
    assert form_of(model, JudgeConfig()).prompt == "instruct"
    (tmp_path / "chat_template.jinja").write_text(GENRM)
    assert form_of(model, JudgeConfig()).prompt == "genrm"


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"prompt": "genrm", "verdict": "logits"}, "judge.verdict"),
        ({"prompt": "instruct", "verdict": "logits", "score_range": [1, 10]}, "judge.score_range"),
        ({"prompt": "instruct", "verdict": "schema", "score_range": [0.5, 2]}, "judge.score_range"),
    ],
)
def test_forms_that_cannot_be(asked: dict[str, Any], key: str) -> None:
    config = JudgeConfig(**asked)
    found = problem(choose(OURS, config, None), config)
    assert found is not None
    assert found[0] == key
    with pytest.raises(ConfigError, match=key):
        form_of(OURS, config)


def test_the_shipped_words_hold_what_was_said() -> None:
    conversation = [{"role": "system", "content": "SYS"}, {"role": "user", "content": "ASKED {{ 7 * 7 }}"}]
    how: Any = {"principle": "PRINCIPLE", "scale": (0.0, 9.0)}
    (turn,) = instruct_messages(conversation, "FIRST", "SECOND", verdict="text", **how)
    assert turn["role"] == "user"
    for word in ("SYS", "ASKED {{ 7 * 7 }}", "PRINCIPLE", "FIRST", "SECOND", "from 0", "to 9", '"ranking"'):
        assert word in turn["content"]
    one, two = (
        instruct_messages(conversation, "FIRST", "SECOND", verdict="logits", about=k, **how)[0]["content"]
        for k in (1, 2)
    )
    # Everything up to the question itself is computed once.
    assert one.replace("Response 1?", "Response 2?") == two
    assert one.index("Response 1?") > one.index("SECOND")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ response_1 }}", "does not show `response_2`"),
        ("{{ response_1 }}{{ response_2 }}{% if %}", "does not parse: line 1"),
        ("{{ response_1 }}{{ response_2 }}{{ responce }}", "uses `responce`"),
        ("{{ response_1 }}{{ response_2 }}" + BOUNDLESS, "does not come to an end"),
        pytest.param(
            *("{{ response_1 }}{{ response_2 }}" + ENDLESS, "does not come to an end"), marks=pytest.mark.full
        ),
        ("{{ response_1 }}{{ response_2 }}{{ 1 // 0 }}", "cannot be rendered for `judge.verdict=text`"),
        ("{{ response_1 }}{% if verdict != 'logits' %}{{ response_2 }}{% endif %}", "does not show `response_2`"),
    ],
)  # fmt: skip
def test_words_of_a_user_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(text)
    with pytest.raises(ConfigError, match="cannot read"):
        own_template(str(tmp_path / "nowhere.jinja"))
    with pytest.raises(ConfigError) as refused:
        own_template(str(path))
    assert words in refused.value.message


def test_a_copy_of_the_shipped_words_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(SHIPPED.read_text() + "Mind the tone.")
    form = form_of(OURS, JudgeConfig(prompt="instruct", instruct_template=str(path)))
    assert form.template == path.read_text()


def settings(form: Form, **requests: Any) -> JudgeSettings:
    compare = GenrmCompareConfig(genrm_parse_retry_sleep_s=0, num_judges_per_comparison=2)
    return JudgeSettings(compare, QUICK.model_copy(update=requests), form=form)


def judged(judge: Scripted, how: JudgeSettings, seed: int = 3) -> GroupResult:
    with JudgePool(Endpoint(judge.base_url, "judge"), how) as pool:
        return pool.submit(REQUEST, seed=seed).result(60)


def test_half_of_the_pairs_are_shown_the_other_way_round_and_mean_the_same() -> None:
    async def likes_lower(_: int, body: dict[str, Any]) -> Any:
        text = body["messages"][0]["content"]
        first, second = (int(text.split(f"[Response {k}]\nanswer ")[1][0]) for k in (1, 2))
        return verdict(5 - 0.5 * first, 5 - 0.5 * second, 1 if first < second else 6)

    with Scripted(likes_lower) as judge:
        result = judged(judge, settings(Form("instruct", "text")))
        again = judged(judge, settings(Form("instruct", "text")))
    assert [c.verdict for c in result.comparisons] == [c.verdict for c in again.comparisons]
    for comparison in result.comparisons:
        assert comparison.verdict is not None
        assert comparison.verdict.score_1 == 5 - 0.5 * comparison.first
        assert comparison.verdict.ranking == (1 if comparison.first < comparison.second else 6)
    # Of two judges each pair is shown in both orders.
    assert Counter(c.swapped for c in result.comparisons) == {False: 8, True: 8}
    by_pair = Counter((c.first, c.swapped) for c in result.comparisons)
    assert set(by_pair.values()) == {1}


def test_the_metrics_of_place_are_about_what_was_shown() -> None:
    async def likes_the_first(_: int, body: dict[str, Any]) -> Any:
        return verdict(5, 1, 1)

    with Scripted(likes_the_first) as judge:
        result = judged(judge, settings(Form("instruct", "text")))
    assert summarise([result])["first_position_share"] == 1.0
    # And in rewards such a judge cancels out.
    assert set(result.rewards) == {3.0}


def test_a_genrm_is_sent_what_nemo_gym_sends() -> None:
    async def even(_: int, body: dict[str, Any]) -> Any:
        return verdict(3, 3)

    with Scripted(even) as judge:
        result = judged(judge, settings(Form()))
    assert not any(c.swapped for c in result.comparisons)
    for body in judge.bodies:
        assert set(body) == {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
        assert [m["role"] for m in body["messages"]] == ["user", "response_1", "response_2"]


def probabilities(values: dict[str, float]) -> Any:
    from aiohttp import web

    top = [{"token": text, "logprob": math.log(p), "bytes": None} for text, p in values.items()]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": next(iter(values))},
        "logprobs": {"content": [{"token": next(iter(values)), "logprob": 0, "top_logprobs": top}]},
    }
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}})


def test_expected_scores_are_asked_one_token_each() -> None:
    async def play(_: int, body: dict[str, Any]) -> Any:
        assert (body["max_tokens"], body["temperature"], body["top_logprobs"]) == (1, 0.0, 20)
        about_first = "How good is Response 1?" in body["messages"][0]["content"]
        return probabilities({"4": 0.5, " 5": 0.25, "The": 0.25} if about_first else {"1": 0.5, "2": 0.5})

    with Scripted(play) as judge:
        result = judged(judge, settings(Form("instruct", "logits", swaps=False)))
    assert result.missing == result.retries == 0
    for comparison in result.comparisons:
        assert comparison.verdict is not None
        assert (comparison.verdict.score_1, comparison.verdict.score_2) == (4.333333, 1.5)
        assert (comparison.requests, comparison.tokens_read, comparison.tokens_written) == (2, 100, 2)


def test_no_digit_among_the_likely_tokens_is_missing_and_not_asked_for_again() -> None:
    async def play(number: int, body: dict[str, Any]) -> Any:
        return probabilities({"4": 1.0}) if number == 0 else probabilities({"Sure": 0.9, "9": 0.1})

    with Scripted(play) as judge:
        result = judged(judge, settings(Form("instruct", "logits")))
    assert result.missing == len(result.comparisons) == 16
    assert len(judge.bodies) == 1 + 2 * 16
    assert "no score among the likely first tokens ('Sure', '9')" in (result.comparisons[0].failure or "")


def test_the_expectation() -> None:
    assert expectation({"4": math.log(0.3), " 5": math.log(0.1), "The": math.log(0.6)}, (1, 5)) == 4.25
    assert expectation({"²": 0.0, "7": 0.0}, (1, 5)) is None
    assert expectation({}, (1, 5)) is expectation(None, (1, 5)) is None


NO_FORMAT = {"error": {"message": "response_format is not supported"}}


def refusing(*fields: str) -> Any:
    async def play(_: int, body: dict[str, Any]) -> Any:
        from aiohttp import web

        if any(name in body for name in fields):
            return web.json_response(NO_FORMAT, status=400)
        return probabilities({"3": 1.0}) if "top_logprobs" in body else says("Hello!")

    return play


async def hello(_: int, body: dict[str, Any]) -> Any:
    return says("Hello, nice to meet you!")


@pytest.mark.parametrize(
    ("form", "play", "words"),
    [
        ("schema", refusing("response_format"), "refuses `response_format` with a JSON schema: status 400"),
        ("schema", hello, "and does not keep to it"),
        ("logits", refusing("response_format", "logprobs"), "refuses `logprobs` with `top_logprobs`: status 400"),
        ("logits", hello, "gives no `top_logprobs`"),
    ],
)
def test_an_endpoint_that_lacks_the_form_is_found_out_before_the_run(form: Any, play: Any, words: str) -> None:
    with Scripted(play) as judge, pytest.raises(JudgeError) as refused:
        judged(judge, settings(Form("instruct", form)))
    assert words in refused.value.message
    assert "judge.verdict=text" in (refused.value.hint or "")


@pytest.mark.parametrize("form", ["schema", "logits"])
@pytest.mark.parametrize("status", [400, 422, 429, 500])
def test_an_endpoint_that_answers_nothing_is_not_told_to_lack_the_form(form: Any, status: int) -> None:
    async def play(_: int, body: dict[str, Any]) -> Any:
        from aiohttp import web

        return web.json_response({"error": {"message": "no more of your quota"}}, status=status)

    with Scripted(play) as judge, pytest.raises(JudgeError) as refused:
        judged(judge, settings(Form("instruct", form)))
    assert f"answers no question: status {status}" in refused.value.message
    assert "quota" in refused.value.message
    assert "judge.verdict" not in (refused.value.hint or "")


def test_probabilities_do_not_need_a_schema() -> None:
    with Scripted(refusing("response_format")) as judge:
        result = judged(judge, settings(Form("instruct", "logits")))
    assert result.missing == 0
    assert not any("response_format" in body for body in judge.bodies[1:])


@pytest.fixture(scope="module")
def plain_judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalJudge]:
    """A model of random weights: nothing that it says by itself is a verdict."""
    folder = make_tiny_judge(tmp_path_factory.mktemp("judge") / "plain", context=2048)
    config = QUICK.model_copy(update={"ready_timeout_s": 60})
    with forked.helpers_are_forks(), LocalJudge(folder, config) as judge:
        yield judge


@pytest.mark.parametrize("form", ["schema", "logits"])
def test_our_own_server_always_gives_a_verdict(plain_judge: LocalJudge, form: Any) -> None:
    with JudgePool(plain_judge.endpoint, settings(Form("instruct", form))) as pool:
        results = [pool.submit(REQUEST, seed=seed) for seed in range(2)]
        groups = [future.result(120) for future in results]
    assert sum(group.missing for group in groups) == sum(c.unparseable for g in groups for c in g.comparisons) == 0
    for comparison in (c for group in groups for c in group.comparisons):
        assert comparison.verdict is not None
        assert 1 <= comparison.verdict.score_1 <= 5
        assert comparison.tokens_read > 0

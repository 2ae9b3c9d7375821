"""Whether an endpoint can answer in the form that is wanted: asked once, before anything depends on it."""

from __future__ import annotations

from dataclasses import replace

from nemotron.disk.documents import parse_json
from nemotron.errors import JudgeError
from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Answer, Sampling
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.parsing import parse_verdict
from nemotron.judge.questions import Asking, Shown, expectation
from nemotron.judge.types import Message

_TRIAL = Shown([Message(role="user", content="What is two and two?")], "Four.", "Five.", None)


async def wait_until_asked(client: JudgeClient, settings: JudgeSettings) -> None:
    """Wait until the judge is ready, and see that it can answer in the form of ``settings``.

    Raises JudgeError when it does not become ready, or cannot.
    """
    await client.wait_ready()
    asking = settings.asking()
    if settings.form.verdict == "schema":
        await _holds_a_schema(client, asking)
    elif settings.form.verdict == "logits":
        await _gives_probabilities(client, asking)


async def _holds_a_schema(client: JudgeClient, asking: Asking) -> None:
    # Something whose natural answer is no JSON: an endpoint that takes the field and ignores it is found out.
    messages, sampling = [Message(role="user", content="Say hello in one sentence.")], asking.sampling(0)
    answer = await client.takes(messages, sampling)
    if answer.text is None:
        await _answers(client, messages, replace(sampling, schema=None))
        raise _lacking(client, "refuses `response_format` with a JSON schema", answer)
    try:
        parse_json(answer.text)
    except ValueError:
        raise _lacking(client, "takes `response_format` with a JSON schema and does not keep to it", answer) from None
    if parse_verdict(answer.text, default_score=None, default_ranking=0.0) is None:
        raise _lacking(client, "takes `response_format` with a JSON schema and does not keep to it", answer)


async def _gives_probabilities(client: JudgeClient, asking: Asking) -> None:
    messages = asking.messages(_TRIAL, 1)
    answer = await client.takes(messages, asking.reading())
    if answer.text is None:
        client.holds_digits = False
        free = Asking(asking.form, asking.compare, asking.requests, asking.supports_principle_role, holds_digits=False)
        answer = await client.takes(messages, free.reading())
    if answer.text is None:
        await _answers(client, messages, replace(free.reading(), schema=None, top_logprobs=0))
        raise _lacking(client, "refuses `logprobs` with `top_logprobs`", answer)
    if answer.first_token is None:
        raise _lacking(client, "gives no `top_logprobs`", answer)
    if expectation(answer.first_token, asking.requests.scale) is None:
        raise _lacking(client, f"gives no score among the first tokens ({', '.join(answer.first_token)})", answer)


async def _answers(client: JudgeClient, messages: list[Message], sampling: Sampling) -> None:
    """Raises JudgeError where the question is not answered in any form: its form is not to blame then."""
    answer = await client.takes(messages, sampling)
    if answer.text is None:
        raise JudgeError(
            f"judge endpoint `{client.endpoint.base_url}` answers no question: {answer.failure}",
            hint="its words say what it lacks; `judge.max_retries` is how often it is asked again",
        )


def _lacking(client: JudgeClient, what: str, answer: Answer) -> JudgeError:
    said = answer.failure or f"its answer was {(answer.text or '')[:120]!r}"
    return JudgeError(
        f"judge endpoint `{client.endpoint.base_url}` {what}: {said}",
        hint="set `judge.verdict=text`, which every endpoint can give, or serve the model with one that can",
    )

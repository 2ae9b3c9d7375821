"""An endpoint that judges: where it is, how it is asked, and what becomes of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible judge."""

    base_url: str
    """Up to and including ``/v1``."""
    model: str
    """The name it is served under."""
    api_key: str | None = field(default=None, repr=False)
    """Bearer token; never shown, not even in the repr."""
    api: Literal["chat", "responses"] = "chat"
    """``responses``: NeMo-Gym's ``genrm_model``, whose requests have the answers in ``metadata``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the judge writes."""

    max_tokens: int
    temperature: float
    top_p: float
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer is held to."""
    top_logprobs: int = 0
    """Tokens whose probabilities come along, at every position."""

    def body(self) -> dict[str, Any]:
        """Fields of the request; none that has nothing to say, as not every endpoint knows all of them."""
        said: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        if self.schema is not None:
            named = {"name": "verdict", "schema": dict(self.schema), "strict": True}
            said["response_format"] = {"type": "json_schema", "json_schema": named}
        if self.top_logprobs:
            said |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return said


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request."""

    text: str | None
    """None when no usable answer came."""
    requests: int
    """HTTP requests sent for it."""
    failure: str | None = None
    """Why there is none."""
    first_token: Mapping[str, float] | None = None
    """Log-probabilities of what could stand first, by text; None where the endpoint gives none."""
    tokens_read: int = 0
    """Tokens of the question, as the endpoint counts them; 0 where it does not say."""
    tokens_written: int = 0


class Keeper(Protocol):
    """Whoever runs a judge, and knows how it is. Asked from threads of the client's."""

    @property
    def starts(self) -> int:
        """How often it has become ready."""

    def again(self, since: int) -> bool | None:
        """Whether what was asked while ``starts`` was ``since`` is lost, because the judge has been started again.

        None while that is not known: ask again in a moment. Raises JudgeError when it will never answer again.
        """

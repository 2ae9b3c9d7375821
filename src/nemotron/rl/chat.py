"""Text to tokens and back, through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.checkpoints.chat_template import read_template, refusals, template_fault
from nemotron.checkpoints.libraries import load_tokenizer
from nemotron.checkpoints.turn_end import FEWER_ROWS_HINT, NO_END_HINT, end_tokens, model_ends
from nemotron.contracts.answers import THINK, THINK_END, complete_reply
from nemotron.data.manifest import PASS_THROUGH
from nemotron.errors import ArtifactError, ConfigError, DataError


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template."""

    tokenizer: Any
    template_kwargs: Mapping[str, Any]
    ends: tuple[int, ...] = ()
    """Ids of the tokens that end a turn; only what samples needs them."""

    @classmethod
    def load(
        cls,
        name: str,
        chat_template: str | None,
        template_kwargs: Mapping[str, Any] | None,
        *,
        stop_token_ids: Sequence[int] | None = None,
        model: Path | None = None,
    ) -> Chat:
        """Load a tokenizer folder or hub name.

        ``chat_template`` as in NeMo-RL: ``default`` keeps the tokenizer's own, ``None`` concatenates contents, a path
        ending in .jinja is read, anything else is the template itself. ``stop_token_ids`` are those of the config,
        ``model`` is the folder of the model that samples (`checkpoints.turn_end` makes the ends of a turn of both).

        Raises:
            ArtifactError: no tokenizer there, or a damaged generation config of the model.
            ConfigError: the template file is missing, or there is no template.
        """
        hint = "set `policy.tokenizer.name` to a folder with tokenizer files or a hub name you can reach"
        tokenizer = load_tokenizer(
            name, lambda reason: ArtifactError(f"cannot load tokenizer `{name}`: {reason}", hint=hint)
        )
        if chat_template is None:
            tokenizer.chat_template = PASS_THROUGH
        elif chat_template.endswith(".jinja"):
            tokenizer.chat_template = _read_template(Path(chat_template))
        elif chat_template != "default":
            tokenizer.chat_template = chat_template
        if tokenizer.chat_template is None:
            raise ConfigError(f"tokenizer `{name}` has no chat template", hint="set `policy.tokenizer.chat_template`")
        if isinstance(tokenizer.chat_template, str) and (fault := template_fault(tokenizer.chat_template)):
            raise ConfigError(
                f"the chat template of tokenizer `{name}` {fault}",
                hint="correct it, or set `policy.tokenizer.chat_template`",
            )
        own = model_ends(model)
        if tokenizer.eos_token_id is None and own and own[0] < len(tokenizer):
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(own[0])
        ends = end_tokens(stop_token_ids, tokenizer.eos_token_id, own)
        if not ends:
            raise ConfigError(f"tokenizer `{name}` has no end-of-sequence token", hint=NO_END_HINT)
        return cls(tokenizer, dict(template_kwargs or {}), ends)

    @property
    def end(self) -> str:
        """What stands behind a conversation that is learned. Raises ConfigError: no end of sequence is named."""
        if self.tokenizer.eos_token is None:
            raise ConfigError("the tokenizer has no end-of-sequence token to learn", hint=NO_END_HINT)
        return str(self.tokenizer.eos_token)

    def check_rows(self, rows: int, model: str) -> None:
        """Raises ArtifactError where the embedding of ``model``, which has ``rows``, is too small for the tokenizer."""
        if len(self.tokenizer) > rows:
            raise ArtifactError(
                f"the tokenizer has {len(self.tokenizer)} tokens, the embedding of `{model}` only {rows} rows",
                hint=FEWER_ROWS_HINT,
            )

    def encode(self, messages: Sequence[Mapping[str, str]], owner: str = "a prompt") -> list[int]:
        """Prompt tokens, the generation prompt included. Raises DataError: the template refuses them."""
        ids: list[int] = self._apply(messages, owner, add_generation_prompt=True, tokenize=True, return_dict=False)
        return ids

    def render(self, messages: Sequence[Mapping[str, str]], owner: str, *, generation_prompt: bool = False) -> str:
        """``messages`` as the template writes them. Raises DataError: it refuses them."""
        return str(self._apply(messages, owner, add_generation_prompt=generation_prompt, tokenize=False))

    def _apply(self, messages: Sequence[Mapping[str, str]], owner: str, **how: Any) -> Any:
        """What the template makes of ``messages``; ``owner`` is the row that they belong to, for the message."""
        try:
            return self.tokenizer.apply_chat_template(list(messages), **how, **self.template_kwargs)
        except refusals() as error:
            raise DataError(
                f"the chat template refuses {owner}: {str(error) or type(error).__name__}",
                hint="its roles do not fit the template; change the row or `policy.tokenizer.chat_template`",
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """Response text without special tokens."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text.strip()

    def reply(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """What a model wrote after a prompt, as rewards and judges read it (`contracts.answers.complete_reply`)."""
        return written_reply(self.tokenizer, prompt_ids, token_ids, self.ends).strip()


_PROMPT_END = 8
"""Tokens at the end of a prompt that show whether its template opens a thought."""


def written_reply(tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int], ends: Sequence[int] = ()) -> str:
    """Text of a reply without special tokens, but with the tags of thinking, also where these are special tokens.

    A last token that is one of ``ends`` is no text, whether its tokenizer calls it special or not.
    """
    if token_ids and token_ids[-1] in ends:
        token_ids = token_ids[:-1]
    special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    tags = {number for number, token in special.items() if token in (THINK, THINK_END)}
    kept = [token for token in token_ids if token in tags or token not in special] if tags else list(token_ids)
    text: str = tokenizer.decode(kept, skip_special_tokens=not tags)
    return complete_reply(tokenizer.decode(list(prompt_ids[-_PROMPT_END:]), skip_special_tokens=False), text)


def _read_template(path: Path) -> str:
    try:
        return read_template(path)
    except OSError as error:
        raise ConfigError(f"cannot read chat template `{path}`: {error.strerror}") from error

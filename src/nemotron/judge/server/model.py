"""The judge model: chat messages to tokens, tokens to text.

torch is imported inside functions, so that ``nemotron.judge`` imports without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemotron.checkpoints.chat_template import refusals, template_fault
from nemotron.checkpoints.libraries import load_tokenizer
from nemotron.checkpoints.turn_end import FEWER_ROWS_HINT, NO_END_HINT, end_tokens, model_ends
from nemotron.errors import ArtifactError
from nemotron.judge.server.batching import Deliver, Job
from nemotron.judge.server.constraint import Constraint, chain_of, token_texts
from nemotron.judge.server.protocol import ApiError

if TYPE_CHECKING:
    from nemotron.rl.policy import Policy

Dtype = Literal["auto", "float32", "float64", "bfloat16"]
_MOST_SCHEMAS = 64
FLOAT64_PARAMETERS = 50_000_000
"""Below this size ``dtype: auto`` computes in float64; above, in bfloat16 on a GPU and in float32 on a processor."""


class JudgeModel:
    """A causal LM with its tokenizer, loaded from a Hugging Face folder.

    Verdicts must not depend on which requests happened to share a batch, or a resumed run would not repeat itself. The
    sums of a matrix product are ordered differently for different batch shapes, so results differ by rounding. In
    float64 that is 1e-16 relative: far too little to change a greedy choice in practice. In float32 it is not, so
    batches of a larger model may, rarely, change a verdict; ``dtype: float64`` is there for who wants to pay for it.
    """

    def __init__(self, policy: Policy, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        self._policy = policy
        self._tokenizer = tokenizer
        self._stop_ids = tuple(stop_ids)
        self._constraints: dict[str, Constraint] = {}

    @classmethod
    def load(cls, name: str, *, dtype: Dtype, device: str, threads: int) -> JudgeModel:
        """Read weights and tokenizer from a folder, or from the local cache of the hub; nothing is downloaded.

        Raises ArtifactError when either is missing or broken, or the tokenizer has no chat template or no end token.
        """
        # Before the imports below take their seconds.
        folder = find_model(name)
        import torch

        from nemotron.rl.policy import Policy

        torch.set_num_threads(threads)
        policy = Policy.load(folder, device=device)
        small = policy.model.num_parameters() < FLOAT64_PARAMETERS
        if dtype == "float64" or (dtype == "auto" and small):
            policy = Policy(policy.model.double())
        elif dtype == "bfloat16" or (dtype == "auto" and policy.device.type == "cuda"):
            policy = Policy(policy.model, precision="bfloat16")
        policy.freeze()
        what = f"judge model `{folder}` has no usable tokenizer"
        tokenizer = load_tokenizer(
            str(folder), lambda reason: ArtifactError(f"{what}: {reason}"), local_files_only=True
        )
        if tokenizer.chat_template is None:
            raise ArtifactError(
                f"the tokenizer of judge model `{folder}` has no chat template",
                hint="put the one that it was trained with beside it, as `chat_template.jinja`",
            )
        if isinstance(tokenizer.chat_template, str) and (fault := template_fault(tokenizer.chat_template)):
            raise ArtifactError(f"the chat template of judge model `{folder}` {fault}")
        if len(tokenizer) > policy.model.config.vocab_size:
            raise ArtifactError(
                f"the tokenizer of judge model `{folder}` has {len(tokenizer)} tokens, the model "
                f"{policy.model.config.vocab_size}",
                hint=FEWER_ROWS_HINT,
            )
        stops = end_tokens(None, tokenizer.eos_token_id, model_ends(folder))
        if not stops:
            raise ArtifactError(f"judge model `{folder}` has no end-of-sequence token", hint=NO_END_HINT)
        return cls(policy, tokenizer, stops)

    @property
    def context(self) -> int | None:
        """Longest prompt plus answer in tokens; None when the model does not say."""
        return self._policy.max_length

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Prompt tokens of a chat. Raises ApiError (400) when the chat template refuses the messages."""
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except refusals() as error:
            raise ApiError(400, f"the model's chat template refuses the messages: {error}", param="messages") from error
        return ids

    def decode(self, token_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> str:
        """Text of an answer without special tokens; a thought that the prompt opens and nothing closes has its tag."""
        from nemotron.rl.chat import written_reply

        return written_reply(self._tokenizer, prompt_ids, token_ids, self._stop_ids)

    def token(self, token_id: int) -> str:
        """The text of a single token."""
        text: str = self._tokenizer.decode([token_id])
        return text

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        """What holds a text to a schema; made once for each. Raises ApiError (400) where nothing can."""
        key = json.dumps(schema)
        if key not in self._constraints:
            made = Constraint(chain_of(schema), self._token_texts)
            if not made.allowed(made.start):
                raise ApiError(
                    400, "this model's tokenizer cannot write what the schema asks for", param="response_format"
                )
            if len(self._constraints) >= _MOST_SCHEMAS:
                self._constraints.clear()
            self._constraints[key] = made
        return self._constraints[key]

    @cached_property
    def _token_texts(self) -> dict[int, str]:
        special = {number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        plain = [number for number in range(len(self._tokenizer)) if number not in special]

        def decode(texts: list[list[int]]) -> list[str]:
            found: list[str] = self._tokenizer.batch_decode(texts, clean_up_tokenization_spaces=False)
            return found

        return token_texts(decode, plain)

    def write(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        """Write a batch of jobs of one family (see ``Writer``)."""
        from nemotron.judge.server.reading import read
        from nemotron.judge.server.worker import decode

        if jobs[0].is_reading:
            read(self._policy, jobs, self._stop_ids, deliver)
        else:
            decode(self._policy, jobs, self._stop_ids, deliver)


def find_model(name: str) -> Path:
    """The folder that ``name`` stands for. Raises ArtifactError when it holds no checkpoint."""
    folder = Path(name)
    if not folder.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise ArtifactError(
                f"judge model `{name}` is neither a folder nor in the local hub cache",
                hint="download it first (`hf download NAME`), or point `base_url` at an endpoint that serves it",
            ) from error
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"judge model `{folder}` has no `config.json`", hint="give a Hugging Face checkpoint")
    return folder

"""Token ids of prepared rows: checked against the length limit while rows are read, stored beside the shards.

Prompts are tokenised as generation sees them (answer header included), pairs as whole conversations. A store is a few
safetensors files per split with all ids of its rows one after another, and where each row ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron.checkpoints.chat_template import read_template, refusals, template_fault
from nemotron.checkpoints.libraries import load_tokenizer
from nemotron.config.schema.data_prep import TokenizeConfig
from nemotron.data.forms import read_prompt
from nemotron.data.manifest import PASS_THROUGH, file_sha256, text_sha256, vocabulary_sha256
from nemotron.data.prep.nemo_aligner import rows_of
from nemotron.data.prep.shards import Shard
from nemotron.data.turns import ASSISTANT, Message, Row, UnusableRow
from nemotron.disk.atomic import write_atomic
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError, ConfigError

ROWS_PER_FILE = 16384
_DENSE_BYTES = 64 << 20
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a row: of the prompt, or of both whole conversations of a pair."""

    chosen: list[int]
    """The prompt itself where there is no pair."""
    rejected: list[int] | None
    prompt_length: int
    multiplier: float = 1.0
    """Weight in the loss; 0 for a row that was truncated."""

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen), len(self.rejected or ()))


@dataclass(frozen=True)
class Encoder:
    """Tokenizer and chat template, with the length limit."""

    tokenizer: Any
    config: TokenizeConfig
    template: str | None
    """None takes the tokenizer's own."""

    @classmethod
    def load(cls, config: TokenizeConfig) -> Encoder:
        """Load the tokenizer.

        Raises:
            ArtifactError: there is none. ConfigError: no such template.
        """
        # The tokenizer's own threads would not survive the fork of the helper process.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        what, hint = f"cannot load the tokenizer `{config.tokenizer}`", "check `tokenize.tokenizer`"
        tokenizer = load_tokenizer(config.tokenizer, lambda reason: ArtifactError(f"{what}: {reason}", hint=hint))
        return cls(tokenizer, config, _template(config, tokenizer))

    @property
    def pad_id(self) -> int:
        """The padding token, or else the end-of-text token."""
        found = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id or 0) if found is None else int(found)

    @property
    def vocabulary(self) -> str | None:
        """Hash of the tokens and their ids; None of tokenizers that have no table of them."""
        inner = getattr(self.tokenizer, "backend_tokenizer", None)
        table = json.loads(inner.to_str())["model"].get("vocab") if inner is not None else None
        return vocabulary_sha256(table) if isinstance(table, dict) else None

    def check(self, rows: Sequence[Row]) -> list[UnusableRow | None]:
        """For every row why it cannot be used, or None."""
        return [result if isinstance(result, UnusableRow) else None for result in self.encode(rows)]

    def encode(self, rows: Sequence[Row]) -> list[Encoded | UnusableRow]:
        """Ids of every row, or why it has none."""
        found: list[Encoded | UnusableRow] = []
        for start in range(0, len(rows), _BATCH):
            found += self._encode_batch(rows[start : start + _BATCH])
        return found

    def _encode_batch(self, rows: Sequence[Row]) -> list[Encoded | UnusableRow]:
        rendered: list[tuple[str, ...] | UnusableRow] = [self._render(row) for row in rows]
        texts = [text for texts in rendered if isinstance(texts, tuple) for text in texts]
        ids = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        return [
            texts if isinstance(texts, UnusableRow) else self._limited([next(ids) for _ in texts]) for texts in rendered
        ]

    def _render(self, row: Row) -> tuple[str, ...] | UnusableRow:
        """The prompt's text; of a pair also both conversations."""
        try:
            found = read_prompt(row)
            head = self._apply(found.messages, answer_follows=True)
            answers = [text for text in (found.chosen, found.rejected) if text is not None]
            if not answers:
                return (head,)
            sides = [self._apply([*found.messages, {"role": ASSISTANT, "content": text}]) for text in answers]
            before = self._apply(found.messages)
            if not all(side.startswith(before) for side in sides):
                raise UnusableRow(
                    "template-rewrites-prompt", "the chat template writes the prompt otherwise once an answer follows"
                )
            return (head, *sides)
        except UnusableRow as error:
            return error
        except refusals() as error:
            # What a template says to turns that it was not written for, such as two of the user.
            return UnusableRow(
                "template", f"the chat template refuses the row: {str(error).strip() or type(error)}"[:500]
            )

    def _apply(self, messages: Sequence[Message], *, answer_follows: bool = False) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer_follows, chat_template=self.template
        )
        return text

    def _limited(self, ids: list[list[int]]) -> Encoded | UnusableRow:
        head, sides = ids[0], ids[1:]
        most = self.config.max_length
        longest = max(map(len, sides or [head]))
        if longest > most and self.config.on_too_long == "reject":
            return UnusableRow("too-many-tokens", f"{longest} tokens, more than `tokenize.max_length` of {most}")
        multiplier = 0.0 if longest > most else 1.0
        if not sides:
            return Encoded(head[:most], None, min(len(head), most), multiplier)
        shared = next((i for i, pair in enumerate(zip(head, *sides, strict=False)) if len(set(pair)) > 1), None)
        common = min(len(head), *map(len, sides)) if shared is None else shared
        return Encoded(sides[0][:most], sides[1][:most], min(common, most), multiplier)


def _template(config: TokenizeConfig, tokenizer: Any) -> str | None:
    """The template that the config gives, None for the tokenizer's own. Raises ConfigError: it cannot be used."""
    given = _given_template(config, tokenizer)
    text = tokenizer.chat_template if given is None else given
    # Of a tokenizer that was downloaded since, the dry run saw nothing.
    if isinstance(text, str) and (fault := template_fault(text)):
        hint = "give `tokenize.chat_template`: a `.jinja` file, a template, or `null`"
        raise ConfigError(f"the chat template for `{config.tokenizer}` {fault}", hint=hint)
    return given


def _given_template(config: TokenizeConfig, tokenizer: Any) -> str | None:
    name = config.chat_template
    if name is None:
        return PASS_THROUGH
    if name == "default":
        if not tokenizer.chat_template:
            hint = "give `tokenize.chat_template`: a `.jinja` file, a template, or `null`"
            raise ConfigError(f"the tokenizer `{config.tokenizer}` has no chat template", hint=hint)
        return None
    if name.endswith(".jinja"):
        try:
            return read_template(expanded(name))
        except OSError as error:
            raise ConfigError(f"cannot read the chat template `{name}`: {error.strerror}") from error
    return name


def write_token_shards(
    config: TokenizeConfig, folder: Path, splits: Mapping[str, Sequence[Shard]], *, dense: bool
) -> dict[str, dict[str, Any]]:
    """Write the ids of every split; returns the manifest's ``tokens`` and ``token_shards`` of each.

    ``dense`` pads every row to ``max_length`` with the end-of-text token, as NeMo-Aligner's data sets do.

    Raises:
        OutputError: they cannot be written.
    """
    encoder = Encoder.load(config)
    size = max(1, min(ROWS_PER_FILE, _DENSE_BYTES // (8 * config.max_length))) if dense else ROWS_PER_FILE
    found: dict[str, dict[str, Any]] = {}
    for split, shards in splits.items():
        rows = sum(shard.rows for shard in shards)
        files = -(-rows // size)
        lengths: list[int] = []
        entries = []
        paths = [folder / shard.path for shard in shards]
        for number, batch in enumerate(_batches(rows_of(paths), size)):
            encoded = [_must_fit(result) for result in encoder.encode(batch)]
            name = f"{split}-tokens-{number:05d}-of-{files:05d}.safetensors"
            entries.append(_write(folder / name, encoded, encoder, dense=dense))
            lengths += [row.length for row in encoded]
        found[split] = {"tokens": _statistics(lengths, encoder), "token_shards": entries}
    return found


def _must_fit(result: Encoded | UnusableRow) -> Encoded:
    """The rows of shards were all checked once.

    Raises:
        ArtifactError: a row cannot be encoded now, so the tokenizer was changed meanwhile.
    """
    if isinstance(result, UnusableRow):
        raise ArtifactError(
            f"a row that fitted before does not now: {result.detail}", hint="run again with `force=true`"
        )
    return result


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(path: Path, rows: Sequence[Encoded], encoder: Encoder, *, dense: bool) -> dict[str, Any]:
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {
        "loss_multiplier": np.array([row.multiplier for row in rows], dtype=np.float32),
        "prompt_length": np.array([row.prompt_length for row in rows], dtype=np.int32),
    }
    pairs = [row for row in rows if row.rejected is not None]
    if pairs and len(pairs) < len(rows):
        raise ConfigError("prompts and pairs cannot be tokenised into one data set", hint="prepare them separately")
    sides = (
        {"chosen": [row.chosen for row in rows], "rejected": [row.rejected or [] for row in rows]}
        if pairs
        else {"prompt": [row.chosen for row in rows]}
    )
    for side, ids in sides.items():
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        tensors[f"{side}_ends"] = np.cumsum(lengths)
        tensors[f"{side}_ids"] = np.array([token for row in ids for token in row], dtype=np.int32)
        if dense:
            padded = np.full(
                (len(ids), encoder.config.max_length), encoder.tokenizer.eos_token_id or encoder.pad_id, np.int32
            )
            for i, row in enumerate(ids):
                padded[i, : len(row)] = row
            tensors[f"{side}_padded"] = padded
    # One entry only: safetensors writes several in random order, and the same rows must give the same bytes.
    write_atomic(path, save(tensors, metadata={"format": "nemotron-tokens-1"}))
    tokens = int(sum(row.length for row in rows))
    return {
        "path": path.name,
        "rows": len(rows),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "tokens": tokens,
    }


def _statistics(lengths: Sequence[int], encoder: Encoder) -> dict[str, Any]:
    counts = np.array(lengths or [0], dtype=np.int64)
    return {
        "tokenizer": encoder.config.tokenizer,
        "vocabulary": encoder.vocabulary,
        "chat_template": text_sha256(encoder.template or encoder.tokenizer.chat_template),
        "pad_id": encoder.pad_id,
        "pad_to_multiple_of": encoder.config.pad_to_multiple_of,
        "total": int(counts.sum()),
        "longest": int(counts.max()),
        "mean": round(float(counts.mean()), 3),
        "p50": int(np.percentile(counts, 50, method="nearest")),
        "p99": int(np.percentile(counts, 99, method="nearest")),
    }

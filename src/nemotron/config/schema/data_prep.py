"""The config of `data_prep/rl_prep`: what is read, how it is split and checked, what is written."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nemotron.config.schema.base import Open, Strict
from nemotron.config.schema.fields import Count, DiskPath, ModelName, Name, Probability, Seed, TemplateText


class BlendSection(Open):
    """A blend written into the config itself; the keys are those of a blend file."""


class SplitConfig(Strict):
    """How rows come into splits."""

    mode: Literal["auto", "given", "hash"]
    """`given` keeps the splits that the sources name, `hash` makes them from the prompt, `auto` does what fits."""
    shares: dict[str, Probability]
    """Share of the prompts of every split that `hash` makes beside `train`, e.g. `{validation: 0.01, test: 0.01}`."""
    on_overlap: Literal["warn", "error"]
    """What to do when given splits share prompts."""


class TokenizeConfig(Strict):
    """Token ids beside the JSONL shards."""

    tokenizer: ModelName
    """Folder or Hugging Face name of the tokenizer."""
    max_length: Count
    """Longest row in tokens: the prompt, or the prompt with the longer answer."""
    chat_template: TemplateText | None = "default"
    """`null` joins message contents, `default` takes the tokenizer's own, else a `.jinja` file or a template."""
    on_too_long: Literal["reject", "truncate"] = "reject"
    """What happens to longer rows. Truncated rows get loss multiplier 0, as in NeMo-RL."""
    pad_to_multiple_of: Count = 1
    """Pairs are padded to the longer answer, rounded up to this."""


class PlaceholderSource(Strict):
    """Where the rows are that placeholders stand for."""

    path: DiskPath
    """`hf://org/name`, or local files."""
    revision: Name | None
    """Commit that the row numbers belong to; `null` takes the newest and records it."""
    split: Name | None
    """Split of that data set."""
    question: list[str | int]
    """Path to the question inside a row."""
    answer: list[str | int]
    """Path to the answer inside a row."""
    unwrap: bool
    """Drop the first and the last paragraph of the question before the template is applied (DAPO)."""

    @property
    def is_unpinned(self) -> bool:
        """Whether the rows may be others tomorrow: a hub data set without revision."""
        return self.path.startswith("hf://") and self.revision is None and "@" not in self.path


class DataPrepConfig(Strict):
    """Raw prompts or preferences in, verified shards and a manifest out."""

    blend_path: DiskPath | None
    """Blend file (JSON or YAML), or data files themselves."""
    blend: BlendSection | None
    """The blend itself, instead of `blend_path`."""
    output_dir: DiskPath
    """Folder for the shards, `manifest.json` and `rejects.jsonl`."""
    num_shards_per_split: Count
    """Shards of every split; never more than the split has rows."""
    compression: Literal["none", "gzip", "zstd"]
    """Compression of the shards."""
    resolve_hf_placeholders: bool
    """Fill rows that refer to rows of other Hugging Face data sets."""
    placeholder_sources: dict[str, PlaceholderSource]
    """The data sets that placeholders may name in `dataset`."""
    sample: Count | None
    """Rows to keep of all that are valid, drawn at random over all shards and splits."""
    max_rows: Count | None
    """Like `sample`, and wins over it."""
    weights: Literal["copies", "shares"]
    """`copies`: a weight says how often each row is taken; `shares`: weights are proportions of `max_rows`."""
    remove_duplicates: bool
    """Reject rows whose bytes were seen before in the same split."""
    split: SplitConfig
    """How rows come into splits."""
    tokenize: TokenizeConfig | None
    """Token ids beside the JSONL shards; `null` writes none."""
    compat: Literal["nemo_aligner"] | None
    """`nemo_aligner` also writes the files that NeMo-Aligner reads."""
    on_answer: Literal["reject", "cut"]
    """What happens to a prompt that ends with an answer: its row is rejected, or the answer is left out."""
    on_reject: Literal["warn", "error"]
    """`error` stops when any row is rejected; blank lines and removed duplicates do not count."""
    max_reject_share: Probability
    """Largest share of the rows that may be rejected."""
    max_row_bytes: int = Field(ge=1024, le=1 << 28)
    """Longer rows are rejected; memory grows with the longest row."""
    num_processes: Literal["auto"] | Count
    """Processes that read and write; `auto` takes two where there are two cores."""
    force: bool
    """Replace what `output_dir` holds."""
    seed: Seed
    """Decides order, splits and samples."""

    @property
    def rows_wanted(self) -> int | None:
        """`max_rows`, or else `sample`."""
        return self.max_rows if self.max_rows is not None else self.sample

    def identity(self) -> dict[str, Any]:
        """What decides the content of the output: all but where it goes and how many processes make it."""
        return self.model_dump(mode="json", exclude={"output_dir", "num_processes", "force", "blend_path", "blend"})

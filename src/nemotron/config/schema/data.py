"""``data``: the rows of training and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, DiskPath, Name, NonNegativeInt, Omittable, Seed, one_or_many
from nemotron.config.schema.reads import Embedded, Read


class DatasetConfig(Strict):
    """One data set. A key that is missing here is taken from ``data.default``."""

    dataset_name: Omittable[Name] = None
    """Kind of data set: ``NemoGymDataset``, ``ResponseDataset``, a built-in name, or a dotted path to a class."""
    data_path: Read[Omittable[DiskPath]] = None
    """JSONL file (or what the kind of data set reads)."""
    repeat: Omittable[Count] = None
    """NemoGymDataset: how many times every row is used."""
    env_name: Omittable[Name] = None
    """Section of ``env`` that scores the answers to these rows."""
    processor: Omittable[Name] = None
    """Function that turns a row into a prompt."""
    prompt_file: str | None = None
    """Template with one ``{}`` that is put around the first user message."""
    system_prompt_file: str | None = None
    """File whose text becomes the system message."""
    input_key: Annotated[Omittable[Name], Embedded("sft")] = None
    """ResponseDataset: field of the question."""
    output_key: Annotated[Omittable[Name], Embedded("sft")] = None
    """ResponseDataset: field of the reference answer; of the answer to learn, in supervised fine-tuning."""
    prompt_key: Annotated[Omittable[Name], Embedded("dpo", "rm")] = None
    """Preference data: field of the prompt."""
    chosen_key: Annotated[Omittable[Name], Embedded("dpo", "rm")] = None
    """Preference data: field of the better answer."""
    rejected_key: Annotated[Omittable[Name], Embedded("dpo", "rm")] = None
    """Preference data: field of the worse answer."""
    split: Omittable[Name] = None
    """Split of a Hugging Face data set."""
    subset: str | None = None
    """Configuration of a Hugging Face data set."""
    split_validation_size: Omittable[Annotated[float, Field(ge=0, lt=1)]] = None
    """Share of the rows that is cut off as validation set; 0 cuts none."""
    seed: Omittable[Seed] = None
    """Seed of that cut."""
    download_dir: Omittable[Name] = None
    """Folder for downloaded rows and media."""


class DataConfig(Strict):
    """Training and validation rows, and how they are fed."""

    train: Read[Annotated[DatasetConfig | list[DatasetConfig], one_or_many(DatasetConfig)]]
    """Rows to train on: one data set or a list that is mixed."""
    validation: Read[Annotated[DatasetConfig | list[DatasetConfig], one_or_many(DatasetConfig)] | None] = None
    """Rows to validate on; null validates on nothing."""
    default: Read[DatasetConfig | None] = None
    """Keys that data sets share."""
    manifest_path: Read[DiskPath | None] = None
    """Ours: ``manifest.json`` of `data_prep/rl_prep`, or its folder. Its splits ``train`` and ``validation`` are then
    the rows, whatever ``data_path`` the configs name; null reads the files of the data sets."""
    use_tokens: Annotated[Omittable[bool], Embedded("rm")] = None
    """Ours: train on the token ids that the manifest's `tokenize` made, instead of its text."""
    max_input_seq_length: Read[Count | None]
    """Longest prompt in tokens; longer ones are cut and masked by NeMo-RL, and refused by the embedded engine before
    the first step. Of pairs and conversations it bounds the whole row, and longer ones are left out. NeMo-Gym data
    needs null."""
    shuffle: Read[bool]
    """Draw training rows in random order (from ``grpo.seed``) instead of file order."""
    num_workers: Omittable[NonNegativeInt] = None
    """Processes that load rows ahead of time."""
    use_multiple_dataloader: Omittable[bool] = None
    """Give every data set its own loader, so that each batch mixes them in fixed shares."""
    num_prompts_per_dataloader: Omittable[Count] = None
    """With several loaders: prompts that each contributes to a batch."""
    custom_dataloader: Omittable[Name] = None
    """Dotted path to a function that mixes the loaders."""
    add_bos: Annotated[Omittable[bool], Embedded("dpo", "rm", "sft")] = None
    """SFT and preference data: begin every row with the BOS token."""
    add_eos: Annotated[Omittable[bool], Embedded("dpo", "rm", "sft")] = None
    """SFT and preference data: end every row with the EOS token."""
    add_generation_prompt: Annotated[Omittable[bool], Embedded("sft")] = None
    """SFT: the assistant header belongs to the prompt part, and is not learned."""
    add_system_prompt: Omittable[bool] = None
    """SFT: let the chat template add its default system message."""

    def training_sets(self) -> list[DatasetConfig]:
        """``train`` as a list."""
        return self.train if isinstance(self.train, list) else [self.train]

    def validation_sets(self) -> list[DatasetConfig]:
        """``validation`` as a list, empty when there is none."""
        if self.validation is None:
            return []
        return self.validation if isinstance(self.validation, list) else [self.validation]

    def named_validation_sets(self) -> dict[str, DatasetConfig]:
        """Validation sets by the name in their metrics: ``default`` for a single one, as in NeMo-RL, else the name of
        the file up to its first dot, made unique. The split of a manifest is a single one."""
        sets = self.validation_sets()
        if len(sets) == 1 or (sets and self.manifest_path is not None):
            return {"default": sets[0]}
        found: dict[str, DatasetConfig] = {}
        for number, entry in enumerate(sets):
            name = Path(entry.data_path or str(number)).name.partition(".")[0]
            found[f"{name}-{number}" if name in found else name] = entry
        return found

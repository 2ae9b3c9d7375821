"""The config of a reward audit. Judge blocks are those of the RLHF step: what is trained with is what is audited."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from nemotron.config.schema.base import Strict
from nemotron.config.schema.env import EnvConfig
from nemotron.config.schema.fields import (
    Count,
    DiskPath,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Omittable,
    Probability,
    Seed,
)
from nemotron.config.schema.judge import JudgeConfig


def _not_one(repeats: int) -> int:
    if repeats == 1:
        raise PydanticCustomError("one_repeat", "answers are compared with one another: 0, or at least 2")
    return repeats


class LabelledPairs(Strict):
    """Pairs of answers of which one is known to be better."""

    data_path: DiskPath
    """JSONL file of preference pairs, in any form that `docs/guides/data.md` describes."""
    manifest_path: DiskPath | None = None
    """``manifest.json`` of `data_prep/rl_prep`, or its folder: its pairs are audited instead of ``data_path``."""
    split: Name = "validation"
    """Which split of the manifest. Pairs that a reward model was trained on say little about it."""
    prompt_key: Omittable[Name] = None
    """Field of the prompt; left out means ``prompt``."""
    chosen_key: Omittable[Name] = None
    """Field of the better answer; left out means ``chosen``."""
    rejected_key: Omittable[Name] = None
    """Field of the worse answer; left out means ``rejected``."""


class AuditSettings(Strict):
    """How much is asked."""

    pairs: Count | None
    """Pairs in the sample; null takes all. 200 pairs know an agreement to about 6 points, 1000 to about 3."""
    seed: Seed
    """Which pairs, and every seed that the judge is sent."""
    both_orders: bool
    """Ask the judge about every pair in both orders. Without it the order is drawn, and flips cannot be seen."""
    repeats: Annotated[NonNegativeInt, AfterValidator(_not_one)]
    """Times the judge is asked the same again, for its agreement with itself; 0 measures none."""
    repeat_pairs: Count
    """Pairs of the sample that are asked about again."""
    repeat_temperature: NonNegativeFloat | None
    """Temperature of the repeats; null takes the judge's own."""
    compare_verdicts: list[Literal["text", "schema", "logits"]]
    """Further forms of `judge.verdict` in which the same pairs are asked about, for a table beside each other."""
    worst: NonNegativeInt
    """Pairs that are shown in full, those that contradict their label most."""


class AuditedRewardModel(Strict):
    """A trained reward model, audited instead of the judge."""

    path: DiskPath | None
    """Folder of a ``checkpoint_hf`` with a sequence-classification head, or a hub name; null audits the judge."""
    precision: Literal["float32", "bfloat16"]
    """Precision of the matrix products."""
    batch_size: Count
    """Pairs per forward pass."""


class AuditLimits(Strict):
    """Bounds that the figures must keep, or the run ends with an error. null only reports."""

    min_agreement: Probability | None
    """Smallest agreement with the labels (``agreement``)."""
    max_position_bias: Probability | None
    """Largest position bias in either direction (``position_bias``)."""
    max_length_bias: Probability | None
    """Largest length bias in either direction (``length_bias``)."""
    max_missing_share: Probability | None
    """Largest share of comparisons without a verdict, or pairs without a reward (``missing_share``)."""


class RewardAuditConfig(Strict):
    """Everything about one audit."""

    data: LabelledPairs
    """The labelled pairs."""
    audit: AuditSettings
    """Size of the sample and what is asked of it."""
    env: EnvConfig
    """The judge, at the place where the RLHF step has it: ``env.nemo_gym.genrm_model`` and the comparison."""
    judge: JudgeConfig
    """How the judge is served and asked."""
    reward_model: AuditedRewardModel
    """A reward model, instead of the judge."""
    limits: AuditLimits
    """When the run ends with an error."""
    output_dir: DiskPath
    """Folder of ``eval_results.json`` and the record beside it."""

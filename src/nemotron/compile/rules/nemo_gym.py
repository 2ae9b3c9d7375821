"""Rules of the NeMo-Gym path: rollouts through the gym, rewards from its comparison server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from nemotron.compile.jobs.grpo import JudgedJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.errors import Finding
from nemotron.suggest import closest

rules: Rules[JudgedJob] = Rules("nemo_gym")
COMPARE = "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare"
VLLM = "policy.generation.vllm_cfg"


@rules.rule("no-judge")
def judge_is_configured(job: JudgedJob) -> Iterator[Finding]:
    """The rewards of this step come from a judge, at the place where NeMo-Gym keeps it."""
    for key, block in ((JUDGE_MODEL, job.config.env.judge_model), (COMPARE, job.config.env.comparison)):
        if block is None:
            yield job.error(
                "env",
                f"the section `{key}` is missing, so nothing gives rewards",
                hint="inherit it: `defaults: default`",
            )


@rules.rule("nemo-gym-off", number=58)
def gym_is_used(job: JudgedJob) -> Iterator[Finding]:
    """Without the gym NeMo-RL would look for a native environment and never ask the judge."""
    if not job.config.env.should_use_nemo_gym:
        yield job.error(
            "env.should_use_nemo_gym",
            "the judge is reached through NeMo-Gym only",
            hint="set `env.should_use_nemo_gym=true`",
        )


@rules.rule("nemo-gym-endpoint", number=54, engines=NEMO_RL)
def policy_is_served(job: JudgedJob) -> Iterator[Finding]:
    """NeMo-Gym talks to the policy over HTTP."""
    if job.vllm is None:
        return
    for name in ("async_engine", "expose_http_server"):
        if not getattr(job.vllm, name):
            yield job.error(f"{VLLM}.{name}", f"NeMo-Gym needs `{VLLM}.{name}`", hint=f"set `{VLLM}.{name}=true`")


@rules.rule("nemo-gym-sampling", number=55, engines=NEMO_RL)
def sampling_is_supported(job: JudgedJob) -> Iterator[Finding]:
    """The gym's requests carry temperature and top_p only."""
    generation = job.generation
    if generation is None:
        return
    if generation.top_k not in (None, -1):
        yield job.error(
            "policy.generation.top_k", "NeMo-Gym rollouts cannot use `top_k`", hint="set `policy.generation.top_k=null`"
        )
    for name in ("stop_strings", "stop_token_ids"):
        if getattr(generation, name):
            yield job.warning(f"policy.generation.{name}", f"NeMo-RL clears `{name}` for NeMo-Gym rollouts")


@rules.rule("rollout-turns", number=56, engines=NEMO_RL)
def gym_counts_turns(job: JudgedJob) -> Iterator[Finding]:
    """Turns are the agent's business."""
    turns = job.config.grpo.max_rollout_turns
    if turns != 1:
        yield job.warning(
            "grpo.max_rollout_turns", f"`grpo.max_rollout_turns` {turns} has no effect: the agent decides"
        )


@rules.rule("gym-comparison", engines=NEMO_RL)
def comparison_is_gyms(job: JudgedJob) -> Iterator[Finding]:
    """What is known of the server that the NeMo-Gym of NeMo-RL v0.7.0 brings."""
    if job.config.env.comparison is None or job.our_servers_reward:
        return
    yield job.warning(
        "judge.comparison_server",
        "NeMo-Gym 0.4.0 compares the answers: it loses comparisons when those of a group arrive while the judge works, "
        "an answer without one, or whose judge fails, gets the default score, and a group that is never whole waits "
        "for ever",
        hint="set `judge.comparison_server=nemotron`, or watch `train/total_reward/stddev`",
    )


@rules.rule("validation-samples", number=57, engines=NEMO_RL)
def gym_validates_on_all(job: JudgedJob) -> Iterator[Finding]:
    """The gym takes the whole validation file."""
    if job.config.grpo.max_val_samples is not None:
        yield job.error(
            "grpo.max_val_samples",
            "with NeMo-Gym `grpo.max_val_samples` must be null",
            hint="set `grpo.max_val_samples=null` and shorten the validation file",
        )


@rules.rule("judge-group-size")
def judge_waits_for_whole_groups(job: JudgedJob) -> Iterator[Finding]:
    """The comparison waits for as many answers as it was told; one too many and it waits for ever."""
    block, group = job.config.env.comparison, job.config.grpo.num_generations_per_prompt
    if block and block.num_rollouts_per_prompt != group:
        key = f"{COMPARE}.num_rollouts_per_prompt"
        yield job.error(
            key,
            f"the judge waits for groups of {block.num_rollouts_per_prompt}, but "
            f"`grpo.num_generations_per_prompt` is {group}",
            hint=f"set `{key}` to `${{grpo.num_generations_per_prompt}}`",
        )


@rules.rule("validation-groups", engines=NEMO_RL)
def validation_groups_complete(job: JudgedJob) -> Iterator[Finding]:
    """Validation asks once per row, so rows must be repeated to a whole group, or the judge waits for ever."""
    grpo = job.config.grpo
    if not job.config.validates:
        return
    for rows in job.config.data.validation_sets():
        if (rows.repeat or 1) != grpo.num_generations_per_prompt:
            yield job.error(
                "data.validation.repeat",
                f"validation groups never complete: each row is used {rows.repeat or 1} times, the judge waits "
                f"for {grpo.num_generations_per_prompt}",
                hint="set `data.validation.repeat` to `${grpo.num_generations_per_prompt}`",
            )


@rules.rule("judge-calls")
def judge_keeps_up(job: JudgedJob) -> Iterator[Finding]:
    """All pairs grow with the square of the group."""
    block, group = job.config.env.comparison, job.config.grpo.num_generations_per_prompt
    if block is None or block.comparison_strategy != "all_pairs" or group < 9:
        return
    pairs = group * (group - 1) // 2
    yield job.warning(
        "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare.comparison_strategy",
        f"`all_pairs` asks the judge {pairs} times per prompt, `circular` {group} times",
    )


@rules.rule("dataset-kind", number=71, engines=NEMO_RL)
def rows_are_for_the_gym(job: JudgedJob) -> Iterator[Finding]:
    """Only one kind of data set carries rows to NeMo-Gym."""
    data = job.config.data
    for place, sets in (("train", data.training_sets()), ("validation", data.validation_sets())):
        for rows in sets:
            name = rows.dataset_name or (data.default.dataset_name if data.default else None)
            if name != "NemoGymDataset":
                yield job.error(
                    f"data.{place}.dataset_name",
                    f"NeMo-Gym reads `NemoGymDataset`, not `{name}`",
                    hint=f"set `data.{place}.dataset_name=NemoGymDataset`",
                )


@rules.rule("likely-typo")
def open_blocks_hold_no_typos(job: JudgedJob) -> Iterator[Finding]:
    """NeMo-Gym blocks pass unknown keys on, so a typo there would be silent."""
    blocks: list[tuple[str, BaseModel | None]] = [
        (JUDGE_MODEL, job.config.env.judge_model),
        (COMPARE, job.config.env.comparison),
    ]
    block = job.config.env.comparison
    if block:
        blocks.append((f"{COMPARE}.genrm_responses_create_params", block.genrm_responses_create_params))
    for key, section in blocks:
        extra: dict[str, Any] = (section.model_extra or {}) if section else {}
        known = type(section).model_fields if section else {}
        for name in extra:
            guess = closest(name, known, cutoff=0.85)
            if guess:
                yield job.warning(
                    f"{key}.{name}",
                    f"`{key}.{name}` is passed on to NeMo-Gym unread",
                    hint=f"did you mean `{guess}`?",
                )

"""Rules that PPO alone has: reward model and critic, and the two sides that may run apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from urllib.parse import urlsplit

from nemotron.compile.jobs.ppo import PpoJob
from nemotron.compile.probes.model_files import read_model, tokenizer_facts, tokenizer_folder
from nemotron.compile.rules.artifacts import longer_than_positions
from nemotron.compile.rules.base import EMBEDDED, NEMO_RL, Rules
from nemotron.errors import ArtifactError, Finding
from nemotron.processes.addresses import in_the_clear, stays_here

rules: Rules[PpoJob] = Rules("ppo")
models: Rules[PpoJob] = Rules("ppo-models")
TOKEN = "NEMOTRON_CRITIC_TOKEN"


@rules.rule("critic-warm-up")
def policy_is_trained_at_all(job: PpoJob) -> Iterator[Finding]:
    """A warm-up that is as long as the run leaves the policy as it was."""
    ppo = job.config.ppo
    if ppo.policy_training_start_step >= ppo.max_num_steps:
        yield job.error(
            "ppo.policy_training_start_step",
            f"the policy is trained from step {ppo.policy_training_start_step + 1} on, and the run ends after "
            f"{ppo.max_num_steps}",
            hint="lower `ppo.policy_training_start_step` or raise `ppo.max_num_steps`",
        )
    elif ppo.policy_training_start_step and not job.has_critic:
        yield job.warning(
            "ppo.policy_training_start_step", "there is no critic to warm up: these steps train nothing with `rloo`"
        )


@rules.rule("kl-without-weight")
def kl_settings_have_an_effect(job: PpoJob) -> Iterator[Finding]:
    """`absolute_kl` speaks about the KL in the reward."""
    loss = job.config.loss_fn
    if job.config.actor.absolute_kl and not (loss.use_kl_in_reward and loss.reference_policy_kl_penalty):
        yield job.error(
            "actor.absolute_kl",
            "`actor.absolute_kl` is about the KL in the reward, and there is none",
            hint="set `loss_fn.use_kl_in_reward=true` and a `loss_fn.reference_policy_kl_penalty`, or drop it",
        )


@rules.rule("value-model", engines=EMBEDDED)
def critic_is_trained(job: PpoJob) -> Iterator[Finding]:
    """The critic has an optimizer of its own, and its head is a regression."""
    value = job.config.value
    if job.has_critic and value.optimizer is None:
        yield job.error("value.optimizer", "the embedded engine needs `value.optimizer` for the critic")
    head = value.reward_model_cfg
    if not head.enabled or head.reward_model_type != "regression":
        yield job.error(
            "value.reward_model_cfg",
            "a critic predicts a value per token",
            hint="set `value.reward_model_cfg={enabled: true, reward_model_type: regression}`",
        )


@rules.rule("value-backend", engines=NEMO_RL)
def critic_backend_can_do_it(job: PpoJob) -> Iterator[Finding]:
    """NeMo-RL v0.7.0's value worker: DTensor v2, no packing, no dynamic batching, no context parallelism."""
    value = job.config.value
    dtensor = value.dtensor_cfg if value.dtensor_cfg.enabled else None
    if dtensor is None:
        return
    if not getattr(dtensor, "v2", False):
        yield job.error("value.dtensor_cfg._v2", "the critic needs `value.dtensor_cfg._v2=true` in NeMo-RL")
    if getattr(dtensor, "context_parallel_size", 1) > 1:
        yield job.error("value.dtensor_cfg.context_parallel_size", "the critic has no context parallelism in NeMo-RL")
    for name in ("sequence_packing", "dynamic_batching"):
        section = getattr(value, name)
        if section is not None and section.enabled:
            yield job.error(f"value.{name}.enabled", f"the critic has no `{name}` with DTensor in NeMo-RL")


@rules.rule("reward-model-gpus", engines=NEMO_RL)
def reward_model_takes_gpus(job: PpoJob) -> Iterator[Finding]:
    """Batches have to divide over the GPUs that are left, which is seldom a power of two."""
    cluster, (nodes, gpus) = job.config.cluster, job.reward_model_resources
    total, key = cluster.num_nodes * cluster.gpus_per_node, "env.reward_model.resources"
    if job.training_gpus < 1:
        yield job.error(
            key,
            f"the reward model's {nodes} node(s) x {gpus} GPU(s) leave none of {total} for policy and critic",
            hint=f"lower `{key}`, or raise `cluster.num_nodes`",
        )
        return
    yield job.note(
        key,
        f"NeMo-RL's reward model has GPUs of its own: policy and critic train on {job.training_gpus} of {total}, over "
        "which `policy.train_global_batch_size` has to divide",
    )


@rules.rule("critic-elsewhere", engines=EMBEDDED)
def the_other_side_is_named(job: PpoJob) -> Iterator[Finding]:
    """A side that runs alone finds the other by address and token."""
    config, critic = job.config, job.config.critic
    if config.only is None:
        for key in ("address", "host"):
            set_here = job.resolved.origin(f"critic.{key}")
            if set_here is not None and set_here.argument is not None:
                yield job.error(
                    f"critic.{key}",
                    f"`critic.{key}` has no effect when both sides run here",
                    hint="start them apart with `--only critic` and `--only actor`",
                )
        return
    if critic.token is None or not critic.token.get_secret_value():
        yield job.error(
            "critic.token",
            f"`only: {config.only}` needs a token that both sides share",
            hint=f"set `{TOKEN}` to the same long random text for both",
        )
    if config.only == "actor":
        if critic.address is None:
            yield job.error(
                "critic.address",
                "`only: actor` needs to know where the critic is",
                hint="start the critic with `--only critic`, and set `critic.address=http://HOST:PORT`",
            )
        elif not _is_url(critic.address):
            yield job.error(
                "critic.address", f"`{critic.address}` is no address of a critic", hint="write it as `http://HOST:PORT`"
            )


@rules.rule("critic-in-the-open", engines=EMBEDDED)
def a_token_on_the_network_is_said(job: PpoJob) -> Iterator[Finding]:
    """The two sides talk plain HTTP, and whoever has the token can train the critic."""
    config, critic = job.config, job.config.critic
    if config.only == "actor" and critic.address and _is_url(critic.address) and in_the_clear(critic.address):
        key, where = "critic.address", f"to {critic.address}"
    elif config.only == "critic" and not stays_here(critic.host):
        key, where = "critic.host", f"to whoever reaches {critic.host}"
    else:
        return
    yield job.warning(
        key,
        f"the critic's token and all that both sides say crosses the network in the clear, {where}",
        hint="use a network that is yours alone, or a tunnel between the machines and an address of this one",
    )


def _is_url(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        return False


@rules.rule("checkpoints-not-shared", engines=EMBEDDED)
def both_sides_write_one_folder(job: PpoJob) -> Iterator[Finding]:
    """Each side that runs alone has a run folder of its own; a checkpoint holds parts of both."""
    checkpointing = job.config.checkpointing
    key = "checkpointing.checkpoint_dir"
    if job.config.only is not None and checkpointing.enabled and "RUN_ID" in checkpointing.checkpoint_dir:
        yield job.error(
            key,
            f"`{key}` lies in the folder of this run, which the other side does not have",
            hint=f"set `{key}` to one folder on a file system that both sides see, the same for both",
        )


@rules.rule("offload-without-gpu", engines=EMBEDDED)
def there_is_something_to_leave(job: PpoJob) -> Iterator[Finding]:
    """On a CPU every model is in host memory already."""
    if job.config.critic.offload != "none" and not job.place.has_cuda and job.config.only != "actor":
        yield job.warning("critic.offload", "there is no GPU here, so `critic.offload` has no effect")


@rules.rule("request-size", engines=EMBEDDED)
def an_update_fits_a_request(job: PpoJob) -> Iterator[Finding]:
    """An update carries tokens, returns, values and mask of a whole rollout batch."""
    need = job.responses * job.config.policy.max_total_sequence_length * (8 + 3 * 4) / 2**20
    key = "critic.max_request_mib"
    if job.has_critic and need > job.config.critic.max_request_mib:
        yield job.error(
            key,
            f"an update of {job.responses} responses may take {math.ceil(need)} MiB, `{key}` is "
            f"{job.config.critic.max_request_mib}",
            hint=f"set `{key}={math.ceil(need)}`",
        )


@models.rule("reward-model", engines=EMBEDDED, needs=("reward_model.model_name", "value.model_name"))
def reward_model_scores(job: PpoJob) -> Iterator[Finding]:
    """A sequence classifier with one output."""
    config = job.config
    if config.only == "actor":
        return
    for key, name in (
        ("reward_model.model_name", config.reward_model.model_name),
        ("value.model_name", config.value.model_name),
    ):
        found = read_model(name, job.place)
        kinds = found.config.get("architectures") if found else None
        if isinstance(kinds, list) and kinds and not any("SequenceClassification" in str(kind) for kind in kinds):
            yield job.error(
                key,
                f"`{name}` is a `{kinds[0]}`, not a reward model",
                kind=ArtifactError,
                hint="train one with `nemotron steps run rl/nemo_rl/rm`",
            )


@models.rule("reward-model", engines=EMBEDDED, needs=("reward_model.model_name",))
def reward_scale_is_known(job: PpoJob) -> Iterator[Finding]:
    """Mean and spread of the rewards are stored with the model, where they are asked for."""
    config = job.config
    found = read_model(config.reward_model.model_name, job.place) if config.only != "actor" else None
    if found and config.reward_model.standardize and not found.config.get("reward_std"):
        yield job.error(
            "reward_model.standardize",
            f"`{config.reward_model.model_name}` has no stored mean and spread of its rewards",
            kind=ArtifactError,
            hint="set `reward_model.standardize=false`, or train it with `rl/nemo_rl/rm`, which stores them",
        )


@models.rule(
    "other-tokenizer",
    engines=EMBEDDED,
    needs=("policy.model_name", "policy.tokenizer.name", "reward_model.model_name", "value.model_name"),
)
def models_share_tokens(job: PpoJob) -> Iterator[Finding]:
    """The critic's server is handed token ids, so both models must mean the same by them."""
    policy = tokenizer_folder(job.config.policy.tokenizer.name, job.place)
    for key, name in (
        ("reward_model.model_name", job.config.reward_model.model_name),
        ("value.tokenizer.name", job.config.value.tokenizer.name),
    ):
        other = tokenizer_folder(name, job.place)
        if policy is None or other is None:
            continue
        ours, theirs = tokenizer_facts(policy).vocabulary, tokenizer_facts(other).vocabulary
        if ours and theirs and ours != theirs:
            yield job.error(
                key,
                f"`{name}` gives other ids to tokens than the policy's tokenizer",
                kind=ArtifactError,
                hint="train the reward model from the policy's own family, or retokenise",
            )


@models.rule(
    "reward-model-context", engines=EMBEDDED, needs=("reward_model.model_name", "policy.max_total_sequence_length")
)
def sequence_fits_the_reward_model(job: PpoJob) -> Iterator[Finding]:
    """Positions beyond those the model was trained with give nonsense, and the server refuses them."""
    yield from longer_than_positions(job, job.config.reward_model.model_name, "reward model")

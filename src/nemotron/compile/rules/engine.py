"""Which engine runs the job, and what it cannot honour: a finding each, never silence."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.probes.wandb_login import wandb_can_start
from nemotron.compile.rules.base import EMBEDDED, NEMO_RL, Rules
from nemotron.config.known import embedded_reads
from nemotron.config.schema.data import DatasetConfig
from nemotron.errors import Finding, NotAvailableError
from nemotron.install import install_extra

modules: Rules[AnyStepJob] = Rules("modules")
rules: Rules[AnyJob] = Rules("engine")

LOGGER_MODULES = ("tensorboard", "wandb")


@modules.rule("engine-not-installed")
def engine_is_installed(job: AnyStepJob) -> Iterator[Finding]:
    """The embedded engine's libraries are an extra of the package; NeMo-RL comes with its container and needs a GPU."""
    missing = job.place.lacking(job.modules)
    found = _nemo_rl_lacks(job) if job.engine == "nemo_rl" else None
    if missing:
        noun = "module" if len(missing) == 1 else "modules"
        names = ", ".join(f"`{name}`" for name in missing)
        found = f"{job.who} needs the {noun} {names}", install_extra("local")
        other = (
            _nemo_rl_lacks(job) if getattr(job.config, "engine", None) == "auto" and "nemo_rl" in job.engines else None
        )
        if other and job.engine == "embedded":
            found = f"{found[0]}; the other engine cannot run either: {other[0]}", f"{found[1]}; or {other[1]}"
    if found:
        key = "" if job.engine == "plain" else "engine"
        yield job.error(key, found[0], hint=found[1], kind=NotAvailableError)


def _nemo_rl_lacks(job: AnyStepJob) -> tuple[str, str] | None:
    where = "here" if job.place.is_here else f"on `{job.place.name}`"
    if "nemo_rl" not in job.engines:
        return "this step does not run on NeMo-RL", "set `engine=embedded`"
    doctor = "nemotron doctor" if job.place.is_here else f"nemotron doctor {job.place.name}"
    lacks = []
    if job.place.has("nemo_rl") is False:
        lacks.append(f"NeMo-RL is not installed {where}")
    if not job.place.has_cuda:
        lacks.append("NeMo-RL needs a CUDA device, none is visible")
    if not lacks:
        return None
    get = "run inside NeMo-RL's container on a machine with GPUs, or set `engine=embedded`"
    return ", and ".join(lacks), f"{get}; `{doctor}` shows all that is missing and how to get it"


@rules.rule("not-in-nemo-rl", engines=NEMO_RL)
def nemo_rl_can_do_it(job: AnyJob) -> Iterator[Finding]:
    """What is ours alone."""
    for key, message, hint in job.missing_in_nemo_rl():
        yield job.error(key, message, hint=hint, kind=NotAvailableError)


@rules.rule("limits-from-outside", engines=NEMO_RL)
def limits_have_no_hook(job: AnyJob) -> Iterator[Finding]:
    """NeMo-RL has no place for a limit of ours; what its metrics show is minded from outside."""
    limits = getattr(job.config, "limits", None)
    if getattr(limits, "max_kl", None) is not None:
        yield job.note(
            "limits.max_kl",
            "NeMo-RL has no such limit: the run is ended from outside after the step that crosses it",
        )
    for name in ("min_entropy", "max_grad_spike", "max_sampler_drift"):
        if getattr(limits, name, None) is not None:
            yield job.note(
                f"limits.{name}",
                "NeMo-RL has no such limit: the run is ended from outside after the step that crosses it",
            )
    for name, what in (
        ("max_missing_share", "rewards that are missing"),
        ("max_rejected_share", "pairs left out"),
        ("max_dead_groups", "groups without signal"),
    ):
        if getattr(limits, name, None) is None:
            continue
        if name == "max_missing_share" and job.our_servers_reward:
            yield job.note(
                f"limits.{name}", "our server counts what is missing: the run is ended after the step that crosses it"
            )
        else:
            yield job.note(f"limits.{name}", f"NeMo-RL does not tell of {what}: `limits.{name}` has no effect there")


@rules.rule("not-in-embedded", engines=EMBEDDED)
def embedded_can_do_it(job: AnyJob) -> Iterator[Finding]:
    """Features whose absence would change the result."""
    for key, what, on in _features(job):
        if on:
            hint = f"change `{key}`, or run with `engine=nemo_rl`"
            yield job.error(key, f"the embedded engine has no {what}", hint=hint)


def _features(job: AnyJob) -> Iterator[tuple[str, str, object]]:
    """(key, feature, whether it is switched on) of everything that the embedded engine lacks."""
    config, policy = job.config, job.config.policy
    generation, megatron = job.generation, policy.megatron
    reward_model = policy.reward_model_cfg
    yield from job.missing_features()
    yield "policy.generation.stop_strings", "stop strings (stop tokens work)", generation and generation.stop_strings
    yield "policy.draft.enabled", "draft model training", policy.draft and policy.draft.enabled
    yield "policy.router_replay.enabled", "router replay", policy.router_replay and policy.router_replay.enabled
    if not job.trains_reward_model:
        on = reward_model and reward_model.enabled
        yield "policy.reward_model_cfg.enabled", "reward model training in this step", on
    yield "policy.quant_cfg", "quantisation", policy.quant_cfg
    yield "policy.hf_config_overrides", "overrides of the model's `config.json`", policy.hf_config_overrides
    yield "policy.tokenizer.use_processor", "multimodal processors", policy.tokenizer.use_processor
    dropped = policy.lora is not None and policy.lora.dropout > 0
    yield "policy.dtensor_cfg.lora_cfg.dropout", "dropout in adapters", dropped
    yield "policy.megatron_cfg.peft.enabled", "LoRA", megatron and megatron.peft and megatron.peft.enabled
    fp8 = megatron and megatron.fp8_cfg and megatron.fp8_cfg.enabled
    yield "policy.megatron_cfg.fp8_cfg.enabled", "FP8 training", fp8
    instead = "use for this key (`policy.pretrained_checkpoint` works)"
    yield "checkpointing.pretrained_checkpoint", instead, config.checkpointing.pretrained_checkpoint
    yield "data.use_multiple_dataloader", "several data loaders", config.data.use_multiple_dataloader
    yield "data.custom_dataloader", "custom data loaders", config.data.custom_dataloader
    repeated = any((rows.repeat or 1) > 1 for rows in config.data.training_sets())
    yield "data.train.repeat", "repetition of rows (epochs do the same)", repeated
    sets: list[tuple[str, DatasetConfig | None]] = [("data.default", config.data.default)]
    sets += [("data.train", rows) for rows in config.data.training_sets()]
    sets += [("data.validation", rows) for rows in config.data.validation_sets()]
    for place, rows in sets:
        for name in ("prompt_file", "system_prompt_file"):
            yield f"{place}.{name}", "prompt templates for data sets", rows and getattr(rows, name)


@rules.rule("no-optimizer", engines=EMBEDDED)
def optimizer_is_named(job: AnyJob) -> Iterator[Finding]:
    """Megatron has its own optimizer section, the embedded engine uses the one of DTensor."""
    if job.config.policy.optimizer is None:
        yield job.error(
            "policy.optimizer",
            "the embedded engine needs `policy.optimizer`",
            hint="for example `policy.optimizer={name: torch.optim.AdamW, kwargs: {lr: 1.0e-6}}`",
        )


@rules.rule("logger-not-in-embedded", engines=EMBEDDED)
def loggers_exist(job: AnyJob) -> Iterator[Finding]:
    """Metrics go to the run folder in any case."""
    logger = job.config.logger
    for name in ("mlflow", "swanlab"):
        if getattr(logger, f"{name}_enabled"):
            yield job.warning(
                f"logger.{name}_enabled",
                f"the embedded engine does not log to {name} (W&B and TensorBoard work); metrics are in the run folder",
            )


@rules.rule("logger-not-installed", engines=EMBEDDED)
def loggers_are_installed(job: AnyJob) -> Iterator[Finding]:
    """The libraries are extras of the package."""
    for name in LOGGER_MODULES:
        if getattr(job.config.logger, f"{name}_enabled") and job.place.has(name) is False:
            yield job.error(
                f"logger.{name}_enabled",
                f"`logger.{name}_enabled` needs the module `{name}`",
                hint=install_extra(name),
                kind=NotAvailableError,
            )


@rules.rule("wandb-login", engines=EMBEDDED)
def wandb_is_logged_in(job: AnyJob) -> Iterator[Finding]:
    """Without a key W&B asks for one on the terminal, or ends the run."""
    logger = job.config.logger
    if logger.wandb_enabled and not wandb_can_start(logger.wandb, job.env):
        yield job.error(
            "logger.wandb_enabled",
            "nobody is logged in to W&B on this machine",
            hint="`wandb login`, or set WANDB_API_KEY; `WANDB_MODE=offline` needs no account",
        )


@rules.rule("time-limit", engines=EMBEDDED)
def time_limit_saves(job: AnyJob) -> Iterator[Finding]:
    """A time limit is there to save in time."""
    checkpointing = job.config.checkpointing
    if checkpointing.checkpoint_must_save_by and not checkpointing.enabled:
        yield job.error(
            "checkpointing.checkpoint_must_save_by",
            "the run would stop in time without anything to go on from: checkpoints are off",
            hint="set `checkpointing.enabled=true`, or leave the limit out",
        )


@rules.rule("several-gpus", engines=EMBEDDED)
def one_process_is_enough(job: AnyJob) -> Iterator[Finding]:
    """Parallel sizes mean a model that does not fit one device."""
    policy = job.config.policy
    sizes = {}
    if policy.megatron:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
            sizes[f"policy.megatron_cfg.{name}"] = getattr(policy.megatron, name)
    if policy.dtensor:
        for name in ("tensor_parallel_size", "context_parallel_size"):
            sizes[f"policy.dtensor_cfg.{name}"] = getattr(policy.dtensor, name)
    above = [key for key, size in sizes.items() if size > 1]
    if above:
        yield job.warning(
            above[0],
            "the embedded engine runs in one process, parallel sizes have no effect: "
            + ", ".join(f"`{key}`" for key in above),
        )


@rules.rule("override-without-effect", engines=EMBEDDED)
def overrides_have_an_effect(job: AnyJob) -> Iterator[Finding]:
    """A word on the command line that changes nothing is a misunderstanding."""
    words: dict[int, list[str]] = {}
    for key, origin in job.resolved.origins.items():
        if origin.argument is not None:
            words.setdefault(origin.argument, []).append(key)
    referred, model = str(job.resolved.raw), type(job.config)
    # What is switched off there is as the engine is; what is switched on, `not-in-embedded` refuses.
    features = tuple(key for key, _, _ in _features(job))
    for keys in words.values():
        if not any(
            embedded_reads(model, job.section, key) or _below(key, features) or f"${{{key}}}" in referred
            for key in keys
        ):
            yield job.error(
                keys[0],
                f"`{keys[0]}` has no effect in the embedded engine",
                hint="leave it out, or run with `engine=nemo_rl`",
            )


@rules.rule("adapters-switched-off")
def adapters_are_trained(job: AnyJob) -> Iterator[Finding]:
    """They are DTensor's: asked for where it is switched off, all weights would be trained, here as on NeMo-RL."""
    key = "policy.dtensor_cfg.lora_cfg.enabled"
    if job.resolved.get(key) is True and job.config.policy.lora is None:
        yield job.error(
            key,
            f"`{key}` is true, but `policy.dtensor_cfg.enabled` is not: all weights would be trained",
            hint="set `policy.dtensor_cfg.enabled=true` and `policy.megatron_cfg.enabled=false`, or take adapters out",
        )


@rules.rule("section-switched-off")
def words_reach_what_is_on(job: AnyJob) -> Iterator[Finding]:
    """A word on the command line below a section that is off changes nothing. One that writes the section whole may."""
    told: set[int] = set()
    referred, origins = str(job.resolved.raw), job.resolved.origins
    for key, origin in origins.items():
        if origin.argument is None or origin.argument in told or f"${{{key}}}" in referred:
            continue
        parts = key.split(".")
        switches = [".".join([*parts[:count], "enabled"]) for count in range(1, len(parts))]
        off = [switch for switch in switches if switch != key and job.resolved.get(switch) is False]
        if off and (switched := origins.get(off[0])) is not None and switched.argument != origin.argument:
            told.add(origin.argument)
            yield job.warning(
                key, f"`{key}` has no effect: `{off[0]}` is false", hint="switch that on, or leave it out"
            )


def _below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


@rules.rule("nemo-rl-settings", engines=EMBEDDED)
def unread_settings(job: AnyJob) -> Iterator[Finding]:
    """One line for everything that only matters on a cluster."""
    sections = [
        key
        for key in ("cluster", "policy.megatron_cfg", "policy.dtensor_cfg", "policy.generation.vllm_cfg")
        if job.resolved.get(key) is not None
    ]
    if sections:
        yield job.note(
            "engine",
            "settings of a cluster are for NeMo-RL and not read here: "
            + ", ".join(f"`{key}`" for key in sections)
            + " and others",
        )

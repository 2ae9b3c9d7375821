"""Settings that run, but slowly, or to no effect, or to one that nobody wants: the same for every algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nemotron.compile.estimate import BATCH_TOKENS, SMALL_JUDGE
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import files, on_sample
from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.probes.fast_path import FAMILIES, LONGEST, STATEFUL, matrices, slow_path, tied
from nemotron.compile.probes.model_files import read_model
from nemotron.compile.rules.base import EMBEDDED, Rules
from nemotron.config.schema.policy import SchedulerEntry
from nemotron.contracts.adapters import adapted, meant
from nemotron.errors import Finding
from nemotron.suggest import closest, listed

speed: Rules[AnyStepJob] = Rules("speed")
rules: Rules[AnyJob] = Rules("doubts")

HIGH_RATE, RUINOUS_RATE = 1e-2, 1.0
"""Learning rates of `NORMALISED` optimizers above which training of a language model is unusual, or hopeless."""
NORMALISED = ("Adam", "Adagrad", "RMSprop", "Muon")
"""Parts of the names of optimizers that move every weight by about the learning rate, however small the gradient."""
FEW_TOKENS, MANY_PASSES = 128, 8
"""Tokens of a pass, and passes of a step, that make it slow for want of company."""
HOT = 2.0
"""Temperature above which most of what is sampled is noise."""
_LORA = "policy.dtensor_cfg.lora_cfg"
_INSIDE = ["*_proj"]
"""What `match_all_linear` takes of the families whose modules are known."""


@speed.rule("slow-precision", engines=("embedded", "plain"))
def number_types_are_fast(job: AnyStepJob) -> Iterator[Finding]:
    """Measured on a processor without such instructions: 21 s a step in bfloat16, 2.3 s in float32."""
    for key, name in ((found.key, found.name) for found in job.number_types()):
        if name == "bfloat16" and not job.place.has_cuda and job.place.has_bf16 is False:
            yield job.warning(
                key,
                f"`{key}` is bfloat16, which this processor has no instructions for: "
                "steps may take ten times as long as in float32",
                hint=f"set `{key}=float32`",
            )


@rules.rule("adapter-targets", engines=EMBEDDED)
def adapters_have_a_place(job: AnyJob) -> Iterator[Finding]:
    """A name that no module has would be found when the model is loaded; beside a right one it would train less."""
    lora = job.config.policy.lora
    model = read_model(job.config.policy.model_name, job.place)
    paths = matrices(model) if model is not None else None
    if lora is None or model is None or not paths:
        return
    names = sorted({path.rpartition(".")[2] for path in paths})
    wanted = lora.target_modules or (_INSIDE if lora.match_all_linear else [])
    for key, patterns in (("target_modules", lora.target_modules), ("exclude_modules", lora.exclude_modules)):
        for pattern in patterns:
            if not meant(pattern, paths):
                guess = closest(pattern, names)
                yield job.error(
                    f"{_LORA}.{key}",
                    f"no matrix of the policy is called `{pattern}`",
                    hint=f"did you mean `{guess}`?" if guess else f"there are {listed(names)}",
                )
                return
    found = adapted(paths, wanted, lora.exclude_modules)
    # A reward model has no output layer that the embedding could be, too.
    both = () if job.trains_reward_model else tied(model)
    shared = [path for path in found if path in both]
    if shared:
        yield job.error(
            f"{_LORA}.target_modules",
            f"{listed(shared)} cannot have an adapter: the model reads one matrix as embedding and as output layer, "
            "and what is merged for the one would change the other",
            hint=f"add `lm_head` and `embed_tokens` to `{_LORA}.exclude_modules`",
        )
    if not found:
        yield job.error(
            f"{_LORA}.exclude_modules" if wanted else f"{_LORA}.target_modules",
            "no matrix of the policy gets an adapter",
            hint="name what gets one in `target_modules`, or set `match_all_linear=true`, and leave it out of "
            "`exclude_modules`",
        )


@rules.rule("slow-adapters", engines=EMBEDDED, needs=(f"{_LORA}.target_modules",))
def adapters_go_the_long_way(job: AnyJob) -> Iterator[Finding]:
    """The arithmetic by hand knows adapters of the matrices in a layer, which all have names of one kind."""
    lora = job.config.policy.lora
    model = read_model(job.config.policy.model_name, job.place)
    if lora is None or model is None or slow_path(model) is not None:
        return
    paths = adapted(matrices(model) or [], lora.target_modules, lora.exclude_modules)
    elsewhere = sorted({path.rpartition(".")[2] for path in paths if not path.endswith("_proj")})
    if elsewhere:
        yield job.warning(
            f"{_LORA}.target_modules",
            f"with an adapter of {listed(elsewhere)} the model is computed by its own forward and autograd, which take "
            "more time and memory",
            hint="name matrices of attention and MLP alone, or none: they are all that `match_all_linear` takes",
        )


@speed.rule("slow-judge", engines=("embedded", "plain"))
def judge_is_not_exact_for_nothing(job: AnyStepJob) -> Iterator[Finding]:
    """float64 keeps what shares a batch from flipping a token; a processor computes it at half the rate."""
    sizes = {ref.role: read_model(ref.name, job.place) for ref in job.models()}
    judge = sizes.get("judge")
    asked = [found for found in job.number_types() if found.key.endswith("judge.dtype") and found.name == "float64"]
    if asked and judge and judge.parameters and judge.parameters >= SMALL_JUDGE:
        key = asked[0].key
        yield job.warning(
            key,
            f"in float64 a judge of {judge.parameters / 1e6:.0f}M parameters takes twice the time and memory of "
            "float32",
            hint=f"set `{key}=auto`: float64 below {SMALL_JUDGE / 1e6:.0f}M parameters, float32 above; what shares a "
            "batch may then, rarely, change a verdict",
        )


@rules.rule("slow-model", engines=EMBEDDED)
def model_is_computed_by_hand(job: AnyJob) -> Iterator[Finding]:
    """What a family of the arithmetic by hand falls off it for; other families know no better."""
    policy = job.config.policy
    model = read_model(policy.model_name, job.place)
    if model is None:
        return
    reason, family = slow_path(model), model.config.get("model_type")
    if family in STATEFUL and job.generation is not None and job.rows_at_once:
        yield job.warning(
            "policy.model_name",
            f"models of type `{family}` keep no cache of keys and values here: every token of an answer is sampled by "
            "computing the whole answer again",
            hint="take a model with attention, or short answers: lower `policy.generation.max_new_tokens`",
        )
    elif reason is not None and family in FAMILIES:
        yield job.warning(
            "policy.model_name",
            f"the model is of a family that is computed by hand, but {reason}: its own forward and autograd take more "
            "time and memory",
            hint="take a checkpoint of that family without it",
        )
    elif reason is None and policy.max_total_sequence_length > LONGEST:
        yield job.note(
            "policy.max_total_sequence_length",
            f"batches with a sequence of more than {LONGEST:,} tokens are computed by the model's own forward: slower "
            "than shorter ones",
        )


@rules.rule("small-passes", engines=EMBEDDED)
def passes_are_worth_their_cost(job: AnyJob) -> Iterator[Finding]:
    """A product of few rows costs as much as one of many."""
    policy = job.config.policy
    answer = min(job.generation.max_new_tokens, policy.max_total_sequence_length) if job.generation else None
    length = answer if answer and job.rows_at_once else policy.max_total_sequence_length
    for batch in job.batches():
        tokens = batch.micro * length
        if tokens <= FEW_TOKENS and batch.size >= MANY_PASSES * batch.micro:
            wanted, passes = min(batch.size, math.ceil(BATCH_TOKENS / length)), math.ceil(batch.size / batch.micro)
            yield job.warning(
                batch.micro_key,
                f"`{batch.micro_key}` {batch.micro} makes {passes} passes of at most {tokens} tokens out of a step: "
                "rows of one length are not computed together",
                hint=f"set `{batch.micro_key}={wanted}`; a pass is cut into {BATCH_TOKENS:,} tokens in any case",
            )


@rules.rule("learning-rate")
def learning_rate_can_work(job: AnyJob) -> Iterator[Finding]:
    """An optimizer of Adam's kind moves every weight by about the rate in every step; weights are about 0.02."""
    for trained in job.optimizers():
        if trained.settings is None:
            continue
        key, rate = f"{trained.key}.optimizer.kwargs.lr", trained.settings.kwargs.get("lr")
        if rate is None:
            continue
        hint = "1.0e-6 to 1.0e-4 is usual for all weights, 1.0e-4 to 1.0e-3 for adapters"
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            yield job.error(key, f"`{key}` is `{rate}`, which is not a number", hint="write it like 1.0e-6")
        elif not math.isfinite(rate) or rate < 0:
            yield job.error(key, f"`{key}` is {rate:g}: a learning rate is a number from 0", hint=hint)
        elif rate == 0:
            yield job.warning(key, f"`{key}` is 0: nothing is learned", hint=hint)
        elif not any(part in trained.settings.name for part in NORMALISED):
            continue
        elif rate > RUINOUS_RATE:
            yield job.error(
                key,
                f"`{key}` is {rate:g}: {trained.settings.name} moves every weight by about that much in each step, "
                "and the first step destroys the model",
                hint=hint,
            )
        elif rate > HIGH_RATE:
            yield job.warning(
                key, f"`{key}` {rate:g} is very high: the model may be lost within a few steps", hint=hint
            )


@rules.rule("micro-batch-larger")
def parts_are_smaller_than_the_whole(job: AnyJob) -> Iterator[Finding]:
    """The excess is never used; whoever sets it counts on a batch that there is not."""
    parts = [] if job.whole_micro_batches else [(b.micro_key, b.micro, f"`{b.key}`", b.size) for b in job.batches()]
    policy, responses = job.config.policy, job.rows_at_once
    # Where it is the micro-batch size by another name, that one is blamed.
    if responses and policy.logprob_rows != policy.train_micro_batch_size:
        parts.append(("policy.logprob_batch_size", policy.logprob_rows, "the responses of a step,", responses))
    for key, size, whole, of in parts:
        if size > of:
            yield job.warning(
                key,
                f"`{key}` {size} is more than {whole} {of}: there is never that much to compute at once",
                hint=f"set `{key}` to {of} or a divisor of it",
            )


@rules.rule("hot-rollouts")
def samples_are_language(job: AnyJob) -> Iterator[Finding]:
    """Such responses teach nothing, and their probabilities under the policy are tiny."""
    temperature = job.generation.temperature if job.generation else 0.0
    if temperature > HOT:
        yield job.warning(
            "policy.generation.temperature",
            f"at temperature {temperature:g} most tokens are drawn nearly at random",
            hint="set `policy.generation.temperature=1.0`",
        )


@rules.rule("heldout-without-room", engines=EMBEDDED)
def heldout_answers_leave_room(job: AnyJob) -> Iterator[Finding]:
    """The sampler refuses a prompt that could not be answered in full within the positions of the model."""
    own, generation = getattr(job.heldout, "max_new_tokens", None), job.generation
    model = read_model(job.config.policy.model_name, job.place)
    positions = model.positions if model else None
    if job.heldout is None or job.heldout_kind != "prompt" or generation is None or positions is None:
        return
    key = "policy.generation.max_new_tokens" if own is None else "eval.heldout.max_new_tokens"
    limit = generation.max_new_tokens if own is None else own
    if limit >= positions:
        yield job.error(
            key,
            f"`{key}` {limit} leaves no room for a held-out prompt in the {positions} positions of the model",
            hint=f"set `{key}` well below {positions}",
        )


@rules.rule("heldout-samples")
def heldout_has_as_many(job: AnyJob) -> Iterator[Finding]:
    """The figure then rests on fewer answers than the config says."""
    wanted = getattr(job.heldout, "max_samples", None)
    if wanted is None:
        return
    for file in files(job):
        rows = file.survey().rows
        if file.role == "heldout" and rows and wanted > rows:
            noun = "prompts" if job.heldout_kind == "prompt" else "pairs"
            yield job.note(
                "eval.heldout.max_samples", f"the held-out data have {rows} {noun}, fewer than the {wanted} asked for"
            )


@rules.rule("epochs-end-first")
def asked_steps_are_made(job: AnyJob) -> Iterator[Finding]:
    """The shipped configs let the epochs end the run; who types a number of steps wants them."""
    key, most = f"{job.section}.max_num_steps", job.course.max_num_steps
    origin, by_data = job.resolved.origin(key), job.data_steps
    if origin is not None and origin.argument is not None and by_data and most > by_data:
        epochs = job.course.max_num_epochs
        yield job.warning(
            key,
            f"the data end the run after {by_data} steps ({_epochs(epochs)}), before `{key}` {most}",
            hint=f"set `{job.section}.max_num_epochs={math.ceil(most * epochs / by_data)}`",
        )


@rules.rule("validation-never-due")
def validation_comes(job: AnyJob) -> Iterator[Finding]:
    """A period that is longer than the run asks for nothing."""
    course, made = job.course, _length(job)
    if made and course.val_period > made and not course.val_at_end and job.config.data.validation_sets():
        key = f"{job.section}.val_period"
        yield job.warning(
            key,
            f"validation every {course.val_period} steps never comes: the run ends after {made}",
            hint=f"set `{key}` to at most {made}, or `{job.section}.val_at_end=true`",
        )


@rules.rule("saved-at-the-end-only")
def checkpoints_come(job: AnyJob) -> Iterator[Finding]:
    """The last step is always saved; before it there is nothing to go on from."""
    checkpointing, made = job.config.checkpointing, _length(job)
    if checkpointing.enabled and made and checkpointing.save_period > made > 1:
        yield job.note(
            "checkpointing.save_period",
            f"the only checkpoint is that of the last step, {made}: a run that is cut off starts over",
        )


@rules.rule("warm-up-longer", engines=EMBEDDED)
def warm_up_ends(job: AnyJob) -> Iterator[Finding]:
    """The learning rate never gets where the config says it is."""
    made = _length(job)
    for trained in job.optimizers():
        warm = _warm_up(trained.schedulers)
        if made and warm > made * trained.steps_per_step:
            yield job.warning(
                f"{trained.key}.scheduler",
                f"the learning rate of `{trained.key}` rises for {warm} steps, and the run ends after {made}: it never "
                f"reaches `{trained.key}.optimizer.kwargs.lr`",
                hint=f"shorten the warm-up in `{trained.key}.scheduler`, or set it to null",
            )


@rules.rule("schedule-ends", engines=EMBEDDED)
def schedules_last(job: AnyJob) -> Iterator[Finding]:
    """torch's one-cycle schedule raises an error at the step behind its last one: in the middle of a run."""
    if job.steps is None:
        return
    for trained in job.optimizers():
        made = job.steps * trained.steps_per_step
        handed = [step for entry in trained.schedulers for step in entry.milestones or []]
        named = [entry for entry in trained.schedulers if entry.name is not None]
        for entry, first, next_one in zip(named, [0, *handed], [*handed, made + 1], strict=False):
            last, needed = entry.last_step, min(next_one - 1, made) - first
            if last is not None and last < needed:
                yield job.error(
                    f"{trained.key}.scheduler",
                    f"`{entry.name}` ends after {last:,} steps, and the run makes {needed:,} with it",
                    hint=f"give it `total_steps: {needed}`, or let another scheduler follow at a milestone",
                )


@rules.rule("matrices-alone", engines=EMBEDDED)
def optimizer_takes_all_weights(job: AnyJob) -> Iterator[Finding]:
    """Otherwise found when the model is loaded. Adapters are matrices, all of them."""
    for trained in job.optimizers():
        adapters = trained.key == "policy" and job.config.policy.lora is not None
        name = trained.settings.name if trained.settings is not None else None
        if name is not None and name.endswith(".Muon") and not adapters:
            yield job.error(
                f"{trained.key}.optimizer.name",
                f"`{name}` takes matrices alone, and a model has vectors, too: those of its norms",
                hint=f"set `{trained.key}.optimizer.name=torch.optim.AdamW`, or train adapters",
            )


@rules.rule("no-time", engines=EMBEDDED)
def time_limit_leaves_time(job: AnyJob) -> Iterator[Finding]:
    """At a limit of 0 every attempt makes one step and stops."""
    limit = job.config.checkpointing.checkpoint_must_save_by
    if limit is not None and not any(int(part) for part in limit.split(":")):
        yield job.warning(
            "checkpointing.checkpoint_must_save_by",
            f"`checkpointing.checkpoint_must_save_by` {limit} stops the run after its first step",
            hint="it is days, hours, minutes and seconds: `00:03:45:00`; null sets no limit",
        )


def _length(job: AnyJob) -> int | None:
    """Steps of the run; None where that is not known, or says nothing: the shipped sample stands in for real data."""
    return None if on_sample(job) else job.steps


def _warm_up(schedulers: Sequence[SchedulerEntry]) -> int:
    """Steps over which the first entry raises the learning rate; 0 when it does not."""
    first = schedulers[0] if schedulers else None
    if first is None or first.name is None or not first.name.endswith(".LinearLR"):
        return 0
    kwargs = first.kwargs or {}
    start, end, length = kwargs.get("start_factor", 1 / 3), kwargs.get("end_factor", 1.0), kwargs.get("total_iters", 5)
    numbers = all(isinstance(value, int | float) for value in (start, end, length))
    return int(length) if numbers and start < end else 0


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"

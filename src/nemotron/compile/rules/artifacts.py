"""Models and tokenizers on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemotron.checkpoints.adapter_files import not_a_model
from nemotron.checkpoints.chat_template import DEFAULT, read_template, refuses_all, template_fault
from nemotron.checkpoints.hf import UNQUANTISED, layout_fault
from nemotron.checkpoints.kinds import SCORER_HINT, START_HINT, WRITER_HINT, no_scorer, no_writer, unknown_type
from nemotron.checkpoints.megatron import layout
from nemotron.checkpoints.megatron.describe import describe
from nemotron.checkpoints.surplus import HEAD
from nemotron.checkpoints.turn_end import FEWER_ROWS_HINT, NO_END_HINT, model_ends, names_no_end, start_of
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import named_files
from nemotron.compile.jobs.step import AnyStepJob, ModelRef
from nemotron.compile.probes.model_files import (
    ModelFiles,
    TokenizerFacts,
    folder_of,
    is_path,
    may_be_repository,
    read_model,
    template_problem,
    tokenizer_at,
    tokenizer_facts,
    tokenizer_folder,
)
from nemotron.compile.rules.base import EMBEDDED, NEMO_RL, Rules
from nemotron.compile.rules.conversations import policy_writing
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError, Finding

files: Rules[AnyStepJob] = Rules("model-files")
rules: Rules[AnyJob] = Rules("artifacts")


@files.rule("model-files")
def models_are_complete(job: AnyStepJob) -> Iterator[Finding]:
    """A model folder has a config, weights and a tokenizer; a name that is no folder is one of the hub."""
    for model in job.models():
        key, name = model.key, model.name
        role = model.role if model.role.endswith("model") else f"{model.role} model"
        if job.place.promised_model(name) is not None:
            continue  # the run that makes it is checked for what it makes it of
        if job.sees(name) and expanded(name).is_file():
            yield job.error(key, f"the {role} `{name}` is a file, not a folder", kind=ArtifactError)
        elif folder_of(name, job.place) is None:
            yield from _absent(job, role, key, name, model.downloaded)
        else:
            yield from _incomplete(job, role, model)


def _absent(job: AnyStepJob, role: str, key: str, name: str, downloaded: bool) -> Iterator[Finding]:
    if is_path(name) and not job.sees(name):
        return
    if job.sees(name) and expanded(name).is_symlink():
        message = f"the {role} `{name}` is a link to a folder that is not there"
        yield job.error(key, message, kind=ArtifactError, hint=f"check `{key}`, and what the link names")
    elif job.sees(name) and not may_be_repository(name):
        message = f"the {role} `{name}` is neither a folder nor the name of a repository"
        yield job.error(key, message, kind=ArtifactError, hint=f"check `{key}`; a repository is `owner/name`")
    elif is_path(name):
        yield job.error(key, f"there is no {role} folder `{name}`", kind=ArtifactError, hint=f"check `{key}`")
    elif not downloaded:
        hint = "download it first, or give a folder or an endpoint"
        yield job.error(key, f"the {role} `{name}` is not on this machine", kind=ArtifactError, hint=hint)
    elif job.place.offline:
        yield job.error(
            key,
            f"the {role} `{name}` is not on this machine and downloads are switched off",
            kind=ArtifactError,
            hint="unset `HF_HUB_OFFLINE`, or give a folder",
        )
    else:
        yield job.note(key, f"the {role} `{name}` is not on this machine and will be downloaded")


def _incomplete(job: AnyStepJob, role: str, ref: ModelRef) -> Iterator[Finding]:
    key, name = ref.key, ref.name
    model = read_model(name, job.place)
    if model is None:
        return
    if (problem := not_a_model(model.folder)) is not None:
        yield job.error(key, f"the {role} `{name}` {problem[0]}", kind=ArtifactError, hint=problem[1])
        return
    wanted = {
        "a readable `config.json`": bool(model.config),
        "weights (`*.safetensors`)": model.has_weights,
    }
    if ref.own_tokenizer:
        wanted["a tokenizer (`tokenizer.json`)"] = model.has_tokenizer
    missing = [what for what, there in wanted.items() if not there]
    if missing:
        yield job.error(key, f"the {role} `{name}` lacks {', '.join(missing)}", kind=ArtifactError)
    elif model.broken:
        message = f"`{model.broken}` of the {role} `{name}` is broken: its header cannot be read, or data are missing"
        yield job.error(key, message, kind=ArtifactError, hint="copy or download it again")
    elif model.damage:
        message = f"the {role} `{name}` {model.damage}"
        yield job.error(key, message, kind=ArtifactError, hint="copy or download it again")
    elif job.engine == "embedded" and job.place.is_here and (kind := unknown_type(model.config)) is not None:
        message = f"the {role} `{name}` has a `config.json` of `model_type` `{kind}`, which transformers does not know"
        hint = "correct it, or install a newer transformers where the model is newer than it"
        if model.config.get("auto_map"):
            hint = "code that lies beside a model is not run here: use a model whose type transformers knows"
            if not _loaded_by_us(job, ref):
                return
        yield job.error(key, message, kind=ArtifactError, hint=hint)
    elif job.place.is_here and _loaded_by_us(job, ref) and (unfit := _unfit_kind(job, ref, model)) is not None:
        yield job.error(key, f"the {role} `{name}` {unfit[0]}", kind=ArtifactError, hint=unfit[1])
    # Of a download a part may be here; the rest is fetched when the run starts.
    elif model.folder == expanded(name).absolute():
        yield from _unfit_weights(job, role, ref, model)


def _unfit_kind(job: AnyStepJob, ref: ModelRef, model: ModelFiles) -> tuple[str, str] | None:
    """A type of models that does not write, or not score: a clause about the folder, and what to do."""
    if ref.role in ("reward model", "critic"):
        kind, hint = no_scorer(model.config), SCORER_HINT
    elif kind := no_writer(model.config):
        return f"is of type `{kind}`: transformers has no causal language model of it", WRITER_HINT
    else:
        kind = no_scorer(model.config) if getattr(job, "trains_reward_model", False) else None
        hint = START_HINT
    return (f"is of type `{kind}`: transformers has no decoder with a head `score` of it", hint) if kind else None


def _unfit_weights(job: AnyStepJob, role: str, ref: ModelRef, model: ModelFiles) -> Iterator[Finding]:
    """Weights that would not be found, not be read, or be read as other than they are."""
    key, whose, doubts = ref.key, f"the {role} `{ref.name}`", model.doubts
    again = "the config belongs to another model, or a file is missing: copy or download it again"
    fault = layout_fault(model.folder)
    if fault is not None:
        yield job.error(key, f"{whose} cannot be loaded: {fault.message}", kind=ArtifactError, hint=fault.hint)
    elif _replaced(job, key):
        return
    elif doubts.quantised:
        if _loaded_by_us(job, ref):
            yield job.error(key, f"{whose} {doubts.quantised}", kind=ArtifactError, hint=UNQUANTISED)
    elif doubts.misfit:
        yield job.error(key, f"{whose} {doubts.misfit}", kind=ArtifactError, hint=again)
    elif doubts.headless and ref.role in ("policy", "judge"):
        if ref.role == "policy" and not getattr(job, "trains_reward_model", False) and _other_head(model):
            return  # `not-a-language-model` says so, and no config makes one of it
        message = f"{whose} lacks the weight `{HEAD}`, and its `config.json` does not tie it to the embedding"
        hint = "set `tie_word_embeddings` to true there if the embedding is its output layer, else copy it again"
        yield job.error(key, message, kind=ArtifactError, hint=hint)
    elif doubts.unmeant:
        names = ", ".join(f"`{name}`" for name in doubts.unmeant[:3]) + (" ..." if len(doubts.unmeant) > 3 else "")
        message = f"{whose} has weights that its `config.json` does not mean, and that are left out: {names}"
        yield job.warning(key, message, hint="look whether the config is that of the weights")


def _loaded_by_us(job: AnyStepJob, ref: ModelRef) -> bool:
    """Whether the model computes in our own code, which takes plain floating point and what transformers knows."""
    served = job.judge_serving if ref.role == "judge" else None
    return job.engine != "nemo_rl" and (served is None or served.server != "vllm")


def _replaced(job: AnyStepJob, key: str) -> bool:
    """Whether a checkpoint gives the weights of the model that ``key`` names."""
    policy = getattr(job.config, "policy", None)
    return key == "policy.model_name" and getattr(policy, "pretrained_checkpoint", None) is not None


@files.rule("chat-template")
def helpers_can_be_asked(job: AnyStepJob) -> Iterator[Finding]:
    """Models that are asked with roles of their own template."""
    for model in job.models():
        if model.template_hint:
            yield from template_findings(job, model.key, model.name, hint=model.template_hint)


def template_findings(job: AnyStepJob, key: str, name: str, *, hint: str | None = None) -> Iterator[Finding]:
    """What is wrong with the chat template of the tokenizer ``name``, which ``key`` names."""
    problem = template_problem(name, job.place)
    if problem:
        own = "give one that does with `policy.tokenizer.chat_template` (text, or a `.jinja` file)"
        yield job.error(key, f"the tokenizer of `{name}` {problem}", kind=ArtifactError, hint=hint or own)


@rules.rule("not-looked-at")
def places_are_looked_at(job: AnyJob) -> Iterator[Finding]:
    """What lies where the job will run, and not here, is found wrong only when it starts."""
    named = [(ref.key, ref.name) for ref in job.models() if is_path(ref.name)]
    named += [(file.key, str(path)) for file in named_files(job) for path in file.paths]
    start = job.config.policy.pretrained_checkpoint
    named += [("policy.pretrained_checkpoint.path", start.path)] if start else []
    manifest = job.config.data.manifest_path
    named += [("data.manifest_path", manifest)] if manifest else []
    yield from not_looked_at(job, named)


def not_looked_at(job: AnyStepJob, named: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """A note for each of these paths, beside their keys, that lies where the job will run and not here."""
    for key, path in named:
        if not job.sees(path) and job.place.promise(path) is None:
            yield job.note(key, f"`{path}` lies on `{job.place.name}` and was not looked at from here")


@rules.rule("tokenizer-files", number=77)
def tokenizer_is_there(job: AnyJob) -> Iterator[Finding]:
    """A tokenizer of its own, and a template file."""
    tokenizer = job.config.policy.tokenizer
    key = "policy.tokenizer.name"
    if tokenizer.name != job.config.policy.model_name:
        model = read_model(tokenizer.name, job.place)
        nowhere = is_path(tokenizer.name) or not may_be_repository(tokenizer.name)
        if model is None and nowhere and job.sees(tokenizer.name):
            yield job.error(key, f"there is no tokenizer folder `{tokenizer.name}`", kind=ArtifactError)
        elif model is not None and not model.has_tokenizer:
            yield job.error(key, f"`{tokenizer.name}` holds no tokenizer", kind=ArtifactError)
        elif model is not None and model.damage and "tokenizer" in model.damage:
            hint = "copy or download it again"
            yield job.error(key, f"`{tokenizer.name}` {model.damage}", kind=ArtifactError, hint=hint)
    template = tokenizer.chat_template
    if template and template.endswith(".jinja") and job.sees(template) and not Path(template).is_file():
        yield job.error("policy.tokenizer.chat_template", f"there is no chat template file `{template}`")


@rules.rule("chat-template", needs=("policy.model_name", "policy.tokenizer"))
def conversations_can_be_written(job: AnyJob) -> Iterator[Finding]:
    """Every row becomes tokens through a template: the tokenizer's own, or the one that the config gives."""
    settings, key = job.config.policy.tokenizer, "policy.tokenizer.chat_template"
    written = policy_writing(job)
    said = refuses_all(written.template, written.given) if written else None
    if said is not None:
        message = f"the chat template of `{settings.name}` takes no conversation, not even one question: {said}"
        hint = f"correct the template, or give another with `{key}` (text, or a `.jinja` file)"
        yield job.error(key, message, hint=hint, kind=ArtifactError)
    given = settings.chat_template if "chat_template" in settings.model_fields_set else DEFAULT
    if given == DEFAULT:
        named = settings.name != job.config.policy.model_name
        yield from template_findings(job, "policy.tokenizer.name" if named else "policy.model_name", settings.name)
    elif given is not None:
        path = expanded(given) if given.endswith(".jinja") else None
        if path is not None and not path.is_file():
            return  # `tokenizer-files` says so
        try:
            fault = template_fault(given if path is None else read_template(path))
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
        if fault:
            yield job.error(key, f"the chat template {fault}", hint=f"correct `{key}`")


_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")


def _other_head(model: ModelFiles) -> str | None:
    """The architecture of a model whose output layer is no language model's."""
    kinds = model.config.get("architectures")
    if not isinstance(kinds, list) or not kinds or not all(str(kind).endswith(_OTHER_HEADS) for kind in kinds):
        return None
    return str(kinds[0])


@rules.rule("not-a-language-model", needs=("policy.model_name",))
def policy_writes(job: AnyJob) -> Iterator[Finding]:
    """transformers would give it an output layer that it never had, and training would begin with noise."""
    key, name = "policy.model_name", job.config.policy.model_name
    model = read_model(name, job.place)
    kind = _other_head(model) if model else None
    if kind is not None and not job.trains_reward_model and not _replaced(job, key):
        yield job.error(
            key,
            f"the policy `{name}` is a `{kind}`, not a language model",
            kind=ArtifactError,
            hint="name the model that it was made from; ppo takes a reward model as `reward_model.model_name`",
        )


@rules.rule("vocabulary", needs=("policy.model_name", "policy.tokenizer.name"))
def tokens_have_embeddings(job: AnyJob) -> Iterator[Finding]:
    """A token without a row in the embedding stops the first forward pass."""
    model = read_model(job.config.policy.model_name, job.place)
    tokenizer = read_model(job.config.policy.tokenizer.name, job.place)
    if model is None or tokenizer is None or model.vocabulary is None or tokenizer.tokens is None:
        return
    if tokenizer.tokens > model.vocabulary:
        yield job.error(
            "policy.tokenizer.name",
            f"the tokenizer has {tokenizer.tokens} tokens, the model's embedding only {model.vocabulary}",
            kind=ArtifactError,
            hint=FEWER_ROWS_HINT,
        )


@files.rule("vocabulary")
def asked_models_have_their_tokens(job: AnyStepJob) -> Iterator[Finding]:
    """As of the policy, of a model that is asked through its own tokenizer."""
    for ref in job.models():
        model = read_model(ref.name, job.place)
        if not ref.template_hint or model is None or not _loaded_by_us(job, ref):
            continue
        if model.tokens is not None and model.vocabulary is not None and model.tokens > model.vocabulary:
            message = f"the tokenizer of `{ref.name}` has {model.tokens} tokens, its embedding only {model.vocabulary}"
            yield job.error(ref.key, message, kind=ArtifactError, hint=FEWER_ROWS_HINT)


@files.rule("no-end")
def asked_models_end_their_turns(job: AnyStepJob) -> Iterator[Finding]:
    """A model that writes has to stop somewhere."""
    for ref in job.models():
        if ref.template_hint and _loaded_by_us(job, ref):
            folder = folder_of(ref.name, job.place)
            with suppress(ArtifactError):  # `judge-turn-end` says that a file is damaged
                yield from _endless(job, ref.key, folder, folder, ref.name)


@rules.rule("no-end", engines=EMBEDDED, needs=("policy.model_name", "policy.tokenizer.name"))
def conversations_end(job: AnyJob) -> Iterator[Finding]:
    """Sampling stops at an end of sequence, and training teaches it."""
    policy = job.config.policy
    stops = job.generation.stop_token_ids if job.generation is not None else None
    model = read_model(policy.model_name, job.place)
    rows = model.vocabulary if model is not None else None
    if rows is not None and (never := [token for token in stops or () if token >= rows]):
        yield job.error(
            "policy.generation.stop_token_ids",
            f"no response ends with token {never[0]}: the embedding of `{policy.model_name}` has {rows} rows",
            hint="name tokens of this model, or null for those that its files name",
        )
    if job.row_kind == "prompt" and stops:
        return  # nothing is learned but what was sampled
    tokenizer, folder = tokenizer_folder(policy.tokenizer.name, job.place), folder_of(policy.model_name, job.place)
    start = policy.pretrained_checkpoint
    beside = start_of(folder, start.path if start is not None and job.sees(start.path) else None)
    try:
        yield from _endless(job, "policy.tokenizer.name", tokenizer, beside, policy.tokenizer.name)
    except ArtifactError as error:
        if job.generation is None:  # else `turn-end` says so
            yield job.error("policy.model_name", error.message, kind=ArtifactError, hint=error.hint)


def _endless(job: AnyStepJob, key: str, tokenizer: Path | None, model: Path | None, name: str) -> Iterator[Finding]:
    """An error where neither the tokenizer nor the model names an end of sequence.

    Raises:
        ArtifactError: the model's file that names it is damaged.
    """
    ends = model_ends(model)
    if not ends and tokenizer is not None and names_no_end(tokenizer):
        yield job.error(key, f"the tokenizer of `{name}` has no end-of-sequence token", hint=NO_END_HINT)


@rules.rule("model-context", needs=("policy.model_name",))
def sequence_fits_the_model(job: AnyJob) -> Iterator[Finding]:
    """Positions beyond those the model was trained with give nonsense, and vLLM refuses them."""
    yield from longer_than_positions(job, job.config.policy.model_name, "model")


def longer_than_positions(job: AnyJob, name: str, role: str) -> Iterator[Finding]:
    """A finding where sequences may be longer than the model ``name`` has positions; ``role`` is what it is called."""
    model = read_model(name, job.place)
    longest = job.config.policy.max_total_sequence_length
    if model is not None and model.positions is not None and longest > model.positions:
        yield job.error(
            "policy.max_total_sequence_length",
            f"`policy.max_total_sequence_length` {longest} is more than the {model.positions} positions of the {role}",
            hint=f"set it to at most {model.positions}",
        )


@rules.rule("pretrained-checkpoint", number=82, engines=NEMO_RL)
def megatron_weights_are_there(job: AnyJob) -> Iterator[Finding]:
    """Megatron finds its iteration in a small file."""
    places = (
        ("checkpointing.pretrained_checkpoint", job.config.checkpointing.pretrained_checkpoint),
        ("policy.pretrained_checkpoint", job.config.policy.pretrained_checkpoint),
    )
    for key, start in places:
        if (
            start
            and job.sees(start.path)
            and not (expanded(start.path) / "latest_checkpointed_iteration.txt").is_file()
        ):
            yield job.error(
                f"{key}.path",
                f"`{start.path}` is no Megatron checkpoint: it has no `latest_checkpointed_iteration.txt`",
                kind=ArtifactError,
            )


@rules.rule("pretrained-checkpoint", number=82, engines=EMBEDDED)
def megatron_weights_can_be_read(job: AnyJob) -> Iterator[Finding]:
    """A Megatron checkpoint is whole, and of a family that converts."""
    start = job.config.policy.pretrained_checkpoint
    if start is None or not job.sees(start.path):
        return
    key = "policy.pretrained_checkpoint.path"
    try:
        found = describe(expanded(start.path))
    except ArtifactError as error:
        yield job.error(key, error.message, kind=ArtifactError, hint=error.hint)
        return
    absent = sorted(name for name in found.index.files() if not (found.folder / name).is_file())
    if absent:
        message = f"the shard `{absent[0]}` of `{found.folder}` is missing"
        yield job.error(key, message, kind=ArtifactError, hint="copy the checkpoint again, `.distcp` files included")


@rules.rule(
    "pretrained-checkpoint",
    number=82,
    engines=EMBEDDED,
    needs=("policy.pretrained_checkpoint", "policy.model_name", "policy.tokenizer.name"),
)
def megatron_weights_fit(job: AnyJob) -> Iterator[Finding]:
    """A Megatron checkpoint is of the config's own model and tokenizer."""
    start = job.config.policy.pretrained_checkpoint
    if start is None:
        return
    if job.place.promised_model(start.path) is not None:
        made_of = read_model(start.path, job.place)
        differing = list(_other_model(job, made_of.config)) if made_of else []
        facts, inside = tokenizer_at(start.path, job.place), start.path
    elif job.sees(start.path):
        found = describe(expanded(start.path))
        differing = list(_other_model(job, found.hf_config))
        folder = layout.tokenizer_of(found.folder)
        facts, inside = tokenizer_facts(folder) if folder is not None else None, str(folder)
    else:
        return
    yield from differing or _other_tokenizer(job, facts, inside)


def _other_model(job: AnyJob, found: Mapping[str, Any]) -> Iterator[Finding]:
    """``found``: the `config.json` of the checkpoint's model."""
    model = read_model(job.config.policy.model_name, job.place)
    if model is None:
        return
    sizes = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    differing = [name for name in sizes if model.config.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        yield job.error(
            "policy.pretrained_checkpoint.path",
            f"the checkpoint has `{name}` {found.get(name)}, `policy.model_name` {model.config.get(name)}",
            kind=ArtifactError,
            hint="give the checkpoint of that model, or start from the model's own weights with "
            "`~policy.pretrained_checkpoint`",
        )


def _other_tokenizer(job: AnyJob, here: TokenizerFacts | None, inside: str) -> Iterator[Finding]:
    """The policy was trained with the tokenizer that lies in its checkpoint, and with that chat template."""
    there = tokenizer_at(job.config.policy.tokenizer.name, job.place)
    if here is None or there is None:
        return
    if here.vocabulary and there.vocabulary and here.vocabulary != there.vocabulary:
        yield job.error(
            "policy.tokenizer.name",
            "the tokenizer gives other ids to tokens than the one in the policy's checkpoint",
            kind=ArtifactError,
            hint=f"set `policy.tokenizer.name` to `{inside}`",
        )
    own_template = job.config.policy.tokenizer.chat_template
    if here.chat_template and here.chat_template != (
        there.chat_template if own_template in (None, "default") else None
    ):
        yield job.warning(
            "policy.tokenizer.name",
            "the chat template differs from the one in the policy's checkpoint",
            hint="the policy then sees prompts in a form it was not trained on",
        )

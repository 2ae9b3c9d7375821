"""``data.manifest_path``: prepared data are what their manifest says, and fit the step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import HELDOUT_SPLIT as HELDOUT
from nemotron.compile.jobs.files import MANIFEST as KEY
from nemotron.compile.jobs.files import UNKNOWN_KIND, manifest_of, splits_wanted
from nemotron.compile.probes.model_files import TokenizerFacts, chat_template, tokenizer_at
from nemotron.compile.rules.base import Rules
from nemotron.config.known import embedded_reads
from nemotron.config.layers import Resolved
from nemotron.data.manifest import Manifest, text_sha256, vocabulary_sha256
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError, DataError, Finding, NemotronError

TOKENS = "data.use_tokens"

_PACKAGE = Path(__file__).resolve().parents[2]
_ENVIRONMENT = re.compile(r"oc\.env:(\w+)")

rules: Rules[AnyJob] = Rules("manifest")


def _error(job: AnyJob, key: str, problem: NemotronError) -> Finding:
    return job.error(key, problem.message, kind=type(problem), hint=problem.hint, origin=problem.origin)


@rules.rule("manifest-missing")
def manifest_can_be_read(job: AnyJob) -> Iterator[Finding]:
    """There is a manifest, written by `data_prep/rl_prep`."""
    path = job.config.data.manifest_path
    if path is not None:
        if not job.sees(path):
            return
        try:
            Manifest.read(expanded(path))
        except DataError as problem:
            yield _error(job, KEY, problem)
    elif job.heldout is not None and job.heldout.split:
        yield job.error(HELDOUT, f"`{HELDOUT}` names a split of a manifest, and `{KEY}` is not set", kind=DataError)


@rules.rule("manifest-shard", needs=(KEY,))
def shards_are_unchanged(job: AnyJob) -> Iterator[Finding]:
    """Every shard has the size that the manifest says, and the SHA-256 where that is quick to find out.

    The engine hashes all that it reads before it trains.
    """
    manifest = manifest_of(job)
    if manifest is not None and job.sees(manifest.path):
        for problem in manifest.problems(tokens=bool(job.config.data.use_tokens)):
            yield _error(job, KEY, problem)


@rules.rule("manifest-split", needs=(KEY,))
def splits_have_rows(job: AnyJob) -> Iterator[Finding]:
    """The manifest has the splits that the run reads."""
    manifest = manifest_of(job)
    if manifest is None:
        return
    for role, (split, key) in splits_wanted(job).items():
        try:
            manifest.split(split)
        except DataError as problem:
            without = ", or set `data.validation=null`" if role == "validation" else ""
            hint = f"{problem.hint}; prepare the data with that split{without}"
            yield job.error(key, problem.message, kind=DataError, hint=hint)


@rules.rule("manifest-kind")
def rows_are_of_the_kind(job: AnyJob) -> Iterator[Finding]:
    """Preferences are learned from pairs; of pairs, a step that samples answers uses the prompts alone."""
    manifest = manifest_of(job)
    if manifest is None or manifest.kind == UNKNOWN_KIND:
        return
    if job.row_kind == "preference" and manifest.kind != "preference":
        message = (
            f"this step learns from preference pairs, and the rows of the manifest are of the kind `{manifest.kind}`"
        )
        hint = "prepare rows with `prompt`, `chosen` and `rejected`"
        yield job.error(KEY, message, kind=DataError, hint=hint)
    elif job.row_kind == "conversation" and manifest.kind == "preference":
        yield job.warning(KEY, "the manifest holds preference pairs; of each only the preferred answer is learned")
    elif job.row_kind == "prompt" and manifest.kind == "preference":
        yield job.warning(KEY, "the manifest holds preference pairs; of each only the prompt is used")


@rules.rule("data-tokens")
def tokens_are_those_of_the_policy(job: AnyJob) -> Iterator[Finding]:
    """Token ids mean nothing to a policy with another tokenizer, and little to one with another chat template."""
    if not job.config.data.use_tokens:
        return
    if job.config.data.manifest_path is None:
        yield job.error(TOKENS, f"`{TOKENS}` needs prepared data", hint=f"set `{KEY}`")
    if not embedded_reads(type(job.config), job.section, TOKENS):
        yield job.error(TOKENS, "this step reads text, not token ids", hint=f"leave `{TOKENS}` out")
    manifest = manifest_of(job)
    if manifest is None:
        return
    for split in sorted({split for split, _ in splits_wanted(job).values()}):
        name = job.config.policy.tokenizer.name
        if split in manifest.splits and split not in manifest.tokens:
            hint = f"prepare the data with `tokenize.tokenizer={name}`"
            yield job.error(TOKENS, f"the manifest has no token ids of the split `{split}`", kind=DataError, hint=hint)
        elif split in manifest.tokens and job.sees(manifest.path):
            yield from _other_tokens(job, split, manifest.value["splits"][split].get("tokens", {}))


def _other_tokens(job: AnyJob, split: str, made: Mapping[str, Any]) -> Iterator[Finding]:
    """``made``: what the manifest says about the tokens of a split."""
    settings = job.config.policy.tokenizer
    facts = tokenizer_at(settings.name, job.place) or TokenizerFacts(None, None)
    own = settings.chat_template if "chat_template" in settings.model_fields_set else "default"
    template = chat_template(own, facts)
    ours = vocabulary_sha256(facts.vocabulary) if facts.vocabulary else None
    wrong = None
    if ours and made.get("vocabulary", ours) != ours:
        wrong = "the tokenizer of the data gives other ids to tokens than the policy's"
    elif template and made.get("chat_template") != text_sha256(template):
        wrong = "the data were tokenised with another chat template than the policy's"
    if wrong:
        how = f"`tokenize.tokenizer={settings.name}` and `tokenize.chat_template={own or 'null'}`"
        message = f"{wrong} (split `{split}`)"
        yield job.error(TOKENS, message, kind=ArtifactError, hint=f"prepare the data with {how}")


@rules.rule("data-twice")
def rows_are_named_once(job: AnyJob) -> Iterator[Finding]:
    """The manifest wins over files that a config names; it cannot win over the command line."""
    if job.config.data.manifest_path is None:
        return
    for key in _file_keys(job):
        origin = job.resolved.origin(key)
        if origin is None or job.resolved.get(key) is None:
            continue
        if origin.argument is not None:
            message = f"`{key}` would not be read: `{KEY}` names the rows"
            yield job.error(key, message, hint=f"leave one of them out; `{KEY}=null` switches the manifest off")
        else:
            variable = _variable(job, key)
            if variable or _from_own_file(job.resolved, origin.source):
                what = f"the environment variable `{variable}`" if variable else f"`{key}`"
                yield job.warning(key, f"{what} is not read: `{KEY}` names the rows")


def _file_keys(job: AnyJob) -> Iterator[str]:
    data = job.config.data
    yield "data.default.data_path"
    for role in ("train", "validation"):
        sets = getattr(data, role)
        if isinstance(sets, list):
            yield from (f"data.{role}.{i}.data_path" for i in range(len(sets)))
        else:
            yield f"data.{role}.data_path"
    if job.heldout is not None and job.heldout.split:
        yield "eval.heldout.data_path"


def _variable(job: AnyJob, key: str) -> str | None:
    """The environment variable that gives a key its value."""
    return next((name for name in _variables(job.resolved, key) if name in job.env), None)


def environment_variable(resolved: Resolved, key: str) -> str | None:
    """The environment variable that would give a key its value."""
    return next(iter(_variables(resolved, key)), None)


def _variables(resolved: Resolved, key: str) -> list[str]:
    return _ENVIRONMENT.findall(str(Resolved(resolved.raw, {}, {}, ()).get(key)))


def _from_own_file(resolved: Resolved, source: str) -> bool:
    """Whether a value is from the user's own YAML: a file that is not shipped with its step."""
    shipped = {path.resolve() for path in resolved.files if path.resolve().is_relative_to(_PACKAGE)}
    return Path(source).resolve() not in shipped

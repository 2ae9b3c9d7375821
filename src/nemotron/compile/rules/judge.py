"""Rules of the judge that need no answer from it. It is asked for real when the run starts."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.probes.model_files import tokenizer_at
from nemotron.compile.rules.base import Rules
from nemotron.compile.rules.conversations import unheard_end, writing
from nemotron.compile.secrets import elsewhere, secrets_in
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.errors import Finding

rules: Rules[AnyStepJob] = Rules("judge")


@rules.rule("judge-endpoint")
def endpoint_is_a_url(job: AnyStepJob) -> Iterator[Finding]:
    """An OpenAI-compatible endpoint up to ``/v1``."""
    model = job.judge_model
    if model is None or model.base_url is None:
        return
    key = f"{JUDGE_MODEL}.base_url"
    try:
        url = urlsplit(model.base_url)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if host is None or url.scheme not in ("http", "https"):
        yield job.error(key, f"`{model.base_url}` is not an http address", hint="e.g. `http://localhost:8000/v1`")
        return
    if not url.path.rstrip("/").endswith("/v1"):
        yield job.warning(
            key,
            f"`{model.base_url}` does not end in `/v1`, where OpenAI-compatible servers answer",
            hint=f"try `{model.base_url.rstrip('/')}/v1`",
        )
    yield job.note(key, f"the judge at `{model.base_url}` is asked when the run starts")


@rules.rule("judge-roles", needs=(f"{JUDGE_MODEL}.model",))
def judge_knows_its_roles(job: AnyStepJob) -> Iterator[Finding]:
    """Verdicts of a model that takes the answers for turns of a conversation are noise, if they can be read at all.

    Only a template that names the roles can tell the two answers from a conversation: others print a role's name as it
    is, or refuse it. A template that is not there says nothing here.
    """
    model, block = job.judge_model, job.comparison
    facts = tokenizer_at(model.model, job.place) if model is not None and model.base_url is None else None
    template = facts.chat_template if facts else None
    if model is None or template is None:
        return
    principle = bool(block and block.use_principle and model.supports_principle_role)
    roles = [*("response_1", "response_2"), *(["principle"] if principle else [])]
    # A template may put the name together: `'response_' ~ loop.index`.
    missing = [role for role in roles if role not in template and (role == "principle" or "response_" not in template)]
    if missing:
        yield job.warning(
            f"{JUDGE_MODEL}.model",
            f"the chat template of the judge `{model.model}` does not know "
            f"{', '.join(f'`{role}`' for role in missing)}: "
            "an ordinary instruct model is not made to compare two answers",
            hint="give a judge that was trained to compare answers (a GenRM), or set "
            f"`{JUDGE_MODEL}.supports_principle_role=false` when only `principle` is missing",
        )


@rules.rule("judge-turn-end", needs=(f"{JUDGE_MODEL}.model",))
def judge_ends_its_verdicts(job: AnyStepJob) -> Iterator[Finding]:
    """Of a judge that is served here; whoever serves another says where it stops."""
    model = job.judge_model
    if model is not None and model.base_url is None:
        yield from unheard_end(job, f"{JUDGE_MODEL}.model", model.model, writing(model.model, job))


@rules.rule("principle-role")
def principle_reaches_the_judge(job: AnyStepJob) -> Iterator[Finding]:
    """A principle travels in a chat role of its own."""
    block, model = job.comparison, job.judge_model
    if block and model and block.use_principle and not model.supports_principle_role:
        yield job.warning(
            f"{JUDGE_MODEL}.supports_principle_role",
            "a principle is configured, but the judge's template has no role for it: it is not sent",
        )


@rules.rule("secret-elsewhere")
def secrets_stay_in_their_place(job: AnyStepJob) -> Iterator[Finding]:
    """A run folder never holds a secret, so a key that contains one could not be read back from it."""
    for key in elsewhere(job.resolved.values, secrets_in(job.config)):
        yield job.error(
            key,
            f"`{key}` contains the judge's API key, which is never written to a run folder",
            hint=f"give the API key in `{JUDGE_MODEL}.api_key` only",
        )

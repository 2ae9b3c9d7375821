"""Rules of the judge that need no answer from it. It is asked for real when the run starts."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from nemotron.compile.jobs.grpo import JudgedJob
from nemotron.compile.probes.model_files import folder_of, tokenizer_facts
from nemotron.compile.rules.base import Rules
from nemotron.compile.secrets import elsewhere, secrets_in
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.errors import Finding
from nemotron.place import Place

rules: Rules[JudgedJob] = Rules("judge")


@rules.rule("judge-endpoint")
def endpoint_is_a_url(job: JudgedJob) -> Iterator[Finding]:
    """An OpenAI-compatible endpoint up to ``/v1``."""
    model = job.config.env.judge_model
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


def unknown_roles(name: str, place: Place, *, principle: bool) -> tuple[str, str] | None:
    """Message and hint when the chat template of a judge on this machine does not speak of the roles it is asked with.

    Only a template that names them can tell the two answers from a conversation: others print a role's name as it is,
    or refuse it. A template that is not there says nothing here.
    """
    folder = folder_of(name, place)
    template = tokenizer_facts(folder).chat_template if folder else None
    if template is None:
        return None
    roles = [*("response_1", "response_2"), *(["principle"] if principle else [])]
    # A template may put the name together: `'response_' ~ loop.index`.
    missing = [role for role in roles if role not in template and (role == "principle" or "response_" not in template)]
    if not missing:
        return None
    unknown = ", ".join(f"`{role}`" for role in missing)
    return (
        f"the chat template of the judge `{name}` does not know {unknown}: "
        "an ordinary instruct model is not made to compare two answers",
        "give a judge that was trained to compare answers (a GenRM), or set "
        f"`{JUDGE_MODEL}.supports_principle_role=false` when only `principle` is missing",
    )


@rules.rule("judge-roles")
def judge_knows_its_roles(job: JudgedJob) -> Iterator[Finding]:
    """Verdicts of a model that takes the answers for turns of a conversation are noise, if they can be read at all."""
    model, block = job.config.env.judge_model, job.config.env.comparison
    if model is None or model.base_url is not None:
        return
    principle = bool(block and block.use_principle and model.supports_principle_role)
    found = unknown_roles(model.model, job.place, principle=principle)
    if found:
        yield job.warning(f"{JUDGE_MODEL}.model", found[0], hint=found[1])


@rules.rule("secret-elsewhere")
def secrets_stay_in_their_place(job: JudgedJob) -> Iterator[Finding]:
    """A run folder never holds a secret, so a key that contains one could not be read back from it."""
    for key in elsewhere(job.resolved.values, secrets_in(job.config)):
        yield job.error(
            key,
            f"`{key}` contains the judge's API key, which is never written to a run folder",
            hint=f"give the API key in `{JUDGE_MODEL}.api_key` only",
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

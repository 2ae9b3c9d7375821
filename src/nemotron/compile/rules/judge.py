"""Rules of the judge that need no answer from it. It is asked for real when the run starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.rules.base import Rules
from nemotron.compile.rules.conversations import unheard_end, writing
from nemotron.compile.secrets import elsewhere, secrets_in, shown_address
from nemotron.config.schema.judge import JUDGE_MODEL, GenrmModelConfig, JudgeConfig, ProbedJudgeConfig
from nemotron.errors import ConfigError, DataError, Finding, NotAvailableError
from nemotron.judge.form import ANSWERS, knows_answers, problem
from nemotron.judge.instruct import KEY as INSTRUCT_TEMPLATE
from nemotron.judge.instruct import own_template
from nemotron.judge.probe_pairs import probe_pairs
from nemotron.judge.serving import COMMAND, Problem, problems, problems_beside, served_beside

rules: Rules[AnyStepJob] = Rules("judge")
_OF_VLLM = (COMMAND, "judge.max_restarts", f"{JUDGE_MODEL}.vllm_serve_")
"""Keys that only a vLLM is started with."""


@rules.rule("judge-endpoint")
def endpoint_is_a_url(job: AnyStepJob) -> Iterator[Finding]:
    """An OpenAI-compatible endpoint up to ``/v1``."""
    model = job.judge_model
    if model is None or model.base_url is None:
        return
    key, address = f"{JUDGE_MODEL}.base_url", shown_address(model.base_url)
    try:
        url = urlsplit(model.base_url)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if host is None or url.scheme not in ("http", "https"):
        yield job.error(key, f"`{address}` is not an http address", hint="e.g. `http://localhost:8000/v1`")
        return
    if not url.path.rstrip("/").endswith("/v1"):
        yield job.warning(
            key,
            f"`{address}` does not end in `/v1`, where OpenAI-compatible servers answer",
            hint=f"try `{address.rstrip('/')}/v1`",
        )
    yield job.note(key, f"the judge at `{address}` is asked when the run starts")


@rules.rule("judge-server")
def judge_can_be_served_so(job: AnyStepJob) -> Iterator[Finding]:
    """What serves the judge is there, and what is said of vLLM is said of one that is started."""
    model, settings, serving = job.judge_model, job.judge_settings, job.judge_serving
    if model is None or settings is None:
        return
    if serving is None:
        yield from _served_with_nemo_rl(job, model, settings)
        return
    found = list(problems(model, settings, job.place))
    yield from _errors(job, found)
    if found:
        return
    if serving.server == "vllm":
        if serving.program is None or not job.sees(serving.program):
            yield job.note("judge.server", f"whether `{job.place.name}` has vLLM was not looked at from here")
        return
    why = f"the judge is not served by a vLLM of this run ({serving.why})"
    yield from _without_effect(job, _OF_VLLM, why, "set `judge.server=vllm`")


def _served_with_nemo_rl(job: AnyStepJob, model: GenrmModelConfig, settings: JudgeConfig) -> Iterator[Finding]:
    """Beside the job, by NeMo-Gym, or elsewhere."""
    if served_beside(model, settings):
        yield from _errors(job, problems_beside(model, settings, job.place))
        why = "a job on NeMo-RL ends with the judge on its other machine"
        yield from _without_effect(job, ("judge.max_restarts",), why, "run with `engine=embedded`")
        return
    if model.base_url is not None or settings.server == "external":
        # Of one that nobody has named an address for, the rest would be about a server that is not wanted.
        yield from _errors(job, itertools.islice(problems(model, settings, job.place), 1))
    why = "NeMo-Gym starts the judge with a vLLM of its own"
    yield from _without_effect(job, (COMMAND, "judge.max_restarts"), why, "run with `engine=embedded`")


def _errors(job: AnyStepJob, found: Iterable[Problem]) -> Iterator[Finding]:
    for one in found:
        yield job.error(one.key, one.message, hint=one.hint, kind=NotAvailableError if one.missing else ConfigError)


def _without_effect(job: AnyStepJob, beginnings: tuple[str, ...], why: str, instead: str) -> Iterator[Finding]:
    """Words of the command line for a vLLM that is not started."""
    seen: set[int] = set()
    for key, origin in job.resolved.origins.items():
        if origin.argument is not None and origin.argument not in seen and key.startswith(beginnings):
            seen.add(origin.argument)
            yield job.error(key, f"`{key}` has no effect: {why}", hint=f"leave it out, or {instead}")


@rules.rule("judge-roles", needs=(f"{JUDGE_MODEL}.model",))
def judge_knows_its_roles(job: AnyStepJob) -> Iterator[Finding]:
    """Verdicts of a model that takes the answers for turns of a conversation are noise, if they can be read at all.

    Only a template that names the roles can tell the two answers from a conversation. A template that is not there says
    nothing here, and a model that is asked in one turn of the user needs none of them.
    """
    model, block, form, template = job.judge_model, job.comparison, job.judge_form, job.judge_template
    # What somebody else serves has the template that its server was given.
    if model is None or form is None or form.prompt != "genrm" or template is None or model.base_url is not None:
        return
    principle = bool(block and block.use_principle and model.supports_principle_role)
    missing = [] if knows_answers(template) else [role for role in ANSWERS if role not in template]
    missing += ["principle"] if principle and "principle" not in template else []
    if missing:
        yield job.warning(
            f"{JUDGE_MODEL}.model",
            f"the chat template of the judge `{model.model}` does not know "
            f"{', '.join(f'`{role}`' for role in missing)}, but it is asked in these roles",
            hint=f"set `{JUDGE_MODEL}.supports_principle_role=false`"
            if missing == ["principle"]
            else "leave `judge.prompt` at `auto`, which asks an instruct model in one turn of the user, with "
            "`engine=embedded`; or give a judge that was trained to compare answers (a GenRM)",
        )


@rules.rule("judge-form")
def judge_can_be_asked_so(job: AnyStepJob) -> Iterator[Finding]:
    """Questions and answers that fit each other, and a scale that the form of the answer can have."""
    if job.judge_form is None or job.judge_settings is None:
        return
    found = problem(job.judge_form, job.judge_settings)
    if found is not None:
        yield job.error(found[0], found[1], hint=found[2])


@rules.rule("judge-template")
def own_wording_can_be_used(job: AnyStepJob) -> Iterator[Finding]:
    """The user's own template of the question: it is there, comes to an end, and shows both answers."""
    settings, form = job.judge_settings, job.judge_form
    if settings is None or form is None or settings.instruct_template is None:
        return
    if form.prompt != "instruct":
        message = f"it is not read: the judge is asked in a GenRM's roles ({form.why_prompt})"
        yield job.warning(INSTRUCT_TEMPLATE, message, hint="set `judge.prompt=instruct`, or leave it out")
        return
    if not job.sees(settings.instruct_template):
        yield job.note(INSTRUCT_TEMPLATE, f"`{settings.instruct_template}` was not looked at from here")
        return
    try:
        own_template(settings.instruct_template)
    except ConfigError as error:
        yield job.refused(INSTRUCT_TEMPLATE, error)


@rules.rule("judge-probe")
def probe_has_pairs(job: AnyStepJob) -> Iterator[Finding]:
    """The pairs that the judge is asked about first."""
    settings = job.judge_settings
    if not isinstance(settings, ProbedJudgeConfig) or not settings.probe.enabled or job.engine != "embedded":
        return
    path = settings.probe.data_path
    if path is not None and job.sees(path):
        try:
            probe_pairs(settings.probe)
        except DataError as error:
            yield job.refused("judge.probe.data_path", error)


@rules.rule("judge-turn-end", needs=(f"{JUDGE_MODEL}.model",))
def judge_ends_its_verdicts(job: AnyStepJob) -> Iterator[Finding]:
    """Of a judge that is served here; whoever serves another says where it stops."""
    model = job.judge_model
    if model is not None and model.base_url is None:
        yield from unheard_end(job, f"{JUDGE_MODEL}.model", model.model, writing(model.model, job))


@rules.rule("principle-role")
def principle_reaches_the_judge(job: AnyStepJob) -> Iterator[Finding]:
    """A principle travels in a chat role of its own."""
    block, model, form = job.comparison, job.judge_model, job.judge_form
    by_role = form is None or form.prompt == "genrm"
    if block and model and by_role and block.use_principle and not model.supports_principle_role:
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

"""What is checked before an audit starts. Nothing is written, no connection is opened, torch is not loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemotron.audit.sample import paths_of
from nemotron.compile.jobs.files import UNKNOWN_KIND, promised_manifest
from nemotron.compile.probes.model_files import is_path, read_model
from nemotron.compile.probes.survey import told_once
from nemotron.compile.rules import artifacts, doubts, engine, judge, output
from nemotron.compile.rules.base import Rules, Stages
from nemotron.config import resolvers
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError, DataError, Finding, Origin
from nemotron.judge.form import problem
from nemotron.steps.eval.reward_audit.job import DATA, MANIFEST, REWARD_MODEL, AuditJob

rules: Rules[AuditJob] = Rules("audit")
pairs: Rules[AuditJob] = Rules("pairs")
FEW_PAIRS = 30
SHOWN_FAULTS = 3


@rules.rule("override-without-effect")
def words_have_an_effect(job: AuditJob) -> Iterator[Finding]:
    """Overrides for what is not audited."""
    sections = ("reward_model",) if job.audits_judge else ("env", "judge", "audit.both_orders", "audit.repeat")
    other = "`reward_model.path` is null" if job.audits_judge else "`reward_model.path` is set"
    seen: set[int] = set()
    for key, origin in job.resolved.origins.items():
        if origin.argument is None or origin.argument in seen or key == REWARD_MODEL:
            continue
        if key.startswith(sections):
            seen.add(origin.argument)
            yield job.error(key, f"`{key}` has no effect: {other}", hint="leave it out")


@rules.rule("no-judge")
def something_is_audited(job: AuditJob) -> Iterator[Finding]:
    """A judge is named where no reward model is."""
    if job.audits_judge and job.judge_model is None:
        message = f"the section `{JUDGE_MODEL}` is missing, so there is nothing to audit"
        yield job.error("env", message, hint="inherit it: `defaults: default`, or give `reward_model.path`")


@rules.rule("model-files", needs=(REWARD_MODEL,))
def reward_model_has_a_head(job: AuditJob) -> Iterator[Finding]:
    """A language model gives no reward."""
    name = job.config.reward_model.path
    model = read_model(name, job.place) if name is not None else None
    architectures = model.config.get("architectures") if model else None
    if isinstance(architectures, list) and any(str(one).endswith("ForCausalLM") for one in architectures):
        hint = f"audit it as a judge (`{JUDGE_MODEL}.model`), or train a reward model from it with `rl/nemo_rl/rm`"
        message = f"`{name}` is a language model without a reward head"
        yield job.error(REWARD_MODEL, message, hint=hint, kind=ArtifactError)


@rules.rule("compared-verdicts", needs=("judge.verdict", "judge.prompt"))
def forms_can_be_compared(job: AuditJob) -> Iterator[Finding]:
    """Forms of verdict that this judge can be asked for."""
    for verdict in job.config.audit.compare_verdicts:
        found = problem(job.judge_form.answering(verdict), job.config.judge) if job.judge_form else None
        if found is not None:
            yield job.error("audit.compare_verdicts", found[1], hint=f"leave `{verdict}` out, or {found[2]}")


@rules.rule("greedy-repeats")
def repeats_can_differ(job: AuditJob) -> Iterator[Finding]:
    """Asking a greedy judge again measures nothing."""
    audit, comparison = job.config.audit, job.comparison
    if comparison is None:
        return
    own = comparison.genrm_responses_create_params.temperature
    temperature = own if audit.repeat_temperature is None else audit.repeat_temperature
    if audit.repeats and temperature == 0:
        yield job.warning(
            "audit.repeat_temperature",
            "repeats at temperature 0 get the same answer every time and say nothing about the judge",
            hint="set `audit.repeat_temperature=0.6`, or `audit.repeats=0`",
        )


@pairs.rule("not-looked-at")
def places_are_looked_at(job: AuditJob) -> Iterator[Finding]:
    """What lies where the job will run, and not here, is found wrong only when it starts."""
    named = [(ref.key, ref.name) for ref in job.models() if is_path(ref.name)]
    yield from artifacts.not_looked_at(job, [*named, job.place_of_pairs])


@pairs.rule("manifest-missing")
def manifest_can_be_read(job: AuditJob) -> Iterator[Finding]:
    """There is a manifest, written by `data_prep/rl_prep`."""
    yield from _manifest_problem(job, of_split=False)


@pairs.rule("manifest-split")
def split_is_there(job: AuditJob) -> Iterator[Finding]:
    """It has the split that holds the pairs."""
    yield from _manifest_problem(job, of_split=True)


def _manifest_problem(job: AuditJob, *, of_split: bool) -> Iterator[Finding]:
    if job.config.data.manifest_path is None or not job.sees_pairs:
        return
    try:
        paths_of(job.config.data)
    except DataError as error:
        if ("split" in error.message) == of_split:
            yield job.refused(MANIFEST, error)


@pairs.rule("manifest-split")
def promised_pairs_are_pairs(job: AuditJob) -> Iterator[Finding]:
    """What is still to be prepared will have that split, and pairs in it."""
    promised, path = job.promised, job.config.data.manifest_path
    manifest = promised_manifest(Path(path), promised) if promised and path else None
    if manifest is None:
        return
    try:
        manifest.split(job.config.data.split)
    except DataError as error:
        yield job.refused(MANIFEST, error)
    if manifest.kind not in ("preference", UNKNOWN_KIND):
        message = f"an audit needs preference pairs, and the rows will be of the kind `{manifest.kind}`"
        yield job.error(MANIFEST, message, hint="prepare rows with `prompt`, `chosen` and `rejected`", kind=DataError)


@pairs.rule("data-twice", needs=(MANIFEST,))
def pairs_are_named_once(job: AuditJob) -> Iterator[Finding]:
    """The manifest wins over a file that a config names; it cannot win over the command line."""
    origin = job.resolved.origin(DATA)
    if job.config.data.manifest_path is not None and origin is not None and origin.argument is not None:
        message = f"`{DATA}` would not be read: `{MANIFEST}` names the rows"
        yield job.error(DATA, message, hint=f"leave one of them out; `{MANIFEST}=null` switches the manifest off")


@pairs.rule("data-file", needs=(MANIFEST,))
def file_can_be_read(job: AuditJob) -> Iterator[Finding]:
    """The file is there and has rows."""
    path, found = job.config.data.data_path, job.survey
    if not job.sees_pairs:
        return
    if found.problem:
        what = "does not exist" if not expanded(path).exists() else f"cannot be read: {found.problem}"
        yield job.error(DATA, f"the data `{path}` {what}", hint=f"check `{DATA}`", kind=DataError)
    elif not found.rows:
        yield job.error(DATA, f"the data `{path}` is empty", kind=DataError)


@pairs.rule("data-row")
def rows_can_be_used(job: AuditJob) -> Iterator[Finding]:
    """Each row that was read is JSON and holds a pair."""
    for fault, message in told_once(job.survey.faults):
        origin = Origin(str(fault.path), fault.line, fault.column)
        yield job.error(DATA, message, hint=fault.hint, kind=DataError, origin=origin)


@pairs.rule("contradictory-pairs")
def pairs_agree(job: AuditJob) -> Iterator[Finding]:
    """One of two labels is wrong."""
    for clash in job.survey.clashes[:SHOWN_FAULTS]:
        message = f"this pair prefers what {clash.other} rejects: one of the labels is wrong"
        yield job.warning(DATA, message, origin=Origin(str(clash.path), clash.line))


@pairs.rule("sample-data")
def pairs_are_real(job: AuditJob) -> Iterator[Finding]:
    """The shipped pairs say nothing about a judge or reward model of one's own."""
    judge_model, path = job.judge_model, job.config.data.data_path
    model = job.config.reward_model.path or (judge_model.model if judge_model else "")
    mine = not Path(model).is_relative_to(resolvers.ASSETS)
    if mine and job.config.data.manifest_path is None and Path(path).is_relative_to(resolvers.ASSETS):
        message = "no pairs are set: the shipped sample of the tiny world is used"
        hint = f"set `{DATA}=FILE.jsonl`, or `RL_PREFERENCE_DATA` in the environment"
        yield job.warning(DATA, message, hint=hint)


@pairs.rule("few-pairs", needs=(DATA, MANIFEST))
def pairs_are_enough(job: AuditJob) -> Iterator[Finding]:
    """How well an agreement is known."""
    if job.survey.rows and job.pairs < FEW_PAIRS:
        message = f"{job.pairs} pairs know an agreement only to about {100 / job.pairs**0.5:.0f} points"
        yield job.warning(DATA, message, hint="take a few hundred")


STAGES: Stages = (
    (engine.modules,),
    (rules, judge.rules, artifacts.files, doubts.speed),
    (pairs,),
    (output.folders,),
)

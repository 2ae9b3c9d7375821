"""Rules of how conversations are written: where an answer ends, and what a template does to the turns before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.checkpoints import hf, turn_end
from nemotron.checkpoints.chat_template import DEFAULT, THOUGHT, rendered
from nemotron.checkpoints.turn_end import (
    end_tokens,
    model_ends,
    named_tokens,
    names_no_end,
    start_of,
    tokenizer_end,
    written_end,
)
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.probes.model_files import TokenizerFacts, chat_template, folder_of, tokenizer_at, tokenizer_folder
from nemotron.compile.rules.base import Rules
from nemotron.errors import ArtifactError, Finding

rules: Rules[AnyJob] = Rules("conversations")
"""Of every job that samples, if only to measure."""
pairs: Rules[AnyJob] = Rules("conversations-of-pairs")
"""Of jobs that compare the answers that rows hold."""
demonstrations: Rules[AnyJob] = Rules("conversations-to-learn")
"""Of jobs that learn the answers of whole conversations."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How a model's conversations are written."""

    name: str
    """Its tokenizer."""
    folder: Path
    template: str
    more: dict[str, Any]
    """Keyword arguments of the template."""

    @property
    def given(self) -> dict[str, Any]:
        """All that the template is given beside the conversation."""
        return {**named_tokens(self.folder), **self.more}

    def render(self, *turns: str) -> str | None:
        """User and assistant by turns; None when the template does not take them."""
        return rendered(self.template, turns, self.given)


def writing(name: str, job: AnyStepJob) -> Writing | None:
    """That of the tokenizer ``name`` by itself; None when it is not here, or has no template."""
    folder, facts = tokenizer_folder(name, job.place), tokenizer_at(name, job.place)
    template = facts.chat_template if facts else None
    return Writing(name, folder, template, {}) if folder and template else None


def policy_writing(job: AnyJob) -> Writing | None:
    """That of the policy, whose template the config may give."""
    settings = job.config.policy.tokenizer
    folder = tokenizer_folder(settings.name, job.place)
    if folder is None:
        return None
    own = settings.chat_template if "chat_template" in settings.model_fields_set else DEFAULT
    template = chat_template(own, tokenizer_at(settings.name, job.place) or TokenizerFacts(None, None))
    return Writing(settings.name, folder, template, dict(settings.chat_template_kwargs or {})) if template else None


@rules.rule("turn-end", needs=("policy.model_name", "policy.tokenizer", "policy.generation.stop_token_ids"))
def turns_end_where_sampling_stops(job: AnyJob) -> Iterator[Finding]:
    """A model that was taught to end its turns with a token at which nobody stops never ends one: all is truncated."""
    if job.generation is None:
        return
    start = job.config.policy.pretrained_checkpoint
    yield from unheard_end(
        job,
        "policy.generation.stop_token_ids",
        job.config.policy.model_name,
        policy_writing(job),
        pretrained=start.path if start is not None and job.sees(start.path) else None,
        configured=job.generation.stop_token_ids,
    )


def unheard_end(
    job: AnyStepJob,
    key: str,
    name: str,
    written: Writing | None,
    *,
    pretrained: str | None = None,
    configured: Sequence[int] | None = None,
) -> Iterator[Finding]:
    """A warning when the template of the model ``name`` ends a turn with a token that does not stop it.

    Args:
        key: where the warning stands.
        written: how its conversations are written.
        pretrained: the checkpoint that its weights come from.
        configured: the stop tokens that the config gives.
    """
    model = folder_of(name, job.place)
    if model is None or written is None:
        return
    end = tokenizer_end(written.folder)
    try:
        stops = end_tokens(configured, end.id if end else None, model_ends(start_of(model, pretrained)))
    except ArtifactError as error:
        yield job.error(key, error.message, kind=ArtifactError, hint=error.hint)
        return
    if not stops and names_no_end(written.folder):
        return  # another rule refuses it
    last = written_end(written.folder, written.template, written.more)
    if last is None or last.id is None or last.id in stops:
        return
    if not configured and end is not None and end.text == last.text:
        return  # the same token; the files do not say its id
    at = f"only at {', '.join(map(str, stops))}" if stops else "at no token that is known"
    yield job.warning(
        key,
        f"the chat template of `{written.name}` ends an answer with `{last.text}` (token {last.id}), "
        f"and sampling does not stop there, {at}: answers run on to the token limit",
        hint=f"name it as `{turn_end.KEY}` in the `{hf.GENERATION_CONFIG}` of `{name}`"
        + (f", or set `{key}={[*stops, last.id]}`" if key.endswith("stop_token_ids") else ""),
    )


@pairs.rule("template-rewrites-prompt", needs=("policy.model_name", "policy.tokenizer"))
def prompts_stay_as_they_are(job: AnyJob) -> Iterator[Finding]:
    """What is trained on has to begin with what is sampled from; a pair of which that is not true is left out."""
    written = policy_writing(job)
    if written is None:
        return
    key = "policy.tokenizer.chat_template"
    says = f"the chat template of `{written.name}` writes"
    hint = f"set `{key}` to one that adds a turn without changing those before it"
    if _changes(written.render("a"), written.render("a", "b")):
        yield job.error(key, f"{says} a prompt otherwise once an answer follows: no pair can be used", hint=hint)
    elif _changes(written.render("a", "b", "c"), written.render("a", "b", "c", "d")):
        yield job.warning(
            key,
            f"{says} the prompt of a longer conversation otherwise once an answer follows: those pairs are left out",
            hint=hint,
        )
    elif any(_changes(written.render("a", earlier), written.render("a", earlier, "c")) for earlier in ("b", THOUGHT)):
        yield job.note(
            key,
            f"{says} earlier answers of a conversation otherwise than the last one, as without their thoughts: "
            "prompts hold them as it writes them there",
        )


@demonstrations.rule("template-rewrites-prompt", needs=("policy.model_name", "policy.tokenizer"))
def answers_stay_as_they_are(job: AnyJob) -> Iterator[Finding]:
    """An answer has to be one text, before and after others follow; a conversation of which that is not true is left
    out."""
    written = policy_writing(job)
    if written is None:
        return
    key = "policy.tokenizer.chat_template"
    says = f"the chat template of `{written.name}` writes"
    hint = f"set `{key}` to one that adds a turn without changing those before it"
    if _changes(written.render("a"), written.render("a", "b")):
        yield job.error(key, f"{says} a prompt otherwise once an answer follows: nothing can be learned", hint=hint)
    elif not getattr(job.course, "only_unmask_final", False) and any(
        _changes(written.render("a", earlier), written.render("a", earlier, "c")) for earlier in ("b", THOUGHT)
    ):
        yield job.warning(
            key,
            f"{says} earlier answers of a conversation otherwise than the last one, as without their thoughts: "
            "conversations with such answers are left out",
            hint=f"set `{job.section}.only_unmask_final=true` to learn the last answer alone",
        )


def _changes(before: str | None, after: str | None) -> bool:
    return before is not None and after is not None and not after.startswith(before)

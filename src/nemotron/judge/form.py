"""In which words a judge is asked, and in which form it answers: the choice of `judge.prompt` and `judge.verdict`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from nemotron.checkpoints.chat_template import DEFAULT, templates_of
from nemotron.checkpoints.folders import tokenizer_folder
from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.errors import ConfigError
from nemotron.place import Place

Prompt = Literal["genrm", "instruct"]
VerdictForm = Literal["text", "schema", "logits"]
ANSWERS = ("response_1", "response_2")


@dataclass(frozen=True, slots=True)
class Form:
    """How comparisons are asked. The default is NeMo-Gym's wire format."""

    prompt: Prompt = "genrm"
    verdict: VerdictForm = "text"
    why_prompt: str = "`judge.prompt` says so"
    why_verdict: str = "`judge.verdict` says so"
    template: str | None = None
    """Text of the user's own `judge.instruct_template`; None takes the shipped one."""
    swaps: bool = True
    """Half of the pairs are shown the other way round, drawn by the seed; only of ``instruct``."""

    @property
    def told(self) -> str:
        """For people: the choice and its reasons."""
        asked = {"genrm": "in a GenRM's roles", "instruct": "in one turn of the user"}[self.prompt]
        said = {"text": "text", "schema": "JSON held to its schema", "logits": "the probabilities of the scores"}
        return f"asked {asked} ({self.why_prompt}), verdict: {said[self.verdict]} ({self.why_verdict})"

    def without_swaps(self) -> Form:
        """The same for who draws the order of answers himself."""
        return replace(self, swaps=False)

    def answering(self, verdict: VerdictForm) -> Form:
        """The same question with another form of answer."""
        return replace(self, verdict=verdict)


def knows_answers(template: str) -> bool:
    """Whether a chat template can tell the two answers from a conversation: others print a role's name, or refuse it.

    A template may put the name together: ``'response_' ~ loop.index``.
    """
    return "response_" in template


def seen_template(model: GenrmModelConfig, place: Place) -> str | None:
    """The judge's chat template, where its files can be looked at: also of an endpoint that calls its model by the name
    of a folder, or of a model in the cache. Raises ArtifactError when the file cannot be read."""
    folder = tokenizer_folder(model.model, place)
    return templates_of(folder).get(DEFAULT) if folder else None


def choose(model: GenrmModelConfig, config: JudgeConfig, template: str | None) -> Form:
    """The form of a config, by the judge's chat template where that is known."""
    prompt: Prompt = "genrm"
    if config.prompt != "auto":
        prompt, why_prompt = config.prompt, f"`judge.prompt={config.prompt}`"
    elif template is None:
        why_prompt = "its chat template cannot be seen"
    elif knows_answers(template):
        why_prompt = "its chat template knows `response_1`"
    else:
        prompt, why_prompt = "instruct", "its chat template does not know `response_1`"
    verdict: VerdictForm = "text"
    if config.verdict != "auto":
        verdict, why_verdict = config.verdict, f"`judge.verdict={config.verdict}`"
    elif prompt == "genrm":
        why_verdict = "as a GenRM was trained to give it"
    elif model.base_url is None:
        verdict, why_verdict = "logits", "the server that we start gives them, and every comparison then has a verdict"
    else:
        verdict, why_verdict = "schema", "an instruct model often breaks a form that it is only told"
    return Form(prompt, verdict, why_prompt, why_verdict)


def problem(form: Form, config: JudgeConfig) -> tuple[str, str, str] | None:
    """Key, message and fix of a form that cannot be asked; None of one that can."""
    if form.verdict != "text" and any(bound != int(bound) for bound in config.scale):
        return "judge.score_range", "scores that are no whole numbers have no schema", "set `judge.verdict=text`"
    if form.verdict != "logits":
        return None
    if form.prompt == "genrm":
        fix = "set `judge.prompt=instruct`, or `judge.verdict=schema`"
        return (
            "judge.verdict",
            "a GenRM writes its verdict as it was trained to: it is not asked for single scores",
            fix,
        )
    low, high = config.scale
    if low < 0 or high > 9:
        return "judge.score_range", "a score that is read as one token has one digit", "take a scale within 0 to 9"
    return None


def form_of(model: GenrmModelConfig, config: JudgeConfig) -> Form:
    """The form that a run on this machine asks in.

    Raises:
        ConfigError: it cannot be asked so, or the user's template cannot be used. ArtifactError: a file is damaged.
    """
    from nemotron.judge.instruct import own_template

    form = choose(model, config, seen_template(model, Place.this_machine()) if config.prompt == "auto" else None)
    if (found := problem(form, config)) is not None:
        raise ConfigError(f"`{found[0]}`: {found[1]}", hint=found[2])
    if form.prompt == "instruct" and config.instruct_template is not None:
        return replace(form, template=own_template(config.instruct_template))
    return form

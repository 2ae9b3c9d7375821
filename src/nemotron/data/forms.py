"""What a usable row is: the one definition that `data_prep/rl_prep`, the preflight and every step share.

A *form* is one way to write a row. It is found by the fields that a row has; a field that holds null is none. What is
refused here is a rejected row of `rl_prep` and an error with file and line of a step, in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from nemotron.data.pair_forms import (
    LABELLED_SIDES,
    LABELS,
    SIDES,
    Sides,
    labelled_sides,
    ranked_sides,
    scored_sides,
)
from nemotron.data.turns import (
    ASSISTANT,
    Message,
    Row,
    UnusableRow,
    blank,
    conversation,
    message,
    no_tools,
    refuse,
    transcript,
    type_name,
    with_system,
)
from nemotron.suggest import closest, listed

Kind = Literal["prompt", "preference", "verifier", "nemo_gym"]

GYM = "responses_create_params"
PROMPTS = (
    *("prompt", "messages", "conversations", "conversation"),
    *("question", "problem", "instruction", "input", "text"),
)
"""Where a prompt may stand. The first of these that a row has is its prompt, for every reader."""
SPOKEN = ("conversations", "conversation")
"""ShareGPT's and LMSYS's names of whole conversations, whose last answer is known to be no part of the prompt."""
ANSWERS = (
    *("answer", "expected_answer", "ground_truth", "tests", "unit_tests", "verifier_metadata"),
    *("reward_model", "solution", "test_cases"),
)
"""What an answer may be checked with. Which of them a reward function reads, its config says."""
_CUT = "`on_answer=cut` of `data_prep/rl_prep` leaves the last answer out"
_UNDECIDED = "declare `kind: prompt` in a blend of `data_prep/rl_prep` to take the prompt alone"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model is shown of a row."""

    messages: list[Message]
    """The turns before the answer."""
    source: str
    """The field that they come from."""
    chosen: str | None = None
    rejected: str | None = None
    answer: str | None = None
    """The answer at the end of a conversation that was given as a prompt; it is not among ``messages``."""


@dataclass(frozen=True, slots=True)
class PairKeys:
    """Fields that hold a pair, as ``data.*.{prompt_key, chosen_key, rejected_key}`` name them."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


PAIR_KEYS = PairKeys()


# Forms are compared by identity: they are counted once per row.
@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """One way to write a row."""

    name: str
    """The fields that make it, for people."""
    kind: Kind
    needs: tuple[tuple[str, ...], ...]
    """A row of this form has one of each of these."""
    read: Callable[[Row], Reading]

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a row with these fields has this form."""
        have = frozenset(names)
        return all(any(name in have for name in either) for either in self.needs)


def read_prompt(row: Row) -> Reading:
    """The prompt of a row of any kind: of a pair that is in order, the prompt of the pair.

    Raises:
        UnusableRow: it has none, or not one that a model can be shown.
    """
    if row.get(GYM) is not None:
        return _read_gym(row)
    pair = pair_form(filled(row))
    source = _prompt_source(row)
    if pair is None and source is None:
        refuse("missing-field", "row has no prompt", without_form(row, "prompt"))
    if pair is not None:
        try:
            return pair.read(row)
        except UnusableRow:
            # Whoever samples needs no answers; without a prompt of its own the row is as unusable as its pair.
            if source is None:
                raise
    return _read_source(row, str(source))


def usable_prompt(row: Row) -> list[Message]:
    """The prompt of a row for a step that samples.

    Raises:
        UnusableRow: as :func:`read_prompt`, or the prompt ends with an answer.
    """
    reading = read_prompt(row)
    ends_before_answer(reading)
    return reading.messages


def ends_before_answer(reading: Reading, *, cut: bool = False) -> None:
    """Refuse a prompt that holds the answer, unless it is known (or said) that the answer is to be left out.

    Raises:
        UnusableRow: the prompt ends with an answer.
    """
    if reading.answer is not None and not cut and reading.source not in SPOKEN:
        refuse("ends-with-answer", f"the prompt in `{reading.source}` ends with an answer", _CUT)
    if reading.messages and reading.messages[-1]["role"] == ASSISTANT:
        refuse("ends-with-answer", f"the prompt in `{reading.source}` ends with several answers")
    if not reading.messages:
        refuse("empty-prompt", f"`{reading.source}` holds an answer and no prompt")


def read_pair(row: Row, keys: PairKeys = PAIR_KEYS) -> Reading:
    """The prompt and both answers of a row.

    Raises:
        UnusableRow: it is no pair, prefers nothing, or the two conversations are not one.
    """
    if row.get(keys.chosen) is not None and row.get(keys.rejected) is not None:
        return _read_sides(row, Sides(row[keys.chosen], row[keys.rejected], keys.chosen, keys.rejected), keys.prompt)
    form = pair_form(filled(row))
    if form in (PAIR, JOINT):
        missing = next(name for name in (keys.chosen, keys.rejected) if row.get(name) is None)
        hint = f"it has no `{missing}`: check `chosen_key` and `rejected_key` of the data set"
        refuse("missing-field", "row is no preference pair", hint)
    if form is not None:
        return form.read(row)
    if set(row) == {"text"}:
        hint = "`nemotron steps run data_prep/rl_prep` joins NeMo-Aligner's lines: `kind: aligner_pairs` in its blend"
        refuse("missing-field", "the row is one `text`, half of a pair in NeMo-Aligner's alternating lines", hint)
    needs = f"give `{keys.prompt}`, `{keys.chosen}` and `{keys.rejected}`, or `context` and `completions`"
    refuse("missing-field", "row is no preference pair", f"{without_form(row, 'preference')}: {needs}")


def filled(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a row that hold something."""
    if None not in row.values():
        return tuple(row)
    return tuple([name for name, value in row.items() if value is not None])


@lru_cache(maxsize=4096)
def pair_form(names: tuple[str, ...]) -> Form | None:
    """How rows with these fields hold a pair, if they do."""
    return next((form for form in PREFERENCE if form.fits(names)), None)


def find_form(names: Iterable[str], kind: Kind | None = None) -> Form | None:
    """The form of rows that have these fields; ``kind`` is what they are declared to be."""
    have = frozenset(names)
    if kind == "prompt" and (GYM in have or pair_form(tuple(names)) is not None):
        return ANY_PROMPT
    return next((form for form in FORMS if kind in (None, form.kind) and form.fits(have)), None)


def undecided(names: Iterable[str]) -> str | None:
    """Why rows with these fields are not taken for prompts without being told: they have answers to compare."""
    have = frozenset(names)
    for pair in SIDES:
        found = [name for name in pair if name in have]
        if len(found) == 2:
            return f"it has two answers, {listed(found)}, and nothing that says which is preferred"
        if found and pair[0] in ("chosen", "rejected", "preferred_output", "chosen_response", "chosen_messages"):
            return f"it has `{found[0]}` and no `{pair[1 - pair.index(found[0])]}`"
    return "it has `completions` that are not ranked by a `context`" if "completions" in have else None


def refuse_undecided(names: Iterable[str]) -> None:
    """Refuse rows that are neither pairs nor plain prompts.

    Raises:
        UnusableRow: they have answers to compare, and it is not known how.
    """
    why = undecided(names)
    if why is not None:
        refuse("two-answers", why, _UNDECIDED)


def without_form(row: Mapping[str, Any], kind: str | None = None) -> str:
    """Which fields a row has, and what it lacks to be of the nearest form (of a kind)."""
    return _without_form(filled(row), kind)


# A file of rows without a form has a million equal ones.
@lru_cache(maxsize=1024)
def _without_form(names: tuple[str, ...], kind: str | None) -> str:
    shown = listed(name[:40] for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    has = f"the row has {shown}" if names else "the row has no field with a value"
    forms = [form for form in FORMS if kind in (None, form.kind)]
    near = max(forms, key=lambda form: _nearness(form, names))
    if not _nearness(near, names):
        return f"{has}, and no prompt: that would be in {listed(PROMPTS)}" if kind in (None, "prompt") else has
    missing = [either for either in near.needs if not any(name in names for name in either)]
    if not missing:
        return f"{has}, which is a whole `{near.kind}` ({near.name}) and nothing more"
    lacks = " and ".join(" or ".join(f"`{name}`" for name in either) for either in missing)
    guesses = [(either[0], closest(either[0], names)) for either in missing]
    found = "; ".join(f"`{guess}` may be its `{name}`" for name, guess in guesses if guess)
    return f"{has}; nearest is `{near.kind}` ({near.name}), without {lacks}" + (f": {found}" if found else "")


def _nearness(form: Form, names: tuple[str, ...]) -> float:
    """How much of a form is there: a field counts 1, one whose name is like it half."""
    lower = [name.lower() for name in names]
    scores = [
        1.0 if any(name in names for name in either) else 0.5 if closest(either[0], lower, cutoff=0.75) else 0.0
        for either in form.needs
    ]
    return sum(scores) / len(scores)


def _prompt_source(row: Mapping[str, Any]) -> str | None:
    for name in PROMPTS:
        if row.get(name) is not None:
            return name
    return None


def _read_source(row: Row, name: str) -> Reading:
    """The prompt in one field, the system text and the context that belong to it included."""
    no_tools(row)
    value = row[name]
    if name == "instruction":
        value = _alpaca(row)
    elif name == "input" and value.__class__ is dict and "messages" in value:
        no_tools(value, "input.")
        value = value["messages"]
    elif name == "text" and value.__class__ is not str:
        refuse("wrong-type", f"`text` must be a text, not {type_name(value)}")
    elif name in ("messages", *SPOKEN) and value.__class__ is not list:
        refuse("wrong-type", f"`{name}` must be a list of messages, not {type_name(value)}")
    return _parted(with_system(row, conversation(value, name)), name)


def _parted(turns: list[Message], source: str) -> Reading:
    """A prompt without the answer at its end."""
    if turns[-1]["role"] != ASSISTANT:
        return Reading(turns, source)
    return Reading(turns[:-1], source, answer=turns[-1]["content"])


def _alpaca(row: Row) -> Any:
    """An instruction, and what it is about where that stands in `input`; `history` has earlier turns."""
    instruction, about = row["instruction"], row.get("input")
    if instruction.__class__ is not str:
        return instruction
    if about is not None and about.__class__ is not str:
        refuse("wrong-type", f"`input` beside `instruction` must be a text, not {type_name(about)}")
    text = instruction if not about or blank(about) else f"{instruction}\n\n{about}"
    earlier = row.get("history") or []
    if earlier.__class__ is not list or any(
        turn.__class__ is not list or len(turn) != 2 or any(part.__class__ is not str for part in turn)
        for turn in earlier
    ):
        refuse("wrong-type", "`history` must be a list of questions with their answers")
    roles = ("user", ASSISTANT)
    before = [{"role": role, "content": part} for turn in earlier for role, part in zip(roles, turn, strict=True)]
    return [*before, {"role": "user", "content": text}] if before else text


def _read_gym(row: Row) -> Reading:
    params = row[GYM]
    if params.__class__ is not dict:
        refuse("wrong-type", f"`{GYM}` must be an object, not {type_name(params)}")
    if params.get("input") is None:
        refuse("missing-field", f"`{GYM}` has no `input`, so the row has no prompt")
    agent = row.get("agent_ref")
    if agent is not None and (agent.__class__ is not dict or agent.get("name").__class__ is not str):
        refuse("wrong-type", "`agent_ref` must be an object with a `name`")
    no_tools(params, f"{GYM}.")
    for name in ("instructions", "prompt", "previous_response_id"):
        if name != "instructions" and params.get(name) is not None:
            refuse("tools", f"`{GYM}.{name}` refers to what is not in the row")
    told = params.get("instructions")
    if told is not None and told.__class__ is not str:
        refuse("wrong-type", f"`{GYM}.instructions` must be a text, not {type_name(told)}")
    turns = conversation(params["input"], f"{GYM}.input")
    if told and not blank(told):
        # The Responses API puts them before everything that is said, also before a system turn of the input.
        turns = [{"role": "system", "content": told}, *turns]
    return _parted(turns, f"{GYM}.input")


def _read_sides(row: Row, sides: Sides, key: str = "prompt") -> Reading:
    """A pair of which both answers are known."""
    whole = _are_whole(sides)
    source = next((name for name in (key, sides.prompt) if name is not None and row.get(name) is not None), None)
    if source is None and not whole:
        source = _prompt_source(row)
    if source is None and not whole and sides.chosen.__class__ is str and sides.rejected.__class__ is str:
        return _read_transcripts(sides)
    no_tools(row)
    turns = None
    if source is not None:
        prompt = _read_source(row, source)
        if prompt.answer is not None:
            refuse("ends-with-answer", f"the prompt in `{source}` ends with an answer before the answers")
        turns = prompt.messages
    before, chosen = _answer(sides.chosen, "preferred", sides.chosen_name, turns)
    other, rejected = _answer(sides.rejected, "other", sides.rejected_name, turns)
    if turns is None and before != other:
        refuse("different-prompts", "the two conversations differ before their last message")
    if turns is None:
        turns = with_system(row, before)
    elif before and before == other:
        # A system turn may stand in the answers' copy of the prompt alone.
        turns = before
    elif len(before) > len(turns) or len(other) > len(turns):
        refuse("different-prompts", "one of the two answers alone has a system turn")
    return _preferred(turns, source or sides.chosen_name, chosen, rejected)


def _read_transcripts(sides: Sides) -> Reading:
    chosen = transcript(sides.chosen, sides.chosen_name)
    if chosen is None:
        hint = "give `prompt` too, or whole conversations"
        detail = f"the pair has no prompt: `{sides.chosen_name}` does not begin with `Human:` either"
        refuse("not-a-transcript", detail, hint)
    rejected = transcript(sides.rejected, sides.rejected_name)
    if rejected is None or chosen[:-1] != rejected[:-1]:
        refuse("different-prompts", f"`{sides.chosen_name}` and `{sides.rejected_name}` differ before the last answer")
    for which, turns in (("preferred", chosen), ("other", rejected)):
        _not_blank(turns[-1]["content"], which)
    return _preferred(chosen[:-1], "", chosen[-1]["content"], rejected[-1]["content"])


def _preferred(turns: list[Message], source: str, chosen: str, rejected: str) -> Reading:
    if chosen == rejected:
        refuse("same-answers", "both answers are the same, so nothing is preferred", "drop the row")
    return Reading(turns, source, chosen, rejected)


def _are_whole(sides: Sides) -> bool:
    """Whether both answers are conversations with their prompt."""
    both = (sides.chosen, sides.rejected)
    return all(value.__class__ is list and len(value) > 1 for value in both)


def _answer(value: Any, which: str, name: str, turns: list[Message] | None) -> tuple[list[Message], str]:
    """The messages before an answer, where they are written with it, and its text."""
    before: list[Message] = []
    if value.__class__ is dict:
        value = [value]
    if value.__class__ is list and value:
        *before, last = [message(turn, name) for turn in value]
        if last["role"] != ASSISTANT:
            detail = f"the {which} answer ends with a message of `{last['role']}`, not of `{ASSISTANT}`"
            refuse("no-answer-turn", detail)
        if before and turns is not None and turns not in (before, _without_system(before)):
            refuse("different-prompts", f"the {which} answer has messages before its last that are not the prompt")
        value = last["content"]
    if value.__class__ is not str:
        refuse("wrong-type", f"the {which} answer, `{name}`, must be a text or messages, not {type_name(value)}")
    _not_blank(value, which)
    if turns is None and not before:
        refuse("missing-field", "the pair has no prompt", "give `prompt` too, or whole conversations")
    if turns is None and blank(before[-1]["content"]):
        refuse("empty-prompt", "the prompt of the pair is empty")
    if turns is None and before[-1]["role"] == ASSISTANT:
        refuse("ends-with-answer", f"the prompt in `{name}` ends with an answer before the answer")
    return before, value


def _not_blank(text: str, which: str) -> None:
    if blank(text):
        refuse("empty-answer", f"the {which} answer is empty", "drop the row")


def _without_system(turns: list[Message]) -> list[Message]:
    return turns[1:] if turns[0]["role"] in ("system", "developer") else turns


def _sided(find: Callable[[Row], Sides]) -> Callable[[Row], Reading]:
    return lambda row: _read_sides(row, find(row))


def _named(chosen: str, rejected: str) -> Callable[[Row], Reading]:
    return _sided(lambda row: Sides(row[chosen], row[rejected], chosen, rejected))


def _labelled(names: tuple[str, str]) -> Callable[[Row], Reading]:
    return _sided(lambda row: labelled_sides(row, names))


RANKED = Form("`context`, `completions`", "preference", (("context",), ("completions",)), _sided(ranked_sides))
SCORED = Form(
    "`context`, `response1`, `response2`, `overall_preference`",
    "preference",
    (("context",), ("response1",), ("response2",), ("overall_preference",)),
    _sided(scored_sides),
)
OPENAI = Form(
    "`input`, `preferred_output`, `non_preferred_output`",
    "preference",
    (("input",), ("preferred_output",), ("non_preferred_output",)),
    _named("preferred_output", "non_preferred_output"),
)
PAIR = Form(
    "`prompt`, `chosen`, `rejected`",
    "preference",
    (("prompt",), ("chosen",), ("rejected",)),
    _named("chosen", "rejected"),
)
JOINT = Form("`chosen`, `rejected`", "preference", (("chosen",), ("rejected",)), _named("chosen", "rejected"))
DPO = Form(
    "`prompt`, `chosen_response`, `rejected_response`",
    "preference",
    (PROMPTS, ("chosen_response",), ("rejected_response",)),
    _named("chosen_response", "rejected_response"),
)
MESSAGES = Form(
    "`chosen_messages`, `rejected_messages`",
    "preference",
    (("chosen_messages",), ("rejected_messages",)),
    _named("chosen_messages", "rejected_messages"),
)
EXCHANGE = Form(
    "`question`, `response_j`, `response_k`",
    "preference",
    (("question",), ("response_j",), ("response_k",)),
    _named("response_j", "response_k"),
)
LABELLED = tuple(
    Form(
        f"`{first}`, `{second}`, a label",
        "preference",
        ((first,), (second,), LABELS),
        _labelled((first, second)),
    )
    for first, second in LABELLED_SIDES
)
PREFERENCE = (RANKED, SCORED, OPENAI, PAIR, JOINT, DPO, MESSAGES, EXCHANGE, *LABELLED)
GYM_FORM = Form(f"`{GYM}`", "nemo_gym", ((GYM,),), _read_gym)
VERIFIER = Form("a prompt and something to check answers with", "verifier", (PROMPTS, ANSWERS), read_prompt)
PROMPT_FORMS = tuple(Form(f"`{source}`", "prompt", ((source,),), read_prompt) for source in PROMPTS)
ANY_PROMPT = Form("the prompt of a row of another kind", "prompt", (), read_prompt)
FORMS = (GYM_FORM, *PREFERENCE, VERIFIER, *PROMPT_FORMS)

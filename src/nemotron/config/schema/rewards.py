"""``rewards``: programs that score an answer. One model per kind of function, told apart by ``name``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, DiskPath, Name, NonNegativeInt, PositiveFloat, of_form


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{pattern}` is no regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
"""A regular expression of Python's ``re``."""


class RewardFunctionConfig(Strict):
    """What every reward function has."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Factor of this function in the reward; negative makes it a penalty."""
    label: Name | None = None
    """Name in metrics and samples; null means ``name``. Two functions need two labels."""
    optional: bool = False
    """When this function gives no value: leave it out and let the others share its weight, instead of leaving the
    whole sample without reward."""
    timeout_s: PositiveFloat | None = None
    """Seconds for one answer, then the value is missing; null means ``rewards.timeout_s``."""

    @property
    def shown(self) -> str:
        """The label in metrics and samples."""
        return self.label or str(getattr(self, "name", ""))


class AnswerRewardConfig(RewardFunctionConfig):
    """A function that compares with an answer in the row."""

    answer_field: Name | None = None
    """Field of the row with the right answer, dots for nested ones; null means ``expected_answer``, else ``answer``."""
    strip_thinking: bool = True
    """Look only at the answer: what follows the last ``</think>``, nothing of a ``<think>`` that is never closed."""


class MathRewardConfig(AnswerRewardConfig):
    """Mathematical equality, by math-verify: ``1/2`` equals ``\\frac{1}{2}`` and ``0.5``."""

    name: Literal["math"]
    """Selects this function."""
    extract: Literal["any", "boxed"] = "any"
    """``any``: the last number, formula or box in the answer. ``boxed``: only what stands in ``\\boxed{}``."""
    precision: Annotated[int, Field(ge=1, le=50)] = 6
    """Decimal places to which numbers are compared."""
    require_end: bool = False
    """Count an answer that was cut off at the token limit as wrong."""


class ExactRewardConfig(AnswerRewardConfig):
    """Equality of texts after normalisation. A list in the row means: any of these."""

    name: Literal["exact"]
    """Selects this function."""
    extract: Pattern | None = None
    """Compare only the first group (else the whole match) of this pattern's last match; no match is wrong. null
    compares the whole answer."""
    ignore_case: bool = True
    """Upper and lower case are the same."""
    ignore_punctuation: bool = False
    """Drop everything that is neither letter, digit nor space before comparing."""
    ignore_articles: bool = False
    """Drop the words a, an and the before comparing."""
    collapse_whitespace: bool = True
    """Any run of white space equals one space; none at the ends."""
    normalize_unicode: bool = True
    """Compatible characters are the same (NFKC): full-width digits, ligatures, no-break spaces."""
    match: Literal["equal", "contains", "starts_with", "ends_with"] = "equal"
    """How the right answer has to stand in the model's answer; but for ``equal`` at word boundaries."""


class RegexRewardConfig(RewardFunctionConfig):
    """A pattern that the answer must (or must not) match."""

    name: Literal["regex"]
    """Selects this function."""
    pattern: Pattern | None = None
    """The pattern; null means the row has it."""
    pattern_field: Name | None = None
    """Field of the row with the pattern, when ``pattern`` is null."""
    match: Literal["search", "full"] = "search"
    """``search``: anywhere in the answer. ``full``: the whole answer."""
    ignore_case: bool = False
    """Upper and lower case are the same."""
    multiline: bool = False
    """``^`` and ``$`` also stand for the ends of a line."""
    dot_all: bool = False
    """``.`` also stands for a line end."""
    forbid: bool = False
    """Reward the absence of the pattern."""
    strip_thinking: bool = True
    """Look only at the answer: what follows the last ``</think>``, nothing of a ``<think>`` that is never closed."""

    @model_validator(mode="after")
    def _one_pattern(self) -> RegexRewardConfig:
        if (self.pattern is None) == (self.pattern_field is None):
            raise ValueError("give either `pattern` or `pattern_field`")
        return self


class ChoiceRewardConfig(AnswerRewardConfig):
    """The letter of a multiple-choice answer."""

    name: Literal["choice"]
    """Selects this function."""
    letters: Annotated[str, Field(min_length=2)] = "ABCDEFGHIJ"
    """Letters that can be answers; a row's ``options`` narrow them down."""
    options_field: Name | None = "options"
    """Field of the row with the options: ``[{"A": "text"}, ...]`` or ``{"A": "text", ...}``; rows need not have it."""
    extract: Literal["lenient", "boxed", "answer_colon"] | Pattern = "lenient"
    """``boxed``: ``\\boxed{B}``. ``answer_colon``: a line ``Answer: B``. ``lenient``: either of them, else ``(B)``, a
    lone letter, or the one option whose text stands in the answer. Anything else is a pattern whose first group is the
    letter. The last match counts."""

    @property
    def own_pattern(self) -> str | None:
        """The pattern of ``extract``, where it is one."""
        return None if self.extract in ("lenient", "boxed", "answer_colon") else self.extract


class FormatRewardConfig(RewardFunctionConfig):
    """The shape of an answer: tags, patterns, length, end. The value is the share of demands met."""

    name: Literal["format"]
    """Selects this function."""
    tags: list[Name] = Field(default_factory=list)
    """Tags that must stand once each, in this order, closed, not empty: ``[think, answer]`` demands
    ``<think>...</think> <answer>...</answer>``."""
    only_tags: bool = False
    """Allow only white space outside of ``tags``."""
    prefilled: list[Name] = Field(default_factory=list)
    """Tags that the chat template opens: their opening tag does not stand in the answer."""
    require: list[Pattern] = Field(default_factory=list)
    """Patterns that must occur."""
    forbid: list[Pattern] = Field(default_factory=list)
    """Patterns that must not occur."""
    min_characters: NonNegativeInt = 0
    """Shortest answer."""
    max_characters: Count | None = None
    """Longest answer; null sets no bound."""
    require_end: bool = False
    """The answer must not have been cut off at the token limit."""
    score: Literal["share", "all"] = "all"
    """``share``: the share of demands met. ``all``: 1 only if all are met."""

    @model_validator(mode="after")
    def _some_demand(self) -> FormatRewardConfig:
        demands = (self.tags, self.require, self.forbid, self.min_characters, self.max_characters, self.require_end)
        if not any(demands):
            raise ValueError("`format` demands nothing: give `tags`, `require`, `forbid`, a length or `require_end`")
        if unknown := [tag for tag in self.prefilled if tag not in self.tags]:
            raise ValueError(f"`prefilled` names `{unknown[0]}`, which is not in `tags`")
        return self


class JsonSchemaRewardConfig(RewardFunctionConfig):
    """An answer that is JSON and obeys a JSON schema. References to other documents are not fetched."""

    name: Literal["json_schema"]
    """Selects this function."""
    schema_value: dict[str, Any] | None = None
    """The schema itself."""
    schema_file: DiskPath | None = None
    """A JSON file with the schema."""
    schema_field: Name | None = None
    """Field of the row with the schema, as an object or as text (NeMo-Gym's ``schema_str``)."""
    extract: Literal["whole", "fenced", "any"] = "any"
    """``whole``: the answer is nothing but JSON. ``fenced``: the last fenced block. ``any``: the whole, else the last
    fenced block, else the text from the first brace or bracket to its partner."""
    strip_thinking: bool = True
    """Look only at the answer: what follows the last ``</think>``, nothing of a ``<think>`` that is never closed."""

    @model_validator(mode="after")
    def _one_schema(self) -> JsonSchemaRewardConfig:
        if sum(value is not None for value in (self.schema_value, self.schema_file, self.schema_field)) != 1:
            raise ValueError("give one of `schema_value`, `schema_file` and `schema_field`")
        return self


class CodeRewardConfig(RewardFunctionConfig):
    """Python code that has to pass unit tests, run in a sandbox (docs/guides/verifiers.md)."""

    name: Literal["code"]
    """Selects this function."""
    tests_field: Name | None = None
    """Field of the row with the tests: ``{inputs, outputs, fn_name?}`` or a list of assert lines; null means
    ``verifier_metadata.unit_tests``, else ``unit_tests``, else ``tests``, else ``test_list``."""
    extract: Literal["fenced", "whole"] = "fenced"
    """``fenced``: the last fenced block; no block is wrong. ``whole``: the answer is code."""
    strip_thinking: bool = True
    """Look only at the answer: what follows the last ``</think>``, nothing of a ``<think>`` that is never closed."""
    score: Literal["all", "share"] = "all"
    """``all``: 1 only if every test passes. ``share``: the share that passes."""
    max_tests: Count | None = None
    """Run only the first tests; null runs all."""
    test_timeout_s: PositiveFloat = 5.0
    """Seconds of wall clock for one test, then it has failed. CPU time is bound by the same, rounded up."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Memory (address space) of a process in MiB."""
    file_mb: Annotated[int, Field(ge=1)] = 16
    """Size of a file that is written, and of the folder where namespaces give it a file system of its own, in MiB."""
    output_mb: Annotated[int, Field(ge=1)] = 4
    """What a test may print, in MiB; more fails the test."""
    max_processes: Annotated[int, Field(ge=1, le=1024)] = 16
    """Processes and threads at once."""
    allow_weak_sandbox: bool = False
    """Run also where this machine cannot keep the code from the network or from writing outside of its folder."""


class InstructionsRewardConfig(RewardFunctionConfig):
    """Checks of instructions (word counts, keywords, case ...) that the row names; the list is in the guide."""

    name: Literal["instructions"]
    """Selects this function."""
    ids_field: Name = "instruction_id_list"
    """Field of the row with the names of the checks."""
    kwargs_field: Name = "kwargs"
    """Field of the row with the arguments of each check, in the same order."""
    score: Literal["all", "share"] | None = None
    """``all``: 1 only if every check passes. ``share``: the share that passes. null: what the row's ``grading_mode``
    says (``binary`` or ``fraction``), else ``all``."""
    strip_thinking: bool = True
    """Look only at the answer: what follows the last ``</think>``, nothing of a ``<think>`` that is never closed."""


class TinyWorldRewardConfig(RewardFunctionConfig):
    """The tiny world's own check of a customer-service answer."""

    name: Literal["tiny_world"]
    """Selects this function."""
    aspect: Literal["right_intent", "right_slot", "polite", "not_rude", "ends", "fully_right"] = "fully_right"
    """What has to be right."""


class UserRewardConfig(RewardFunctionConfig):
    """A function of your own: ``function(row, response, *, ended, **options) -> float`` in [0, 1]."""

    name: Literal["user"]
    """Selects this function."""
    function: Annotated[
        str,
        of_form(
            r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
            "`module:function`, as `my_rewards:short` for the function `short` of `my_rewards.py`",
        ),
    ]
    """``module:function``; it is imported in a process of its own."""
    search_path: DiskPath = "."
    """Folder that is added to Python's module path; relative to where the command runs."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for every call."""
    row_fields: list[Name] = Field(default_factory=list)
    """Fields that every row must have, checked before anything starts."""
    environment: list[Name] = Field(default_factory=list)
    """Environment variables that its process gets beside those that Python needs: `[MY_API_KEY]`."""


AnyReward = (
    MathRewardConfig
    | ExactRewardConfig
    | RegexRewardConfig
    | ChoiceRewardConfig
    | FormatRewardConfig
    | JsonSchemaRewardConfig
    | CodeRewardConfig
    | InstructionsRewardConfig
    | TinyWorldRewardConfig
    | UserRewardConfig
)


class RewardConfig(Strict):
    """Rewards from programs. The reward of an answer is the sum of weight times value over all functions."""

    functions: Annotated[list[Annotated[AnyReward, Field(discriminator="name")]], Field(min_length=1)]
    """The functions; each gives a value in [0, 1]."""
    timeout_s: PositiveFloat = 10.0
    """Seconds that one function may take for one answer; then its value is missing, not 0."""
    unusable_rows: Literal["refuse", "leave_out"] = "refuse"
    """Rows that a function cannot score, such as those with an unknown instruction: refused before the start, or left
    out of training, validation and the held-out metric, and counted in a warning of the plan."""
    workers: Literal["auto"] | Count = "auto"
    """Answers that are scored at once; ``auto`` is half the CPU cores, at most 8."""

    @property
    def is_env_math(self) -> bool:
        """Whether NeMo-RL's own ``env.math`` gives the same rewards: mathematics alone, right or wrong."""
        if len(self.functions) != 1 or not isinstance(self.functions[0], MathRewardConfig):
            return False
        plain = MathRewardConfig(name="math")
        same = set(MathRewardConfig.model_fields) - {"label", "timeout_s", "answer_field"}
        return all(getattr(self.functions[0], name) == getattr(plain, name) for name in same)

    @property
    def environment(self) -> list[str]:
        """Variables that the functions ask for; they share their processes, and so these."""
        own = [function for function in self.functions if isinstance(function, UserRewardConfig)]
        return sorted({name for function in own for name in function.environment})

    @model_validator(mode="after")
    def _sound(self) -> RewardConfig:
        seen: set[str] = set()
        for function in self.functions:
            if function.shown in seen:
                raise ValueError(f"two reward functions are called `{function.shown}`: give each its own `label`")
            seen.add(function.shown)
        if not any(function.weight > 0 for function in self.functions):
            raise ValueError("no reward function has a positive weight")
        return self

"""Types shared by the config models: bounded numbers, keys that may be left out, sections that may be off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from nemotron.config.schema.base import Open

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
"""A size: at least one."""
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of random numbers: NeMo-RL gives it to NumPy's own generator, which takes 32 bits."""
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
"""A fraction of a whole, in (0, 1]."""
Probability = Annotated[float, Field(ge=0, le=1)]
_FORMS: dict[str, str] = {}


def of_form(pattern: str, words: str) -> Any:
    """A text of a form: the pattern that decides, and what to tell somebody who wrote something else."""
    _FORMS[pattern] = words
    return Field(pattern=pattern)


def form_in_words(pattern: str) -> str | None:
    """What a text of that pattern looks like; None of one that nobody put into words."""
    return _FORMS.get(pattern)


Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(min_length=1)]
"""A non-empty text."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A text that is the path of something on disk; a job keeps it absolute, wherever its command was given."""

    or_name: bool = False
    """It may also be a name of the hub: a path only where there is such a folder."""
    or_text: bool = False
    """It may also be what such a file holds: a path only where it ends in ``.jinja``."""
    unless: str = ""
    """A key beside it that, where it is set, makes it no path."""


DiskPath = Annotated[str, Field(min_length=1), OnDisk()]
"""A file or folder."""
ModelName = Annotated[str, Field(min_length=1), OnDisk(or_name=True)]
"""The folder of a model or tokenizer, or its name on the hub."""
TemplateText = Annotated[str, OnDisk(or_text=True)]
"""A chat template, or the ``.jinja`` file that holds it."""


NULL_NOT_ALLOWED: Final = "null_not_allowed"


def _refuse_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError(NULL_NOT_ALLOWED, "null is not a value of this key; leave the key out instead")
    return value


Omittable = Annotated[T | None, BeforeValidator(_refuse_null)]
"""A key that NeMo-RL reads only when it is there: ``None`` means "not given", an explicit null is an error."""


def written_defaults(model: type[BaseModel]) -> dict[str, Any]:
    """What the keys of a section are that are left out, but for those of which null is no value."""
    return {
        name: field.get_default()
        for name, field in model.model_fields.items()
        if not field.is_required() and not any(getattr(of, "func", None) is _refuse_null for of in field.metadata)
    }


class Off(Open):
    """A section that is switched off and whose other required keys were left out."""

    enabled: Literal[False]
    """Always false here."""


def needs_keys_when_enabled(model: type[BaseModel]) -> WrapValidator:
    """Validate a section with ``model``; with ``enabled: false`` its other keys may be missing.

    Keys that are given are checked either way, so a typo in a switched-off section is still found. A plain union would
    do, but it puts the name of the tried member into the location of every error.
    """

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, BaseModel):
            return value
        try:
            return model.model_validate(value)
        except ValidationError as error:
            if not (isinstance(value, Mapping) and value.get("enabled") is False):
                raise
            real = [_again(line) for line in error.errors() if line["type"] != "missing"]
            if real:
                raise ValidationError.from_exception_data(model.__name__, real) from error
            return Off.model_validate(value)

    return WrapValidator(check)


def one_or_many(model: type[BaseModel]) -> WrapValidator:
    """Accept one mapping or a list of them, with error locations that are plain config keys."""

    many = TypeAdapter(list[model])  # type: ignore[valid-type]

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, list):
            return many.validate_python(value)
        return value if isinstance(value, BaseModel) else model.model_validate(value)

    return WrapValidator(check)


def _again(line: Any) -> InitErrorDetails:
    """An error of a nested validation in the form in which it can be raised once more, message unchanged."""
    kind = PydanticCustomError(line["type"], line["msg"], line.get("ctx"))
    return InitErrorDetails(type=kind, loc=line["loc"], input=line["input"])

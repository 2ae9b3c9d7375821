"""Functions whose time depends on a pattern or schema that someone wrote: regex and JSON schema. Run in a worker."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from nemotron.config.schema.rewards import JsonSchemaRewardConfig, RegexRewardConfig
from nemotron.disk.documents import read_json
from nemotron.disk.home import expanded
from nemotron.errors import DataError
from nemotron.rewards.text import MISSING, answer_part, field, last_fenced
from nemotron.rewards.types import VerifierError


class Regex:
    """See `RegexRewardConfig`."""

    def __init__(self, config: RegexRewardConfig) -> None:
        self._config = config
        chosen = {re.IGNORECASE: config.ignore_case, re.MULTILINE: config.multiline, re.DOTALL: config.dot_all}
        self._flags = sum(flag for flag, on in chosen.items() if on)

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        pattern = self._pattern(row)
        if not isinstance(pattern, str):
            return f"the row has no text `{self._config.pattern_field}`"
        try:
            re.compile(pattern, self._flags)
        except re.error as error:
            return f"`{self._config.pattern_field or 'pattern'}` is no regular expression: {error.msg}"
        return None

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """1.0 when the pattern is found (or, with ``forbid``, is not)."""
        if problem := self.problem(row):
            raise VerifierError(problem)
        pattern = re.compile(self._pattern(row), self._flags)
        text = answer_part(response, self._config.strip_thinking)
        full = self._config.match == "full"
        found = pattern.fullmatch(text.strip()) if full else pattern.search(text)
        return float((found is None) == self._config.forbid)

    def _pattern(self, row: Mapping[str, Any]) -> Any:
        return self._config.pattern or field(row, self._config.pattern_field or "")


class JsonSchema:
    """See `JsonSchemaRewardConfig`."""

    def __init__(self, config: JsonSchemaRewardConfig) -> None:
        self._config = config
        self._fixed: Any = config.schema_value
        if config.schema_file is not None:
            self._fixed = _read_schema(expanded(config.schema_file))

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        name = self._config.schema_field
        schema = self._schema(row)
        if schema is None:
            return f"the row has no JSON schema in `{name}`"
        fault = schema_fault(json.dumps(schema, sort_keys=True))
        return f"`{name or 'the schema'}` is no JSON schema: {fault}" if fault else None

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """1.0 when the answer is JSON that obeys the schema."""
        import referencing
        import referencing.exceptions
        from jsonschema.exceptions import UnknownType  # type: ignore[import-untyped]
        from jsonschema.validators import validator_for  # type: ignore[import-untyped]

        if problem := self.problem(row):
            raise VerifierError(problem)
        found, value = self.value(answer_part(response, self._config.strip_thinking))
        if not found:
            return 0.0
        schema = self._schema(row)
        # An empty registry: a reference to another document is an error instead of a download.
        validator = validator_for(schema)(schema, registry=referencing.Registry())
        try:
            return float(validator.is_valid(value))
        except (referencing.exceptions.Unresolvable, UnknownType) as error:
            raise VerifierError(f"the schema cannot be applied: {str(error).splitlines()[0]}") from error

    def value(self, text: str) -> tuple[bool, Any]:
        """(is there JSON?, its value)."""
        candidates: list[str | None] = []
        if self._config.extract != "fenced":
            candidates.append(text)
        if self._config.extract != "whole":
            candidates.append(last_fenced(text))
        if self._config.extract == "any":
            candidates.append(_first_json(text))
        for candidate in candidates:
            try:
                if candidate is not None:
                    return True, json.loads(candidate, parse_constant=_refuse)
            except (ValueError, RecursionError):
                continue
        return False, None

    def _schema(self, row: Mapping[str, Any]) -> Any:
        if self._config.schema_field is None:
            return self._fixed
        schema = field(row, self._config.schema_field)
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError:
                return None
        return schema if schema is not MISSING and isinstance(schema, dict | bool) else None


@lru_cache(maxsize=256)
def schema_fault(schema: str) -> str | None:
    """What is wrong with a schema given as JSON text."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    value = json.loads(schema)
    try:
        validator_for(value).check_schema(value)
    except SchemaError as error:
        return str(error.message)
    return None


def _read_schema(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise DataError(f"cannot read the JSON schema `{path}`: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"`{path}` {error}") from error


_MOST_STARTS = 100
"""Braces and brackets that are tried; each try may read to the end of the text."""


def _first_json(text: str) -> str | None:
    """From the first brace or bracket that begins JSON to its end."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    for start in islice(re.finditer(r"[{\[]", text), _MOST_STARTS):
        try:
            _, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        return text[start.start() : end]
    return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

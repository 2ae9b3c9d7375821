"""The texts that stand below the fields of config models.

pydantic can read them, too, but does it for every model when its class is made, which every command would pay for.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache

from pydantic import BaseModel

from nemotron.config.known import alternatives


@cache
def field_docs(model: type[BaseModel]) -> Mapping[str, str]:
    """Field -> its text, inherited ones included; a field without text is left out."""
    found: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if issubclass(parent, BaseModel) and parent is not BaseModel:
            found |= _docs_of_module(parent.__module__).get(parent.__qualname__.rpartition(".")[2], {})
    return found


def docs_by_key(model: type[BaseModel]) -> Mapping[str, str]:
    """Dotted key -> text of every declared field below ``model``."""
    return dict(_below(model, "", ()))


def _below(model: type[BaseModel], prefix: str, above: tuple[type, ...]) -> Iterator[tuple[str, str]]:
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key, field.description or docs.get(name, "")
        for member in alternatives(field.annotation):
            if isinstance(member, type) and issubclass(member, BaseModel) and member not in above:
                yield from _below(member, f"{key}.", (*above, model))


@cache
def _docs_of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """Class -> field -> text, for every class of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[name]))
    return {node.name: dict(_docs_of_class(node)) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _docs_of_class(node: ast.ClassDef) -> list[tuple[str, str]]:
    pairs = zip(node.body, node.body[1:], strict=False)
    return [
        (field.target.id, inspect.cleandoc(text.value.value))
        for field, text in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    ]

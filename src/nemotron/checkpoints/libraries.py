"""Files of models that transformers reads for us. It looks at little of them before it uses it: what is damaged raises
whatever its first reader happens to raise, from an AttributeError to a panic of the tokenizer's Rust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nemotron.errors import ArtifactError, NemotronError
from nemotron.out_of_memory import out_of_memory

_PANIC = "PanicException"
"""What Rust that gives up is to Python: no Exception, and of no module that could be imported."""


@contextmanager
def refusing_damage(refusal: Callable[[str], ArtifactError]) -> Iterator[None]:
    """Around one call of the library that reads files: whatever it raises is ``refusal`` of its first line.

    Memory that does not suffice, an interrupt and our own errors stay what they are.
    """
    try:
        yield
    except BaseException as error:
        ours = isinstance(error, NemotronError) or (isinstance(error, Exception) and out_of_memory(error) is not None)
        if ours or not (isinstance(error, Exception) or type(error).__name__ == _PANIC):
            raise
        reason = str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
        raise refusal(reason) from error

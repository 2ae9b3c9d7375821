"""Files of models that transformers reads for us. It looks at little of them before it uses it: what is damaged raises
whatever its first reader happens to raise, from an AttributeError to a panic of the tokenizer's Rust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nemotron.errors import ArtifactError, NemotronError
from nemotron.out_of_memory import out_of_memory

_PANIC = "PanicException"
"""What Rust that gives up is to Python: no Exception, and of no module that could be imported."""
_WORDS = 100
"""Of a tokenizer's own, which it is asked to read."""


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


def load_tokenizer(name: str, refusal: Callable[[str], ArtifactError], **how: Any) -> Any:
    """What ``AutoTokenizer.from_pretrained(name, **how)`` gives, if that can read.

    For some families transformers builds a tokenizer of its own class around the vocabulary, whatever
    ``tokenizer.json`` says; one that was made otherwise then takes any text for nothing.

    Raises:
        ArtifactError: ``refusal``: it cannot be loaded, or makes no tokens of its own words.
    """
    from transformers import AutoTokenizer

    with refusing_damage(refusal):
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **how)
        words = tokenizer.decode([*range(min(len(tokenizer), _WORDS))], skip_special_tokens=True)
        mute = bool(words.strip()) and not tokenizer.encode(words, add_special_tokens=False)
    if mute:
        reader = type(tokenizer).__name__
        raise refusal(
            f"transformers takes it for a `{reader}`, as the model's `config.json` says, which makes no tokens of its "
            "own words; in a folder without that file it is read as it was made"
        )
    return tokenizer

"""Where a turn ends: the tokens after which a model says no more. Whatever samples asks here, the preflight too.

A tokenizer names one end of sequence; many chat models end their turns with another token, which only
``generation_config.json`` names (or ``config.json``, from which transformers takes it where that file is missing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.checkpoints import hf
from nemotron.checkpoints.chat_template import rendered_turn
from nemotron.checkpoints.megatron import layout
from nemotron.disk.documents import read_json
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError

KEY = "eos_token_id"
_GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that take no token for an end unless they are told."""
_OWN_CLASS_COUNTS = ("llama", "mistral", "qwen3", "gemma3_text")
"""Types of models of which transformers believes that name of a class; of some it takes another one that has an end."""
_USUAL_ENDS = ("</s>", "<|endoftext|>", "<eos>", "[SEP]", "<|END_OF_TURN_TOKEN|>")


def end_tokens(
    configured: Sequence[int] | None, tokenizer_end: int | None, model_ends: Sequence[int]
) -> tuple[int, ...]:
    """Ids of the tokens that end a turn: those of the config alone, else the tokenizer's and the model's together.

    Example: ``end_tokens(None, 2, (2, 7))`` is ``(2, 7)``, ``end_tokens([5], 2, (2, 7))`` is ``(5,)``.
    """
    if configured:
        return tuple(configured)
    own = () if tokenizer_end is None else (tokenizer_end,)
    return tuple(dict.fromkeys((*own, *model_ends)))


def model_ends(folder: Path | None) -> tuple[int, ...]:
    """The ends that the model in ``folder`` names; none without a folder.

    Raises:
        ArtifactError: its ``generation_config.json`` is damaged.
    """
    if folder is None:
        return ()
    path = folder / hf.GENERATION_CONFIG
    if not path.is_file():
        return _ids(_object(folder / hf.CONFIG).get(KEY)) or ()
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"`{path}` cannot be read: {error}", hint="copy it again, or delete it") from error
    found = _ids(content.get(KEY)) if isinstance(content, dict) else None
    if found is None:
        raise ArtifactError(
            f"`{path}` must hold an object whose `{KEY}` is a token id, or several",
            hint=f'write the number of the token, e.g. `"{KEY}": 2`, or copy the file again',
        )
    return found


def start_of(model: Path | None, pretrained: str | None) -> Path | None:
    """The folder of what a policy has beside its weights before training: of ``pretrained``, the checkpoint that its
    weights come from, where that keeps it, else of the folder ``model``."""
    beside = layout.beside(expanded(pretrained)) if pretrained is not None else None
    return beside if beside is not None and (beside / hf.GENERATION_CONFIG).is_file() else model


def _ids(value: Any) -> tuple[int, ...] | None:
    """A number or a list of them; ``None`` for anything else."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in values):
        return None
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its id, which the files may not say."""

    text: str
    id: int | None


def tokenizer_end(folder: Path) -> Token | None:
    """The end of sequence that the tokenizer in ``folder`` names; ``None`` when its files do not say."""
    text = named_tokens(folder).get("eos_token")
    return None if text is None else Token(text, added_tokens(folder).get(text))


def written_end(folder: Path, template: str, more: Mapping[str, Any]) -> Token | None:
    """The token that ``template`` writes behind what the assistant says, with the tokenizer in ``folder``.

    ``more``: keyword arguments of the template.
    ``None`` where it writes none, where only running it could tell, or where the template takes no plain conversation.
    """
    rest = rendered_turn(template, {**named_tokens(folder), **more})
    if rest is None:
        return None
    added = added_tokens(folder)  # read once: such files may be large
    found = [(place, -len(text), text) for text in added if text and (place := rest.find(text)) >= 0]
    if not found:
        return None
    text = min(found)[2]
    return Token(text, added[text])


def named_tokens(folder: Path) -> Mapping[str, str]:
    """``bos_token``, ``eos_token`` and the others -> their text, as chat templates use them."""
    found = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for name, value in _object(folder / file).items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found


_MORE = ("additional_special_tokens", "extra_special_tokens")


def special_tokens(folder: Path) -> set[str]:
    """Texts of all tokens that the files call special, whether a vocabulary has them or not."""
    found = set(named_tokens(folder).values())
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = _object(folder / file)
        for more in (content.get(key) for key in _MORE):
            values = more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
            texts = (value.get("content") if isinstance(value, dict) else value for value in values)
            found |= {text for text in texts if isinstance(text, str)}
    return found - {""}


def names_no_end(folder: Path) -> bool:
    """Whether the tokenizer in ``folder`` surely has no end of sequence: its files name none, and none of its tokens is
    one that a class of transformers takes where they do not."""
    if "eos_token" in named_tokens(folder) or not (folder / "tokenizer.json").is_file():
        return False
    model = _object(folder / "tokenizer.json").get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return False
    if _object(folder / "tokenizer_config.json").get("tokenizer_class") in _GENERIC and (
        _object(folder / hf.CONFIG).get("model_type") in _OWN_CLASS_COUNTS
    ):
        return True
    known = {*vocabulary, *added_tokens(folder)}
    return known.isdisjoint(_USUAL_ENDS)


def added_tokens(folder: Path) -> Mapping[str, int]:
    """Text -> id of the tokens that stand beside the vocabulary, as those that structure a conversation do."""
    listed = _object(folder / "added_tokens.json").items()
    settings = _object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    found = {text: number for text, number in listed if isinstance(number, int)}
    for number, entry in settings.items() if isinstance(settings, dict) else ():
        if isinstance(entry, dict) and str(number).isdecimal():
            found[str(entry.get("content"))] = int(number)
    added = _object(folder / "tokenizer.json").get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            found[str(entry.get("content"))] = entry["id"]
    return found


NO_END_HINT = (
    f"name it as `eos_token` in `tokenizer_config.json`, or as `{KEY}` in the model's `{hf.GENERATION_CONFIG}`"
)

FEWER_ROWS_HINT = (
    "take the tokenizer that the model was trained with; tokens that were added to it, or that it calls special, need "
    "rows: `model.resize_token_embeddings(len(tokenizer))` of transformers, then save both"
)


def _object(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none: other checks say what is wrong with the file."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

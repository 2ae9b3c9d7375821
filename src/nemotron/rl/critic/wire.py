"""What travels between actor and critic: named tensors as one safetensors payload, checked before anything computes.

Legend: B responses, S longest prompt plus response in tokens. Rows are padded on the right. A value stands in the
column of the token *before* which it was estimated, as in NeMo-RL: column 0 is 0, and so are prompt and padding.

=========  ====================================================================  =================================
request    tensors                                                               answer
=========  ====================================================================  =================================
infer      ``tokens`` i64[B,S], ``lengths`` i64[B], ``prompt_lengths`` i64[B]    ``values`` f32[B,S], ``rewards`` f32[B]
           (may be left out: then every token but the first gets a value)
train      ``number`` i64[1], ``tokens`` i64[B,S], ``returns``, ``prev_values``  metrics as JSON
           and ``mask`` f32[B,S]
=========  ====================================================================  =================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nemotron.contracts.samples import Completion, Group

CONTENT_TYPE = "application/octet-stream"


class WireError(ValueError):
    """A payload that cannot be meant seriously; the message says why."""


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of a payload."""

    dtype: torch.dtype
    shape: str
    """``B``, ``BS`` or ``1``: one letter per dimension, equal letters equal sizes."""
    required: bool = True


INFER = {
    "tokens": Field(torch.int64, "BS"),
    "lengths": Field(torch.int64, "B"),
    "prompt_lengths": Field(torch.int64, "B", required=False),
}
INFERRED = {"values": Field(torch.float32, "BS"), "rewards": Field(torch.float32, "B")}
TRAIN = {
    "number": Field(torch.int64, "1"),
    "tokens": Field(torch.int64, "BS"),
    "returns": Field(torch.float32, "BS"),
    "prev_values": Field(torch.float32, "BS"),
    "mask": Field(torch.float32, "BS"),
}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The payload of ``tensors``."""
    return bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def unpack(body: bytes, fields: Mapping[str, Field]) -> dict[str, Tensor]:
    """The tensors of a payload: exactly those of ``fields``, of their types and shapes, not empty, all finite.

    Raises:
        WireError: anything else.
    """
    try:
        tensors = load(body)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise WireError(f"the body is no safetensors payload: {str(error)[:200]}") from error
    unknown = sorted(set(tensors) - set(fields))
    missing = sorted(name for name, field in fields.items() if field.required and name not in tensors)
    if unknown or missing:
        wrong = [f"unknown tensor `{name}`" for name in unknown] + [f"no tensor `{name}`" for name in missing]
        raise WireError(", ".join(wrong))
    sizes: dict[str, int] = {"1": 1}
    for name, field in fields.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.dtype != field.dtype:
            raise WireError(f"`{name}` is {_name(tensor.dtype)}, it must be {_name(field.dtype)}")
        if tensor.dim() != len(field.shape) or 0 in tensor.shape:
            raise WireError(f"`{name}` has shape {list(tensor.shape)}, it must be [{','.join(field.shape)}]")
        for letter, size in zip(field.shape, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise WireError(f"`{name}` has {size} where other tensors have {sizes[letter]}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WireError(f"`{name}` holds NaN or infinity")
    return tensors


def check_tokens(tokens: Tensor, vocabulary: int, longest: int | None) -> None:
    """Refuse tokens that the model does not have, and rows that are longer than it can read. Raises WireError."""
    if longest is not None and tokens.shape[1] > longest:
        raise WireError(f"rows of {tokens.shape[1]} tokens, the model reads at most {longest}")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise WireError(f"a token outside of the vocabulary of {vocabulary}")


def padded(groups: list[Group]) -> dict[str, Tensor]:
    """``tokens``, ``lengths`` and ``prompt_lengths`` of groups, rows prompt-major."""
    rows = [(len(group.prompt_ids), group.prompt_ids + c.token_ids) for group in groups for c in group.completions]
    lengths = torch.tensor([len(ids) for _, ids in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for i, (_, ids) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
    return {"tokens": tokens, "lengths": lengths, "prompt_lengths": torch.tensor([prompt for prompt, _ in rows])}


def grouped(tokens: Tensor, starts: Tensor, ends: Tensor) -> list[Group]:
    """Rows as groups, one per run of equal prompts, so that the prompt is computed once.

    ``starts`` and ``ends`` [B] bound the response in each row. Raises WireError when there is no prompt or response.
    """
    width = tokens.shape[1]
    if bool((starts < 1).any()) or bool((ends <= starts).any()) or bool((ends > width).any()):
        raise WireError("a row needs a prompt of at least one token, a response after it, and both inside of the row")
    groups: list[Group] = []
    for ids, start, end in zip(tokens.tolist(), starts.tolist(), ends.tolist(), strict=True):
        completion = Completion(ids[start:end], [], truncated=False)
        if groups and groups[-1].prompt_ids == ids[:start]:
            groups[-1].completions.append(completion)
        else:
            groups.append(Group(ids[:start], [completion]))
    return groups


def in_place(values: Tensor, starts: Tensor, ends: Tensor, width: int) -> Tensor:
    """[B,T] per response token -> [B,width] in the columns of the tokens; differentiable."""
    columns = torch.arange(width, device=values.device)
    offset = columns[None, :] - starts.to(values.device)[:, None]
    inside = (offset >= 0) & (columns[None, :] < ends.to(values.device)[:, None])
    return values.gather(1, offset.clamp(0, values.shape[1] - 1)) * inside


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Optimizer state that lies in host memory and is on the device only while the optimizer steps.

Adam's two moments are twice the weights, and nothing but its step reads them: sampling, log-probabilities, forward and
backward passes go on without. A copy changes no bit, so the weights are those of a run that keeps them on the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nemotron.errors import EngineError

HOST = torch.device("cpu")
_ALIGNMENT = 64
"""Bytes to a multiple of which the places of tensors are rounded: a line of the processor's cache."""


def keep_on_host(optimizer: Optimizer) -> None:
    """Keep the state of ``optimizer`` in host memory from now on; nothing to do where its parameters are there, too."""
    if any(_is_elsewhere(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        HostState(optimizer)


def tensors_of(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any], str, Tensor]]:
    """(parameter, its state, name, tensor) of what is worth moving; an entry may be replaced meanwhile.

    Tensors without dimensions are left out: step counts and their like stay where torch keeps them.
    """
    for parameter, state in optimizer.state.items():
        for name, entry in list(state.items()):
            if isinstance(entry, Tensor) and entry.dim():
                yield parameter, state, name, entry


class HostState:
    """Moves the state of an optimizer to the device of its parameters before each step, and back after it.

    The hooks hold it as long as the optimizer lives. A step that raises leaves the state on the device, where the next
    one finds it.

    Example::

        adamw = torch.optim.AdamW(policy.parameters())
        HostState(adamw)
        adamw.step()
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """From now on; state that is there already moves after the next step."""
        self._homes: dict[tuple[Tensor, str], Tensor] = {}
        """(parameter, name) -> where that entry lies in host memory, the same from step to step."""
        self._rooms: list[Tensor] = []
        """What those lie in, which is unpinned when it is let go of."""
        optimizer.register_step_pre_hook(self._fetch)
        optimizer.register_step_post_hook(self._put_away)
        optimizer.register_load_state_dict_post_hook(self._put_away)
        optimizer.register_state_dict_post_hook(self._as_on_the_device)

    def _fetch(self, optimizer: Optimizer, *call: object) -> None:
        """The step is queued behind these copies, on the same stream: nobody has to wait for them."""
        for parameter, state, name, entry in tensors_of(optimizer):
            if entry is self._homes.get((parameter, name)):
                state[name] = _copied(entry, parameter.device)

    def _put_away(self, optimizer: Optimizer, *call: object) -> None:
        moved = [
            (parameter, state, name, entry)
            for parameter, state, name, entry in tensors_of(optimizer)
            if entry is not self._homes.get((parameter, name))
        ]
        self._make_room([(parameter, name, entry) for parameter, _, name, entry in moved])
        for parameter, _, name, entry in moved:
            self._homes[parameter, name].copy_(entry, non_blocking=True)
        # Until the copies are done nobody may read them, or reuse the memory that they are made from.
        for device in {entry.device for _, _, _, entry in moved if entry.device.type == "cuda"}:
            torch.cuda.current_stream(device).synchronize()
        for parameter, state, name, _ in moved:
            state[name] = self._homes[parameter, name]

    def _as_on_the_device(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A file says on which device each tensor was, and holds the memory that it is part of: as without all this."""
        devices = {id(home): parameter.device for (parameter, _), home in self._homes.items()}

        def entry_of(entry: Any) -> Any:
            return _copied(entry, devices[id(entry)]) if id(entry) in devices else entry

        state = {
            key: {name: entry_of(entry) for name, entry in entries.items()}
            for key, entries in state_dict["state"].items()
        }
        return {**state_dict, "state": state}

    def _make_room(self, wanted: list[tuple[Tensor, str, Tensor]]) -> None:
        """A home for every entry that has none of its form: all of them in one piece of memory, pinned at once.

        torch's own pinned memory is rounded up to a power of two for each tensor, up to twice of what is needed.
        """
        new = [
            (parameter, name, entry)
            for parameter, name, entry in wanted
            if not _alike(self._homes.get((parameter, name)), entry)
        ]
        if not new:
            return
        room = _room(sum(map(_place, (entry for _, _, entry in new))), any(e.device.type == "cuda" for _, _, e in new))
        self._rooms.append(room)
        start = 0
        for parameter, name, entry in new:
            form = torch.empty_like(entry, device="meta")  # the strides that a copy gets
            place = room[start : start + entry.numel() * entry.element_size()].view(entry.dtype)
            self._homes[parameter, name] = place.as_strided(form.size(), form.stride())
            start += _place(entry)


def _is_elsewhere(parameter: Tensor) -> bool:
    return parameter.device.type != HOST.type


def _copied(entry: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(entry, device=device).copy_(entry, non_blocking=True)


def _alike(home: Tensor | None, entry: Tensor) -> bool:
    return home is not None and (home.shape, home.dtype) == (entry.shape, entry.dtype)


def _place(entry: Tensor) -> int:
    """Bytes that an entry takes of its room."""
    return -(-entry.numel() * entry.element_size() // _ALIGNMENT) * _ALIGNMENT


def _room(size: int, pinned: bool) -> Tensor:
    """``size`` bytes [size] of host memory; ``pinned``: a GPU reads and writes them by itself. Raises EngineError."""
    room = torch.empty(size, dtype=torch.uint8, device=HOST)
    if pinned:
        cuda: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        refusal = int(cuda.cudaHostRegister(room.data_ptr(), size, 0))
        if refusal:
            raise EngineError(
                f"CUDA cannot pin {size / 2**30:.1f} GiB of host memory for the optimizer's state (error {refusal})",
                hint="free host memory, or set `policy.offload_optimizer_for_logprob=false`",
            )
        weakref.finalize(room, cuda.cudaHostUnregister, room.data_ptr())
    return room

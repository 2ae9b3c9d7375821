"""Pickles inside a checkpoint, read without executing or instantiating anything that they name.

A pickle may call any importable function. Here it cannot: a global is either on the list below, and then becomes an
inert stand-in that only remembers its name and arguments, or the whole file is refused by the name of that global.
Nothing is imported on behalf of a pickle, so this module needs no torch either.

The same object is not the same pickle under every interpreter and protocol: an enum's member is `cls(value)`, before
Python 3.11.4 `getattr(cls, name)`; `signal.SIGTERM` is a global there; Python 3.13 keeps paths in another module; the
protocol of `torch.save` uses Python 2's names. All forms are read, one is written (`dump`).
"""

from __future__ import annotations

import io
import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict, defaultdict, deque
from enum import Enum
from pathlib import Path
from typing import IO, Any, ClassVar

from nemotron.errors import ArtifactError

DTYPES = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "bool": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""Bytes per element of every dtype a checkpoint may name."""

STORAGES = {
    "BFloat16Storage": "bfloat16",
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

# Plain containers are built for real: they hold data and run nothing.
_CONTAINERS: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("collections", "deque"): deque,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
}
_INERT = {
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("builtins", "int"),
    ("builtins", "float"),
    ("builtins", "object"),
    ("copyreg", "_reconstructor"),
    ("_operator", "or_"),
    ("_io", "BytesIO"),
    ("io", "BytesIO"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "PurePosixPath"),
    ("signal", "Signals"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("torch", "device"),
    ("torch", "Tensor"),
    ("torch", "memory_format"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage"),
    ("torch", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
}
# Records and enums of the formats themselves. They are never imported, so what they would do there cannot happen.
_INERT_PACKAGES = (
    "torch.distributed.checkpoint.",
    "torch.distributed._shard.",
    "megatron.",
    "transformer_engine.",
    "nemo.",
)


class Inert:
    """What is left of an object whose class is known but never imported: its name, arguments and state."""

    global_name: ClassVar[str] = ""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Inert:
        made = object.__new__(cls)
        made.arguments = arguments
        made.state = {}
        return made

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.global_name}>"

    def field(self, name: str) -> Any:
        """One attribute of the object's state; ``None`` when it is not there."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class Dtype(str):
    """A torch dtype by name, e.g. ``bfloat16``."""

    __slots__ = ()


def _stand_in(name: str) -> type[Inert]:
    """The class that stands for the global ``name``, e.g. ``torch.device``."""
    return type(name.rpartition(".")[2], (Inert,), {"global_name": name})


def _member(*arguments: Any) -> type[Inert]:
    """``getattr`` of a stand-in: an enum's member or a class in a class. It is a name again; nothing is looked up."""
    match arguments:
        case (type() as owner, str(name)) if issubclass(owner, Inert):
            return _stand_in(f"{owner.global_name}.{name}")
    raise _Refused("builtins.getattr")


def _bytes(*arguments: Any) -> bytes:
    """Protocols without bytes spell them ``encode(text, "latin1")``, empty ones ``bytes()``."""
    match arguments:
        case ():
            return b""
        case (str(text), "latin1"):
            return text.encode("latin1")
    raise _Refused("_codecs.encode")


def _size(*arguments: Any) -> tuple[int, ...]:
    """``torch.Size`` becomes a tuple."""
    return tuple(int(n) for n in arguments[0]) if arguments else ()


class _Refused(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Python 2's names, which protocols up to 2 use: `__builtin__.set`, `copy_reg._reconstructor`.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        key = (module, name)
        if key == ("torch", "Size"):
            return _size
        if key == ("builtins", "getattr"):
            return _member
        if key in (("_codecs", "encode"), ("builtins", "bytes")):
            return _bytes
        if module == "torch" and name in DTYPES:
            return Dtype(name)
        if module == "torch" and name in STORAGES:
            return Dtype(STORAGES[name])
        if key in _CONTAINERS:
            return _CONTAINERS[key]
        if key in _INERT or module.startswith(_INERT_PACKAGES) or (module == "signal" and name.startswith("SIG")):
            return _stand_in(f"{module}.{name}")
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Storages of ``torch.save``: ``("storage", type, key, location, element count)``; nothing is loaded."""
        return pid


def _check_numbers(content: bytes) -> None:
    """Objects get numbers, one after the other, so none is above the count of bytes. The reader makes room for whatever
    number stands there: one flipped byte would take many gigabytes.

    Raises:
        UnpicklingError: a number is above that. ValueError: it is no pickle.
    """
    for opcode, number, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(number, int) and number > len(content):
            raise pickle.UnpicklingError(f"{number} objects cannot be in {len(content)} bytes")


def loads(content: bytes, path: Path) -> Any:
    """Read one pickle with stand-ins.

    Raises:
        ArtifactError: it names something outside the list (by name), or is not a whole pickle.
    """
    try:
        _check_numbers(content)
        return _Unpickler(io.BytesIO(content)).load()
    except _Refused as refused:
        raise ArtifactError(
            f"`{path}` wants to run `{refused}` when it is read; it was refused and nothing was run",
            hint="a checkpoint needs no such thing: do not load this file anywhere, fetch it again from its source",
        ) from None
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:
        raise ArtifactError(
            f"`{path}` is corrupt or cut short: {error or type(error).__name__}",
            hint="copy the checkpoint again; if it was being written when the job was killed, use an earlier one",
        ) from error


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (type(value), (value.value,)) if isinstance(value, Enum) else NotImplemented


def dump(value: Any, file: IO[bytes]) -> None:
    """Write one pickle: the same bytes under every Python, though each of them has its own form of an enum's member."""
    _Pickler(file, protocol=4).dump(value)

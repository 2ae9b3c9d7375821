"""A checkpoint written under one Python is read under every other; what we write is the same under all of them."""

from __future__ import annotations

import enum
import hashlib
import io
import pickle
import pickletools
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch

from nemotron.checkpoints.convert import megatron_to_hf
from nemotron.checkpoints.hf import HfWeights
from nemotron.checkpoints.megatron import pickles
from nemotron.checkpoints.megatron.describe import common_state
from nemotron.checkpoints.megatron.families import from_hf
from nemotron.checkpoints.megatron.writer import write_iteration
from nemotron.errors import ArtifactError
from tests.unit.checkpoints.interpreters.make import CONFIG, HERE, state

WRITERS = sorted(folder.name for folder in HERE.glob("python*"))
GETATTR = "python3.11.2"
"""Before 3.11.4 an enum's member was pickled as ``getattr(cls, name)``."""
WRITTEN = {
    ".metadata": "c5762b30ecf3f321c60ba65324bb9f5f2208ad57c7df785dd0b16b9acfdcd72b",
    "__0_0.distcp": "94ae07ca89dac46e735debdd7f78bd8a94527eb374f217d44109a3b8de1759e2",
    "common.pt": "3203c48c508d56071331991ba182a42afd9d7c88152a2c2b4bdc62213519008f",
    "train_state.pt": "ac833678605138bab628fefc97cd7a7cafd0fbd2fc0bf3a99b779109a66067c0",
}
"""SHA-256 of what 3.11.2, 3.11.7, 3.12.1 and 3.13.0 wrote, with torch 2.13 and 2.14."""


def globals_of(content: bytes) -> set[str]:
    """Every text in a pickle; the names of globals are among them."""
    return {str(argument) for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_every_python_are_read(tmp_path: Path, writer: str) -> None:
    iteration = tmp_path / "iter_0000007"
    shutil.copytree(HERE / writer, iteration)
    for shared in ("__0_0.distcp", "metadata.json", "run_config.yaml"):
        shutil.copyfile(HERE / shared, iteration / shared)
    megatron_to_hf(iteration, tmp_path / "hf", verify="weights")
    read = HfWeights(tmp_path / "hf")
    assert set(read) == set(state())
    assert all(torch.equal(read[name], weight) for name, weight in state().items())


@pytest.mark.parametrize("writer", WRITERS)
def test_arguments_beside_the_weights_are_read(writer: str) -> None:
    common = common_state(HERE / writer)
    assert common["iteration"] == 7
    assert common["args"].state["names"] == {"one"}
    assert common["args"].state["params_dtype"] == "bfloat16"


def test_the_fixtures_have_the_forms_that_differ() -> None:
    assert {"python3.11.2", "python3.11.7", "python3.12.1", "python3.13.0"} <= set(WRITERS)
    for writer in WRITERS:
        metadata = globals_of((HERE / writer / ".metadata").read_bytes())
        assert ("getattr" in metadata) == (writer == GETATTR)
    assert b"SIGTERM" in (HERE / GETATTR / "common.pt").read_bytes()
    assert b"pathlib._local" in (HERE / "python3.13.0" / "common.pt").read_bytes()


def test_what_we_write_does_not_depend_on_the_python(tmp_path: Path) -> None:
    write_iteration(state(), from_hf(CONFIG, "here"), tmp_path / "iter")
    written = {name: hashlib.sha256((tmp_path / "iter" / name).read_bytes()).hexdigest() for name in WRITTEN}
    assert written == WRITTEN


class Colour(enum.Enum):
    RED = 1


def test_an_enum_is_written_in_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def dumped() -> bytes:
        file = io.BytesIO()
        pickles.dump([Colour.RED], file)
        return file.getvalue()

    here = dumped()
    monkeypatch.setattr(Colour, "__reduce_ex__", lambda self, protocol: (getattr, (Colour, self.name)), raising=False)
    assert b"getattr" in pickle.dumps([Colour.RED])  # as 3.11.2 does it
    assert dumped() == here
    assert pickle.loads(here) == [Colour.RED]


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\ngetattr\n(cbuiltins\ndict\nS'clear'\ntR.",  # of a class that is built for real
        b"cbuiltins\ngetattr\n(S'text'\nS'format'\ntR.",
        b"cbuiltins\ngetattr\n(cbuiltins\ngetattr\nS'__globals__'\ntR.",
        b"c__builtin__\ngetattr\n(cmegatron.core\nThing\nI1\ntR.",
        b"cbuiltins\ngetattr\n(cmegatron.core\nThing\nS'a'\nS'default'\ntR.",
    ],
)
def test_getattr_takes_names_of_stand_ins_only(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"builtins\.getattr"):
        pickles.loads(content, Path("x"))


def test_getattr_of_a_stand_in_is_a_name_again() -> None:
    found = pickles.loads(b"cbuiltins\ngetattr\n(cmegatron.core\nThing\nS'__init__'\ntR.", Path("x"))
    assert found.global_name == "megatron.core.Thing.__init__"
    assert issubclass(found, pickles.Inert)


@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset([1]), b"", b"\xff", bytearray(b"x"), 1j, slice(1, 2), [1, (2, None)]]
)
@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(value: object, protocol: int) -> None:
    assert pickles.loads(pickle.dumps(value, protocol), Path("x")) == value


class Outer:
    class Inner:
        """A class within a class: protocols up to 3 name it by `getattr`."""

    __module__ = Inner.__module__ = "megatron.core"


def test_a_class_within_a_class_of_every_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("megatron.core")
    monkeypatch.setitem(sys.modules, "megatron", types.ModuleType("megatron"))
    monkeypatch.setitem(sys.modules, "megatron.core", module)
    monkeypatch.setattr(module, "Outer", Outer, raising=False)
    for protocol in range(2, 6):
        found = pickles.loads(pickle.dumps(Outer.Inner(), protocol), Path("x"))
        assert found.global_name == "megatron.core.Outer.Inner"

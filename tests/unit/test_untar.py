"""Archives of other machines."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from nemotron.disk.untar import unpack_files


def archive(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            content = b"content" if member.isfile() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_files_replace_files(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("old")
    unpack_files(archive(member("status.json"), member("a", tarfile.DIRTYPE), member("a/b/log.txt")), tmp_path)
    assert (tmp_path / "status.json").read_text() == (tmp_path / "a/b/log.txt").read_text() == "content"


@pytest.mark.parametrize(
    "hostile",
    [
        member("../out"),
        member("/tmp/out"),
        member("a/../../out"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "status.json"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_what_is_no_file_below_the_folder_is_refused(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError, match="is no file of the folder"):
        unpack_files(archive(hostile), folder)
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize("content", [b"", b"no tar", archive(member("a"))[:515]], ids=["empty", "text", "cut"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="no tar archive"):
        unpack_files(content, tmp_path)

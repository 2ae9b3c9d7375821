"""The code that a job runs: a copy of this package, once per version, under the hash of its content.

A queued job so runs what it was compiled with, whatever happens to the checkout meanwhile, and the worker checks on the
far side that it is that.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nemotron
from nemotron.errors import NotAvailableError

PACKAGE = Path(nemotron.__file__).parent
ASSETS = PACKAGE / "assets"
VARIABLE = "NEMOTRON_CODE"
"""What the far side has to be: :func:`digest`, or the version where the code is installed there."""


def files(*, assets: bool) -> Iterator[Path]:
    """Files of the package, in order."""
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE).parts
        if "__pycache__" in inside or not path.is_file() or (inside[0] == "assets" and not assets):
            continue
        yield path


@cache
def digest(*, assets: bool = False) -> str:
    """SHA-256 of names and contents, shortened to 16 hexadecimal digits."""
    content = hashlib.sha256()
    for path in files(assets=assets):
        data = path.read_bytes()
        content.update(f"{path.relative_to(PACKAGE).as_posix()}\0{len(data)}\0".encode())
        content.update(data)
    return content.hexdigest()[:16]


def digest_of(folder: Path) -> str:
    """SHA-256 of the files of another folder, shortened alike: a step of one's own."""
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts and path.is_file():
            content.update(
                f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode()
            )
    return content.hexdigest()[:16]


def folder_name() -> str:
    """Name of the folder that holds the copy."""
    return digest(assets=True)


def archive(*, assets: bool, compress: str = "") -> bytes:
    """The copy as a tar file; the same code gives the same bytes.

    Args:
        compress: empty, or ``xz``.
    """
    buffer = io.BytesIO()
    mode = f"w:{compress}" if compress else "w"
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
        for path in files(assets=assets):
            member = tarfile.TarInfo(f"nemotron/{path.relative_to(PACKAGE).as_posix()}")
            member.size, member.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                tar.addfile(member, content)
    return buffer.getvalue()


def zipped() -> bytes:
    """The copy without sample data as a zip file; the same code gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files(assets=False):
            member = zipfile.ZipInfo(f"nemotron/{path.relative_to(PACKAGE).as_posix()}")
            member.external_attr, member.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(member, path.read_bytes())
    return buffer.getvalue()


def check_this_is(expected: str | None) -> None:
    """Check that the code that runs here is the one that the job was sent with; silent where nothing is said.

    Raises:
        NotAvailableError: it is another one.
    """
    if not expected:
        return
    found = {digest(), nemotron.__version__}
    if expected not in found:
        raise NotAvailableError(
            f"the job was sent by the code `{expected}`, and here runs nemotron {nemotron.__version__} (`{digest()}`) "
            f"from {PACKAGE}",
            hint='install the same version there, or let the profile say `code = "ship"`',
        )

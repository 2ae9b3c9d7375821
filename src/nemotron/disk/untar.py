"""Files out of a tar archive that another machine sent."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath

from nemotron.disk.atomic import write_atomic


def unpack_files(archive: bytes, folder: Path) -> None:
    """Write each file of ``archive`` below ``folder``; files there are replaced whole, one by one.

    tarfile's own filters are younger than the oldest Python that we run on (3.11.4 has them, Debian 12 has 3.11.2).

    Raises:
        ValueError: it is no archive, or holds what is no plain file, or a name that leads out of the folder; the files
            before it are written.
        OutputError: a file cannot be written.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                    raise ValueError(f"{member.name!r} is no file of the folder")
                path = folder / name
                if member.isdir():
                    continue
                content = tar.extractfile(member)
                assert content is not None  # of a plain file there always is one
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content.read())
    except tarfile.TarError as error:
        raise ValueError(f"no tar archive: {error}") from error

"""Removing a folder in which code did as it pleased: any depth, any mode, any name."""

from __future__ import annotations

import os


def remove(folder: str) -> None:
    """Remove ``folder`` with all that is in it. Nobody may be at work there any more.

    Folders are lifted out of each other before they are emptied, so that neither the length of a path nor the depth of
    a recursion bounds what can be removed, and made accessible first.

    Raises:
        OSError: something resists.
    """
    heap = f"{folder}.gone"
    os.makedirs(heap, mode=0o700, exist_ok=True)
    top = os.open(heap, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.path.lexists(folder):
            os.chmod(folder, 0o700)
            os.rename(folder, "0", dst_dir_fd=top)
        waiting, lifted = os.listdir(top), 0
        while waiting:
            name = waiting.pop()
            os.chmod(name, 0o700, dir_fd=top)
            place = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            try:
                with os.scandir(place) as found:
                    entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
                for entry, is_folder in entries:
                    if not is_folder:
                        os.unlink(entry, dir_fd=place)
                        continue
                    os.chmod(entry, 0o700, dir_fd=place)
                    lifted += 1
                    os.rename(entry, str(lifted), src_dir_fd=place, dst_dir_fd=top)
                    waiting.append(str(lifted))
            finally:
                os.close(place)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(heap)

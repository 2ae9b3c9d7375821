"""No orphans: the server ends when the process that started it does."""

from __future__ import annotations

import os
import select
import stat
import threading

_LOOK_EVERY_S = 1.0


def exit_with_parent(stdin: int = 0) -> None:
    """End this process at once when the parent closes our stdin or dies, even by ``kill -9``, even while loading.

    Works only when stdin is a pipe, as it is for a child that was started to be supervised; a terminal, a file or
    ``/dev/null`` is left alone, so that the server can also be started by hand or by a service manager.
    """
    if stat.S_ISFIFO(os.fstat(stdin).st_mode):
        threading.Thread(target=_watch, args=(stdin, os.getppid()), name="parent-watch", daemon=True).start()


def _watch(stdin: int, parent: int) -> None:
    # The pipe tells at once. A forked sibling may hold its other end open, hence the look at the parent's id as well.
    while os.getppid() == parent:
        readable, _, _ = select.select([stdin], [], [], _LOOK_EVERY_S)
        if readable and not os.read(stdin, 4096):
            break
    # Nothing here is worth saving, and an ordinary exit would wait for the batch that is being computed.
    os._exit(0)

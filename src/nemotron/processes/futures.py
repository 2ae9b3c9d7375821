"""Futures that are made of other futures, for work that goes on beside a loop that computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def then(future: Future[A], convert: Callable[[A], B]) -> Future[B]:
    """A future of ``convert(result)``; an error or a cancellation of ``future`` is passed on."""
    converted: Future[B] = Future()

    def done(finished: Future[A]) -> None:
        if finished.cancelled():
            converted.set_exception(CancelledError())
        elif (error := finished.exception()) is not None:
            converted.set_exception(error)
        else:
            converted.set_result(convert(finished.result()))

    future.add_done_callback(done)
    return converted


def gather(futures: Sequence[Future[A]]) -> Future[list[A]]:
    """A future of all results in order; the first error or cancellation, in order, is passed on."""
    gathered: Future[list[A]] = Future()
    left = len(futures)
    lock = threading.Lock()

    def done(_finished: Future[A]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            finish()

    def finish() -> None:
        errors = [CancelledError() if f.cancelled() else f.exception() for f in futures]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            gathered.set_exception(error)
        else:
            gathered.set_result([future.result() for future in futures])

    if not futures:
        finish()
    for future in futures:
        future.add_done_callback(done)
    return gathered

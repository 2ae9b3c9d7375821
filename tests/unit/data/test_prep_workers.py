"""A process that is killed keeps nothing from the others that share its work."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nemotron.data.prep.workers import Shared, Step, run_tasks
from nemotron.errors import OutputError

PACKAGE = Path(__file__).parents[3] / "src" / "nemotron"


def test_a_turn_of_who_is_killed_in_it_is_free_again() -> None:
    with closing(Shared(2)) as shared:
        assert shared.take() == 0
        in_it, told = os.pipe()
        child = os.fork()
        if child == 0:
            with shared.turn():
                os.write(told, b".")
                signal.pause()
        os.close(told)
        assert os.read(in_it, 1) == b"."
        os.close(in_it)
        taken: list[int] = []
        waiting = threading.Thread(target=lambda: taken.append(shared.take()))
        waiting.start()
        waiting.join(0.2)
        assert not taken, "two at a time"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        waiting.join(30)
        assert taken == [1]


@pytest.mark.timeout(60)
def test_a_helper_that_is_killed_in_its_turn_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a wait for ever."""
    here, turn = os.getpid(), Shared.turn

    @contextmanager
    def dies_in_it(shared: Shared) -> Iterator[None]:
        with turn(shared):
            if os.getpid() != here:
                os.kill(os.getpid(), signal.SIGKILL)
            yield

    monkeypatch.setattr(Shared, "turn", dies_in_it)
    done: list[int] = []

    def work(task: int, step: Step) -> None:
        done.append(task)
        step(1, 10)

    with pytest.raises(OutputError, match="a helper process ended unexpectedly"):
        run_tasks(range(20), work, processes=2, progress=lambda *_: None)
    assert done == list(range(20))


def test_every_task_is_done_once_and_counted(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def work(task: int, step: Step) -> None:
        # Whoever does it a second time fails.
        (tmp_path / str(task)).mkdir()
        for _ in range(task % 3):
            step(1, 10)

    run_tasks(range(300), work, processes=4, progress=lambda *now: seen.append(now))
    assert len(list(tmp_path.iterdir())) == 300
    assert seen[-1] == (300, 3000)
    assert seen == sorted(seen)


def test_no_lock_is_shared_that_a_killed_process_would_keep() -> None:
    """Those of ``multiprocessing`` are semaphores: nobody gives back what a killed process had."""
    shared = re.compile(r"\.(Value|Array|R?Lock|(Bounded)?Semaphore|Condition|Event|Barrier|\w*Queue|Pool|Manager)\(")
    using = [path for path in PACKAGE.rglob("*.py") if "import multiprocessing" in path.read_text()]
    assert [path.name for path in sorted(using)] == ["workers.py", "apart.py"]
    assert {path.name: shared.findall(path.read_text()) for path in using} == {"workers.py": [], "apart.py": []}

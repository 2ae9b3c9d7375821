"""Ctrl-C wherever it meets a run: it ends as interrupted, whatever was at work, ours or a library's."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests import forked
from tests.forked import Fork, command
from tests.signalled import signalled_at

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.mark.skipif(not forked.SOUND, reason="forks of a process with threads")
def test_at_any_line(tmp_path: Path) -> None:
    runs, log, counted = tmp_path / "runs", tmp_path / "log", tmp_path / "counted"
    steps = ("grpo.max_num_steps=2", "checkpointing.save_period=1", "eval.heldout.max_samples=4")
    words = ("steps", "run", "rlvr", "-c", "tiny", "engine=embedded", "--runs-dir", str(runs), *steps)

    def work_until(line: int | None) -> int:
        with signalled_at(line, "/", "<") as count:
            code = command(words)()
        counted.write_text(str(count[0]))
        return code

    with forked.apart():
        assert Fork(lambda: work_until(None), log).wait(200) == 0, log.read_text()
        lines = int(counted.read_text())
        assert lines > 10**6
        draw = random.Random(14)
        # Most lines are of the command's own start; runs that were at work are seen, too.
        moments = [
            *(draw.randrange(lines * 19 // 20) for _ in range(2)),
            *(draw.randrange(lines * 4 // 5, lines * 19 // 20) for _ in range(6)),
        ]
        begun = 0
        for line in moments:
            shutil.rmtree(runs, ignore_errors=True)
            code = Fork(lambda line=line: work_until(line), log).wait(200)  # type: ignore[misc]
            assert (code, "Traceback" in log.read_text()) == (130, False), (line, log.read_text())
            for status in runs.glob("*/status.json"):
                # The worker writes the first of its own words after a moment.
                state = json.loads(status.read_bytes())["state"]
                assert state in ("starting", "interrupted"), line
                begun += state == "interrupted"
    assert begun >= 3

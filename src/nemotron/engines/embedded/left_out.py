"""Rows that a run leaves out: too many end it, each is named in the run folder, all are counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nemotron.disk.atomic import write_atomic
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import DataError
from nemotron.rl.left_out import LeftOut, TooLong
from nemotron.runs.folder import RunFolder

Sides = tuple[Sequence[Any], Sequence[LeftOut]]
"""Rows that are used, and those that are left out."""


@dataclass(frozen=True)
class RowsLeftOut:
    """How rows of one kind are spoken of."""

    noun: str
    """``pairs``"""
    limit: int
    """Tokens of the longest row."""
    rewritten: str
    """What a row has that the chat template makes unusable, for people."""

    @property
    def file(self) -> str:
        """Below the run folder: one JSON object a row that is left out."""
        return f"rejected_{self.noun}.jsonl"

    def check(self, training: Sides, allowed: float) -> None:
        """Raises DataError when more than the share ``allowed`` of the training rows is left out."""
        kept, refused = training
        everything = len(kept) + len(refused)
        if len(refused) / max(everything, 1) > allowed:
            raise DataError(
                f"{len(refused)} of {everything} training {self.noun} {self.why(refused)}; "
                f"`limits.max_rejected_share` allows {allowed:.0%}",
                hint="raise `policy.max_total_sequence_length` and `data.max_input_seq_length`, or drop those rows",
            )

    def report(self, run: RunFolder, sets: Mapping[str, Sides], recorder: RunRecorder | None) -> None:
        """Name every row of ``sets`` that is left out in the run folder, and count those of ``train`` in the metrics of
        step 0; without a ``recorder`` they have been counted before."""
        refused = [(name, row) for name, (_, some) in sets.items() for row in some]
        if refused:
            rows = [json.dumps({"set": name, **asdict(row)}) + "\n" for name, row in refused]
            write_atomic(run.path / self.file, "".join(rows).encode())
        if recorder is not None:
            kept, left_out = map(len, sets["train"])
            recorder.write(0, {f"data/{self.noun}": float(kept), f"data/rejected_{self.noun}": float(left_out)})
            if refused:
                some = [row for _, row in refused]
                recorder.phase(f"{len(some)} {self.noun} {self.why(some)} and are left out: see {self.file}")

    def why(self, refused: Sequence[LeftOut]) -> str:
        """Why these are left out, with an example of each reason."""
        long = [row for row in refused if isinstance(row, TooLong)]
        worst = max(long, key=lambda row: row.tokens, default=None)
        others = len(refused) - len(long)
        told = []
        if worst is not None:
            count = f"{len(long)} of them " if others else ""
            told.append(f"{count}are longer than {self.limit} tokens ({worst.id} has {worst.tokens})")
        if others:
            first = next(row.id for row in refused if not isinstance(row, TooLong))
            count = f"{others} of them " if long else ""
            told.append(f"{count}have {self.rewritten} ({first})")
        return ", ".join(told)

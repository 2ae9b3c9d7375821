"""What both conversions share when they run: progress on stderr, and where the result came from."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemotron.disk.home import expanded
from nemotron.errors import NotAvailableError

if TYPE_CHECKING:
    from nemotron.artifacts.kinds import Kind
    from nemotron.checkpoints.convert import Conversion, Progress
    from nemotron.runs.folder import RunFolder


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A progress bar per phase on stderr; on a pipe a line when a phase ends."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def show(phase: Literal["writing", "verifying"], done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            if done == total and not bars.tasks[tasks[phase]].finished and not console.is_terminal:
                print(f"{phase}: {total:,} bytes", file=sys.stderr)
            bars.update(tasks[phase], completed=done)

        yield show


def recorder(step: str, kind: Kind, source: Path, details: dict[str, Any]) -> Callable[[Path], None]:
    """A function that writes the record of the artifact in a folder, with the hashes of source and result."""
    from nemotron.artifacts.fingerprint import fingerprint
    from nemotron.artifacts.kinds import recognise
    from nemotron.artifacts.record import write_record

    def record(folder: Path) -> None:
        source_kind = recognise(source)
        made_from = {"type": source_kind, "path": str(source), "fingerprint": fingerprint(source, source_kind)}
        content = fingerprint(folder, kind)
        write_record(folder, kind=kind, step=step, fingerprint=content, inputs=[made_from], details=details)

    return record


def finish(run: RunFolder, conversion: Conversion, started: float) -> None:
    """One sentence on stderr, and the result in the status of the run. ``started``: ``time.monotonic()``."""
    checked = {"weights": "read back bit for bit", "logits": "logits compared", "none": "not verified"}
    difference = conversion.largest_logit_difference
    worst = f" (largest difference {difference:.3g})" if difference is not None else ""
    target = conversion.target.absolute()
    inside = target.relative_to(run.path) if target.is_relative_to(run.path) else target
    run.write_status(state="finished", phase=None, checkpoint=str(inside), wall_s=time.monotonic() - started)
    print(
        f"{conversion.family}, {conversion.parameters:,} parameters, {conversion.dtype},"
        f" {checked[conversion.verified]}{worst}\nwritten to {conversion.target}",
        file=sys.stderr,
    )


def is_hub_name(name: str) -> bool:
    """``owner/name`` that is no path of this machine."""
    there = Path(name).exists() or Path(name).is_symlink()
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not there


def local_model(name_or_path: str) -> Path:
    """The folder of a Hugging Face model: a path, or the copy of a hub model, which is fetched if it is not there.

    Raises:
        NotAvailableError: it is neither, or the hub cannot be reached.
    """
    if not is_hub_name(name_or_path):
        return expanded(name_or_path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
    try:
        return Path(snapshot_download(name_or_path, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotAvailableError(
            f"there is no folder `{name_or_path}`, and the hub has no such model or cannot be reached",
            hint="check the path; a gated model needs `HF_TOKEN`",
        ) from error

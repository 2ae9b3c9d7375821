"""What both conversions share: progress on stderr, and the record of where the result came from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemotron.errors import NotAvailableError

if TYPE_CHECKING:
    from nemotron.artifacts.kinds import Kind
    from nemotron.checkpoints.convert import Conversion, Progress


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
            bars.update(tasks[phase], completed=done)
            if done == total and not console.is_terminal:
                print(f"{phase}: {total:,} bytes", file=sys.stderr)

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


def report(conversion: Conversion) -> None:
    """One sentence on stderr; the path of the result on stdout."""
    checked = {"weights": "read back bit for bit", "logits": "logits compared", "none": "not verified"}
    difference = conversion.largest_logit_difference
    worst = f" (largest difference {difference:.3g})" if difference is not None else ""
    print(
        f"{conversion.family}, {conversion.parameters:,} parameters, {conversion.dtype},"
        f" {checked[conversion.verified]}{worst}",
        file=sys.stderr,
    )
    print(conversion.target)


def local_model(name_or_path: str) -> Path:
    """The folder of a Hugging Face model: a path, or the copy of a hub model, which is fetched if it is not there.

    Raises:
        NotAvailableError: it is neither, or the hub cannot be reached.
    """
    path = Path(name_or_path)
    if path.exists() or name_or_path.count("/") != 1 or name_or_path.startswith((".", "~", "/")):
        return path
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

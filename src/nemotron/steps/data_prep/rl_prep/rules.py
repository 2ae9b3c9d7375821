"""What can be said about a preparation before any row is read. Opens no connection and reads no data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.checkpoints.chat_template import DEFAULT, folder_problem, read_template, template_fault
from nemotron.compile.paths import with_absolute_paths
from nemotron.compile.probes.model_files import is_path
from nemotron.compile.rules.artifacts import not_looked_at
from nemotron.compile.rules.base import Rules, Stages
from nemotron.compile.rules.output import folders
from nemotron.disk.home import expanded
from nemotron.errors import DataError, Finding, NemotronError, NotAvailableError, OutputError
from nemotron.install import install_extra
from nemotron.steps.data_prep.rl_prep.job import HUB, PACKAGES, PrepJob
from nemotron.suggest import listed

if TYPE_CHECKING:
    from nemotron.data.prep.blend import SourceFile

TOKENIZER, TEMPLATE = "tokenize.tokenizer", "tokenize.chat_template"
rules: Rules[PrepJob] = Rules("data-prep")
_SHIPPED = Path(__file__).resolve().parent / "config" / "default.yaml"


@rules.rule("package-missing")
def packages_are_there(job: PrepJob) -> Iterator[Finding]:
    """Those that everything needs, then those of the formats that are read or written."""
    if missing := job.place.lacking(PACKAGES):
        message = f"data preparation needs the packages {', '.join(missing)}"
        yield job.error("", message, hint=install_extra("data"), kind=NotAvailableError)
        return
    for package, why in _packages(job):
        if job.place.has(package) is False:
            message = f"{why} need the package `{package}`"
            yield job.error(job.key, message, hint=install_extra("data"), kind=NotAvailableError)


def _packages(job: PrepJob) -> Iterator[tuple[str, str]]:
    names = [source.path.name.lower() for source in job.sources[0]]
    if any(name.endswith(".zst") for name in names) or job.config.compression == "zstd":
        yield "zstandard", "zstd files"
    if any(name.endswith(".parquet") for name in names):
        yield "pyarrow", "Parquet files"
    if any(dataset.path.startswith(HUB) for dataset in job.read[0]):
        yield "huggingface_hub", "`hf://` data sets"
    if job.config.tokenize is not None:
        yield "transformers", "tokenizers"


@rules.rule("not-looked-at")
def places_are_looked_at(job: PrepJob) -> Iterator[Finding]:
    """What lies where the job will run, and not here, is found wrong only when it starts."""
    named = [(job.key_of(dataset), dataset.path) for dataset in job.unseen]
    tokens = job.config.tokenize
    if tokens is not None and is_path(tokens.tokenizer):
        named.append((TOKENIZER, tokens.tokenizer))
    if tokens is not None and (tokens.chat_template or "").endswith(".jinja"):
        named.append((TEMPLATE, str(tokens.chat_template)))
    yield from not_looked_at(job, dict.fromkeys(named))
    if not job.ready and not job.place.is_here and job.unseen_blend is None:
        missing = listed([name for name in PACKAGES if find_spec(name) is None])
        yield job.note(job.key, f"the data were not looked at from here, which needs {missing}")


@rules.rule("blend-broken")
def blend_can_be_read(job: PrepJob) -> Iterator[Finding]:
    """One of two keys names the sources, and what it names is a blend."""
    config, problem = job.config, job.read[1]
    if (config.blend_path is None) == (config.blend is None):
        message = "give either `blend_path` or `blend`" + (", not both" if config.blend is not None else "")
        yield job.error("blend_path", message, hint="`blend_path=FILE`: a blend or a data file")
    elif problem is not None:
        yield job.refused(job.key, problem)


@rules.rule("sample-data")
def rows_are_given(job: PrepJob) -> Iterator[Finding]:
    """The shipped sample lets the step run as it is; who gave no data must be told that none of theirs is in it."""
    origin = job.resolved.origin("blend_path")
    if job.config.blend_path is not None and origin is not None and Path(origin.source).resolve() == _SHIPPED:
        message = "no data are given: the shipped sample of the tiny world is prepared"
        hint = "set `blend_path=...` to a data file, a folder, a glob, `hf://owner/name` or a blend file"
        yield job.warning("blend_path", message, hint=hint)


@rules.rule("source-missing")
def sources_are_there(job: PrepJob) -> Iterator[Finding]:
    """Every source has files, and files that hold no rows at all are known by their first bytes."""
    for dataset, problem in job.sources[1]:
        yield job.refused(job.key_of(dataset), problem)
    if not job.ready:
        return
    from nemotron.data.content import layout_of

    for source in job.sources[0]:
        try:
            layout_of(source.path)
        except NotAvailableError:
            continue  # `package-missing` says so
        except DataError as problem:
            yield job.refused(job.key_of(source.dataset), problem)
            return
    if job.sources[0] and not job.sources[1] and job.all_here and not any(map(_has_text, job.sources[0])):
        named = f"`{job.sources[0][0].label}` is" if len(job.sources[0]) == 1 else "the files of the blend are"
        yield job.error(job.key, f"{named} empty", hint="give a file that holds rows", kind=DataError)


def _has_text(source: SourceFile) -> bool:
    from nemotron.data.content import head_of

    try:
        return bool(head_of(source.path).strip())
    except NemotronError:
        return True  # something, if nothing that can be read here


@rules.rule("left-out", needs=("blend", "blend_path"))
def folders_are_read_whole(job: PrepJob) -> Iterator[Finding]:
    """Files of a folder that hold no rows which can be read."""
    if not job.read[0]:
        return
    from nemotron.data.prep.blend import left_out

    for dataset in job.read[0]:
        names = left_out(dataset) if job.looked_at(dataset) else []
        if names and not job.sources[1]:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield job.note(job.key_of(dataset), f"left out of `{dataset.path}`: {listed(names[:5])}{more}")


@rules.rule("unpinned-source")
def sources_are_pinned(job: PrepJob) -> Iterator[Finding]:
    """A data set on the hub may change."""
    for dataset in job.read[0]:
        if dataset.path.startswith(HUB) and dataset.revision is None and "@" not in dataset.path:
            message = f"`{dataset.path}` has no revision: the newest is taken, and other rows may come next time"
            hint = "write `hf://org/name@COMMIT`; the manifest of a run names the commit it read"
            yield job.warning(job.key_of(dataset), message, hint=hint)


@rules.rule("chat-template")
def rows_can_be_tokenised(job: PrepJob) -> Iterator[Finding]:
    """The template that turns rows into tokens; of a tokenizer on the hub nothing is known yet."""
    settings = job.config.tokenize
    if settings is None or settings.chat_template is None:
        return
    name = settings.chat_template
    folder, file = expanded(settings.tokenizer), expanded(name)
    if name == DEFAULT:
        problem = folder_problem(folder) if job.sees(folder) and folder.is_dir() else None
        message, key = f"the tokenizer `{settings.tokenizer}` {problem}", TOKENIZER
    elif name.endswith(".jinja") and not job.sees(name):
        return
    elif name.endswith(".jinja") and not file.is_file():
        problem, key = "missing", TEMPLATE
        message = f"there is no chat template file `{name}`"
    else:
        try:
            problem = template_fault(read_template(file) if name.endswith(".jinja") else name)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        message, key = f"the chat template {problem}", TEMPLATE
    if problem:
        yield job.error(key, message, hint="give `tokenize.chat_template`: a `.jinja` file, a template, or `null`")


_SHARES = "split.shares"


@rules.rule("split-shares", needs=("blend", "blend_path"))
def splits_can_be_made(job: PrepJob) -> Iterator[Finding]:
    """Shares and names of the splits fit the sources."""
    # Files that nobody can look at from here may have splits of their own.
    if not job.read[0] or (job.unseen and job.config.split.mode == "auto"):
        return
    from nemotron.data.prep.splits import split_names, split_shares

    sources = job.sources[0]
    try:
        split_names(split_shares(job.config, sources), sources)
    except NemotronError as problem:
        # A share on the command line is what is looked for first; the section itself may stand in a file.
        said = (key for key, origin in job.resolved.origins.items() if origin.argument and key.startswith(_SHARES))
        yield job.refused(next(said, _SHARES), problem)


@rules.rule("shares-without-rows", needs=("blend", "blend_path"))
def shares_have_a_whole(job: PrepJob) -> Iterator[Finding]:
    """`shares` divide a number of rows."""
    if job.config.weights == "shares" and job.config.rows_wanted is None:
        yield job.error("weights", "`weights: shares` needs a number of rows to share out", hint="set `max_rows`")


@rules.rule("output-folder", needs=("blend", "blend_path"))
def output_is_a_folder_of_its_own(job: PrepJob) -> Iterator[Finding]:
    """It holds none of the sources; a file is found by the rule of folders."""
    from nemotron.data.prep.blend import names_data

    output = expanded(job.config.output_dir)
    inside = [source.label for source in job.sources[0] if source.path.resolve().is_relative_to(output.resolve())]
    inside = inside if not job.sees(output) or output.is_dir() else []
    # What holds data is a folder, looked at or not.
    data = [one.path for one in job.unseen if job.unseen_blend is None or names_data(one.path)]
    inside += [path for path in data if _plain(path).is_relative_to(_plain(job.config.output_dir))]
    if inside:
        message = f"the input `{inside[0]}` is inside `output_dir`"
        yield job.error("output_dir", message, hint="choose another `output_dir`", kind=DataError)


def _plain(path: str) -> Path:
    return Path(os.path.normpath(expanded(path).absolute()))


@rules.rule("output-folder", needs=("blend", "blend_path", "output_dir", "split", "weights", "tokenize"))
def output_is_free(job: PrepJob) -> Iterator[Finding]:
    """It holds no other data set, which would be lost."""
    sources, problems = job.sources
    output = expanded(job.config.output_dir)
    if not sources or problems or not job.all_here or not job.sees(output) or not output.is_dir():
        return
    from nemotron.data.prep.prepare import check_output

    try:
        # With paths as the run has them: they are a part of what says which data set this is.
        values = job.config.model_dump(by_alias=True)
        values = with_absolute_paths(values, job.config) if job.place.is_here else values
        check_output(type(job.config).model_validate(values))
    except OutputError as problem:
        yield job.refused("output_dir", problem)
    except NemotronError:
        return  # of the sources, which other rules look at


STAGES: Stages = ((rules,), (folders,))

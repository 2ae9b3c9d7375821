"""What can be said about a preparation before any row is read. Opens no connection and reads no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from nemotron.checkpoints.chat_template import DEFAULT, folder_problem, syntax_problem
from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.prep.blend import Dataset, SourceFile, expand, read_blend
from nemotron.data.prep.splits import split_names, split_shares
from nemotron.errors import ConfigError, DataError, Finding, NemotronError, NotAvailableError, Origin, OutputError
from nemotron.install import install_extra

OriginOf = Callable[[str], Origin | None]


def check_config(config: DataPrepConfig, origin_of: OriginOf) -> Iterator[Finding]:
    """All findings about a config and its blend."""

    def error(name: str, key: str, problem: NemotronError) -> Finding:
        origin = problem.origin or origin_of(key)
        return Finding("error", name, problem.message, key, origin, problem.hint, exit_code=problem.exit_code)

    if (config.blend_path is None) == (config.blend is None):
        message = "give either `blend_path` or `blend`" + (", not both" if config.blend is not None else "")
        yield error(
            "blend-broken", "blend_path", ConfigError(message, hint="`blend_path=FILE`: a blend or a data file")
        )
        return
    key = "blend_path" if config.blend_path is not None else "blend"
    try:
        blend = read_blend(config.blend_path or (config.blend.model_dump() if config.blend else {}))
    except NemotronError as problem:
        yield error("blend-broken", key, problem)
        return
    sources: list[SourceFile] = []
    missing = False
    for dataset in blend:
        try:
            sources += [] if dataset.path.startswith("hf://") else expand(dataset)
        except NemotronError as problem:
            missing = True
            yield error("source-missing", key, problem)
    for dataset in blend:
        if dataset.path.startswith("hf://") and dataset.revision is None and "@" not in dataset.path:
            message = f"`{dataset.path}` has no revision: the newest is taken, and other rows may come next time"
            hint = "write `hf://org/name@COMMIT`; the manifest of a run names the commit it read"
            yield Finding("warning", "unpinned-source", message, key, origin_of(key), hint)
    for package, why in _packages(config, blend, sources):
        if find_spec(package) is None:
            hint = install_extra("data")
            yield error("package-missing", key, NotAvailableError(f"{why} need the package `{package}`", hint=hint))
    yield from _template(config, error)
    if not missing:
        try:
            split_names(split_shares(config, sources), sources)
        except NemotronError as problem:
            yield error("split-shares", "split.shares", problem)
    if config.weights == "shares" and config.rows_wanted is None:
        unclear = ConfigError("`weights: shares` needs a number of rows to share out", hint="set `max_rows`")
        yield error("shares-without-rows", "weights", unclear)
    yield from _output(config, sources, error)


def _template(config: DataPrepConfig, error: Callable[[str, str, NemotronError], Finding]) -> Iterator[Finding]:
    """The template that turns rows into tokens; of a tokenizer on the hub nothing is known yet."""
    settings = config.tokenize
    if settings is None or settings.chat_template is None:
        return
    name = settings.chat_template
    folder, file = Path(settings.tokenizer).expanduser(), Path(name).expanduser()
    if name == DEFAULT:
        problem = folder_problem(folder) if folder.is_dir() else None
        message, key = f"the tokenizer `{settings.tokenizer}` {problem}", "tokenize.tokenizer"
    elif name.endswith(".jinja") and not file.is_file():
        problem, key = "missing", "tokenize.chat_template"
        message = f"there is no chat template file `{name}`"
    else:
        problem = syntax_problem(file.read_text(errors="replace") if name.endswith(".jinja") else name)
        message, key = f"the chat template does not parse: {problem}", "tokenize.chat_template"
    if problem:
        hint = "give `tokenize.chat_template`: a `.jinja` file, a template, or `null`"
        yield error("chat-template", key, ConfigError(message, hint=hint))


def _packages(config: DataPrepConfig, blend: list[Dataset], sources: list[SourceFile]) -> Iterator[tuple[str, str]]:
    names = [source.path.name for source in sources]
    if any(name.endswith(".zst") for name in names) or config.compression == "zstd":
        yield "zstandard", "zstd files"
    if any(name.endswith(".parquet") for name in names):
        yield "pyarrow", "Parquet files"
    if any(dataset.path.startswith("hf://") for dataset in blend):
        yield "huggingface_hub", "`hf://` data sets"
    if config.tokenize is not None:
        yield "transformers", "tokenizers"


def _output(
    config: DataPrepConfig, sources: list[SourceFile], error: Callable[[str, str, NemotronError], Finding]
) -> Iterator[Finding]:
    output = Path(config.output_dir).expanduser()
    if output.exists() and not output.is_dir():
        yield error(
            "output-folder", "output_dir", OutputError(f"`{output}` is a file", hint="choose another `output_dir`")
        )
        return
    inside = [source for source in sources if source.path.resolve().is_relative_to(output.resolve())]
    if inside:
        problem = DataError(f"the input `{inside[0].label}` is inside `output_dir`", hint="choose another `output_dir`")
        yield error("output-folder", "output_dir", problem)

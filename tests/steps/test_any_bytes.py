"""Any bytes as any file that is read end in a value or an error of the right code, within ten seconds and 500 MB."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import nemotron
from tests.forked import forked
from tests.in_process import nemotron as command
from tests.spoiled import KINDS, copied, own, spoil
from tests.unit.data.prep_data import prompts
from tests.unit.pipelines.test_broken import WHOLE

LONGEST_S = 30.0
MOST_MB = 500.0
MOST_BYTES = 6 << 30
"""What a command may ask the system for before it is refused, so that a mistake costs no machine."""
WORLD = Path(nemotron.__file__).parent / "assets" / "tiny_world"
# EVERY_BYTE=N in the environment lets `make full` spoil each file in every way, and N times over where a seed decides;
# else in two ways, which are others for every file and always the same.
MANY = int(os.environ.get("EVERY_BYTE", "0"))
RUNS = ("--runs-dir", "runs")
DRY = ("--dry-run", *RUNS)
ANY_CONFIG = {2, 3, 4, 5, 6, 8, 10}
DPO = (
    *("steps", "run", "dpo", "-c", "tiny", "dpo.max_num_steps=2", "policy.train_global_batch_size=4"),
    *("policy.train_micro_batch_size=4", "dpo.val_period=0", "checkpointing.metric_name=null"),
    *("checkpointing.save_period=1", "eval.heldout=null"),
)
RLHF = ("steps", "run", "rlhf", "-c", "tiny")
MODEL = ("policy.model_name=model", "~policy.pretrained_checkpoint", "policy.tokenizer.name=model")
PREPARED = ("data.manifest_path=prepared/manifest.json",)
STEP = "runs/r/checkpoints/step_2"
ASK = tuple(("runs", verb, "r", *RUNS) for verb in ("show", "report", "logs", "cancel"))
ALL = (("runs", "list", *RUNS), ("runs", "compare", "r", "s", *RUNS), ("artifacts", "list", *RUNS))
RESUME = ("runs", "resume", "r", "--max-steps", "3", *RUNS)
TO_HF = ("steps", "run", "megatron_to_hf", "megatron_path=megatron", "output_dir=out", *RUNS)
MERGE = ("steps", "run", "merge_lora", "adapter=adapter", "base=model", "output_dir=out", *RUNS)


PIPELINE = (("show", "pipeline.yaml"), ("run", "pipeline.yaml", *DRY))
MODEL_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    *("chat_template.jinja", "model.safetensors"),
)
SCHEMA = "rewards.functions=[{name: json_schema, schema_file: schema.json}]"
TEMPLATE = ("judge.prompt=instruct", "judge.instruct_template=template.jinja")


@dataclass(frozen=True)
class Input:
    """A file that commands read, and how they may end when it is damaged: well, or by its own kind of error."""

    file: str
    commands: tuple[tuple[str, ...], ...]
    codes: frozenset[int]


def given(file: str, codes: set[int], *commands: tuple[str, ...]) -> Input:
    return Input(file, commands, frozenset({0, *codes}))


def prep(source: str) -> tuple[str, ...]:
    return ("steps", "run", "rl_prep", f"blend_path={source}", "output_dir=out", "num_shards_per_split=1", *RUNS)


INPUTS = (
    given("own.yaml", ANY_CONFIG, ("steps", "run", "dpo", "-c", "own.yaml", *DRY)),
    given(
        "env.toml", {2, 3, 4, 6, 10}, ("profiles", "list"), ("profiles", "show", "here"), (*RLHF, "-r", "here", *DRY)
    ),
    given(
        "pipeline.yaml", ANY_CONFIG, ("pipelines", "show", "pipeline.yaml"), ("pipelines", "run", "pipeline.yaml", *DRY)
    ),
    given("rows.jsonl", {5}, (*RLHF, "data.train.data_path=rows.jsonl", *DRY)),
    *(
        given(name, {3, 5}, prep(name), (*prep(name), "--dry-run"))
        for name in ("rows.jsonl", "rows.json", "rows.parquet", "rows.jsonl.gz", "rows.jsonl.zst", "blend.json")
    ),
    given("prepared/manifest.json", {5, 6}, (*RLHF, *PREPARED, *DRY), ("artifacts", "verify", "prepared")),
    *(
        given(
            f"model/{name}",
            {6},
            (*RLHF, *MODEL, *DRY),
            ("artifacts", "inspect", "model"),
            ("artifacts", "verify", "model"),
        )
        for name in MODEL_FILES[:4]
    ),
    *(given(f"model/{name}", {6}, (*RLHF, *MODEL, *DRY), ("artifacts", "verify", "model")) for name in MODEL_FILES[4:]),
    *(
        given(f"model/{name}", {5, 6}, (*DPO, *MODEL, *RUNS))
        for name in (
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "model.safetensors",
        )
    ),
    *(
        given(f"adapter/{name}", {6}, MERGE, ("artifacts", "inspect", "adapter"), ("artifacts", "verify", "adapter"))
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ),
    *(
        given(f"megatron/{name}", {6}, TO_HF, ("artifacts", "inspect", "megatron"), ("artifacts", "verify", "megatron"))
        for name in (
            *("iter_0000000/.metadata", "iter_0000000/common.pt", "iter_0000000/run_config.yaml"),
            *("iter_0000000/metadata.json", "iter_0000000/__0_0.distcp", "latest_checkpointed_iteration.txt"),
            *("latest_train_state.pt", "iter_0000000/hf_config/config.json", "iter_0000000/tokenizer/tokenizer.json"),
        )
    ),
    given(
        "schema.json",
        {3, 5, 6},
        (
            "steps",
            "run",
            "rlvr",
            "-c",
            "tiny",
            "rewards.functions=[{name: json_schema, schema_file: schema.json}]",
            *DRY,
        ),
    ),
    given("template.jinja", {3, 5, 6}, (*RLHF, *TEMPLATE, *DRY)),
    *(
        given(f"runs/r/{name}", {4, 5, 6, 8}, *ASK, *ALL, ("artifacts", "lineage", STEP))
        for name in (
            *("status.json", "job.json", "metrics.jsonl", "samples.jsonl", "attempts/1/handle.json"),
            *("checkpoints/step_2/policy/weights/hf/nemotron_artifact.json",),
        )
    ),
    *(
        given(f"runs/r/{name}", {3, 4, 5, 6, 8}, RESUME)
        for name in ("status.json", "job.json", "metrics.jsonl", "samples.jsonl", "run.lock", "checkpoints/owner.json")
    ),
    *(
        given(f"{STEP}/{name}", {5, 6}, RESUME, ("artifacts", "verify", STEP))
        for name in (
            *("training_info.json", "config.yaml", "train_dataloader.pt", "rng_state.pt"),
            *("policy/optimizer/optimizer.pt", "policy/weights/iter_0000000/.metadata"),
            *("policy/weights/iter_0000000/__0_0.distcp", "policy/tokenizer/tokenizer.json"),
        )
    ),
    given("runs/r/cache/train-00000.safetensors", {5, 6, 8}, RESUME),
)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that is read."""
    folder = tmp_path_factory.mktemp("bytes") / "world"
    folder.mkdir()
    for words in (
        (*DPO, *RUNS),
        ("steps", "run", "rl_prep", "-c", "tiny", "output_dir=prepared", "--runs-dir", "others"),
    ):
        done = command(*words, cwd=folder)
        assert done.code == 0, done.stderr
    [run] = (folder / "runs").iterdir()
    run.rename(folder / "runs" / "r")
    copied(folder / "runs" / "r", folder / "runs" / "s")
    for name, source in (("model", "policy"), ("megatron", "policy_megatron"), ("adapter", "adapter")):
        shutil.copytree(WORLD / source, folder / name)
    rows = prompts(30)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    (folder / "rows.jsonl").write_bytes(lines)
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (folder / "rows.jsonl.zst").write_bytes(pytest.importorskip("zstandard").compress(lines))
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "blend.json").write_text(json.dumps({"train": [{"path": "rows.jsonl", "weight": 1.0}]}))
    (folder / "own.yaml").write_text("defaults: tiny\ndpo:\n  seed: 3\npolicy:\n  precision: float32\n")
    (folder / "env.toml").write_text(
        '[here]\nexecutor = "slurm"\ntunnel = "ssh"\nhost = "login"\nremote_job_dir = "/jobs"\nnodes = 2\n'
        'time = "01:00:00"\n'
    )
    (folder / "pipeline.yaml").write_text(WHOLE)
    (folder / "schema.json").write_text(json.dumps({"type": "object", "properties": {"a": {"minimum": 3}}}))
    template = Path(nemotron.__file__).parent / "judge" / "instruct.jinja"
    (folder / "template.jinja").write_bytes(template.read_bytes())
    return folder


def name_of(read: Input) -> str:
    return f"{read.file}-{read.commands[0][2 if read.commands[0][0] == 'steps' else 1]}"


def spoiled(world: Path, folder: Path, read: Input, seed: int) -> list[str]:
    """What is wrong with how the commands take one damage; nothing when all is well."""
    copied(world, folder)
    path = folder / read.file
    own(path)
    how = spoil(path, seed)
    found = []
    for words in read.commands:
        ended = forked(words, folder, 6 * LONGEST_S, MOST_BYTES, {})
        wrong = [
            *([f"code {ended.code}"] if ended.code not in read.codes or "this is a bug" in ended.said else []),
            *([f"{ended.seconds:.1f} s"] if ended.seconds > LONGEST_S else []),
            *([f"{ended.megabytes:.0f} MB"] if ended.megabytes > MOST_MB else []),
            *(["Traceback"] if "Traceback" in ended.said else []),
        ]
        if wrong:
            place = f"{read.file}, seed {seed} ({how}), `{' '.join(words[:3])}`"
            found.append(f"{place}: {', '.join(wrong)}\n{ended.said}")
    return found


@pytest.mark.full
def test_the_world_is_whole(world: Path, tmp_path: Path) -> None:
    """What ends in an error ends so because of the damage."""
    failed = []
    for number, words in enumerate(sorted({words for read in INPUTS for words in read.commands})):
        ended = forked(words, copied(world, tmp_path / str(number)), 6 * LONGEST_S, MOST_BYTES, {})
        # The run is over, and printed to the tests.
        if ended.code != 0 and words[1] not in ("cancel", "logs"):
            failed.append((words, ended.said))
    assert not failed


def quick(read: Input) -> bool:
    """Whether its commands train nothing, and are no more than three."""
    return len(read.commands) <= 3 and all({"--dry-run", "artifacts", "profiles"} & {*words} for words in read.commands)


QUICK = [read for read in INPUTS if quick(read)]


@pytest.mark.parametrize(
    ("read", "seed"),
    [*zip(QUICK, itertools.cycle((1, 20)))],
    ids=lambda one: one if isinstance(one, int) else name_of(one),
)
def test_some_bytes(world: Path, tmp_path: Path, read: Input, seed: int) -> None:
    assert not spoiled(world, tmp_path / "world", read, seed)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("read", INPUTS, ids=name_of)
def test_any_bytes(world: Path, tmp_path: Path, read: Input) -> None:
    all_kinds = range(len(KINDS) + (MANY or 16))
    seeds = all_kinds if MANY else random.Random(name_of(read)).sample(all_kinds, 2)
    found = [one for seed in seeds for one in spoiled(world, tmp_path / str(seed), read, seed)]
    assert not found, f"{len(found)}:\n" + "\n\n".join(found[:20])

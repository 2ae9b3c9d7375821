"""Data preparation side by side with what people use: seconds, ratio and peak memory of the same job, in one run.

The job: 200,000 prompt rows (about 400 bytes) and 200,000 pairs (about 850 bytes), 1 in 200 broken; read, validate,
shuffle with a seed, split 99/1, write 8 training shards and 1 for validation.

    python benchmarks/data_prep.py [--rows 200000] [--rounds 3] [--kinds prompts pairs] [--only ours datasets-1]

Every measurement is a process of its own, methods take turns, and the median counts. Seconds include importing the
library and leave out the start of the interpreter. Memory is that of one more run, whose time does not count, because
looking at it every 10 ms takes a good part of a core: the sum over the process tree, shared pages counted in each.
`ours` does what no other method does: it says for every row why it is not used, counts exact and near duplicates, keeps
prompts apart between splits, and writes hashes of everything.
Needs the extras `data` and `local`, and `datasets` for the rows that bear its name.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("ours", "ours-1", "datasets-1", "datasets-2", "json", "orjson-ceiling")
SEED = 1234
TRAIN_SHARDS = 8


def rows(kind: str, count: int) -> Iterator[str]:
    """Synthetic rows; one in 200 is broken JSON or lacks its fields."""
    draw = random.Random(SEED)
    words = [f"{draw.getrandbits(40):x}"[: draw.randint(2, 9)] for _ in range(4000)]

    def text(letters: int) -> str:
        found = " ".join(draw.choices(words, k=letters // 6))
        return found[:letters]

    for i in range(count):
        if i % 200 == 99:
            yield '{"prompt": "cut off' if i % 400 == 99 else json.dumps({"id": i, "note": text(300)})
        elif kind == "prompts":
            yield json.dumps(
                {"id": i, "prompt": text(290), "source": "synthetic", "meta": {"level": i % 7, "tags": ["a"]}}
            )
        else:
            row = {"prompt": text(240), "chosen": text(290), "rejected": text(240), "score": [i % 5, 0.5]}
            yield json.dumps({"id": i, **row, "source": "synthetic"})


def usable(row: Any, kind: str) -> bool:
    """The check that every method makes."""
    names = ("prompt",) if kind == "prompts" else ("prompt", "chosen", "rejected")
    return isinstance(row, dict) and all(isinstance(row.get(name), str) and row[name].strip() for name in names)


def run_ours(source: Path, output: Path, kind: str, processes: int | str) -> int:
    from nemotron.config.schema.data_prep import DataPrepConfig, SplitConfig
    from nemotron.data.prep.prepare import prepare

    config = DataPrepConfig(
        blend_path=str(source),
        blend=None,
        output_dir=str(output),
        num_shards_per_split=TRAIN_SHARDS,
        compression="none",
        resolve_hf_placeholders=True,
        placeholder_sources={},
        sample=None,
        max_rows=None,
        weights="copies",
        remove_duplicates=False,
        split=SplitConfig(mode="hash", shares={"validation": 0.01}, on_overlap="error"),
        tokenize=None,
        compat=None,
        on_reject="warn",
        max_reject_share=0.1,
        max_row_bytes=1 << 23,
        num_processes=processes,
        force=True,
        seed=SEED,
    )
    manifest = prepare(config).manifest
    return sum(split["rows"] for split in manifest["splits"].values())


def run_datasets(source: Path, output: Path, kind: str, processes: int) -> int:
    import datasets

    datasets.disable_progress_bars()
    # The `json` builder stops at a broken line, so lines are read as text and parsed in the map.
    found = datasets.load_dataset("text", data_files=str(source), split="train", cache_dir=str(output / "cache"))

    def check(row: dict[str, str]) -> dict[str, Any]:
        try:
            value = json.loads(row["text"])
        except ValueError:
            return {"row": None}
        return {"row": value if usable(value, kind) else None}

    workers = None if processes == 1 else processes
    found = found.map(check, remove_columns=["text"], num_proc=workers)
    found = found.filter(lambda row: row["row"] is not None, num_proc=workers)
    found = found.map(lambda row: row["row"], remove_columns=["row"], num_proc=workers)
    parts = found.shuffle(seed=SEED).train_test_split(test_size=0.01, seed=SEED)
    for i in range(TRAIN_SHARDS):
        shard = parts["train"].shard(TRAIN_SHARDS, i, contiguous=True)
        shard.to_json(str(output / f"train-{i}.jsonl"), num_proc=workers)
    parts["test"].to_json(str(output / "validation-0.jsonl"), num_proc=workers)
    return len(found)


def run_json(source: Path, output: Path, kind: str) -> int:
    kept = []
    with open(source, encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if usable(row, kind):
                kept.append(line)
    random.Random(SEED).shuffle(kept)
    held = len(kept) // 100
    for i in range(TRAIN_SHARDS):
        (output / f"train-{i}.jsonl").write_text("".join(kept[held + i :: TRAIN_SHARDS]))
    (output / "validation-0.jsonl").write_text("".join(kept[:held]))
    return len(kept)


def run_ceiling(source: Path) -> int:
    import orjson

    count = 0
    with open(source, "rb") as lines:
        for line in lines:
            try:
                orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            count += 1
    return count


def work(method: str, source: Path, output: Path, kind: str) -> None:
    """One measurement, in this process; prints seconds and rows."""
    began = time.perf_counter()
    if method.startswith("ours"):
        count = run_ours(source, output, kind, 1 if method == "ours-1" else "auto")
    elif method.startswith("datasets"):
        count = run_datasets(source, output, kind, int(method[-1]))
    else:
        count = run_json(source, output, kind) if method == "json" else run_ceiling(source)
    print(json.dumps({"seconds": time.perf_counter() - began, "rows": count}))


def tree_rss(root: int) -> int:
    """Resident bytes of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(stat[1]), []).append(int(entry))
            resident[int(entry)] = int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        total += resident.get(pid, 0)
        todo += children.get(pid, [])
    return total


def measure(method: str, source: Path, kind: str, *, memory: bool = False) -> dict[str, float]:
    """Run one method in a fresh process and folder: its seconds, or with ``memory`` its peak."""
    output = Path(tempfile.mkdtemp(dir=source.parent))
    words = [sys.executable, __file__, "--work", method, str(source), str(output), kind]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(output), "OMP_NUM_THREADS": "1"}
    peak = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        while memory and process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            time.sleep(0.01)
        assert process.stdout is not None
        text = process.stdout.read()
    shutil.rmtree(output)
    if process.returncode:
        raise SystemExit(f"{method} failed; run it alone to see why: {' '.join(words)}")
    return {**json.loads(text.splitlines()[-1]), "rss_mb": peak / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["prompts", "pairs"])
    parser.add_argument("--only", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    report: dict[str, Any] = {"rows": options.rows, "rounds": options.rounds, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            source = Path(folder) / f"{kind}.jsonl"
            with open(source, "w", encoding="utf-8") as file:
                file.writelines(f"{row}\n" for row in rows(kind, options.rows))
            found: dict[str, list[dict[str, float]]] = {method: [] for method in options.only}
            for number in range(options.rounds):
                for method in options.only:
                    found[method].append(measure(method, source, kind))
                    last = found[method][-1]
                    print(f"{kind} round {number + 1} {method}: {last['seconds']:.2f} s", file=sys.stderr)
            peaks = {method: measure(method, source, kind, memory=True)["rss_mb"] for method in options.only}
            report[kind] = summary(found, peaks, source.stat().st_size)
    print(json.dumps(report, indent=2) if options.json else table(report))


def summary(found: dict[str, list[dict[str, float]]], peaks: dict[str, float], size: int) -> dict[str, Any]:
    """Median, range and ratios of every method."""
    median = {method: statistics.median(run["seconds"] for run in runs) for method, runs in found.items()}
    ours = median.get("ours")
    return {
        "bytes": size,
        "methods": {
            method: {
                "seconds": round(median[method], 3),
                "range": [round(f(run["seconds"] for run in runs), 3) for f in (min, max)],
                "rows": runs[0]["rows"],
                "peak_rss_mb": round(peaks[method]),
                "times_ours": round(median[method] / ours, 2) if ours else None,
            }
            for method, runs in found.items()
        },
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['rows']:,} rows, median of {report['rounds']}, {report['cores']} cores"]
    for kind in ("prompts", "pairs"):
        if kind in report:
            lines.append(
                f"\n{kind}, {report[kind]['bytes'] / 1e6:.1f} MB: seconds [range]  ratio to ours  peak memory  rows"
            )
            for method, row in report[kind]["methods"].items():
                spread = f"[{row['range'][0]:.2f}-{row['range'][1]:.2f}]"
                ratio = f"{row['times_ours']:.2f} x" if row["times_ours"] else ""
                memory = f"{row['peak_rss_mb']} MB"
                lines.append(f"  {method:15} {row['seconds']:7.2f} {spread:15} {ratio:>8} {memory:>8} {row['rows']:>8}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
    else:
        main()

"""Speed and memory of checkpoint conversion beside what the disk itself does in the same run.

    python benchmarks/megatron_checkpoint.py [--size 1M|100M|1B ...] [--folder DIR] [--verify]

For each size: MB/s of both directions (from the first byte read to the last byte synced), the disk's own sequential
write and read, their ratio, and the peak of anonymous memory above what importing torch takes. Files of the page cache
are not counted: the kernel drops them when it likes. Without --verify the conversion is measured alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "1M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 1024},
    "100M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 20480},
    # The shape of Llama-3.2-1B.
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
}


def make_model(folder: Path, size: str) -> None:
    """Random bfloat16 weights of a tied Llama, written without ever holding the model."""
    import torch

    from nemotron.checkpoints.megatron.families import from_hf
    from nemotron.checkpoints.megatron.names import hf_parts
    from nemotron.checkpoints.safetensors_stream import Planned, write_model

    config = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "dtype": "bfloat16"}
    config |= {"tie_word_embeddings": True, "max_position_embeddings": 4096, **SIZES[size]}
    if size != "1B":
        config |= {"num_attention_heads": 8, "num_key_value_heads": 2}
    parts = hf_parts(from_hf(config, "the benchmark"))
    planned = [Planned(name, torch.bfloat16, part.shape) for name, part in parts.items()]

    class Random(dict[str, torch.Tensor]):
        def __missing__(self, name: str) -> torch.Tensor:
            return torch.randint(-(2**14), 2**14, parts[name].shape, dtype=torch.int16).view(torch.bfloat16)

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_model(folder, planned, Random(), max_file_bytes=10**12)


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of ``work`` and the peak of anonymous memory above its start."""
    peak = start = anonymous()
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    return {"seconds": seconds, "anon_mb": (peak - start) / 1e6, "start_mb": start / 1e6}


def child(direction: str, source: str, target: str, verify: bool) -> None:
    """Convert in a process of its own, so that one run's memory is not another's."""
    from nemotron.checkpoints import convert

    run = getattr(convert, direction)
    how = "weights" if verify else "none"
    print(json.dumps(measured(lambda: run(Path(source), Path(target), verify=how))))


def disk(folder: Path, nbytes: int) -> tuple[float, float]:
    """Sequential write (synced) and read (cache dropped first) of one file, bytes per second."""
    path, block = folder / "disk.bin", os.urandom(16 * 2**20)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(max(1, nbytes // len(block))):
            file.write(block)
        os.fsync(file.fileno())
    size, wrote = path.stat().st_size, time.perf_counter() - began
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(16 * 2**20):
            pass
        read = time.perf_counter() - began
    path.unlink()
    return size / wrote, size / read


def bench(folder: Path, size: str, verify: bool) -> None:
    """Print one block of lines for ``size``."""
    hf, megatron, back = folder / "hf", folder / "megatron", folder / "back"
    make_model(hf, size)
    nbytes = sum(path.stat().st_size for path in hf.glob("*.safetensors"))
    written, read = disk(folder, max(nbytes, 256 * 2**20))
    rates = f"disk writes {written / 1e6:.0f} MB/s, reads {read / 1e6:.0f} MB/s"
    print(f"{size}: {nbytes / 1e6:.0f} MB of weights; {rates}")
    for direction, source, target in (("hf_to_megatron", hf, megatron), ("megatron_to_hf", megatron, back)):
        command = [sys.executable, __file__, "--child", direction, str(source), str(target), *["--verify"] * verify]
        began = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        whole = time.perf_counter() - began
        result = json.loads(done.stdout)
        speed = nbytes / result["seconds"]
        print(
            f"  {direction}: {result['seconds']:.2f} s ({whole:.2f} s with imports), {speed / 1e6:.0f} MB/s,"
            f" {speed / written:.2f} of the disk's writing; peak anonymous {result['anon_mb']:.0f} MB"
            f" on top of {result['start_mb']:.0f} MB"
        )
    same = (hf / "model.safetensors").read_bytes() == (back / "model.safetensors").read_bytes()
    print(f"  there and back: {'identical' if same else 'DIFFERENT'} bytes")
    for made in (hf, megatron, back):
        shutil.rmtree(made)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["1M", "100M", "1B"])
    parser.add_argument("--folder", type=Path, default=Path("build/bench_megatron"))
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child, given.verify)
        return
    for size in given.size:
        bench(given.folder / size, size, given.verify)


if __name__ == "__main__":
    main()

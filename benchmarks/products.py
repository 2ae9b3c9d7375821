"""Rates of float32 matrix products by the libraries that torch carries, at the sizes of a model of 135M parameters.

    python benchmarks/products.py

``sampling`` multiplies all matrices of SmolLM2-135M once with 32 rows, as a step of a rollout does: plain, as torch
asks MKL; plain by oneDNN; and brought into the library's own order before, by each. ``training`` multiplies the gate's
matrix of each layer with 1,024 rows, forward and back. Every way is timed in turn, in one run; the best of its rounds
counts. What ``nemotron.rl.products`` and ``nemotron.rl.packed`` choose here follows from this table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from nemotron.place import cpu_maker
from nemotron.rl.llama_parts import Linear
from nemotron.rl.packed import packed
from nemotron.rl.products import OneDnnLinear, prefers_onednn, product

LAYERS = 30
SIZES = [(960, 576), (576, 576), (3072, 576), (576, 1536)]
HEAD = (49152, 576)
Work = Callable[[], object]


def rates(operations: int, ways: dict[str, Work], rounds: int) -> dict[str, float]:
    """Operations a second of each way."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds + 1):
        for name, work in ways.items():
            begun = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - begun)
    return {name: operations / seconds for name, seconds in best.items()}


def sampling(rows: int, rounds: int) -> dict[str, float]:
    """A step's products."""
    weights = [torch.randn(size) for _ in range(LAYERS) for size in SIZES] + [torch.randn(HEAD)]
    inputs = {size[1]: torch.randn(rows, size[1]) for size in [*SIZES, HEAD]}

    def every(multiply: Callable[[Tensor, Tensor], Tensor]) -> Work:
        return lambda: [multiply(inputs[weight.shape[1]], weight) for weight in weights]

    def all_of(matrices: list[Linear]) -> Work:
        return lambda: [matrix(inputs[matrix.weight.shape[1]]) for matrix in matrices]

    operations = 2 * rows * sum(weight.numel() for weight in weights)
    ways = {
        "torch": every(linear),
        "oneDNN": every(lambda x, weight: product(x, weight, None)),
        "packed by MKL": all_of([packed(Linear(weight, None), rows) for weight in weights]),
        "packed by oneDNN": all_of([packed(OneDnnLinear(weight, None), rows) for weight in weights]),
    }
    return rates(operations, ways, rounds)


def training(rows: int, rounds: int) -> dict[str, float]:
    """One matrix of every layer, there and back."""
    weights = [torch.randn(SIZES[2]) for _ in range(LAYERS)]
    x, grad = torch.randn(rows, SIZES[2][1]), torch.randn(rows, SIZES[2][0])

    def every(kind: type[Linear]) -> dict[str, Work]:
        matrices = [kind(weight, None) for weight in weights]
        return {"": lambda: [matrix(x) for matrix in matrices], " back": lambda: [one.back(grad) for one in matrices]}

    ways = {f"torch{end}": work for end, work in every(Linear).items()}
    ways |= {f"oneDNN{end}": work for end, work in every(OneDnnLinear).items()}
    return rates(2 * rows * sum(weight.numel() for weight in weights), ways, rounds)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{cpu_maker(Path('/proc/cpuinfo'))}, {options.threads} threads; chosen: ", end="")
    print("oneDNN" if prefers_onednn() else "torch")
    for title, found in (
        ("sampling, 32 rows", sampling(32, options.rounds)),
        ("training, 1,024 rows", training(1024, options.rounds)),
    ):
        print(f"\n{title}: GFLOP a second, and times torch's")
        first = next(iter(found.values()))
        for name, rate in found.items():
            beside = found["torch back"] if name.endswith("back") else first
            print(f"  {name:18s} {rate / 1e9:6.0f}  {rate / beside:5.2f}")


if __name__ == "__main__":
    main()

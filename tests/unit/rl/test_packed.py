"""Products with packed matrices, and samplers that pack them, beside the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nemotron.contracts.samples import Group, SamplingParams
from nemotron.rl import llama_decoder, packed, products
from nemotron.rl.llama_parts import Linear, LowRank
from nemotron.rl.packed import MklPacked, OneDnnPacked
from nemotron.rl.policy import Policy
from nemotron.rl.products import OneDnnLinear
from nemotron.rl.sampler import generate
from tests.unit.rl.test_llama_adapters import adapted
from tests.unit.rl.test_policy import make_policy

LIBRARIES = [
    pytest.param(False, id="mkl", marks=pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL")),
    pytest.param(
        True, id="onednn", marks=pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
    ),
]

PROMPTS = [[5, 6, 7, 8], [9, 3], [11, 12, 13]]


@pytest.fixture(params=LIBRARIES)
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small models are packed, too, early, by either library; the rows of every time."""
    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param)
    for module in (packed, products):
        monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(llama_decoder, "_SETTLED", 2)
    monkeypatch.setattr(llama_decoder, "_WORTH", 1)
    done: list[int] = []

    def noted(weights: Any, rows: int) -> Any:
        done.append(rows)
        made = packed.pack(weights, rows)
        assert type(made.layers[0].down) is (OneDnnPacked if request.param else MklPacked)
        return made

    monkeypatch.setattr(llama_decoder, "pack", noted)
    return done


def sampled(policy: Policy, n: int = 4, new: int = 12, stop: tuple[int, ...] = ()) -> list[Group]:
    seeds = [[100 * i + j for j in range(n)] for i in range(len(PROMPTS))]
    return generate(policy, PROMPTS, n, SamplingParams(new, stop), seeds)


@pytest.mark.parametrize("onednn", LIBRARIES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("low", [False, True])
def test_a_product_of_any_number_of_rows(onednn: bool, bias: bool, low: bool) -> None:
    draw = torch.Generator().manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw)

    kind = OneDnnLinear if onednn else Linear
    plain = kind(random(70, 33), random(70) if bias else None, LowRank(random(4, 33), random(70, 4)) if low else None)
    found = packed.packed(plain, 9)
    x = random(9, 33)
    for rows in (9, 8, 1):
        assert found(x[:rows]).shape == (rows, 70)
        torch.testing.assert_close(found(x[:rows]), plain(x[:rows]), atol=1e-4, rtol=1e-5)
        # What fills up the rows reaches no other row; oneDNN fills up none, and has other code for fewer.
        assert onednn or torch.equal(found(x[:rows]), found(x)[:rows])


@pytest.mark.parametrize("make", [make_policy, adapted])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "qwen2", "gemma3-capped-scaled"])
def test_the_same_answers(packing: list[int], name: str, make: Callable[[str], Policy]) -> None:
    policy = make(name)
    found = sampled(policy)
    assert packing == [12]
    for p in policy.parameters():
        p.requires_grad_(False)
    plain = sampled(policy)
    assert packing == [12]  # of a frozen model nobody frees the gradients
    for a, b in zip(found, plain, strict=True):
        for one, other in zip(a.completions, b.completions, strict=True):
            assert one.token_ids == other.token_ids
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)


def test_rows_that_end_one_by_one(packing: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are packed ones while more than half of the rows are left, and plain ones after that."""
    policy = make_policy("llama-tied-gqa")
    used: list[int] = []
    for kind in (MklPacked, OneDnnPacked):

        def counted(self: Any, x: torch.Tensor, call: Any = kind.unadapted) -> torch.Tensor:
            used.append(len(x))
            found: torch.Tensor = call(self, x)
            return found

        monkeypatch.setattr(kind, "unadapted", counted)
    stop = tuple(range(0, 97, 16))
    found = sampled(policy, n=8, new=20, stop=stop)
    lengths = sorted(len(c.token_ids) for group in found for c in group.completions)
    assert lengths[0] < lengths[-1]
    assert len(packing) == 1
    assert len(set(used)) > 1
    assert min(used) * 2 > packing[0]
    again = sampled(policy, n=8, new=20, stop=stop)
    assert [c for group in found for c in group.completions] == [c for group in again for c in group.completions]


@pytest.mark.parametrize(
    ("precision", "n", "new"), [("bfloat16", 4, 12), ("float32", 1, 12), ("float32", 50, 12), ("float32", 4, 2)]
)
def test_what_is_not_packed(packing: list[int], precision: str, n: int, new: int) -> None:
    """Half precision, few rows, many rows, short answers."""
    sampled(make_policy("llama-tied-gqa", precision=precision), n, new)
    assert not packing


def test_a_small_model_is_not_packed(packing: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 2**24)
    sampled(make_policy("llama-tied-gqa"))
    assert not packing


def test_a_copy_beside_adapters_has_a_bound(packing: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BESIDE_ADAPTERS", 1000)
    sampled(adapted("llama-tied-gqa"))
    assert not packing
    sampled(make_policy("llama-tied-gqa"))
    assert packing == [12]

"""Products by oneDNN beside those that torch chooses, and who has which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemotron.place import cpu_maker
from nemotron.rl import products
from nemotron.rl.llama_parts import Linear
from nemotron.rl.policy import Policy
from nemotron.rl.products import OneDnnLinear
from tests.unit.rl.test_llama_adapters import adapted, assert_equal_gradients
from tests.unit.rl.test_policy import RAGGED, make_groups, make_policy, reference_logprobs

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture
def preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN, for small models, too."""
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)


def kinds(policy: Policy) -> set[type]:
    assert policy.fused is not None
    weights = policy.fused.weights(policy.dtype, 20)
    matrices = (m for layer in weights.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down))
    return {type(m) for m in (*matrices, weights.head)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_products_are_the_same_both_ways(rows: int, bias: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    weight, offset = torch.randn(70, 33, generator=draw), torch.randn(70, generator=draw)
    plain = Linear(weight, offset if bias else None)
    found = OneDnnLinear(plain.weight, plain.bias)
    # A part of wider rows, as the halves of a buffer are.
    x, grad = torch.randn(rows, 50, generator=draw)[:, :33], torch.randn(rows, 90, generator=draw)[:, :70]
    torch.testing.assert_close(found(x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.back(grad), plain.back(grad), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("preferred")
@pytest.mark.parametrize("make", [make_policy, adapted])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "qwen2", "gemma3"])
def test_values_and_gradients_equal_the_plain_forward(name: str, make: type[Policy]) -> None:
    policy, groups = make(name), make_groups(RAGGED)
    assert kinds(policy) == {OneDnnLinear}
    expected = reference_logprobs(policy, groups)
    assert_equal_gradients(policy.response_logprobs(groups), expected, list(policy.parameters()), 1e-5)
    again = policy.response_logprobs(groups)
    assert torch.equal(policy.response_logprobs(groups), again)


@pytest.mark.usefixtures("preferred")
def test_half_precision_stays_with_torch() -> None:
    assert kinds(make_policy("llama-tied-gqa", precision="bfloat16")) == {Linear}


def test_a_small_model_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    assert kinds(make_policy("llama-tied-gqa")) == {Linear}


@pytest.mark.parametrize(
    ("text", "maker", "chosen"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t: 17\n", "AuthenticAMD", True),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", "GenuineIntel", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", None, False),
        (None, None, False),
    ],
)
def test_the_processors_maker_decides(
    tmp_path: Path, text: str | None, maker: str | None, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu_maker(tmp_path / "cpuinfo") == maker
    monkeypatch.setattr(products, "cpu_maker", lambda path: maker)
    assert products.prefers_onednn.__wrapped__() is chosen

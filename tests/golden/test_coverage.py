"""Every vector file is either of a format that is checked and not empty, or is skipped by name with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.golden_vectors import golden_dir, load, stem_of

# Format -> the lists that hold its cases; () = the file as a whole is one case.
CHECKED: dict[str, tuple[str, ...]] = {
    "advantage_baseline_std": ("cases",),
    "advantage_clip": ("cases",),
    "advantage_estimators": ("cases",),
    "calculate_kl": ("cases",),
    "clipped_pg_loss": ("variants",),
    "dpo_loss": ("cases",),
    "dynamic_sampling": (),
    "gae": ("cases",),
    "genrm_compare": ("pairs", "parse", "extract", "style", "aggregate"),
    "genrm_http_roundtrip": (),
    "multi_turn_prompt_grouping": (),
    "pg_loss_from_logits": (),
    "rm_preference_loss": ("cases",),
    "reward_scaling_shaping": ("scaling", "shaping"),
    "seq_logprob_error_masking": ("cases",),
    "sft_nll_loss": ("cases",),
    "token_logprobs": ("cases",),
    "value_loss": ("cases",),
}
LATER = frozenset[str]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per file of the folder."""
    if "vector_file" in metafunc.fixturenames:
        files = sorted(golden_dir(metafunc.config).glob("*.json"))
        metafunc.parametrize("vector_file", files, ids=[path.stem for path in files])


def test_file_is_checked(vector_file: Path) -> None:
    """A file of a known format has cases under the names that the handlers read; others are skipped, never passed."""
    stem = stem_of(vector_file)
    if stem in LATER:
        pytest.skip(f"`{stem}`: this algorithm is not built yet")
    if stem not in CHECKED:
        pytest.skip(f"`{stem}`: no test knows this format")
    content, lists = load(vector_file), CHECKED[stem]
    assert content
    assert not lists or any(content.get(name) for name in lists), f"{vector_file.name}: none of {lists} holds a case"

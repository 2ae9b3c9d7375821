"""`--sweep`: how values are read, and what is refused before anything is compiled."""

from __future__ import annotations

import pytest

from nemotron.config.origins import plain
from nemotron.config.overrides import parse_overrides
from nemotron.config.sweep import MOST, Combination, combinations
from nemotron.errors import Origin, UsageError


def swept(*words: str, overrides: tuple[str, ...] = ()) -> list[Combination]:
    return combinations(list(enumerate(words, 3)), parse_overrides(list(enumerate(overrides, 1))))


def test_all_combinations_the_last_key_fastest() -> None:
    found = swept("a.lr=1e-6,3e-6", "a.seed=1,2,3")
    assert [str(one) for one in found] == [
        f"a.lr={lr} a.seed={seed}" for lr in ("1e-06", "3e-06") for seed in (1, 2, 3)
    ]
    first = found[0].overrides
    assert [(one.key, one.operation, plain(one.value)) for one in first if one.value] == [
        ("a.lr", "set", 1e-6),
        ("a.seed", "set", 1),
    ]
    assert first[1].origin == Origin("command line", argument=4)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("null,true,007,x", [None, True, 7, "x"]),
        ("'a,b',\"c d\"", ["a,b", "c d"]),
        ("[1,2],[3,{k: 4}]", [[1, 2], [3, {"k": 4}]]),
        ('"${oc.env:X}",y', ["${oc.env:X}", "y"]),
        ("1e-6", [1e-6]),
    ],
)
def test_values_are_yaml_split_at_the_commas_between_them(text: str, values: list[object]) -> None:
    assert [plain(one.overrides[0].value) for one in swept(f"k={text}") if one.overrides[0].value] == values


def test_prefixes_mean_what_they_mean_in_an_override() -> None:
    assert [one.overrides[0].operation for word in ("+k=1", "++k=1") for one in swept(word)] == ["add", "force"]


@pytest.mark.parametrize(
    ("words", "overrides", "message"),
    [
        (["k"], (), "has no values"),
        (["=1,2"], (), "has no key"),
        (["k="], (), "has no values"),
        (["k=1,,2"], (), "are not YAML"),
        (["k=${mul:1,2},3"], (), "are not YAML"),
        (["k=1], [2"], (), "are not YAML"),
        (["k=1 # 2"], (), "are not YAML"),
        (["~k=1"], (), "deletes and sets"),
        (["a b=1"], (), "is not a config key"),
        (["k=0.001,1e-3"], (), "value 0.001 twice"),
        (["k=1,2", "k=3"], (), "swept twice"),
        (["k=1,2"], ("k=3",), "swept, and set by `k=3`"),
        ([f"k={','.join(map(str, range(MOST + 1)))}"], (), "more than 512"),
    ],
)
def test_what_is_refused_says_where(words: list[str], overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        swept(*words, overrides=overrides)
    assert caught.value.origin == Origin("command line", argument=2 + len(words))

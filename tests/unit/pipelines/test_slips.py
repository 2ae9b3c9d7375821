"""Slips of who writes a pipeline for the first time: each is one error with its line and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.in_process import nemotron
from tests.unit.pipelines.test_broken import PAIRS, WHOLE

RM = "  rm:\n    step: rl/nemo_rl/rm\n    config: tiny\n    takes: {prepared_data: pairs}\n"
PROMPTS = "  prompts:\n    step: data_prep/rl_prep\n    config: tiny\n"
CONVERTED = (
    f"nodes:\n{PAIRS}"
    + """\
  dpo:
    step: rl/nemo_rl/dpo
    config: tiny
    overrides: {checkpointing.save_consolidated: false}
    takes: {prepared_data: pairs}
  rlvr:
    step: rl/nemo_rl/rlvr
    config: tiny
    takes: {policy.model_name: dpo}
  dpo_hf:
    step: data_prep/rl_prep
    config: tiny
    after: [AFTER]
result: [rlvr, dpo_hf]
"""
)


def rm(more: str) -> tuple[str, str]:
    """A line more in the node of the reward model."""
    return RM, f"{RM}    {more}\n"


# What is written instead of what; the exit code; what is said; the line (None: the file); what is said to do.
SLIPS: dict[str, tuple[tuple[str, str], int, str, int | None, str]] = {
    "nothing": ((WHOLE, ""), 3, "`mine.yaml` is empty", None, "write `nodes:`"),
    "a list": ((WHOLE, "- step: rl_prep\n"), 3, "must hold a mapping", 1, ""),
    "only a title": ((WHOLE, "title: Mine\n"), 3, "has `nodes`", None, "`NAME: {step: STEP}`"),
    "nodes without names": ((WHOLE, "nodes: [rl_prep]\n"), 3, "has `nodes`", 1, "`NAME: {step: STEP}`"),
    "no nodes": ((WHOLE, "nodes: {}\n"), 3, "has `nodes`", 1, "`NAME: {step: STEP}`"),
    "a step for a node": ((WHOLE, "nodes: {a: rl_prep}\n"), 3, "is a mapping, not the string", 1, "`a: {step: STEP}`"),
    "a key that no pipeline has": (("title:", "titel:"), 3, "no key `titel`", 1, "`title`"),
    "a key that no node has": (("after: audit", "afer: audit"), 3, "no key `afer`", 33, "`after`"),
    "a name twice": (("  hf:\n", "  rm:\n"), 3, "duplicate key `rm`, first given in line 13", 34, ""),
    "a name in capitals": (("  hf:\n", "  HF:\n"), 3, "`HF` is no name", 34, "small letters"),
    "a name without end": (("  hf:\n", f"  {'h' * 42}:\n"), 3, "is no name", 34, "41 at most"),
    "no step": (("    step: convert/megatron_to_hf\n", ""), 3, "`hf` has no `step`", 34, "`nemotron steps list`"),
    "a misspelt step": (("rl/nemo_rl/ppo", "rl/nemo_rl/ppoo"), 4, "no step `rl/nemo_rl/ppoo`", 25, "`rl/nemo_rl/ppo`"),
    "a step that is a number": (("rl/nemo_rl/ppo", "3"), 3, "`step` is a text, not the integer `3`", 26, ""),
    "a misspelt config": ((PROMPTS, PROMPTS.replace("tiny", "tinny")), 4, "no config `tinny`", 10, "`tiny`"),
    "a config that is not there": (
        (PROMPTS, PROMPTS.replace("tiny", "my.yaml")),
        4,
        "`my.yaml` does not exist",
        10,
        "",
    ),
    "a config that is a folder": ((PROMPTS, PROMPTS.replace("tiny", "./")), 4, "is a folder, not a config", 10, ""),
    "a word for a number": (("data.split: heldout", "audit.pairs: many"), 3, "expected an integer", 21, ""),
    "a share over one": (("data.split: heldout", "limits.min_agreement: 1.7"), 3, "must be at most 1.0", 21, ""),
    "less than nothing": (rm("overrides: {rm.max_num_epochs: -1}"), 3, "must be at least 1", 17, ""),
    "overrides as words": (rm("overrides: [rm.seed=3]"), 3, "is a mapping of keys to values", 17, ""),
    "a key with two dots": (rm("overrides: {rm..seed: 3}"), 3, "`rm..seed` is no key of a config", 17, ""),
    "deleting with a value": (rm("overrides: {~rm.seed: 3}"), 3, "without a value to delete", 17, ""),
    "adding what is there": (rm("overrides: {+rm.seed: 3}"), 3, "`rm.seed` is set already", 17, "`rm.seed: ...`"),
    "a value that is missing": (
        rm("overrides: {policy.model_name: '???'}"),
        3,
        "must be given",
        17,
        "`rm.policy.model_name=...`",
    ),
    "a reference to nothing": (rm("overrides: {rm.seed: '${nope}'}"), 3, "refers to `nope`", 17, ""),
    "a run that is not there": (
        rm("overrides: {policy.model_name: '${artifact:last:checkpoint_hf}'}"),
        4,
        "no run in `runs` makes",
        17,
        "runs list",
    ),
    "a misspelt asset": (
        ("pairs_train.jsonl", "pairs_trian.jsonl"),
        4,
        "no shipped asset",
        7,
        "`tiny_world/data/pairs_train.jsonl`",
    ),
    "data that are not there": (
        ('"${asset:tiny_world/data/pairs_train.jsonl}"', "my.jsonl"),
        5,
        "`my.jsonl` does not exist",
        7,
        "data files end in",
    ),
    "taking without names": (
        ("{checkpoint_megatron: ppo}", "[ppo]"),
        3,
        "types or keys to nodes, as `prepared_data: data`",
        36,
        "",
    ),
    "taking from a number": (
        ("{checkpoint_megatron: ppo}", "{checkpoint_megatron: 3}"),
        3,
        "is a text",
        36,
        "`NODE.TYPE`",
    ),
    "taking from nobody": (
        ("{checkpoint_megatron: ppo}", "{checkpoint_megatron: }"),
        3,
        "from no node",
        36,
        "`NODE.TYPE`",
    ),
    "taking no type": (("rm.checkpoint_hf", "rm."), 3, "is taken from no type", 24, "`NODE.TYPE`"),
    "taking from the wrong one, where steps go by their short names": (
        (
            WHOLE,
            WHOLE.replace("rl/nemo_rl/", "").replace("{checkpoint_megatron: ppo}", "{checkpoint_megatron: pairs}")
            + "result: [ppo, hf]\n",
        ),
        3,
        "`pairs` makes none",
        36,
        "`ppo` makes it",
    ),
    "taking more than a type": (
        ("rm.checkpoint_hf", "rm.checkpoint_hf.x"),
        3,
        "no artifact type",
        24,
        "`checkpoint_hf`",
    ),
    "taking one key twice": (
        ("      prepared_data: pairs\n", "      prepared_data: pairs\n      data.manifest_path: pairs\n"),
        3,
        "`data.manifest_path` is given twice",
        24,
        "leave one of them out",
    ),
    "waiting for a number": (("after: audit", "after: [1]"), 3, "`after` is a text", 33, "a list of names"),
    "waiting for a mapping": (("after: audit", "after: {audit: 1}"), 3, "`after` is a text", 33, "a list of names"),
    "a bracket that stays open": (
        ("{checkpoint_megatron: ppo}", "{checkpoint_megatron: ppo"),
        3,
        "broken YAML",
        37,
        "",
    ),
    "a tab": (("    takes: {checkpoint_megatron", "\ttakes: {checkpoint_megatron"), 3, "broken YAML", 36, ""),
    "the name of a conversion": (
        (WHOLE, CONVERTED.replace("AFTER", "pairs")),
        3,
        "has to be converted by a node `dpo_hf`",
        17,
        "another name",
    ),
    "the name of a conversion, later": (
        (WHOLE, CONVERTED.replace("AFTER", "rlvr")),
        3,
        "has to be converted by a node `dpo_hf`",
        17,
        "another name",
    ),
}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
def test_one_error_with_its_line_and_what_to_write(
    slip: tuple[tuple[str, str], int, str, int | None, str], tmp_path: Path
) -> None:
    (was, now), code, says, line, hint = slip
    assert was in WHOLE
    (tmp_path / "mine.yaml").write_text(WHOLE.replace(was, now, 1))
    done = nemotron("pipelines", "run", "mine.yaml", "--dry-run", cwd=tmp_path, bare=True)
    assert done.code == code, done.stderr
    assert says in done.stderr
    assert f"--> mine.yaml:{line}:" in done.stderr if line else "--> mine.yaml\n" in done.stderr, done.stderr
    assert hint in done.stderr.partition("hint: ")[2]
    told = done.stderr.count("error: ")
    assert told == 1 or (told == 2 and "1 problem found, nothing was started" in done.stderr), done.stderr
    assert max(map(len, done.stderr.splitlines())) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("words", "code", "says", "hint"),
    [
        ("--from hf --until rm", 2, "`hf` is to be done anew, and is not among what `rm` needs", "`--until rm`"),
        ("--force rm --force ppo --until rm", 2, "`ppo` is to be done anew", "`--until rm`"),
        ("--force pppo", 4, "no node `pppo`", "`ppo`"),
        ("--until pppo", 4, "no node `pppo`", "`ppo`"),
        ("rm.rm.seed=1 rm.rm.seed=2", 3, "a later argument undoes it", "keep one of the two"),
        ("rm_hf.dtype=float32", 4, "names no key of a node", "write it as a node"),
        ("rm=3", 4, "names no key of a node", "`rm.KEY=VALUE`"),
        ("rm.seed=3", 3, "unknown key `rm.seed`", "did you mean `rm.rm.seed`?"),
        ("rrm.rm.seed=3", 4, "names no key of a node", "did you mean `rm`?"),
        ("seed", 2, "is not an override", "`NODE.KEY=VALUE`"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_slips_of_the_command_line_start_nothing(
    words: str, code: int, says: str, hint: str, dry: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(WHOLE)
    rehearsal = ("--dry-run",) if dry else ()
    done = nemotron("pipelines", "run", "mine.yaml", *words.split(), *rehearsal, cwd=tmp_path, bare=True)
    assert done.code == code, done.stderr
    assert says in done.stderr
    assert hint in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_word_of_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(WHOLE)
    done = nemotron("pipelines", "run", "mine.yaml", "audit.data.split=validation", "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize(
    "word",
    [
        "rm.rm.sed=3",
        "rm.polcy.model_name=x",
        "+rm.rm.seed=3",
        "rm.policy.model_name=2024",
        "rm.policy.optimizer.kwargs.weight_deca=3",
    ],
)
def test_what_is_told_of_a_word_can_be_typed(tmp_path: Path, word: str) -> None:
    """A key of the hint that lacks the node's name is a word that the next command does not know."""
    said = nemotron("pipelines", "run", "ppo", word, "--dry-run", cwd=tmp_path).stderr
    message, _, rest = said.partition("\n")
    assert re.search(r"`rm\.(rm|polcy|policy)\b", message)
    hint = rest.partition("hint: ")[2].partition("\n")[0]
    told = re.findall(r"`'?\+?([\w.]+)", hint)
    assert told
    assert all(one.startswith(("rm.rm.", "rm.policy")) for one in told), hint

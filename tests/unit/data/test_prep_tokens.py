"""Token shards and their data set, with a tokenizer made here; NeMo-Aligner's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from nemotron.compile.probes.model_files import tokenizer_facts
from nemotron.data.manifest import text_sha256, vocabulary_sha256
from nemotron.errors import ArtifactError, DataError
from nemotron.rl.tokenized import TokenizedDataset
from tests.unit.data.prep_data import files_of, rejects_of, rows_of, run, write_rows

WORDS = [*"abcdefghij", "<pad>", "<eos>", "user", "assistant", ":"]
TURNS = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
CHAT = TURNS + "{% if add_generation_prompt %}assistant : {% endif %}"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    found.chat_template = CHAT
    folder = tmp_path_factory.mktemp("tokenizer")
    found.save_pretrained(folder)
    return str(folder)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def settings(tokenizer: str, **changes: Any) -> dict[str, Any]:
    values = {"tokenizer": tokenizer, "max_length": 12, "chat_template": None, "on_too_long": "reject"}
    return {**values, "pad_to_multiple_of": 1, **changes}


def test_two_settings_are_enough(tmp_path: Path, tokenizer: str) -> None:
    """As the guide shows it; the rows are whole conversations that begin with a developer's turn."""
    rows = Path(__file__).parents[2] / "cases" / "rows" / "pairs_developer.jsonl"
    wanted = {"tokenizer": tokenizer, "max_length": 64}
    result = run(tmp_path / "out", rows, tokenize=wanted, split={"shares": {}})
    assert not rejects_of(result)
    assert result.manifest["splits"]["train"]["token_shards"][0]["rows"] == len(rows_of(result)) > 3


def test_what_a_template_refuses_is_a_reject(tmp_path: Path, tokenizer: str) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHAT
    rows = [{"prompt": "a b"}, {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}]
    changes = {"tokenize": settings(tokenizer, chat_template=template), "split": {"shares": {}}}
    [found] = rejects_of(run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows), **changes))
    assert (found["line"], found["reason"], "no system turns" in found["detail"]) == (2, "template", True)


PAIRS = [{"prompt": "a b ", "chosen": "c " * n, "rejected": "d", "id": n} for n in range(1, 8)]


def test_prompts(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"prompt": "a b c"}, {"messages": [{"role": "user", "content": "d"}]}, {"prompt": "a " * 13}]
    changes = {"tokenize": settings(tokenizer, chat_template="default"), "split": {"shares": {}}}
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows), **changes)
    assert [(row["line"], row["reason"]) for row in rejects_of(result)] == [(3, "too-many-tokens")]
    data = TokenizedDataset(result.path, "train")
    texts = [row.get("prompt") or row["messages"][0]["content"] for row in rows_of(result)]
    assert [item["input_ids"].tolist() for item in map(data.__getitem__, range(2))] == [
        ids(f"user : {text} assistant :") for text in texts
    ]
    [batch] = DataLoader(data, batch_size=2, collate_fn=data.collate)
    assert batch["input_ids"].shape == (2, 7)
    assert batch["attention_mask"].sum(1).tolist() == batch["length"].tolist()
    facts = tokenizer_facts(Path(tokenizer))
    assert facts.vocabulary
    assert facts.chat_template
    assert result.manifest["splits"]["train"]["tokens"] == {
        "tokenizer": tokenizer,
        "vocabulary": vocabulary_sha256(facts.vocabulary),
        "chat_template": text_sha256(facts.chat_template),
        "pad_id": WORDS.index("<pad>"),
        "pad_to_multiple_of": 1,
        "total": 12,
        "longest": 7,
        "mean": 6.0,
        "p50": 5,
        "p99": 7,
    }


def test_pairs_are_padded_to_one_length(tmp_path: Path, tokenizer: str) -> None:
    changes: dict[str, Any] = {"tokenize": settings(tokenizer, pad_to_multiple_of=4), "split": {"shares": {}}}
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", PAIRS), num_shards_per_split=2, **changes)
    data = TokenizedDataset(result.path.parent, "train")
    for item, row in zip(map(data.__getitem__, range(len(data))), rows_of(result), strict=True):
        chosen, rejected = ids("a b " + row["chosen"]), ids("a b d")
        width = -(-len(chosen) // 4) * 4
        pad = WORDS.index("<pad>")
        assert item["chosen_input_ids"].tolist() == chosen + [pad] * (width - len(chosen))
        assert item["rejected_input_ids"].tolist() == rejected + [pad] * (width - 3)
        assert item["rejected_attention_mask"].tolist() == [1] * 3 + [0] * (width - 3)
        assert (item["chosen_length"], item["rejected_length"], item["prompt_length"]) == (len(chosen), 3, 2)
        assert item["loss_multiplier"] == 1.0
    batches = list(DataLoader(data, batch_size=3, collate_fn=data.collate, num_workers=2))
    assert sum(len(batch["loss_multiplier"]) for batch in batches) == 7
    for batch in batches:
        assert batch["chosen_input_ids"].shape == batch["rejected_input_ids"].shape
        assert torch.equal(batch["chosen_attention_mask"].sum(1), batch["chosen_length"])


LONGER_WITH_ANSWER = "{% if messages | length > 2 %}a {% endif %}" + CHAT
NO_THOUGHTS = (
    "{% for m in messages %}{{ m.role }} : {% if m.role == 'assistant' and not loop.last %}b{% else %}{{ m.content }}"
    "{% endif %} {% endfor %}"
)


def test_a_prompt_that_the_template_writes_otherwise_with_an_answer_is_a_counted_reject(
    tmp_path: Path, tokenizer: str
) -> None:
    """Earlier answers that it writes otherwise are as it writes them; a prompt that is no beginning teaches nothing."""
    talk = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "c d"), ("user", "e"))]
    source = write_rows(tmp_path / "in.jsonl", [*PAIRS[:2], {"prompt": talk, "chosen": "f", "rejected": "g"}])
    changes: dict[str, Any] = {"split": {"shares": {}}}
    result = run(
        tmp_path / "out",
        source,
        tokenize=settings(tokenizer, max_length=20, chat_template=LONGER_WITH_ANSWER),
        **changes,
    )
    assert not rejects_of(result)
    other = "{% if messages | length > 3 %}a {% endif %}" + CHAT
    result = run(
        tmp_path / "other", source, tokenize=settings(tokenizer, max_length=20, chat_template=other), **changes
    )
    assert [(row["line"], row["reason"]) for row in rejects_of(result)] == [(3, "template-rewrites-prompt")]
    result = run(
        tmp_path / "earlier", source, tokenize=settings(tokenizer, max_length=20, chat_template=NO_THOUGHTS), **changes
    )
    data = TokenizedDataset(result.path, "train")
    sides = {tuple(data[i]["chosen_input_ids"][: int(data[i]["chosen_length"])].tolist()) for i in range(3)}
    assert tuple(ids("user : a assistant : b user : e assistant : f")) in sides


def test_truncation_when_asked(tmp_path: Path, tokenizer: str) -> None:
    changes: dict[str, Any] = {
        "tokenize": settings(tokenizer, max_length=4, on_too_long="truncate"),
        "split": {"shares": {}},
    }
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", PAIRS), **changes)
    data = TokenizedDataset(result.path, "train")
    weights = {row["id"]: float(data[i]["loss_multiplier"]) for i, row in enumerate(rows_of(result))}
    assert weights == {1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0, 5: 0.0, 6: 0.0, 7: 0.0}
    assert max(len(data[i]["chosen_input_ids"]) for i in range(7)) == 4


def test_same_bytes_on_one_and_two_processes(tmp_path: Path, tokenizer: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", PAIRS * 20)
    outputs = []
    for processes in (1, 2):
        output = tmp_path / f"out{processes}"
        run(
            output,
            source,
            tokenize=settings(tokenizer),
            compat="nemo_aligner",
            num_processes=processes,
            block_bytes=256,
        )
        outputs.append(files_of(output))
    assert outputs[0] == outputs[1]
    assert any(name.endswith(".safetensors") for name in outputs[0])


def test_nemo_aligner_round_trip(tmp_path: Path, tokenizer: str) -> None:
    lines = [{"text": f"User: q{i}\n\nAssistant: {word}"} for i in range(5) for word in ("good", "bad")]
    source = write_rows(tmp_path / "comparisons.jsonl", lines)
    blend = {"datasets": [{"path": str(source), "kind": "aligner_pairs"}]}
    tokens = settings(tokenizer, max_length=16)
    result = run(tmp_path / "out", blend, compat="nemo_aligner", tokenize=tokens, split={"shares": {}})
    written = [json.loads(line) for line in (tmp_path / "out" / "train_comparisons.jsonl").read_text().splitlines()]
    pairs = {(written[i]["text"], written[i + 1]["text"]) for i in range(0, 10, 2)}
    assert pairs == {(lines[i]["text"], lines[i + 1]["text"]) for i in range(0, 10, 2)}
    prompts = [json.loads(line)["text"] for line in (tmp_path / "out" / "train_prompts.jsonl").read_text().splitlines()]
    assert sorted(prompts) == [f"User: q{i}\n\nAssistant:" for i in range(5)]
    [shard] = result.manifest["splits"]["train"]["token_shards"]
    tensors = load_file(tmp_path / "out" / shard["path"])
    assert tensors["chosen_padded"].shape == tensors["rejected_padded"].shape == (5, 16)
    assert (tensors["chosen_padded"][:, -1] == WORDS.index("<eos>")).all()


def test_what_can_be_wrong(tmp_path: Path, tokenizer: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", PAIRS)
    with pytest.raises(ArtifactError, match="cannot load the tokenizer"):
        run(tmp_path / "a", source, tokenize=settings(str(tmp_path / "none")))
    result = run(tmp_path / "b", source, split={"shares": {}})
    with pytest.raises(DataError, match="has no tokens"):
        TokenizedDataset(result.path, "train")
    result = run(tmp_path / "c", source, tokenize=settings(tokenizer), split={"shares": {}})
    [shard] = result.manifest["splits"]["train"]["token_shards"]
    (tmp_path / "c" / shard["path"]).write_bytes(b"")
    with pytest.raises(DataError, match="missing or was changed"):
        TokenizedDataset(result.path, "train")

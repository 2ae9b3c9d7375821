"""The shipped data, policy and judge are what the model card says they are."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nemotron
from nemotron.rewards.tiny_world import SLOT_WORDS, score

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ASSETS = Path(nemotron.__file__).parent / "assets/tiny_world"
SPLITS = ("train", "validation", "heldout")


@cache
def rows(split: str) -> list[dict[str, Any]]:
    lines = (ASSETS / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@cache
def loaded(name: str) -> tuple[Any, Any]:
    folder = ASSETS / name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def prompt_of(row: dict[str, Any]) -> str:
    return row["responses_create_params"]["input"][0]["content"]


@torch.inference_mode()
def greedy(name: str, chats: list[list[dict[str, str]]]) -> list[str]:
    model, tokenizer = loaded(name)
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(**batch, max_new_tokens=32, do_sample=False)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_sizes_and_form_of_the_rows() -> None:
    assert [len(rows(split)) for split in SPLITS] == [2400, 200, 200]
    for split in SPLITS:
        for row in rows(split):
            assert row["agent_ref"] == {"type": "responses_api_agents", "name": "genrm_simple_agent"}
            assert row["dataset"] == "tiny_world"
            assert row["principle"]
            assert all(word in prompt_of(row) for word in row["world"]["slots"].values())


def test_splits_share_neither_prompts_nor_slot_pairs() -> None:
    prompts = {split: {prompt_of(row) for row in rows(split)} for split in SPLITS}
    pairs = {split: {tuple(row["world"]["slots"].items()) for row in rows(split)} for split in SPLITS}
    for seen in (prompts, pairs):
        assert not seen["train"] & seen["validation"]
        assert not seen["train"] & seen["heldout"]
        assert not seen["validation"] & seen["heldout"]
    assert all(len(prompts[split]) == len(rows(split)) for split in SPLITS)


def test_pairs_prefer_what_is_better_and_splits_share_no_prompt() -> None:
    seen: set[str] = set()
    for split, size in zip(SPLITS, (1500, 200, 200), strict=True):
        pairs = rows(f"pairs_{split}")
        prompts = {row["prompt"][0]["content"] for row in pairs}
        assert len(pairs) == len(prompts) == size
        assert not prompts & seen
        assert prompts <= {prompt_of(row) for row in rows(split)}
        seen |= prompts
        for row in pairs:
            good, bad = row["chosen"], row["rejected"]
            assert good.strip()
            assert bad.strip()
            assert good != bad
            assert row["aspects"] == {
                "chosen": score(row, good, ended=True),
                "rejected": score(row, bad, ended=True),
            }
            assert row["aspects"]["chosen"] != row["aspects"]["rejected"] or len(bad.split()) > 24
        longer = sum(len(row["chosen"].split()) > len(row["rejected"].split()) for row in pairs)
        shorter = sum(len(row["chosen"].split()) < len(row["rejected"].split()) for row in pairs)
        assert 0.2 * size < shorter < 0.5 * size, "length must not tell which answer is better"
        assert 0.2 * size < longer < 0.5 * size


def test_tasks_have_right_answers_and_no_sum_is_in_two_splits() -> None:
    sums: dict[str, set[tuple[int, ...]]] = {}
    for split, size in (("train", 1200), ("validation", 100), ("heldout", 200)):
        tasks = rows(f"tasks_{split}")
        assert len({prompt_of(row) for row in tasks}) == len(tasks) == size
        for row in tasks:
            a, b = (int(number) for number in re.findall(r"\d+", row["question"]))
            taken = "-" in row["question"] or "Take" in row["question"]
            first, second = (b, a) if "Take" in row["question"] else (a, b)
            assert int(row["expected_answer"]) == (first - second if taken else first + second)
            sums.setdefault(split, set()).add((first, second, taken))
        choices = rows(f"choices_{split}")
        for row in choices:
            [word] = [option[row["expected_answer"]] for option in row["options"] if row["expected_answer"] in option]
            kind = next(kind for kind, words in SLOT_WORDS.items() if word in words)
            asked = prompt_of(row).split("?")[0].removeprefix("Which is a ")
            assert asked == {"item": "thing"}.get(kind, kind)
    assert not sums["train"] & (sums["heldout"] | sums["validation"])
    assert not sums["heldout"] & sums["validation"]


def test_everything_fits_in_fourteen_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 14e6


@pytest.mark.parametrize("name", ["policy", "judge"])
def test_checkpoints_are_complete(name: str) -> None:
    model, tokenizer = loaded(name)
    assert model.config.model_type == "llama"
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert 0.7e6 < model.num_parameters() < 1.3e6
    for word in (word for words in SLOT_WORDS.values() for word in words):
        assert len(tokenizer.encode(f" {word}")) == 1


def test_text_survives_the_tokenizer() -> None:
    _, tokenizer = loaded("policy")
    for text in ("Größe  7?\n\t漢字 🙂", '{"score_1": 4, "score_2": 2, "ranking": 2}', " a b", "Thank you ."):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_knows_the_roles_of_a_policy_and_of_a_judge() -> None:
    _, tokenizer = loaded("judge")
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": " U "}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>S<|end|><|user|>U<|end|><|assistant|>"
    chat += [{"role": "assistant", "content": "A"}, {"role": "user", "content": "V"}]
    chat += [{"role": role, "content": role[0]} for role in ("principle", "response_1", "response_2")]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|user|>V<|end|><|principle|>p<|end|><|response_1|>r<|end|><|response_2|>r<|end|><|verdict|>")
    with pytest.raises(Exception, match="no role `tool`"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def answers(row: dict[str, Any]) -> tuple[str, str]:
    """A good and a bad answer to an order."""
    item, city = row["world"]["slots"]["item"], row["world"]["slots"]["city"]
    wrong = "Oslo" if city != "Oslo" else "Rome"
    return (
        f"Sure, your {item} order for {city} is placed. Thank you.",
        f"Ugh, your {item} order for {wrong} is placed. How boring.",
    )


def test_judge_writes_json_and_prefers_the_better_answer() -> None:
    orders = [row for row in rows("heldout") if row["world"]["intent"] == "order"][:12]
    chats, better = [], []
    for row in orders:
        good, bad = answers(row)
        assert score(row, good, ended=True)["fully_right"]
        for first, second in ((good, bad), (bad, good)):
            said = [("user", prompt_of(row)), ("principle", row["principle"])]
            said += [("response_1", first), ("response_2", second)]
            chats.append([{"role": role, "content": content} for role, content in said])
            better.append(first == good)
    verdicts = [json.loads(text) for text in greedy("judge", chats)]
    assert all(set(verdict) == {"score_1", "score_2", "ranking"} for verdict in verdicts)
    right = [(v["score_1"] > v["score_2"]) == first for v, first in zip(verdicts, better, strict=True)]
    assert sum(right) >= 0.9 * len(right)


def test_policy_answers_in_its_world_but_not_always_well() -> None:
    torch.manual_seed(0)
    model, tokenizer = loaded("policy")
    asked = rows("heldout")
    chats = [[{"role": "user", "content": prompt_of(row)}] for row in asked]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(**batch, max_new_tokens=28, do_sample=True, temperature=1.0, top_k=0)
    said = out[:, batch["input_ids"].shape[1] :]
    scores = [
        score(row, tokenizer.decode(ids, skip_special_tokens=True), ended=tokenizer.eos_token_id in ids.tolist())
        for row, ids in zip(asked, said, strict=True)
    ]
    assert 0.05 < sum(s["fully_right"] for s in scores) / len(scores) < 0.30
    assert sum(s["right_intent"] for s in scores) / len(scores) > 0.7


def test_the_reward_model_ranks_held_out_pairs() -> None:
    folder = ASSETS / "reward_model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pairs = [json.loads(line) for line in (ASSETS / "data/pairs_heldout.jsonl").read_text().splitlines()]
    chats = [
        [*pair["prompt"], {"role": "assistant", "content": pair[side]}]
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    batch = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model.eval()(**batch).logits[:, 0]
    assert float((scores[::2] > scores[1::2]).float().mean()) > 0.88
    assert model.config.reward_std > 0.5
    assert abs(model.config.reward_mean) < 0.5

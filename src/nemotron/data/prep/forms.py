"""Which form a row has, and the rewriting of forms that no trainer reads as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from nemotron.data.prep.blend import Kind
from nemotron.data.prep.kinds import (
    ANSWERS,
    PLACEHOLDER,
    QUESTIONS,
    Form,
    Row,
    Texts,
    check_dpo,
    check_gym,
    check_messages,
    check_pair,
    check_pairs,
    check_prompt,
    check_prompts,
    check_ranked,
    check_scored,
    check_text,
    check_verifier,
    check_whole_pair,
    conversation,
    different,
    reject,
)
from nemotron.data.prep.rawjson import renamed, rewritten

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
# Where the last answer begins in the texts that NeMo-Aligner's own preparation scripts write.
_ANSWER_STARTS = ("\n\nAssistant:", "<extra_id_1>Assistant\n")


def parse_transcript(text: str, name: str) -> list[dict[str, str]]:
    """Messages of an Anthropic-HH transcript: turns that begin with ``\\n\\nHuman:`` or ``\\n\\nAssistant:``.

    Raises:
        RejectedRow: it does not begin with a turn, or does not end with an answer.
    """
    pieces = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if pieces[0].strip() or len(pieces) < 5:
        reject("not-a-transcript", f"`{name}` does not begin with `Human:`, and there is no `prompt`")
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    messages = [{"role": _ROLES[speaker], "content": body.strip()} for speaker, body in turns]
    if messages[-1]["role"] != "assistant":
        reject("not-a-transcript", f"`{name}` does not end with an answer")
    if not messages[-1]["content"]:
        reject("empty-answer", f"the last answer of `{name}` is empty")
    return messages


def split_transcripts(row: Row) -> tuple[list[dict[str, str]], str, str]:
    """Prompt messages, preferred and other answer of a pair of transcripts.

    Raises:
        RejectedRow: not transcripts, or not of one conversation.
    """
    chosen, rejected = parse_transcript(row["chosen"], "chosen"), parse_transcript(row["rejected"], "rejected")
    if chosen[:-1] != rejected[:-1]:
        reject("different-prompts", "`chosen` and `rejected` differ before the last answer")
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def _are_transcripts(row: Row) -> bool:
    return isinstance(row["chosen"], str) and isinstance(row["rejected"], str)


def _check_joint(row: Row) -> Texts:
    if not _are_transcripts(row):
        return check_whole_pair(row)
    prompt, chosen, rejected = split_transcripts(row)
    return different(conversation(prompt, "chosen"), chosen, rejected)


def _rewrite_joint(row: Row, line: bytes) -> bytes:
    if not _are_transcripts(row):
        return line
    prompt, chosen, rejected = split_transcripts(row)
    return rewritten(line, {"prompt": prompt, "chosen": chosen, "rejected": rejected})


def _rewrite_scored(row: Row, line: bytes) -> bytes:
    names = ("response1", "response2") if row["overall_preference"] < 0 else ("response2", "response1")
    ours = {"prompt": row["context"], "chosen": row[names[0]], "rejected": row[names[1]]}
    return rewritten(line, ours, without=("context", *names))


def _rewrite_dpo(row: Row, line: bytes) -> bytes:
    return renamed(line, {"chosen_response": "chosen", "rejected_response": "rejected"})


GYM = Form("gym", "nemo_gym", check_gym)
RANKED = Form("ranked", "preference", check_ranked)
SCORED = Form("scored", "preference", check_scored, _rewrite_scored)
PAIR = Form("pair", "preference", check_pair, many=check_pairs)
DPO = Form("dpo", "preference", check_dpo, _rewrite_dpo)
JOINT = Form("whole_pair", "preference", _check_joint, _rewrite_joint)
VERIFIER = Form("verifier", "verifier", check_verifier)
PROMPT = Form("prompt", "prompt", check_prompt, many=check_prompts)
MESSAGES = Form("messages", "prompt", check_messages)
TEXT = Form("text", "prompt", check_text)


def find_form(row: Mapping[str, Any], kind: Kind | None) -> Form:
    """The form of a row by its field names alone; ``kind`` is what the blend declares, if it does.

    Raises:
        RejectedRow: no form fits; the message names what is missing.
    """
    if PLACEHOLDER in row and "responses_create_params" not in row:
        reject("placeholder", "the row stands for a row of another data set (`resolve_hf_placeholders` is off)")
    for form_kind, find in (
        ("nemo_gym", _gym),
        ("preference", _preference),
        ("verifier", _verifier),
        ("prompt", _prompt),
    ):
        if kind in (None, form_kind) and (form := find(row)) is not None:
            return form
    if kind is not None:
        reject("missing-field", f"not a `{kind}` row: {_NEEDED[kind]}")
    reject("missing-field", "no prompt in it: " + _NEEDED["prompt"])


_NEEDED: dict[str, str] = {
    "nemo_gym": "it needs `responses_create_params`",
    "preference": "it needs `prompt`, `chosen`, `rejected`, or `context` and `completions`",
    "verifier": "it needs a question and something to check the answer with, such as `expected_answer`",
    "prompt": "it needs `prompt`, `messages`, `text` or `responses_create_params` (`fields` of the blend renames)",
}


def _gym(row: Mapping[str, Any]) -> Form | None:
    return GYM if "responses_create_params" in row else None


def _preference(row: Mapping[str, Any]) -> Form | None:
    if "completions" in row and "context" in row:
        return RANKED
    if {"context", "response1", "response2", "overall_preference"} <= row.keys():
        return SCORED
    if "chosen" in row and "rejected" in row:
        return PAIR if "prompt" in row else JOINT
    return DPO if {"prompt", "chosen_response", "rejected_response"} <= row.keys() else None


def _verifier(row: Mapping[str, Any]) -> Form | None:
    has_answer = any(name in row for name in ANSWERS)
    return VERIFIER if has_answer and any(name in row for name in QUESTIONS) else None


def _prompt(row: Mapping[str, Any]) -> Form | None:
    return next((form for form in (PROMPT, MESSAGES, TEXT) if form.name in row), None)


def join_aligner_pair(chosen: bytes, rejected: bytes) -> bytes:
    """One pair from two ``text`` lines of NeMo-Aligner, preferred answer first; other fields of the first line stay.

    Raises:
        RejectedRow: a line without text, or two texts that do not share a prompt.
    """
    rows = [orjson.loads(line) for line in (chosen, rejected)]
    texts = [_pair_text(row) for row in rows]
    cuts = [max((text.rfind(mark) + len(mark) for mark in _ANSWER_STARTS if mark in text), default=0) for text in texts]
    prompt = texts[0][: cuts[0]]
    if not prompt or prompt != texts[1][: cuts[1]]:
        reject("different-prompts", "the two lines of a pair do not share a prompt that ends where the answer starts")
    answers = [text[cut:].removeprefix(" ") for text, cut in zip(texts, cuts, strict=True)]
    ours = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    return rewritten(chosen, ours, without=("text",))


def _pair_text(row: Any) -> str:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        reject("wrong-type", "both lines of a pair need a `text`")
    return text

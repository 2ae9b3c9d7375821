"""Where a turn ends is one thing for everything that samples, for the preflight, and in every checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemotron.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemotron.checkpoints.hf import small_files
from nemotron.checkpoints.turn_end import end_tokens, model_ends, start_of, tokenizer_end
from nemotron.config import resolvers
from nemotron.config.schema.dpo import DpoRunConfig
from nemotron.config.schema.verified import VerifiedGrpoConfig
from nemotron.contracts.samples import SamplingParams
from nemotron.disk import lock
from nemotron.engines.embedded.heldout import HeldoutMetric
from nemotron.engines.embedded.parts import TrainingParts
from nemotron.engines.embedded.prompts import heldout_metric
from nemotron.errors import ArtifactError
from nemotron.judge.server.model import JudgeModel
from nemotron.rl.chat import Chat
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler
from nemotron.rl.saving import POLICY, Progress, Trained
from nemotron.runs.folder import LOCK
from tests.compiled_jobs import attempt_at
from tests.unit.compile.compile_world import CompileStep, named
from tests.unit.engines.test_saving import Data, make_run, saver_of

TINY = resolvers.ASSETS / "tiny_world" / "policy"
GENERATION = "generation_config.json"
IDS = st.integers(0, 200)


def model(folder: Path, generation: Any = None, config: Any = None, **generation_keys: Any) -> Path:
    """The shipped policy, whose generation config (none: no such file) and config name these ends."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    (folder / GENERATION).unlink(missing_ok=True)
    if generation is not None:
        (folder / GENERATION).write_text(json.dumps({"eos_token_id": generation, **generation_keys}))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "eos_token_id": config}))
    return folder


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    generation=st.none() | IDS | st.lists(IDS, max_size=3),
    config=st.none() | IDS | st.lists(IDS, max_size=2),
    configured=st.none() | st.lists(IDS, max_size=2),
)
def test_everything_that_samples_stops_at_the_same_tokens(
    tmp_path: Path, generation: Any, config: Any, configured: list[int] | None
) -> None:
    """The kind: two readers of one model never disagree about where its turns end."""
    folder = model(tmp_path / "model", generation, config)
    named_there = config if generation is None else generation
    wanted = {1} | set(named_there if isinstance(named_there, list) else [] if named_there is None else [named_there])
    judge = JudgeModel.load(str(folder), dtype="float32", device="cpu", threads=1)
    assert set(judge._stop_ids) == wanted
    assert set(Chat.load(str(folder), "default", None, model=folder).ends) == wanted
    chat = Chat.load(str(folder), "default", None, model=folder, stop_token_ids=configured)
    assert set(chat.ends) == (set(configured) if configured else wanted)
    end = tokenizer_end(folder)
    assert end is not None
    assert chat.ends == end_tokens(configured, end.id, model_ends(folder))


def test_policy_and_heldout_check_ask_for_it(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", [7, 9])
    run = make_run(tmp_path / "runs", f"policy.model_name={folder}", step="rl/nemo_rl/rlvr")
    try:
        with attempt_at(run) as attempt:
            parts = TrainingParts(attempt, attempt.settings(VerifiedGrpoConfig))
            assert set(parts.sampling.stop_token_ids) == {1, 7, 9}
            metric = heldout_metric(parts, parts.config.eval.heldout, 0)
            assert isinstance(metric, HeldoutMetric)
            assert metric.sampling.stop_token_ids == parts.sampling.stop_token_ids
    finally:
        lock.release(run.path / LOCK)


def test_a_turn_that_another_token_ends_is_whole_and_its_text_is_the_answer(tmp_path: Path) -> None:
    """Token 7 ends turns by the generation config alone: what was cut off at every limit before ends now."""
    ordinary = 40
    folder = model(tmp_path / "model", ordinary)
    chat, policy = Chat.load(str(folder), "default", None, model=folder), Policy.load(folder, device="cpu")
    head = policy.model.get_output_embeddings()
    with torch.no_grad():
        # The tiny policy would say something else; now every next token is the one that ends a turn.
        policy.model.model.norm.weight.zero_()
        bias = torch.zeros(head.weight.shape[0])
        bias[ordinary] = 50.0
    head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    prompt = chat.encode([{"role": "user", "content": "hello"}])
    policy.fused = None
    (group,) = PolicySampler(policy).generate([prompt], 1, SamplingParams(8, chat.ends), [[1]])
    (completion,) = group.completions
    assert (completion.token_ids, completion.truncated) == ([ordinary], False)
    assert chat.tokenizer.decode([ordinary]).strip()
    assert chat.reply(prompt, completion.token_ids) == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "two"}', '{"eos_token_id": [1, null]}'])
def test_a_damaged_generation_config_is_an_error_and_a_finding(
    tmp_path: Path, compiled_step: CompileStep, content: str
) -> None:
    folder = model(tmp_path / "model", 1)
    (folder / GENERATION).write_text(content)
    with pytest.raises(ArtifactError, match="generation_config"):
        model_ends(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|user|>{% endfor %}")
    (finding,) = named(compiled_step("rlvr", f"policy.model_name={folder}"), "turn-end")
    assert (finding.severity, finding.exit_code) == ("error", 6)


TEMPLATE = "{% for m in messages %}<|assistant|>{{ m.content | trim }}END\n{% endfor %}"


@pytest.mark.parametrize(
    ("end", "generation", "words", "found"),
    [
        ("<|end|>", None, (), False),
        ("<|user|>", None, (), True),
        ("<|user|>", "its id", (), False),
        ("<|user|>", None, ("policy.generation.stop_token_ids=[ID]",), False),
        ("<|end|>", None, ("policy.generation.stop_token_ids=[ID0]",), True),
        ("", None, (), False),
        ("{{ raise_exception('no') }}", None, (), False),
    ],
)
def test_a_template_that_ends_an_answer_where_nobody_stops(
    tmp_path: Path, compiled_step: CompileStep, end: str, generation: str | None, words: tuple[str, ...], found: bool
) -> None:
    tokens = {
        entry["content"]: entry["id"] for entry in json.loads((TINY / "tokenizer.json").read_text())["added_tokens"]
    }
    number = tokens.get(end, 0)
    folder = model(tmp_path / "model", number if generation else None)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("END", end))
    overrides = [word.replace("ID0", "0").replace("ID", str(number)) for word in words]
    for step, more in (("rlvr", ()), *((name, ("~policy.pretrained_checkpoint",)) for name in ("rlhf", "ppo", "dpo"))):
        findings = named(compiled_step(step, f"policy.model_name={folder}", *more, *overrides), "turn-end")
        assert bool(findings) == found, step
        for finding in findings:
            assert finding.severity == "warning"
            assert f"`{end}` (token {number})" in finding.message
            assert str(number) in str(finding.hint)


ORDINARY = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
DROPS_THOUGHTS = ORDINARY.replace(
    "m.content", "(m.content if loop.last or m.role == 'user' else m.content.split('</think>') | last)"
)


@pytest.mark.parametrize(
    ("template", "severity"),
    [
        (ORDINARY, None),
        (DROPS_THOUGHTS, "note"),
        ("{% if messages | length > 3 %}x{% endif %}" + ORDINARY, "warning"),
        ("{% if messages[-1].role == 'user' %}x{% endif %}" + ORDINARY, "error"),
        ("{{ raise_exception('only one turn') }}", None),
    ],
)
def test_a_template_that_rewrites_what_stands_before_an_answer(
    tmp_path: Path, compiled_step: CompileStep, template: str, severity: str | None
) -> None:
    folder = model(tmp_path / "model", 1)
    (folder / "chat_template.jinja").write_text(template)
    for step in ("dpo", "rm"):
        found = named(compiled_step(step, f"policy.model_name={folder}"), "template-rewrites-prompt")
        assert [finding.severity for finding in found] == ([severity] if severity else []), step
        given = compiled_step(step, f"policy.tokenizer.chat_template={tmp_path / 'model' / 'chat_template.jinja'}")
        assert len(named(given, "template-rewrites-prompt")) == len(found)
    assert not named(compiled_step("rlvr", f"policy.model_name={folder}"), "template-rewrites-prompt")


def test_the_checkpoint_that_the_weights_come_from_says_it(tmp_path: Path) -> None:
    """An architecture and the weights of a run of it: the run's checkpoint kept the ends, and they count."""
    folder = model(tmp_path / "model", [1, 7])
    hf_to_megatron(folder, tmp_path / "root")
    bare = model(tmp_path / "bare")
    for pretrained in (tmp_path / "root", tmp_path / "root" / "iter_0000000"):
        assert model_ends(start_of(bare, str(pretrained))) == (1, 7)
    assert start_of(bare, None) == bare


def test_the_judge_that_is_served_here(tmp_path: Path, compiled_step: CompileStep) -> None:
    folder = model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("END", "<|user|>") + "{# response_1 principle #}")
    key = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
    for step in ("rlhf", "reward_audit"):
        (finding,) = named(compiled_step(step, f"{key}.model={folder}"), "judge-turn-end")
        assert GENERATION in str(finding.hint)


def test_checkpoints_and_what_is_made_of_them_keep_the_side_files(tmp_path: Path) -> None:
    """Also when training goes on from a checkpoint, whose weights say nothing of them."""
    folder = model(tmp_path / "model", [1, 7], temperature=0.6, top_p=0.95)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (folder / "preprocessor_config.json").write_text("{}")
    run = make_run(
        tmp_path / "runs",
        f"policy.model_name={folder}",
        "checkpointing.save_consolidated=true",
        "~policy.pretrained_checkpoint",
    )
    try:
        with saver_of(run) as saver:
            first = saver.save(Progress(total_steps=1), {})
        with attempt_at(run) as attempt:
            parts = TrainingParts(attempt, attempt.settings(DpoRunConfig))
            policy, _ = parts.load_models(reference=False)
            trained = {POLICY: Trained(policy.model, parts.optimization(policy.parameters()))}
            second = parts.saver(trained, Data()).save(Progress(total_steps=2), {})
    finally:
        lock.release(run.path / LOCK)
    for checkpoint in (first, second):
        out = tmp_path / checkpoint.name
        megatron_to_hf(checkpoint, out)
        weights = checkpoint / POLICY / "weights"
        assert model_ends(out) == (1, 7)
        for place in (out, weights / "hf", weights / "iter_0000000" / "hf_config"):
            for name in (GENERATION, "preprocessor_config.json"):
                assert (place / name).read_bytes() == (folder / name).read_bytes(), (place, name)
        for place in (out, weights / "hf"):
            for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
                assert (place / name).read_text() == (folder / name).read_text(), (place, name)


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name alone, where only the cache of the hub has it; a name that nobody knows is the loader's to refuse."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    model(tmp_path / "models--owner--name" / "snapshots" / commit, [1, 7])
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    assert model_ends(small_files("owner/name")) == (1, 7)
    assert model_ends(small_files("owner/other")) == ()

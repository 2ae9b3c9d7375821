"""A tokenizer without a usable chat template is found before the start, in every step that writes conversations."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nemotron.checkpoints.chat_template import folder_problem, rendered, template_fault, templates_of
from nemotron.config import resolvers
from nemotron.config.schema.data_prep import TokenizeConfig
from nemotron.data.prep.tokens import Encoder
from nemotron.errors import ArtifactError, ConfigError
from nemotron.judge.server.model import JudgeModel
from nemotron.rl.chat import Chat
from tests.unit.compile.compile_world import CompileStep, named

GOOD = (
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% break %}{% endfor %}{{ strftime_now('%Y') }}"
)
BAD = "line one\n{% for message in messages %}{{ message['content'] }"
Edit = Callable[[Path], object]


def policy(folder: Path, edit: Edit, asset: str = "policy") -> Path:
    shutil.copytree(resolvers.ASSETS / "tiny_world" / asset, folder)
    edit(folder)
    return folder


def without(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def broken(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(BAD)


def in_config(*named: tuple[str, str]) -> Edit:
    def edit(folder: Path) -> None:
        without(folder)
        path = folder / "tokenizer_config.json"
        value = [{"name": name, "template": text} for name, text in named] if len(named) > 1 else named[0][1]
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}))

    return edit


def in_files(**named: str) -> Edit:
    def edit(folder: Path) -> None:
        without(folder)
        (folder / "additional_chat_templates").mkdir()
        for name, text in named.items():
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)

    return edit


FOLDERS: dict[str, tuple[Edit, str | None]] = {
    "as it is": (lambda folder: None, None),
    "none": (without, "has no chat template"),
    "broken": (broken, "has a chat template that does not parse: line 2: unexpected `}`"),
    "in the config": (in_config(("", GOOD)), None),
    "broken in the config": (in_config(("", "{% if %}")), "has a chat template that does not parse: line 1: expected"),
    "several in the config": (in_config(("default", GOOD), ("tool_use", "{% if")), None),
    "files": (in_files(default=GOOD, rag="{% if"), None),
    "no default among the files": (
        in_files(rag=GOOD, tool_use=GOOD),
        "has the chat templates `rag`, `tool_use`, but none is called `default`",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_transformers_would_say(tmp_path: Path, name: str) -> None:
    """The finding and the library agree on every layout that transformers knows."""
    edit, problem = FOLDERS[name]
    folder = policy(tmp_path / "policy", edit)
    found = folder_problem(folder)
    assert (found is None) == (problem is None)
    assert found is None or found.startswith(str(problem))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    own = tokenizer.chat_template
    assert templates_of(folder) == ({} if own is None else own if isinstance(own, dict) else {"default": own})
    conversation = [{"role": "user", "content": "hello"}]
    if problem is None:
        tokenizer.apply_chat_template(conversation, tokenize=False)
    else:
        with pytest.raises(Exception, match=r"chat|template|unexpected|[Ee]xpected"):
            tokenizer.apply_chat_template(conversation, tokenize=False)


def test_what_counts_as_a_template() -> None:
    assert template_fault(GOOD) is None
    fault = template_fault("{{ messages | no_such_filter }}")
    assert fault == "does not parse: line 1: no filter named `no_such_filter`"
    assert template_fault("{% generation %}never ends") is not None
    assert template_fault("{{ raise_exception('not these roles') }}") is None


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "a constant": ("{{ 9 ** (9 ** 9) }}", "does not come to an end"),
    "memory": ("{{ 'x' * 10 ** 10 }}", "does not come to an end"),
    "letters": ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "writes more than 1,048,576 letters"),
    "only in a conversation": ("{% if messages | length > 3 %}" + LOOP + "{% endif %}", "does not come to an end"),
    "depth": ("{{ " + "(" * 20_000, "does not parse"),
}


# Two seconds of the processor each: what takes the most of them is the same case as the others.
SLOW = ("a constant",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.full] * (name in SLOW)) for name in ENDLESS])
def test_a_template_that_never_ends_holds_nobody(name: str) -> None:
    text, said = ENDLESS[name]
    started = time.monotonic()
    fault = template_fault(text)
    assert fault is not None
    assert fault.startswith(said)
    assert time.monotonic() - started < 30  # of the processor it gets 2 s
    assert rendered(text, ("a",), {}) is None or name == "only in a conversation"


def test_a_range_without_end_is_refused_by_the_sandbox_of_all() -> None:
    text = "{% for i in range(10 ** 12) %}{{ i }}{% endfor %}"
    assert template_fault(text) is None
    assert rendered(text, ("a",), {}) is None


def test_the_user_s_modules_are_not_the_trial_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('wrong one')")
    monkeypatch.chdir(tmp_path)
    assert rendered("{{ messages[0].content }}.", ("a",), {"x": 1}) == "a."


KEY = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.model"
CASES = {
    "rlhf": ("policy", "policy.model_name"),
    "rlvr": ("policy_tasks", "policy.model_name"),
    "dpo": ("policy", "policy.model_name"),
    "rm": ("policy", "policy.model_name"),
    "ppo": ("policy", "policy.model_name"),
    "reward_audit": ("judge", KEY),
}


def endless(folder: Path) -> None:
    """Memory is full at once; a loop would take the two seconds that it gets, in every test."""
    (folder / "chat_template.jinja").write_text("{{ messages[0].content * 10 ** 10 }}")


@pytest.mark.parametrize("edit", [without, broken, endless], ids=["none", "broken", "endless"])
@pytest.mark.parametrize("step", CASES)
def test_every_step_says_it(compiled_step: CompileStep, tmp_path: Path, step: str, edit: Edit) -> None:
    asset, key = CASES[step]
    folder = policy(tmp_path / "model", edit, asset)
    plan = compiled_step(step, f"{key}={folder}")
    (finding,) = plan.errors
    assert (finding.name, finding.key, finding.exit_code) == ("chat-template", key, 6)
    assert finding.message.startswith(f"the tokenizer of `{folder}` has ")
    assert finding.hint


def test_the_judge_and_the_audited_reward_model(compiled_step: CompileStep, tmp_path: Path) -> None:
    judge = policy(tmp_path / "judge", without, "judge")
    (finding,) = compiled_step("rlhf", f"{KEY}={judge}").errors
    assert (finding.name, finding.key) == ("chat-template", KEY)
    assert "`chat_template.jinja`" in str(finding.hint)
    reward = policy(tmp_path / "reward", without, "reward_model")
    (finding,) = compiled_step("reward_audit", f"reward_model.path={reward}").errors
    assert (finding.name, finding.key) == ("chat-template", "reward_model.path")


def test_a_template_that_the_config_gives(compiled_step: CompileStep, tmp_path: Path) -> None:
    folder = policy(tmp_path / "model", without)
    (tmp_path / "good.jinja").write_text(GOOD)
    (tmp_path / "bad.jinja").write_text(BAD)
    model = f"policy.model_name={folder}"
    for good in ("good.jinja", "null", "'{{ messages }}'"):
        assert not named(compiled_step("dpo", model, f"policy.tokenizer.chat_template={good}"), "chat-template")
    for bad in ("bad.jinja", "'{{ messages }'"):
        (finding,) = compiled_step("dpo", model, f"policy.tokenizer.chat_template={bad}").errors
        assert (finding.name, finding.key, finding.exit_code) == ("chat-template", "policy.tokenizer.chat_template", 3)


def test_a_preparation_with_tokens(compiled_step: CompileStep, tmp_path: Path) -> None:
    folder = policy(tmp_path / "model", broken)
    tokens = f"tokenizer: {folder}, max_length: 64, on_too_long: reject, pad_to_multiple_of: 1"
    (finding,) = compiled_step("rl_prep", f"tokenize={{{tokens}, chat_template: default}}").errors
    assert (finding.name, finding.key) == ("chat-template", "tokenize.tokenizer")
    (finding,) = compiled_step("rl_prep", f"tokenize={{{tokens}, chat_template: gone.jinja}}").errors
    assert (finding.name, finding.key) == ("chat-template", "tokenize.chat_template")
    assert not compiled_step("rl_prep", f"tokenize={{{tokens}, chat_template: null}}").errors


def test_a_model_that_was_downloaded_since(tmp_path: Path) -> None:
    """What the dry run could not know is an error, not a crash."""
    with pytest.raises(ConfigError, match="does not parse: line 2"):
        Chat.load(str(policy(tmp_path / "model", broken)), "default", None)
    with pytest.raises(ConfigError, match="does not come to an end"):
        Chat.load(str(policy(tmp_path / "endless", endless)), "default", None)
    tokens = {"max_length": 64, "on_too_long": "reject", "pad_to_multiple_of": 1}
    with pytest.raises(ConfigError, match="does not come to an end"):
        Encoder.load(TokenizeConfig.model_validate({"tokenizer": str(tmp_path / "endless"), **tokens}))
    judge = policy(tmp_path / "judge", endless, "judge")
    with pytest.raises(ArtifactError, match="does not come to an end"):
        JudgeModel.load(str(judge), dtype="float32", device="cpu", threads=1)

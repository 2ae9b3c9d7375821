"""What a row becomes for NeMo-RL's data sets, or why it cannot be given to it.

The run writes its rows with these, and the dry run tries them on the rows that it reads: what one of them refuses, the
other does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron.config.schema.judge import JUDGED_AGENT
from nemotron.data.conversations import ConversationRow
from nemotron.data.forms import GYM
from nemotron.data.rows import PromptRow
from nemotron.data.turns import ASSISTANT, refuse
from nemotron.rewards.text import different_golds, gold_problem


@dataclass(frozen=True, slots=True)
class Question:
    """``ResponseDataset``: one turn of a user, and the answer to check with. Its processor shows nothing else."""

    checked: bool
    """Whether the answer is looked at: PPO's reward model reads none."""
    answer_field: str | None = None

    def __call__(self, row: PromptRow) -> dict[str, Any]:
        """The row of NeMo-RL. Raises UnusableRow."""
        if self.checked and gold_problem(row.fields, self.answer_field):
            return {}  # never written: the rewards refuse such a row or leave it out, whatever else it is
        roles = [message["role"] for message in row.messages]
        if roles != ["user"]:
            refuse(
                "roles",
                f"NeMo-RL shows the policy one turn of a user, and this prompt has {', '.join(roles)}",
                "run it with `engine=embedded`, or through NeMo-Gym (`-c nemo_gym`), which takes whole conversations",
            )
        return {"input": row.messages[0]["content"], "output": self._gold(row) if self.checked else ""}

    def _gold(self, row: PromptRow) -> str:
        gold, *others = different_golds(row.fields, self.answer_field)
        if others:
            refuse(
                "several-answers",
                "NeMo-RL's `env.math` knows one right answer, and this row has several",
                "leave one of them, run it with `engine=embedded`, or set `rewards.functions.0.optional=true`: then a "
                "server of ours compares with each",
            )
        return gold


@dataclass(frozen=True, slots=True)
class Learned:
    """``ResponseDataset`` of whole conversations, of which NeMo-RL learns every answer or the last one."""

    only_last: bool

    def __call__(self, row: ConversationRow) -> dict[str, Any]:
        """The row of NeMo-RL. Raises UnusableRow."""
        answers = [i for i, turn in enumerate(row.messages) if turn["role"] == ASSISTANT]
        if not self.only_last and tuple(answers) != row.answers:
            spared = next(i for i in answers if i not in row.answers)
            refuse(
                "unlearned",
                f"NeMo-RL learns every answer of a conversation, and turn {spared + 1} of this one is not to be "
                "learned",
                "set `sft.only_unmask_final=true`, drop the row, or run it with `engine=embedded`",
            )
        return {"messages": row.messages}


@dataclass(frozen=True, slots=True)
class OfGym:
    """``NemoGymDataset``: a row of NeMo-Gym as it is; a prompt of another form becomes one."""

    agent: str | None
    """Who gets a row that names nobody; None: such a row is refused."""

    def __call__(self, row: PromptRow) -> dict[str, Any]:
        """The row of NeMo-RL. Raises UnusableRow."""
        fields = dict(row.fields)
        if fields.get(GYM) is None:
            fields = {**fields, GYM: {"input": row.messages}}
        agent, hint = fields.get("agent_ref"), 'give it `"agent_ref": {"type": "responses_api_agents", "name": ...}`'
        if agent is None and fields.get("task_source") is not None:
            message = "NeMo-Gym 0.4.0 does not know `task_source`, and the row names no agent"
            refuse("no-agent", message, f"{hint} beside it")
        if agent is None and self.agent is None:
            refuse("no-agent", "the row names no agent of NeMo-Gym, and there is none for such rows", hint)
        if agent is None:
            fields["agent_ref"] = {"type": "responses_api_agents", "name": self.agent}
        elif not (isinstance(agent, dict) and isinstance(agent.get("name"), str) and agent["name"]):
            refuse("no-agent", "`agent_ref` names no agent", "write `agent_ref: {type: ..., name: ...}`")
        return fields


OfPrompt = Question | OfGym
Given = OfPrompt | Learned


def given(config: Any) -> Given | None:
    """What the rows of a config become; None where any that can be read can be given: pairs, and rows that a server of
    ours scores, of which its functions say whether they can."""
    if config.section == "sft":
        return Learned(config.sft.only_unmask_final)
    if config.section == "ppo":
        return Question(checked=False)
    if config.section != "grpo":
        return None
    if config.env.should_use_nemo_gym:
        return OfGym(JUDGED_AGENT if config.env.judge_model is not None else None)
    rewards = getattr(config, "rewards", None)
    if rewards is None or not rewards.is_env_math:
        return None
    return Question(checked=True, answer_field=rewards.functions[0].answer_field)

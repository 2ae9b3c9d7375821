"""The reward functions of a config as a resources server, so that NeMo-Gym's agents get the rewards of ``rewards:``.

An answer that a function could not check is missing. NeMo-RL v0.7.0 reads nothing but a number, so such an answer gets
the mean of what the other answers to its prompt got, an advantage of 0, and says ``mask_sample``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron.config.schema.rewards import RewardConfig
from nemotron.gym.gathering import Gathering, IncompleteGroup, Place
from nemotron.gym.protocol import MARK, MISSING, Json
from nemotron.gym.servers import OwnServer
from nemotron.gym.serving import Unfit
from nemotron.judge.responses import read_response
from nemotron.rewards import Scorer, build_rewards
from nemotron.rewards.source import passed

PATIENCE_S = 7200.0


class RewardsServer(OwnServer):
    """One answer is scored by itself, as :class:`nemotron.rewards.source.VerifierSource` does."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises what :func:`nemotron.rewards.build_rewards` raises."""
        self._config = config
        self._scorer: Scorer = build_rewards(config)
        self._groups: dict[int, Gathering[float | None, float]] = {}
        self._told: set[asyncio.Task[Any]] = set()

    async def check(self, row: Mapping[str, Any], text: str, *, ended: bool) -> Json:
        """The weighted sum, and the value of each function."""
        whole = _whole_text(row.get("response"))
        fields = {name: value for name, value in row.items() if name not in ("response", MARK)}
        score = await asyncio.wrap_future(self._scorer.submit(fields, whole, ended=ended))
        missing = score.reward is None
        reward = await self._in_its_group(row.get(MARK), score.reward)
        said = {f"component_{label}": value for label, value in score.components.items() if value is not None}
        return {
            "reward": reward,
            "mask_sample": missing,
            MISSING: float(missing),
            "pass_rate": float(not missing and passed(score, self._config)),
            "failure_kind": "verifier" if missing else None,
            "failure_reason": "; ".join(f"{label}: {why}" for label, why in score.missing.items()) or None,
            **said,
        }

    async def _in_its_group(self, mark: Any, reward: float | None) -> float:
        """The reward; of an answer without one, the mean of the others'."""
        try:
            key, size = mark["id"], int(mark["group"])
        except (TypeError, KeyError, ValueError):
            raise Unfit(f"`{MARK}` of the row does not say which row it is") from None
        if size < 2:
            return reward or 0.0
        group = self._groups.setdefault(size, Gathering(size, _mean, patience_s=PATIENCE_S))
        joined = asyncio.get_running_loop().create_task(group.join(Place(key), reward))
        if reward is None:
            return (await joined)[1]
        # It need not wait for the others, but those may need it.
        self._told.add(joined)
        joined.add_done_callback(self._forget)
        return reward

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._told.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, IncompleteGroup):
            raise error

    def close(self) -> None:
        """End the processes of the functions."""
        for group in self._groups.values():
            group.close()
        self._scorer.close()


async def _mean(rewards: Sequence[float | None]) -> float:
    found = [reward for reward in rewards if reward is not None]
    return sum(found) / len(found) if found else 0.0


def _whole_text(response: Any) -> str:
    """What the policy said, thinking included: functions look at both."""
    read = read_response(response)
    return f"<think>{read.reasoning}</think>{read.answer}" if read.reasoning else read.answer

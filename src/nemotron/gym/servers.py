"""Resources servers of our own that speak NeMo-Gym's protocol: ``math`` and ``mcqa``. Loopback, no model.

They stand in for NeMo-Gym's servers of the same names where those are not installed: same requests, same answers.
Where NeMo-Gym's math server scores a check that did not finish with 0, ours masks the sample.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from nemotron.config.schema.gym import GymConfig, ServerKind
from nemotron.config.schema.rewards import RewardConfig
from nemotron.gym.mcqa import LETTER_CODES, MODES
from nemotron.gym.protocol import Json, output_text
from nemotron.gym.serving import Unfit, routes
from nemotron.processes.loop_thread import LoopThread
from nemotron.rewards import Scorer, build_rewards

START_TIMEOUT_S = 30.0
_CLIENT_GONE_S = 1.0


class OwnServer:
    """One aiohttp application; ``check`` of a subclass gives the fields that it adds to the request."""

    needs: tuple[str, ...] = ()
    """Fields of a row that must be texts."""

    async def check(self, row: Mapping[str, Any], text: str, *, ended: bool) -> Json:
        """``reward`` and what else the server says."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the checks hold."""

    def application(self) -> web.Application:
        """The routes of a resources server."""
        return routes(self._verify)

    async def _verify(self, body: Json) -> Json:
        if not isinstance(body.get("responses_create_params"), dict):
            raise Unfit("`responses_create_params` is missing")
        response = body.get("response")
        text = output_text(response)
        if text is None or not isinstance(response, dict):
            raise Unfit("`response` is no Responses-API object")
        for name in self.needs:
            if not isinstance(body.get(name), str):
                raise Unfit(f"`{name}` is missing")
        ended = response.get("incomplete_details") is None
        return {**body, **await self.check(body, text, ended=ended)}


class MathServer(OwnServer):
    """``math_with_judge`` without a judge: is the answer equal to ``expected_answer``?"""

    needs = ("question", "expected_answer")

    def __init__(self) -> None:
        config = {"functions": [{"name": "math"}]}
        self._scorer: Scorer = build_rewards(RewardConfig.model_validate(config))

    async def check(self, row: Mapping[str, Any], text: str, *, ended: bool) -> Json:
        """1.0 or 0.0; a check that does not finish masks the sample."""
        score = await asyncio.wrap_future(self._scorer.submit(row, text, ended=ended))
        if score.reward is None:
            reason = "; ".join(score.missing.values())
            return {"reward": 0.0, "mask_sample": True, "failure_kind": "verifier", "failure_reason": reason}
        return {"reward": score.reward, "library_reward": score.reward, "judge_evaluations": None}

    def close(self) -> None:
        """End the processes of math-verify."""
        self._scorer.close()


class McqaServer(OwnServer):
    """``mcqa``: the letter of a multiple-choice answer, by the rule of NeMo-Gym 0.7.0."""

    needs = ("expected_answer",)
    rule = "nemotron.gym.mcqa:letter_code"

    def __init__(self) -> None:
        # Rows bring patterns of their own (`output_regex`), so the letter is read in a process that can be killed.
        config = {"functions": [{"name": "user", "label": "letter", "function": self.rule}]}
        self._scorer: Scorer = build_rewards(RewardConfig.model_validate(config))

    async def check(self, row: Mapping[str, Any], text: str, *, ended: bool) -> Json:
        """1.0 or 0.0, and the letter that was read; a pattern that does not end masks the sample."""
        mode = row.get("grading_mode")
        if mode and mode not in MODES:
            raise Unfit(f"`grading_mode` is `{mode}`, not one of {', '.join(MODES)}")
        gold = row["expected_answer"].strip().upper()
        code = (await asyncio.wrap_future(self._scorer.submit(row, text, ended=ended))).components["letter"]
        if code is None:
            reason = "its answer could not be read in time"
            return {"reward": 0.0, "mask_sample": True, "failure_kind": "verifier", "failure_reason": reason}
        letter = chr(round(code * LETTER_CODES)) if code else None
        return {
            "reward": float(bool(gold) and letter == gold),
            "expected_answer": gold,
            "extracted_answer": letter,
        }

    def close(self) -> None:
        """End the processes that read letters."""
        self._scorer.close()


class OldMcqaServer(McqaServer):
    """``mcqa_0_4_0``: by the rule of NeMo-Gym 0.4.0."""

    rule = "nemotron.gym.mcqa_old:letter_code"


KINDS: dict[ServerKind, type[OwnServer]] = {"math": MathServer, "mcqa": McqaServer, "mcqa_0_4_0": OldMcqaServer}


class OwnServers:
    """Runs the servers of a config that have no address, in a thread of this process, on loopback.

    Example: ``with OwnServers(config) as own: own.addresses`` has the address of *every* server of the config.
    """

    def __init__(self, config: GymConfig) -> None:
        self.addresses: dict[str, str] = {n: s.base_url for n, s in config.servers.items() if s.base_url is not None}
        self._kinds: dict[str, ServerKind] = {n: s.kind for n, s in config.servers.items() if s.kind is not None}
        self._background = LoopThread("gym-servers")
        self._runners: list[web.AppRunner] = []
        self._servers: list[OwnServer] = []

    def __enter__(self) -> Self:
        if self._kinds:
            self._background.start()
            try:
                for name, kind in self._kinds.items():
                    server = KINDS[kind]()
                    self._servers.append(server)
                    self.addresses[name] = self._background.run(self._serve(server)).result(START_TIMEOUT_S)
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving. May be called more than once."""
        self._background.close(self._stop)
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _serve(self, server: OwnServer) -> str:
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=_CLIENT_GONE_S)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

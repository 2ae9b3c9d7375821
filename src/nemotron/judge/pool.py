"""Judges groups in the background, while the loop goes on computing."""

from __future__ import annotations

import concurrent.futures
from types import TracebackType
from typing import Self

from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Endpoint, Keeper
from nemotron.judge.groups import JudgeSettings, judge_group
from nemotron.judge.support import wait_until_asked
from nemotron.judge.types import GroupRequest, GroupResult
from nemotron.processes.loop_thread import LoopThread


class JudgePool:
    """An event loop in a thread of its own with one client in it.

    Entering waits until the endpoint is ready and serves the model (JudgeError otherwise). Leaving cancels what is
    still being judged and returns at once.

    Example::

        with running_judge(model_config, judge_config, place) as judge:
            with JudgePool(judge.wait(print), settings, keeper=judge) as pool:
                futures = [pool.submit(group, seed=derive_seed(run_seed, step, g)) for g, group in enumerate(groups)]
                ...  # log-probabilities meanwhile
                results = [future.result() for future in futures]
    """

    def __init__(self, endpoint: Endpoint, settings: JudgeSettings, *, keeper: Keeper | None = None) -> None:
        """``keeper``: see ``JudgeClient``; a judge that ``running_judge`` gives is one."""
        self._endpoint = endpoint
        self._keeper = keeper
        self._settings = settings
        self._background = LoopThread("judge-client")
        self._client: JudgeClient | None = None

    def __enter__(self) -> Self:
        self._background.start()
        try:
            self._background.run(self._open()).result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self, request: GroupRequest, *, seed: int, settings: JudgeSettings | None = None
    ) -> concurrent.futures.Future[GroupResult]:
        """Start judging a group, with other settings than the pool's where these are given.

        The future raises JudgeError when the judge refuses or does not answer.
        ``seed`` should be derived from run seed, step and group (``derive_seed``), so that a resumed run asks the same.
        """
        if self._client is None:
            raise RuntimeError("JudgePool.submit is called outside of its `with` block")
        return self._background.run(judge_group(self._client, request, settings or self._settings, seed=seed))

    def close(self) -> None:
        """Cancel everything in flight and stop the thread. May be called more than once."""
        self._background.close(self._leave)
        self._client = None

    async def _open(self) -> None:
        self._client = JudgeClient(self._endpoint, self._settings.requests, keeper=self._keeper)
        await self._client.__aenter__()
        await wait_until_asked(self._client, self._settings)

    async def _leave(self) -> None:
        if self._client is not None:
            await self._client.__aexit__(None, None, None)

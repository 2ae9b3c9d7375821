"""The entries of the embedded engine: what has to happen before torch is imported, then the loop's own module.

Nothing here imports torch: its libraries read the thread environment once, when they are loaded. A helper process
(judge, critic) starts first: it loads its models on its own core while this process imports torch and loads the policy.
"""

from __future__ import annotations

from nemotron.config.schema.dpo import DpoRunConfig
from nemotron.config.schema.extras import JudgedGrpoConfig
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.config.schema.ppo import PpoMasterConfig
from nemotron.config.schema.rm import RmRunConfig
from nemotron.config.schema.sft import SftRunConfig
from nemotron.config.schema.verified import VerifiedGrpoConfig
from nemotron.engines.base import Attempt
from nemotron.rl.threads import ThreadPlan, plan_threads, set_environment


def judged_grpo(attempt: Attempt) -> None:
    """GRPO with a judge, served by a child process or elsewhere. Raises NemotronError of every kind."""
    # The judge's client needs aiohttp, which an install that only proves configs does not have.
    from nemotron.judge.local import running_judge

    config = attempt.settings(JudgedGrpoConfig)
    model = config.env.required_judge(attempt.secrets.get(f"{JUDGE_MODEL}.api_key"))
    threads = _threads(helper=config.judge.server_threads if model.base_url is None else 0)
    place, log = attempt.job.place, attempt.logs / "judge.log"
    with running_judge(model, config.judge, place, beside_policy=True, log_path=log) as judge:
        from nemotron.engines.embedded.grpo import run_judged

        run_judged(attempt, config, judge, threads)


def verified_grpo(attempt: Attempt) -> None:
    """GRPO with reward functions in worker processes, or with servers over HTTP. Raises NemotronError of every kind."""
    config = attempt.settings(VerifiedGrpoConfig)
    threads = _threads()
    from nemotron.engines.embedded.grpo import run_verified

    run_verified(attempt, config, threads)


def dpo(attempt: Attempt) -> None:
    """DPO. Raises NemotronError of every kind."""
    config = attempt.settings(DpoRunConfig)
    threads = _threads()
    from nemotron.engines.embedded.dpo import run_dpo

    run_dpo(attempt, config, threads)


def reward_model(attempt: Attempt) -> None:
    """Reward model training. Raises NemotronError of every kind."""
    config = attempt.settings(RmRunConfig)
    threads = _threads()
    from nemotron.engines.embedded.rm import run_reward_model

    run_reward_model(attempt, config, threads)


def sft(attempt: Attempt) -> None:
    """Supervised fine-tuning. Raises NemotronError of every kind."""
    config = attempt.settings(SftRunConfig)
    threads = _threads()
    from nemotron.engines.embedded.sft import run_sft

    run_sft(attempt, config, threads)


def ppo(attempt: Attempt) -> None:
    """PPO: the actor with its critic, or one side of the two. Raises NemotronError of every kind."""
    from nemotron.engines.embedded import critic

    config = attempt.settings(PpoMasterConfig)
    if config.only == "critic":
        critic.serve(attempt, config)
        return
    threads = _threads(helper=critic.threads_beside(config))
    with critic.running(attempt, config, threads) as running:
        from nemotron.engines.embedded.ppo import run_ppo

        run_ppo(attempt, config, running, threads)


def _threads(helper: int = 0) -> ThreadPlan:
    """Share the cores with a helper process of so many threads, and tell torch's libraries before they are loaded."""
    threads = plan_threads(helper=helper)
    set_environment(threads.policy)
    return threads

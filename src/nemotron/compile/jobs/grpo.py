"""What the preflight knows of a GRPO job: with a judge, and with rewards that can be verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nemotron.compile.gpus import judge_gpus, judge_nodes
from nemotron.compile.jobs import measured
from nemotron.compile.jobs.policy_gradient import PolicyGradientJob
from nemotron.compile.jobs.step import ModelRef, NumberType
from nemotron.compile.plan import Process
from nemotron.compile.secrets import shown_address
from nemotron.config.schema.extras import GrpoRunConfig, JudgedGrpoConfig
from nemotron.config.schema.judge import JUDGE_MODEL, GenrmCompareConfig, GenrmModelConfig, JudgeConfig
from nemotron.config.schema.verified import VerifiedGrpoConfig
from nemotron.judge.serving import served_beside
from nemotron.vllm.where import program_of

TEMPLATE_HINT = "put the chat template that it was trained with beside its tokenizer, as `chat_template.jinja`"
G = TypeVar("G", bound=GrpoRunConfig, covariant=True)

NODE_GPUS = 8
"""Of the nodes that NeMo-RL is made for."""


@dataclass(frozen=True)
class GrpoJob(PolicyGradientJob[G]):
    """GRPO, wherever its rewards come from."""

    def processes(self) -> Iterator[Process]:
        """The policy, and a vLLM that samples from it."""
        yield from super().processes()
        sampler = self.config.sampler
        if self.engine == "embedded" and sampler.server == "vllm":
            program = program_of(sampler.vllm_command, self.place) or sampler.vllm_command or "vllm"
            yield Process(
                "sampler",
                f"child process: `{program} serve` at a socket, with the weights of every step; log-probabilities "
                f"compared with the policy's every {sampler.check_period} steps",
            )

    @property
    def estimator(self) -> str:
        """`grpo.adv_estimator`."""
        return self.config.grpo.estimator.name

    @property
    def lonely_estimators(self) -> Sequence[str]:
        """The reward itself, and teachers."""
        return ("raw_reward", "opd")

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What GRPO measures in a step of this config."""
        grpo = self.config.grpo
        optional = {
            "num_masked_seqs_by_logprob_error": grpo.seq_logprob_error_threshold is not None,
            "reward_clamped_share": grpo.reward_scaling.enabled,
        }
        return (*measured.GRPO, *(name for name, on in optional.items() if on))

    @property
    def advantage_range(self) -> tuple[float | None, float | None]:
        """What advantages are clipped to."""
        return self.config.grpo.advantage_clip_low, self.config.grpo.advantage_clip_high

    @property
    def samples_asynchronously(self) -> bool:
        """Asynchronous GRPO."""
        return bool(self.config.grpo.async_grpo and self.config.grpo.async_grpo.enabled)

    def missing_features(self) -> Iterator[tuple[str, str, object]]:
        """What GRPO in NeMo-RL can and the embedded engine cannot."""
        grpo = self.config.grpo
        gym = self.config.env.nemo_gym
        checks = (
            ("grpo.async_grpo.enabled", "asynchronous GRPO", grpo.async_grpo and grpo.async_grpo.enabled),
            ("grpo.max_rollout_turns", "rollouts of several turns", grpo.max_rollout_turns != 1),
            ("grpo.adv_estimator.name", "teachers", grpo.adv_estimator and grpo.adv_estimator.name == "opd"),
            (
                "env.nemo_gym.is_trajectory_collection",
                "collection of rollouts without training",
                gym and gym.is_trajectory_collection,
            ),
            (
                "grpo.invalid_tool_call_advantage",
                "penalty for tool calls",
                grpo.invalid_tool_call_advantage is not None,
            ),
            (
                "grpo.malformed_thinking_advantage",
                "penalty for malformed thinking",
                grpo.malformed_thinking_advantage is not None,
            ),
        )
        yield from checks

    def missing_in_nemo_rl(self) -> Iterator[tuple[str, str, str]]:
        """The reward itself as the advantage."""
        yield from super().missing_in_nemo_rl()
        if self.estimator == "raw_reward":
            message = "NeMo-RL's GRPO has no estimator `raw_reward`"
            yield "grpo.adv_estimator.name", message, "set it to `grpo` or `reinforce_plus_plus`, or `engine=embedded`"


AnyGrpoJob = GrpoJob[GrpoRunConfig]


@dataclass(frozen=True)
class JudgedJob(GrpoJob[JudgedGrpoConfig]):
    """GRPO whose rewards come from a judge."""

    @property
    def judge_model(self) -> GenrmModelConfig | None:
        """NeMo-Gym's block."""
        return self.config.env.judge_model

    @property
    def comparison(self) -> GenrmCompareConfig | None:
        """NeMo-Gym's block."""
        return self.config.env.comparison

    @property
    def judge_settings(self) -> JudgeConfig:
        """``judge``."""
        return self.config.judge

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """The judge's scores, before bonuses."""
        return self.config.judge.scale

    def number_types(self) -> Iterator[NumberType]:
        """The policy's, and the judge's where we serve it."""
        yield from super().number_types()
        judge = self.judge_model
        if judge and judge.base_url is None:
            yield NumberType("judge.dtype", self.config.judge.dtype)

    def models(self) -> Iterator[ModelRef]:
        """The policy, and the judge where we serve it."""
        yield from super().models()
        judge = self.judge_model
        if judge and judge.base_url is None:
            yield ModelRef("judge", f"{JUDGE_MODEL}.model", judge.model, template_hint=TEMPLATE_HINT)

    def processes(self) -> Iterator[Process]:
        """The policy and its judge."""
        yield from super().processes()
        model = self.judge_model
        if model is None or self.judge_form is None:
            return
        told = self.judge_form.told
        if self.engine != "embedded":
            who = "our server under NeMo-Gym" if self.our_servers_reward else "NeMo-Gym's genrm_compare"
            yield Process("comparison", f"{who}, beside the driver")
        if model.base_url is not None:
            yield Process("judge", f"endpoint {shown_address(model.base_url)}, {told}")
        elif self.judge_serving is not None:
            yield Process("judge", f"{self.judge_serving.told}, {told}")
        elif served_beside(model, self.config.judge):
            gpus = judge_gpus(model) if self.place.judge_gpus != 0 else 0
            where = f"`vllm serve` on a machine besides `cluster`, which `judge` of the profile names: {gpus} GPU(s)"
            yield Process("judge", f"{where}, {told}")
        else:
            gpus, nodes, cluster = judge_gpus(model), judge_nodes(self.config), self.config.cluster
            yield Process("judge", f"NeMo-Gym's genrm_model: vLLM on {gpus} GPU(s) of its own")
            if cluster.num_nodes == 1 and cluster.gpus_per_node + gpus <= NODE_GPUS:
                where = f"1 node: {cluster.gpus_per_node} GPUs to train (`cluster.gpus_per_node`), {gpus} for the judge"
            else:
                where = (
                    f"{cluster.num_nodes + nodes} nodes of {cluster.gpus_per_node} GPUs: {cluster.num_nodes} to train "
                    f"(`cluster.num_nodes`), {nodes} more for the judge"
                )
            yield Process("allocation", where)

    @property
    def our_servers_reward(self) -> bool:
        """Unless NeMo-Gym's own server compares."""
        return self.config.judge.comparison_server == "nemotron"

    @property
    def gym_asks_the_judge(self) -> bool:
        """Unless our server asks an endpoint elsewhere, as the embedded engine does."""
        model = self.judge_model
        elsewhere = model is not None and (model.base_url is not None or served_beside(model, self.config.judge))
        return self.engine == "nemo_rl" and not (self.our_servers_reward and elsewhere)

    def missing_in_nemo_rl(self) -> Iterator[tuple[str, str, str]]:
        """How a judge is asked there, and what counts as its verdict."""
        yield from super().missing_in_nemo_rl()
        if self.config.judge.score_range is not None and not self.our_servers_reward:
            message = "NeMo-Gym takes verdicts of any scale"
            yield "judge.score_range", message, "set `judge.score_range=null`, or `judge.comparison_server=nemotron`"
        if not self.gym_asks_the_judge:
            return
        if self.config.judge.server == "vllm" and not self.our_servers_reward and self.judge_model is not None:
            message = "NeMo-Gym's own comparison asks no other judge than the one that NeMo-Gym serves"
            yield "judge.server", message, "set `judge.server=auto`, or `judge.comparison_server=nemotron`"
        if self.config.judge.server == "embedded":
            message = "the judge is served by the vLLM that NeMo-Gym starts"
            yield "judge.server", message, "set `judge.server=auto`"
        if self.config.judge.prompt == "instruct":
            message = "a judge that NeMo-Gym serves is asked in the roles of a GenRM only"
            yield "judge.prompt", message, f"set `judge.prompt=auto`, or `{JUDGE_MODEL}.base_url`"
        if self.config.judge.verdict in ("schema", "logits"):
            message = "verdicts of a judge that NeMo-Gym serves are read from text only"
            yield "judge.verdict", message, f"set `judge.verdict=auto`, or `{JUDGE_MODEL}.base_url`"

    @property
    def judge_tokens(self) -> tuple[int | None, int | None]:
        """A prompt and two answers a question, and a verdict with what is thought before it."""
        block, generation = self.comparison, self.config.policy.generation
        if block is None or generation is None:
            return None, None
        calls, answer = self.judge_calls, generation.max_new_tokens
        prompt = max(0, self.config.policy.max_total_sequence_length - answer)
        return calls * (prompt + 2 * answer), calls * block.genrm_responses_create_params.max_output_tokens

    @property
    def judge_calls(self) -> int:
        """Judge requests of one step when every verdict can be read."""
        block, grpo = self.config.env.comparison, self.config.grpo
        group = grpo.num_generations_per_prompt
        if block is None or group < 2:
            return 0
        pairs = group if block.comparison_strategy == "circular" else group * (group - 1) // 2
        # Two scores are two questions.
        questions = 2 if self.judge_form is not None and self.judge_form.verdict == "logits" else 1
        return questions * pairs * block.num_judges_per_comparison * grpo.num_prompts_per_step


@dataclass(frozen=True)
class VerifiedJob(GrpoJob[VerifiedGrpoConfig]):
    """GRPO with reward functions or resources servers."""

    scores_rows = True

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """GRPO's, and the share of answers that pass."""
        return (*super().train_metrics, "pass_rate")

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Least and greatest reward of the functions; a server may give anything."""
        rewards = self.config.rewards
        if rewards is None:
            return None
        weights = [function.weight for function in rewards.functions]
        return sum(min(weight, 0.0) for weight in weights), sum(max(weight, 0.0) for weight in weights)

    @property
    def our_servers_reward(self) -> bool:
        """Where NeMo-RL's own ``env.math`` does not do the same."""
        rewards = self.config.rewards
        return bool(rewards and not self.config.env.should_use_nemo_gym and not rewards.is_env_math)

    def _missing_in_gym(self) -> Iterator[tuple[str, str, str]]:
        """What rollouts through NeMo-Gym's agent cannot do."""
        generation, data = self.config.policy.generation, self.config.data
        why, hint = "rewards other than `env.math` go through NeMo-Gym, whose requests", "set it to null"
        if generation is not None and generation.top_k not in (None, -1):
            yield "policy.generation.top_k", f"{why} cannot carry `top_k`", hint
        for name in ("stop_strings", "stop_token_ids"):
            if generation is not None and getattr(generation, name):
                yield f"policy.generation.{name}", f"{why} cannot carry `{name}`", hint
        if self.config.grpo.max_rollout_turns != 1:
            yield "grpo.max_rollout_turns", f"{why} are one turn each", "set it to 1"
        for name in ("prompt_file", "system_prompt_file"):
            if data.default is not None and getattr(data.default, name):
                yield f"data.default.{name}", f"{why} carry a row's own prompt", hint

    def processes(self) -> Iterator[Process]:
        """The policy, and where rewards are computed."""
        yield from super().processes()
        if self.config.rewards is not None:
            labels = ", ".join(function.shown for function in self.config.rewards.functions)
            where = "in worker processes on this machine"
            if self.engine != "embedded":
                where = "our server under NeMo-Gym" if self.our_servers_reward else "NeMo-RL's `env.math`"
            yield Process("rewards", f"{labels}: {where}")
        for name, server in (self.config.gym.servers if self.config.gym else {}).items():
            place = (
                f"server {shown_address(server.base_url)}"
                if server.base_url
                else f"our own `{server.kind}` server on loopback"
            )
            yield Process(f"server {name}", place)

    def missing_in_nemo_rl(self) -> Iterator[tuple[str, str, str]]:
        """NeMo-RL's own environment checks mathematics; other functions run as our resources server under NeMo-Gym."""
        yield from super().missing_in_nemo_rl()
        config = self.config
        through_gym = bool(config.env.should_use_nemo_gym)
        functions = config.rewards.functions if config.rewards else ()
        if through_gym and functions:
            message = "NeMo-Gym's servers give the rewards, and `rewards` is not read"
            yield "rewards", message, "set `rewards=null`, or `env.should_use_nemo_gym=false`"
            return
        if self.our_servers_reward:
            yield from self._missing_in_gym()
        if not functions and not through_gym:
            message = "NeMo-RL asks resources servers through NeMo-Gym only"
            yield (
                "env.should_use_nemo_gym",
                message,
                "set it to true; `-c nemo_gym` has the servers",
            )
        for name, server in (config.gym.servers if config.gym else {}).items():
            if server.base_url:
                key = f"gym.servers.{name}.base_url"
                yield key, "NeMo-RL starts the servers of `env.nemo_gym` and asks no other", "name it there instead"

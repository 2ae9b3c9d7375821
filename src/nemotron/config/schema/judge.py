"""The judge's part of the config: our ``judge:`` section and NeMo-Gym's two genrm blocks."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, FiniteFloat, SecretStr

from nemotron.config.schema.base import Open, Strict
from nemotron.config.schema.fields import Count, DiskPath, Omittable, OnDisk, Probability

JUDGE_MODEL = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
"""Key of the block that says which model judges."""
JUDGED_AGENT = "genrm_simple_agent"
"""NeMo-Gym's agent whose answers the judge compares: rows without an agent of their own are for it."""
DEFAULT_PRINCIPLE = (
    "Prefer the response that is correct and helpful, answers what was asked, and is clear without needless words."
)
"""Used when ``use_principle`` is on and neither the row nor the config names one. Our wording; NeMo-Gym has its own."""


def _ascending(bounds: list[float]) -> list[float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("the lowest score comes first, and the highest is above it")
    return bounds


class JudgeConfig(Strict):
    """How the judge is asked and, where we serve it ourselves, how it is served."""

    server: Literal["auto", "vllm", "embedded", "external"] = "auto"
    """Who serves the judge. ``vllm``: the run starts `vllm serve` with ``vllm_serve_kwargs`` of the genrm block and
    keeps it running. ``embedded``: our own server. ``external``: whoever answers at ``base_url``. ``auto``:
    ``external`` with a ``base_url``, ``vllm`` where it is installed and a GPU is visible, else ``embedded``. Under
    NeMo-RL, ``auto`` is the vLLM that NeMo-Gym starts on GPUs of the Ray cluster, and ``vllm`` a `vllm serve` on the
    machine that `judge` of a Slurm profile names."""
    vllm_command: Annotated[str | None, OnDisk()] = None
    """The program `vllm`, or the folder of the environment that has it; null looks on PATH and beside this Python."""
    max_restarts: int = Field(default=3, ge=0)
    """How often in a run vLLM is started again when it has died. What it was being asked is asked again, and costs no
    try of ``max_retries``."""
    request_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds one request may take in all, from connecting to the last byte."""
    max_retries: int = Field(default=5, ge=0)
    """Further tries of a request after a connection failure, a timeout, 429 or 5xx, with growing, jittered pauses."""
    max_concurrent_requests: int = Field(default=64, ge=1)
    """Requests in flight at once."""
    ready_timeout_s: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Seconds to wait until the judge answers its first probe. ``auto``: 180, and 1800 for a vLLM that the run starts,
    which may compile a large model."""
    max_batch_size: int = Field(default=64, ge=1)
    """Requests that our own server, or the vLLM that we start, decodes together. No effect on an external endpoint."""
    dtype: Literal["auto", "float32", "float64", "bfloat16"] = "auto"
    """Precision of the judge that we serve. ``auto``: on our own server float64 below 50M parameters, so that a verdict
    does not depend on which requests shared its batch, above that bfloat16 on a GPU and float32 on a CPU; vLLM computes
    in float32 below 50M parameters and on a CPU, else as the model is stored. No effect on an external endpoint."""
    threads: Literal["auto"] | int = "auto"
    """CPU threads of the judge that we serve; ``auto`` is 1. No effect on an external endpoint."""

    score_range: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2), AfterValidator(_ascending)] | None = (
        None
    )
    """Lowest and highest score that count, e.g. ``[1, 5]``: a verdict with another is asked for again and then missing.
    null takes every number that float32 can add up, as NeMo-Gym does. ``judge/out_of_scale`` counts either way."""

    comparison_server: Literal["nemotron", "nemo_gym"] = "nemotron"
    """Who compares under NeMo-Gym (engine ``nemo_rl``): our resources server, or its own ``genrm_compare``, which loses
    comparisons of answers that arrive apart and gives an answer without one the default score (0.4.0)."""
    group_timeout_s: float = Field(default=7200.0, gt=0)
    """Seconds that the first answer of a group waits for the last one under NeMo-Gym; then the run fails, where
    ``genrm_compare`` would wait for ever."""
    prompt: Literal["auto", "genrm", "instruct"] = "auto"
    """How the judge is asked. ``genrm``: NeMo-Gym's roles ``principle``, ``response_1``, ``response_2``, which the chat
    template of a GenRM knows. ``instruct``: one turn of the user, which every instruct model reads. ``auto``:
    ``instruct`` for a model whose chat template can be seen and knows no such roles, else ``genrm``."""
    instruct_template: Annotated[str | None, OnDisk()] = None
    """Jinja file that writes the turn of ``prompt: instruct``; null takes the shipped ``judge/instruct.jinja``."""
    verdict: Literal["auto", "text", "schema", "logits"] = "auto"
    """How the judge answers. ``text``: as it likes, and the verdict is looked for in it. ``schema``: decoding is held
    to the verdict's JSON schema. ``logits``: one token a score, and the expectation over the scores' probabilities.
    ``auto``: ``text`` of a GenRM; of an instruct model ``logits`` where we serve it, ``schema`` where others do."""

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest score that the judge is asked for."""
        return (self.score_range[0], self.score_range[1]) if self.score_range else (1.0, 5.0)

    @property
    def ready_s(self) -> float:
        """Seconds to wait for our own server, or for one that somebody else has started."""
        return 180.0 if self.ready_timeout_s == "auto" else self.ready_timeout_s

    @property
    def vllm_ready_s(self) -> float:
        """Seconds to wait for a vLLM that the run starts."""
        return 1800.0 if self.ready_timeout_s == "auto" else self.ready_timeout_s

    @property
    def server_threads(self) -> int:
        """CPU threads of our own server as a number."""
        return 1 if self.threads == "auto" else self.threads


class JudgeProbeConfig(Strict):
    """Known pairs that the judge is asked about before anything else: below the limits the run does not start."""

    enabled: bool = True
    """Probe the judge when a run starts; ``--probe-judge`` and ``--no-probe-judge`` set it."""
    data_path: DiskPath | None = None
    """JSONL file of preference pairs; null takes the shipped ones, everyday questions with good, bad, equal and
    adversarial answers."""
    pairs: int = Field(default=16, ge=1)
    """Pairs from the beginning of the file; each is asked about in both orders."""
    min_verdicts: Probability = 0.9
    """Smallest share of comparisons that must have a verdict."""
    min_agreement: Probability = 0.6
    """Smallest share of labelled pairs whose better answer the judge must prefer; a tie counts half."""
    min_consistency: Probability = 0.5
    """Smallest share of pairs that must have no other winner when the order changes."""


class ProbedJudgeConfig(JudgeConfig):
    """A judge that a run trains with."""

    probe: JudgeProbeConfig = JudgeProbeConfig()
    """What it must be able to do before the run starts."""


class VllmServeKwargs(Open):
    """``vllm_serve_kwargs``: arguments of ``vllm serve``. Those that say how many GPUs it takes are typed."""

    tensor_parallel_size: Omittable[Count] = None
    """GPUs that share every layer."""
    pipeline_parallel_size: Omittable[Count] = None
    """Groups of GPUs that have layers of their own."""
    data_parallel_size: Omittable[Count] = None
    """Copies of the judge."""

    @property
    def settings(self) -> dict[str, Any]:
        """What is written, by the names of vLLM's Python arguments."""
        return self.model_dump(exclude_unset=True)

    @property
    def gpus(self) -> int:
        """GPUs that it takes."""
        return math.prod(
            size or 1 for size in (self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size)
        )


class GenrmModelConfig(Open):
    """``env.nemo_gym.genrm_model.responses_api_models.vllm_model``: which model judges, and where it answers."""

    model: Annotated[str, OnDisk(or_name=True, unless="base_url")]
    """Name the endpoint serves it under; without ``base_url``, the folder of a ``checkpoint_hf`` or a hub name."""
    base_url: str | None = None
    """OpenAI-compatible endpoint up to and including ``/v1``. None: we serve ``model`` ourselves on this machine."""
    api_key: SecretStr | None = None
    """Bearer token for the endpoint. Never written to a run folder."""
    vllm_serve_kwargs: Omittable[VllmServeKwargs] = None
    """Settings of the vLLM that serves the judge, by the names of its Python arguments: ``tensor_parallel_size``,
    ``max_model_len``, ``gpu_memory_utilization``, ``structured_outputs_config`` ... NeMo-Gym reads them on a cluster,
    and `judge.server=vllm` here."""
    vllm_serve_env_vars: dict[str, str] | None = None
    """Environment variables of that vLLM."""
    supports_principle_role: bool = True
    """Whether the judge's chat template knows the role ``principle``; without it the principle is not sent."""


class GenrmResponsesCreateParams(Open):
    """Sampling of the judge's own text."""

    max_output_tokens: int = Field(default=1024, ge=1)
    """Tokens the judge may write for one verdict."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy: equal questions get equal verdicts."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the judge's sampling; no effect at temperature 0."""


class GenrmCompareConfig(Open):
    """``env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare``: pairs and reward."""

    num_rollouts_per_prompt: int = Field(default=1, ge=1)
    """Group size; has to equal ``grpo.num_generations_per_prompt``."""
    genrm_responses_create_params: GenrmResponsesCreateParams = GenrmResponsesCreateParams()
    """How the judge samples."""
    comparison_strategy: Literal["circular", "all_pairs"] = "circular"
    """``circular``: each response meets the next, N comparisons. ``all_pairs``: N(N-1)/2."""
    num_judges_per_comparison: int = Field(default=1, ge=1)
    """How often each pair is judged; verdicts are averaged."""
    use_principle: bool = False
    """Send a principle: the row's, else ``default_principle``."""
    default_principle: str = DEFAULT_PRINCIPLE
    """Principle for rows without one."""
    aggregator_method: Literal["simple_tiebreaker"] = "simple_tiebreaker"
    """Mean score per response; equal scores are parted by the ranking."""
    reasoning_bonus: float = 0.0
    """Added to the shortest non-empty reasoning if that response is among the top. Off at 0 or below."""
    answer_bonus: float = 0.0
    """Added to the shortest non-empty answer if that response is among the top. Off at 0 or below."""
    top_percentile: float = Field(default=0.2, ge=0, le=1)
    """Share of the group that counts as top for the bonuses; at least the best score."""
    group_reasoning_length_penalty_coeff: float = 0.0
    """Weight of shorter-than-the-group reasoning. Off at 0 or below."""
    group_answer_length_penalty_coeff: float = 0.0
    """Weight of shorter-than-the-group answers. Off at 0 or below."""
    group_style_penalty_coeff: float = 0.0
    """Weight of answers with less markup per character (headers, lists, bold, emoji) than the group. Off at 0."""
    default_score: float | None = None
    """For a score that a verdict leaves out. null: a verdict has both scores, or it is missing. NeMo-Gym has 3.0, which
    lets half a verdict choose the winner."""
    default_ranking: float = 3.5
    """For a ranking that a verdict leaves out."""
    genrm_parse_retries: int = Field(default=3, ge=0)
    """How often an answer without a verdict is asked for again, each time with another seed."""
    genrm_parse_retry_sleep_s: float = Field(default=0.2, ge=0)
    """Seconds before asking again."""


class GenrmModelTypes(Open):
    """``genrm_model.responses_api_models``: the kinds of model server."""

    vllm_model: GenrmModelConfig
    """Any OpenAI-compatible endpoint."""


class GenrmModelServer(Open):
    """``env.nemo_gym.genrm_model``."""

    responses_api_models: GenrmModelTypes


class GenrmCompareTypes(Open):
    """``genrm_compare_resources_server.resources_servers``."""

    genrm_compare: GenrmCompareConfig = GenrmCompareConfig()


class GenrmCompareServer(Open):
    """``env.nemo_gym.genrm_compare_resources_server``."""

    resources_servers: GenrmCompareTypes = GenrmCompareTypes()

"""What the rules know of an audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from nemotron.audit.sample import keys_of, paths_of
from nemotron.compile.describe import loose_files
from nemotron.compile.jobs.base import EMBEDDED_MODULES
from nemotron.compile.jobs.grpo import TEMPLATE_HINT
from nemotron.compile.jobs.step import ModelRef, NumberType, PlainJob
from nemotron.compile.plan import FileRef, Process
from nemotron.compile.probes.model_files import read_model
from nemotron.compile.probes.survey import Shape, Survey, survey
from nemotron.config.schema.judge import JUDGE_MODEL, GenrmCompareConfig, GenrmModelConfig, JudgeConfig
from nemotron.config.schema.reward_audit import RewardAuditConfig
from nemotron.errors import DataError
from nemotron.promises import DataPromise, FilePromise, Promise

DATA, MANIFEST, REWARD_MODEL = "data.data_path", "data.manifest_path", "reward_model.path"
_CLIENT = ("aiohttp", "tenacity", "jinja2")
"""What an audit over an endpoint needs of the engine's modules."""
_OWN_TEMPLATE = "put `chat_template.jinja` beside it, as it was trained"


@dataclass(frozen=True)
class AuditJob(PlainJob[RewardAuditConfig]):
    """An audit of a judge, or of a reward model."""

    reason: ClassVar[str] = "an audit trains nothing: plain Python in this process"

    who: ClassVar[str] = "an audit"

    @property
    def audits_judge(self) -> bool:
        """Whether the judge is audited, not a reward model."""
        return self.config.reward_model.path is None

    @property
    def judge_model(self) -> GenrmModelConfig | None:
        """The judge's block, when a judge is audited and there is one."""
        return self.config.env.judge_model if self.audits_judge else None

    @property
    def comparison(self) -> GenrmCompareConfig | None:
        """The comparison block, or its defaults, when a judge is audited."""
        return (self.config.env.comparison or GenrmCompareConfig()) if self.audits_judge else None

    @property
    def judge_settings(self) -> JudgeConfig:
        """``judge``."""
        return self.config.judge

    @property
    def modules(self) -> tuple[str, ...]:
        """Those of the engine; of an endpoint somebody else computes the answers."""
        model = self.judge_model
        return _CLIENT if model is not None and model.base_url is not None else EMBEDDED_MODULES

    def models(self) -> Iterator[ModelRef]:
        """What is audited, where it lies in a folder."""
        model = self.judge_model
        if self.config.reward_model.path is not None:
            yield ModelRef("reward model", REWARD_MODEL, self.config.reward_model.path, template_hint=_OWN_TEMPLATE)
        elif model is not None and model.base_url is None:
            yield ModelRef("judge", f"{JUDGE_MODEL}.model", model.model, template_hint=TEMPLATE_HINT, downloaded=False)

    def number_types(self) -> Iterator[NumberType]:
        """The judge's, where we serve it."""
        if self.judge_model is not None and self.judge_model.base_url is None:
            yield NumberType("judge.dtype", self.config.judge.dtype)

    @property
    def promised(self) -> DataPromise | None:
        """The pairs, where they are still to be prepared."""
        return self.place.promised_data(self.config.data.manifest_path)

    @property
    def place_of_pairs(self) -> tuple[str, str]:
        """The key that names the pairs, and the path that it gives."""
        data = self.config.data
        return (DATA, data.data_path) if data.manifest_path is None else (MANIFEST, data.manifest_path)

    @property
    def sees_pairs(self) -> bool:
        """Whether the pairs can be looked at: not those that are promised, or lie where only the job can look."""
        return self.sees(self.place_of_pairs[1])

    @cached_property
    def survey(self) -> Survey:
        """What was found in the data; nothing in those that cannot be looked at."""
        data = self.config.data
        if not self.sees_pairs:
            return Survey()
        try:
            return survey(paths_of(data), Shape("preference", keys_of(data)))
        except DataError as error:
            return Survey(problem=error.message)

    @property
    def pairs(self) -> int:
        """Pairs of the sample."""
        rows, wanted = self.survey.rows, self.config.audit.pairs
        return rows if wanted is None else min(rows, wanted)

    def promises(self) -> Iterator[Promise]:
        """Figures, verdicts, page."""
        return map(FilePromise, ("eval_results", "samples_jsonl", "report_html"))

    def folders(self) -> dict[str, tuple[str, Path]]:
        """The run folder, and the results."""
        return {**super().folders(), "results folder": ("output_dir", Path(self.config.output_dir))}

    def processes(self) -> Iterator[Process]:
        """Who asks, and who answers."""
        config, model = self.config, self.judge_model
        wanted = config.audit.pairs
        # Of data that cannot be looked at the number of rows is not known.
        pairs = self.pairs if self.sees_pairs else wanted
        about = f"{pairs:,} pairs" if pairs is not None else "every pair"
        about = about if self.sees_pairs or wanted is None else f"at most {about}"
        if self.comparison is None:
            yield Process("audit", f"this process: scores both answers of {about}")
            return
        orders = 2 if config.audit.both_orders else 1
        asked = "questions"
        if pairs is not None:
            again = min(pairs, config.audit.repeat_pairs) * config.audit.repeats
            asked = f"{orders * (pairs * self.comparison.num_judges_per_comparison + again):,} questions"
        yield Process("audit", f"this process: asks {asked} about {about}")
        if model is not None and self.judge_form is not None and self.judge_serving is not None:
            where = self.judge_serving.told if model.base_url is None else f"endpoint {model.base_url}"
            yield Process("judge", f"{where}, {self.judge_form.told}")

    def inputs(self) -> Iterator[FileRef]:
        """What is audited, and on which pairs."""
        for ref in self.models():
            files = read_model(ref.name, self.place)
            detail = f"{files.parameters:,} parameters" if files and files.parameters else "size unknown"
            yield FileRef("judge model" if ref.role == "judge" else ref.role, ref.key, ref.name, detail)
        unseen = f"on `{self.place.name}`" if self.promised is None else "made before this runs"
        yield FileRef("pairs", *self.place_of_pairs, self.survey.told if self.sees_pairs else unseen)
        if self.audits_judge and self.place.is_here:
            yield from loose_files(self.config.judge, "judge")

    def outputs(self) -> Iterator[FileRef]:
        """The run folder, and the results."""
        yield FileRef("run folder", None, str(self.runs_dir), "samples.jsonl with every verdict, report.html")
        yield FileRef("results", "output_dir", self.config.output_dir, "eval_results.json")

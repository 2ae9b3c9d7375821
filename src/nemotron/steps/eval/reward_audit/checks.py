"""What is checked before an audit starts. Nothing is written, no connection is opened, torch is not loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from nemotron.audit.sample import keys_of, paths_of
from nemotron.compile.jobs.grpo import TEMPLATE_HINT
from nemotron.compile.probes.folders import existing
from nemotron.compile.probes.model_files import folder_of, is_path, read_model, template_problem
from nemotron.compile.probes.survey import Shape, Survey, survey, told_once
from nemotron.compile.rules.doubts import slow_number_type
from nemotron.compile.rules.engine import EMBEDDED_MODULES
from nemotron.compile.rules.judge import unknown_roles
from nemotron.compile.secrets import elsewhere, secrets_in
from nemotron.config import resolvers
from nemotron.config.layers import Resolved
from nemotron.config.schema.judge import GenrmCompareConfig, GenrmModelConfig
from nemotron.config.schema.reward_audit import RewardAuditConfig
from nemotron.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    Finding,
    NemotronError,
    NotAvailableError,
    Origin,
    OutputError,
    Severity,
)
from nemotron.install import install_extra
from nemotron.place import Place

MODEL = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
COMPARE = "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare"
DATA = "data.data_path"
MANIFEST = "data.manifest_path"
REWARD_MODEL = "reward_model.path"
FEW_PAIRS = 30
SHOWN_FAULTS = 3
_CLIENT = ("aiohttp", "tenacity", "jinja2")
"""What an audit over an endpoint needs of the engine's modules."""


@dataclass(frozen=True)
class Checks:
    """The checks of one config."""

    config: RewardAuditConfig
    resolved: Resolved
    place: Place
    runs_dir: Path

    def findings(self) -> Iterator[Finding]:
        """All of them, in the order in which they matter."""
        yield from self.modules()
        yield from self.unread()
        yield from self.judge() if self.audits_judge else self.reward_model()
        yield from self.secrets()
        yield from self.repeats()
        yield from self.data()
        yield from self.output()

    @property
    def audits_judge(self) -> bool:
        """Whether the judge is audited, not a reward model."""
        return self.config.reward_model.path is None

    @property
    def judge_model(self) -> GenrmModelConfig | None:
        """The judge's block, when there is one."""
        gym = self.config.env.nemo_gym
        return gym.genrm_model.responses_api_models.vllm_model if gym and gym.genrm_model else None

    @property
    def compare(self) -> GenrmCompareConfig:
        """The comparison block, or its defaults."""
        gym = self.config.env.nemo_gym
        server = gym.genrm_compare_resources_server if gym else None
        return server.resources_servers.genrm_compare if server else GenrmCompareConfig()

    @cached_property
    def survey(self) -> Survey:
        """What was found in the data."""
        data = self.config.data
        try:
            return survey(paths_of(data), Shape("preference", keys_of(data)))
        except DataError as error:
            return Survey(problem=error.message)

    @property
    def pairs(self) -> int:
        """Pairs of the sample."""
        rows, wanted = self.survey.rows, self.config.audit.pairs
        return rows if wanted is None else min(rows, wanted)

    def modules(self) -> Iterator[Finding]:
        """The libraries that do the work."""
        model = self.judge_model
        remote = self.audits_judge and model is not None and model.base_url is not None
        missing = self.place.lacking(_CLIENT if remote else EMBEDDED_MODULES)
        if missing:
            noun = "module" if len(missing) == 1 else "modules"
            message = f"an audit needs the {noun} {', '.join(f'`{name}`' for name in missing)}"
            yield self._error("engine-not-installed", "", NotAvailableError(message, hint=install_extra("local")))

    def unread(self) -> Iterator[Finding]:
        """Overrides for what is not audited."""
        sections = ("reward_model",) if self.audits_judge else ("env", "judge", "audit.both_orders", "audit.repeat")
        other = "`reward_model.path` is null" if self.audits_judge else "`reward_model.path` is set"
        seen: set[int] = set()
        for key, origin in self.resolved.origins.items():
            if origin.argument is None or origin.argument in seen or key == REWARD_MODEL:
                continue
            if key.startswith(sections):
                seen.add(origin.argument)
                message = f"`{key}` has no effect: {other}"
                yield self._error("override-without-effect", key, ConfigError(message, hint="leave it out"))

    def judge(self) -> Iterator[Finding]:
        """The judge is named, and is a URL or a whole folder."""
        model = self.judge_model
        if model is None:
            message = f"the section `{MODEL}` is missing, so there is nothing to audit"
            hint = "inherit it: `defaults: default`, or give `reward_model.path`"
            yield self._error("no-judge", "env", ConfigError(message, hint=hint))
        elif model.base_url is not None:
            yield from self._endpoint(model.base_url)
        else:
            yield from self._model("judge", f"{MODEL}.model", model.model)
            principle = self.compare.use_principle and model.supports_principle_role
            roles = unknown_roles(model.model, self.place, principle=principle)
            if roles:
                yield self._finding("warning", "judge-roles", f"{MODEL}.model", *roles)
            slow = slow_number_type(self.place, "judge.dtype", self.config.judge.dtype)
            if slow:
                yield self._finding("warning", "slow-precision", "judge.dtype", *slow)
        if model is not None and self.compare.use_principle and not model.supports_principle_role:
            message = "a principle is configured, but the judge's template has no role for it: it is not sent"
            yield self._finding("warning", "principle-role", f"{MODEL}.supports_principle_role", message)

    def reward_model(self) -> Iterator[Finding]:
        """The reward model is a whole folder with a head of one output."""
        name = str(self.config.reward_model.path)
        wrong = list(self._model("reward", REWARD_MODEL, name))
        yield from wrong
        if any(finding.severity == "error" for finding in wrong):
            return
        model = read_model(name, self.place)
        architectures = model.config.get("architectures") if model else None
        if isinstance(architectures, list) and any(str(one).endswith("ForCausalLM") for one in architectures):
            message = f"`{name}` is a language model without a reward head"
            hint = f"audit it as a judge (`{MODEL}.model`), or train a reward model from it with `rl/nemo_rl/rm`"
            yield self._error("model-files", REWARD_MODEL, ArtifactError(message, hint=hint))

    def secrets(self) -> Iterator[Finding]:
        """A run folder never holds a secret, so a key that contains one could not be read back from it."""
        for key in elsewhere(self.resolved.values, secrets_in(self.config)):
            message = f"`{key}` contains the judge's API key, which is never written to a run folder"
            error = ConfigError(message, hint=f"give the API key in `{MODEL}.api_key` only")
            yield self._error("secret-elsewhere", key, error)

    def repeats(self) -> Iterator[Finding]:
        """Asking a greedy judge again measures nothing."""
        audit = self.config.audit
        own = self.compare.genrm_responses_create_params.temperature
        temperature = own if audit.repeat_temperature is None else audit.repeat_temperature
        if self.audits_judge and audit.repeats and temperature == 0:
            message = "repeats at temperature 0 get the same answer every time and say nothing about the judge"
            hint = "set `audit.repeat_temperature=0.6`, or `audit.repeats=0`"
            yield self._finding("warning", "greedy-repeats", "audit.repeat_temperature", message, hint)

    def data(self) -> Iterator[Finding]:
        """The pairs can be read, and are enough to say something."""
        data, found = self.config.data, self.survey
        path = data.data_path
        if data.manifest_path is not None:
            try:
                paths_of(data)
            except DataError as error:
                name = "manifest-split" if "split" in error.message else "manifest-missing"
                yield self._error(name, MANIFEST, error)
                return
            origin = self.resolved.origin(DATA)
            if origin is not None and origin.argument is not None:
                message = f"`{DATA}` would not be read: `{MANIFEST}` names the rows"
                hint = f"leave one of them out; `{MANIFEST}=null` switches the manifest off"
                yield self._error("data-twice", DATA, ConfigError(message, hint=hint))
        if found.problem:
            what = "does not exist" if not Path(path).expanduser().exists() else f"cannot be read: {found.problem}"
            yield self._error("data-file", DATA, DataError(f"the data `{path}` {what}", hint=f"check `{DATA}`"))
            return
        if not found.rows:
            yield self._error("data-file", DATA, DataError(f"the data `{path}` is empty"))
            return
        for fault, message in told_once(found.faults):
            origin = Origin(str(fault.path), fault.line, fault.column)
            yield self._error("data-row", DATA, DataError(message, hint=fault.hint), origin)
        for clash in found.clashes[:SHOWN_FAULTS]:
            message = f"this pair prefers what {clash.other} rejects: one of the labels is wrong"
            yield self._finding(
                "warning", "contradictory-pairs", DATA, message, origin=Origin(str(clash.path), clash.line)
            )
        yield from self._sample(path)
        if self.pairs < FEW_PAIRS:
            message = f"{self.pairs} pairs know an agreement only to about {100 / self.pairs**0.5:.0f} points"
            yield self._finding("warning", "few-pairs", DATA, message, "take a few hundred")

    def _sample(self, path: str) -> Iterator[Finding]:
        """The shipped pairs say nothing about a judge or reward model of one's own."""
        model = self.config.reward_model.path or (self.judge_model.model if self.judge_model else "")
        mine = not Path(model).is_relative_to(resolvers.ASSETS)
        if mine and self.config.data.manifest_path is None and Path(path).is_relative_to(resolvers.ASSETS):
            message = "no pairs are set: the shipped sample of the tiny world is used"
            hint = f"set `{DATA}=FILE.jsonl`, or `RL_PREFERENCE_DATA` in the environment"
            yield self._finding("warning", "sample-data", DATA, message, hint)

    def output(self) -> Iterator[Finding]:
        """The run folder and the results can be written."""
        for key, path, hint in (
            ("", self.runs_dir, "choose another place with `--runs-dir`"),
            ("output_dir", Path(self.config.output_dir), "set `output_dir`"),
        ):
            place = existing(path)
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                reason = "is not writable" if place.is_dir() else "is not a folder"
                message = f"`{path}` cannot be made: `{place}` {reason}"
                yield self._error("output-folder", key, OutputError(message, hint=hint))
                return

    def _endpoint(self, base_url: str) -> Iterator[Finding]:
        key = f"{MODEL}.base_url"
        try:
            url = urlsplit(base_url)
            host, _ = url.hostname, url.port
        except ValueError:
            host = None
        if host is None or url.scheme not in ("http", "https"):
            error = ConfigError(f"`{base_url}` is not an http address", hint="e.g. `http://localhost:8000/v1`")
            yield self._error("judge-endpoint", key, error)
            return
        if not url.path.rstrip("/").endswith("/v1"):
            message = f"`{base_url}` does not end in `/v1`, where OpenAI-compatible servers answer"
            hint = f"try `{base_url.rstrip('/')}/v1`"
            yield self._finding("warning", "judge-endpoint", key, message, hint)
        message = f"the judge at `{base_url}` is asked when the run starts"
        yield self._finding("note", "judge-endpoint", key, message)

    def _model(self, role: str, key: str, name: str) -> Iterator[Finding]:
        def error(message: str, hint: str | None = None) -> Finding:
            return self._error("model-files", key, ArtifactError(message, hint=hint))

        if Path(name).expanduser().is_file():
            yield error(f"the {role} model `{name}` is a file, not a folder")
        elif folder_of(name, self.place) is None:
            if is_path(name):
                yield error(f"there is no {role} model folder `{name}`", f"check `{key}`")
            elif role == "judge" or self.place.offline:
                hint = "download it first, or give a folder or an endpoint"
                yield error(f"the {role} model `{name}` is not on this machine", hint)
            else:
                message = f"the {role} model `{name}` is not on this machine and will be downloaded"
                yield self._finding("note", "model-files", key, message)
        else:
            model = read_model(name, self.place)
            if model is not None:
                wanted = {
                    "a readable `config.json`": bool(model.config),
                    "weights (`*.safetensors`)": model.has_weights,
                    "a tokenizer (`tokenizer.json`)": model.has_tokenizer,
                }
                missing = [what for what, there in wanted.items() if not there]
                if missing:
                    yield error(f"the {role} model `{name}` lacks {', '.join(missing)}")
                elif problem := template_problem(name, self.place):
                    message = f"the tokenizer of `{name}` {problem}"
                    hint = (
                        TEMPLATE_HINT if role == "judge" else "put `chat_template.jinja` beside it, as it was trained"
                    )
                    yield self._error("chat-template", key, ArtifactError(message, hint=hint))

    def _error(self, name: str, key: str, error: NemotronError, origin: Origin | None = None) -> Finding:
        place = origin or (self.resolved.origin(key) if key else None)
        return Finding("error", name, error.message, key or None, place, error.hint, exit_code=error.exit_code)

    def _finding(
        self,
        severity: Severity,
        name: str,
        key: str,
        message: str,
        hint: str | None = None,
        origin: Origin | None = None,
    ) -> Finding:
        return Finding(severity, name, message, key, origin or self.resolved.origin(key), hint)

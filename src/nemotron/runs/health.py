"""Signs that a run goes wrong, read off its metrics as they come: shown while it works, in its report, and as limits.

==================  ===================================================  ==========================
sign                what it looks at                                     limit
==================  ===================================================  ==========================
dead groups         share of groups whose answers all got one reward     ``limits.max_dead_groups``
entropy             of the policy, beside that of the first steps        ``limits.min_entropy``
gradient spikes     norm beside the median of the steps before           ``limits.max_grad_spike``
sampler drift       probabilities of the sampler beside the trainer's    ``limits.max_sampler_drift``
==================  ===================================================  ==========================

What is noisy by nature is judged by the mean of the last steps. All of it follows from the rows of the run: a run that
goes on sees what it would have seen without the break.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from nemotron.runs import metrics as m

Kind = Literal["dead groups", "entropy", "gradient spike", "sampler drift"]

DEAD_GROUPS = "train/groups_without_signal"
ENTROPY = "train/approx_entropy"
GRAD_NORM = "train/grad_norm"
DRIFT = "train/token_mult_prob_error"
WINDOW = 10
"""Steps that a mean is taken over."""
BEFORE = 20
"""Steps whose median gradient a new one is compared with."""
FEWEST = 5
"""Of them there must be as many."""
_DEAD, _FALLEN, _SPIKE, _DRIFT = 0.5, 0.1, 10.0, 1.1
"""From where a sign is shown; a limit says from where the run stops."""
_HINTS: Mapping[Kind, str] = {
    "dead groups": "take prompts that are neither always nor never solved, more answers a prompt, "
    "`grpo.use_dynamic_sampling=true`, or a reward that tells answers apart",
    "entropy": "lower the learning rate, raise `loss_fn.reference_policy_kl_penalty`, and sample at temperature 1.0",
    "gradient spike": "lower the learning rate or `policy.max_grad_norm`, or lengthen the warm-up",
    "sampler drift": "set `policy.precision=float32`, lower `grpo.seq_logprob_error_threshold`, or sample with the "
    "policy itself",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """``limits.*``; None sets no bound."""

    max_dead_groups: float | None = None
    min_entropy: float | None = None
    max_grad_spike: float | None = None
    max_sampler_drift: float | None = None

    @classmethod
    def of(cls, limits: object) -> Bounds:
        """From the section of a config, which may lack some."""
        return cls(**{name: getattr(limits, name, None) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Sign:
    """Something that is wrong after a step."""

    kind: Kind
    step: int
    text: str
    limit: str | None = None
    """The key of the limit that it crosses."""

    @property
    def hint(self) -> str:
        """What to do about it."""
        return _HINTS[self.kind]


class Watch:
    """Looks at one row after the other.

    Example::

        watch = Watch(Bounds(min_entropy=0.1))
        for row in rows:
            for sign in watch.see(row): ...     # what is wrong now
    """

    def __init__(self, bounds: Bounds | None = None, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """``rows``: those of the run before this attempt."""
        self.bounds = bounds or Bounds()
        self._dead: deque[float] = deque(maxlen=WINDOW)
        self._entropy: deque[float] = deque(maxlen=WINDOW)
        self._first_entropy: list[float] = []
        self._norms: deque[float] = deque(maxlen=BEFORE)
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[Sign]:
        """What is wrong after the step of ``row``, a row of ``metrics.jsonl``."""
        step = int(m.number(row.get("step")) or 0)
        found = (self._dead_groups(row), self._low_entropy(row), self._spike(row), self._sampler_drift(row))
        return [
            Sign(kind, step, text, limit if crossed else None)
            for kind, text, limit, shown, crossed in filter(None, found)
            if shown or crossed
        ]

    def _dead_groups(self, row: Mapping[str, Any]) -> _Found | None:
        share = m.number(row.get(DEAD_GROUPS))
        if share is None:
            return None
        self._dead.append(share)
        mean, most = fmean(self._dead), self.bounds.max_dead_groups
        if len(self._dead) < WINDOW:
            return None
        text = f"{mean:.0%} of the groups of the last {WINDOW} steps had one reward for all answers and taught nothing"
        return "dead groups", text, "limits.max_dead_groups", mean >= _DEAD, most is not None and mean > most

    def _low_entropy(self, row: Mapping[str, Any]) -> _Found | None:
        entropy = m.number(row.get(ENTROPY))
        if entropy is None:
            return None
        self._entropy.append(entropy)
        if len(self._first_entropy) < WINDOW:
            self._first_entropy.append(entropy)
        if len(self._entropy) < WINDOW:
            return None
        mean, first, least = fmean(self._entropy), fmean(self._first_entropy), self.bounds.min_entropy
        text = f"the policy's entropy is {mean:.3g} nats a token (mean of {WINDOW} steps), {first:.3g} at the beginning"
        crossed = least is not None and mean < least
        return "entropy", text, "limits.min_entropy", mean < _FALLEN * first, crossed

    def _spike(self, row: Mapping[str, Any]) -> _Found | None:
        norm = m.number(row.get(GRAD_NORM))
        if norm is None:
            return None
        before, most = list(self._norms), self.bounds.max_grad_spike
        self._norms.append(norm)
        usual = median(before) if len(before) >= FEWEST else 0.0
        if usual <= 0:
            return None
        times = norm / usual
        text = f"the gradient's norm is {norm:.3g}, {times:.0f} times the median of the {len(before)} steps before"
        return "gradient spike", text, "limits.max_grad_spike", times > _SPIKE, most is not None and times > most

    def _sampler_drift(self, row: Mapping[str, Any]) -> _Found | None:
        drift = m.number(row.get(DRIFT))
        if drift is None:
            return None
        most = self.bounds.max_sampler_drift
        text = f"sampler and trainer disagree: the probability of a token differs by a factor of {drift:.3f} on average"
        return "sampler drift", text, "limits.max_sampler_drift", drift > _DRIFT, most is not None and drift > most


_Found = tuple[Kind, str, str, bool, bool]


class Herald:
    """Says each kind of sign when it begins, and again only after it was gone."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._watch = Watch()
        self._there: set[Kind] = set()
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[Sign]:
        """The signs that begin with ``row``."""
        signs = self._watch.see(row)
        fresh = [sign for sign in signs if sign.kind not in self._there]
        self._there = {sign.kind for sign in signs}
        return fresh


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of sign over a whole run."""

    last: Sign
    first_step: int
    steps: int
    """In how many steps it was there."""


def troubles(rows: Iterable[Mapping[str, Any]]) -> list[Trouble]:
    """What was wrong in a run, by kind, the most lasting first."""
    watch, found = Watch(), dict[Kind, Trouble]()
    for row in rows:
        for sign in watch.see(row):
            before = found.get(sign.kind)
            first, steps = (before.first_step, before.steps) if before else (sign.step, 0)
            found[sign.kind] = Trouble(sign, first, steps + 1)
    return sorted(found.values(), key=lambda trouble: -trouble.steps)

"""The numbers at the top of a summary and of a report: each as one line and as one card.

They read the dictionary of :func:`nemotron.runs.summary.summarise`, in which what is not known is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nemotron.runs.words import change, fixed, label, percent, points

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Card:
    """One number at the top of the report."""

    label: str
    value: str
    detail: str
    tone: Literal["", "good", "bad"] = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """One number; ``line`` gives (label, text)."""

    key: str
    """Key of the summary that it shows."""
    line: Callable[[Summary], tuple[str, str]]
    card: Callable[[Summary], Card]
    optional: bool = False
    """Left out where the run has no such number; otherwise a dash stands there."""

    def shown(self, summary: Summary) -> bool:
        """Whether it has something to say about this run."""
        return not self.optional or summary.get(self.key) is not None


def kl_drift(*, optional: bool = False) -> Headline:
    """KL to the reference per token: at the last step, its largest value, and the limit."""

    def line(summary: Summary) -> tuple[str, str]:
        if summary["kl"] is None:
            return "KL to reference", "–"
        limit = f", limit {summary['kl_limit']:g}" if summary["kl_limit"] is not None else ""
        text = f"{summary['kl']:.4f} nats per token (largest {summary['kl_max']:.4f}{limit})"
        return "KL to reference", text

    def card(summary: Summary) -> Card:
        kl, largest, limit = summary["kl"], summary["kl_max"], summary["kl_limit"]
        over = limit is not None and largest is not None and largest > limit
        bound = "" if limit is None else f", limit {limit:g}"
        return Card(
            "KL to the reference",
            fixed(kl, 4),
            "nats per token" if largest is None else f"nats per token, largest {largest:.4f}{bound}",
            "" if limit is None or largest is None else "bad" if over else "good",
        )

    return Headline("kl", line, card, optional)


def heldout() -> Headline:
    """The headline share of the held-out metric before and after training."""

    def name(summary: Summary) -> str:
        return label(summary["heldout"]["headline"])

    def line(summary: Summary) -> tuple[str, str]:
        found = summary["heldout"]
        return f"held-out {name(summary)}", points(found["before"], found["after"])

    def card(summary: Summary) -> Card:
        found = summary["heldout"]
        delta = found["delta"]
        return Card(
            f"Held-out {name(summary)}",
            percent(found["after"] if found["after"] is not None else found["before"]),
            "before training" if delta is None else f"from {percent(found['before'])}, {100 * delta:+.1f} points",
            "" if delta is None else "good" if delta > 0 else "bad",
        )

    return Headline("heldout", line, card)


def trend(
    key: str,
    name: str,
    digits: int = 3,
    *,
    unit: str = "",
    note: str = "",
    measured: bool = False,
    optional: bool = False,
) -> Headline:
    """A number at the beginning and at the end; ``note`` says of what it is, ``unit`` follows the number.

    ``measured`` now and then, not in every step. Where there is no beginning to compare with, the one number stands
    alone, with what it is the mean of.
    """

    def figure(summary: Summary) -> str:
        before, after = summary[f"{key}_before"], summary[key]
        return fixed(after, digits) if before is None else change(before, after, digits)

    def line(summary: Summary) -> tuple[str, str]:
        notes = ", ".join(filter(None, (note, _mean_of(summary, key, measured=measured))))
        return name, " ".join(filter(None, (figure(summary), unit, f"({notes})" if notes else "")))

    def card(summary: Summary) -> Card:
        single = _mean_of(summary, key, measured=measured)
        words = [unit or note, figure(summary) if summary[f"{key}_before"] is not None else single]
        return Card(_capital(name), fixed(summary[key], digits), ", ".join(filter(None, words)))

    return Headline(key, line, card, optional)


def share_trend(key: str, name: str, *, measured: bool = False, optional: bool = False) -> Headline:
    """A share at the beginning and at the end, higher being better; ``measured`` as in :func:`trend`."""

    def line(summary: Summary) -> tuple[str, str]:
        before, after = summary[f"{key}_before"], summary[key]
        if before is not None:
            return name, points(before, after)
        single = _mean_of(summary, key, measured=measured)
        return name, " ".join(filter(None, (percent(after), f"({single})" if single else "")))

    def card(summary: Summary) -> Card:
        before, after = summary[f"{key}_before"], summary[key]
        if before is None or after is None:
            return Card(_capital(name), percent(after), _mean_of(summary, key, measured=measured))
        tone: Literal["", "good", "bad"] = "good" if after > before else "bad" if after < before else ""
        return Card(
            _capital(name), percent(after), f"from {percent(before)}, {100 * (after - before):+.1f} points", tone
        )

    return Headline(key, line, card, optional)


def _mean_of(summary: Summary, key: str, *, measured: bool) -> str:
    """What a figure that stands alone is: ``4 steps``; empty where it has a beginning, or is not known."""
    if summary[f"{key}_before"] is not None or summary[key] is None:
        return ""
    steps = summary["averaged_steps"]
    return "measured once" if measured else f"{steps} step{'' if steps == 1 else 's'}"


def share(key: str, name: str, when: str, *, title: str | None = None, optional: bool = False) -> Headline:
    """A share over the steps that ``when`` names; ``title`` is its longer name."""
    return Headline(
        key,
        lambda summary: (name, percent(summary[key])),
        lambda summary: Card(title or _capital(name), percent(summary[key]), when),
        optional,
    )


def estimate(key: str, name: str) -> Headline:
    """A share with the 95% interval of ``<key>_low`` and ``<key>_high``."""

    def text(summary: Summary) -> str:
        low, high = summary[f"{key}_low"], summary[f"{key}_high"]
        return "" if low is None or high is None else f"95% interval {percent(low)} to {percent(high)}"

    return Headline(
        key,
        lambda summary: (
            name,
            " ".join(filter(None, (percent(summary[key]), f"({text(summary)})" if text(summary) else ""))),
        ),
        lambda summary: Card(_capital(name), percent(summary[key]), text(summary)),
    )


def level(key: str, name: str, digits: int = 3, *, note: str = "", optional: bool = True) -> Headline:
    """One number without a before."""
    return Headline(
        key,
        lambda summary: (name, " ".join(filter(None, (fixed(summary[key], digits), f"({note})" if note else "")))),
        lambda summary: Card(_capital(name), fixed(summary[key], digits), note),
        optional,
    )


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]

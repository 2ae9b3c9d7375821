"""The plan for people: a summary, after the resolved config as YAML where that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nemotron.compile.plan import GpuMemory, Plan, ServedMemory


def render_plan(plan: Plan, *, with_config: bool = False) -> RenderableType:
    """A rich renderable; long values are folded, never cut. Findings are counted, the command line prints them.

    The config is hundreds of lines, so it comes first: what follows it is what a terminal still shows.
    """
    from rich.console import Group
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    from nemotron.config.dump import dump_yaml

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in plan_rows(plan, config_above=with_config):
        table.add_row(name, Text(value))
    if not with_config:
        return table
    config = Text(dump_yaml(plan.values).rstrip(), overflow="fold")
    rules = [Rule(title, align="left", characters="-") for title in ("resolved config", "plan")]
    return Group(rules[0], config, Text(), rules[1], table)


def plan_rows(plan: Plan, *, config_above: bool = False) -> list[tuple[str, str]]:
    """Name and value of each line of the summary."""
    from nemotron.compile.plan import GpuMemory

    rows = [
        ("job", f"{plan.step} -c {plan.config_name}"),
        ("engine", f"{plan.engine} ({plan.engine_reason})"),
        *((process.role, process.where) for process in plan.processes),
    ]
    if plan.work:
        w = plan.work
        steps = "?" if w.steps is None else f"{w.steps:,}"
        updates = "1 optimizer step" if w.updates == 1 else f"{w.updates} optimizer steps"
        rows += [
            ("steps", f"{steps}, each {w.batch}, {updates}"),
            ("tokens", f"at most {w.tokens_per_step:,} per step"),
        ]
        if w.judge_calls is not None:
            most = f", at most {w.judge_reads:,} tokens read and {w.judge_writes:,} written" if w.judge_reads else ""
            rows.append(("judge calls", f"{w.judge_calls:,} per step{most}"))
    if isinstance(plan.memory, GpuMemory):
        rows.append(("memory of a GPU", _of_a_gpu(plan.memory)))
        rows += [(f"vLLM's {one.role}", _served(one)) for one in plan.memory.served]
    elif plan.memory:
        m = plan.memory
        parts = {
            "policy and optimizer": m.policy,
            "reference": m.reference,
            "judge": m.judge,
            "critic and reward model": m.critic,
            "activations": m.activations,
            "libraries": m.libraries,
        }
        shown = ", ".join(f"{name} {_size(part)}" for name, part in parts.items() if part)
        host = f"; beside it {_size(m.host)} of the host's for the optimizer" if m.host else ""
        rows.append(("memory", f"about {_size(m.total)}: {shown}{host}"))
    rows += [(f"in: {file.role}", f"{file.path} ({file.detail})") for file in plan.inputs]
    rows += [(f"out: {file.role}", f"{file.path} ({file.detail})") for file in plan.outputs]
    rows += [] if config_above else [("config", "`--show-config` prints it, resolved")]
    rows += [("fingerprint", plan.fingerprint), ("findings", _counts(plan))]
    return rows


def _of_a_gpu(memory: GpuMemory) -> str:
    parts = ("weights", "gradients", "optimizer", "activations")
    shown = ", ".join(f"{name} {_size(getattr(memory, name))}" for name in parts)
    share = memory.generation_share
    return f"about {_size(memory.total)}: {shown}" + (f"; vLLM takes {share:.0%} of it in its turn" if share else "")


def _served(memory: ServedMemory) -> str:
    cache = f"{_size(memory.cache)} of cache a sequence of {memory.tokens:,} tokens"
    return f"{_size(memory.weights)} of weights and {cache} on a GPU, of which it takes {memory.share:.0%}"


def _counts(plan: Plan) -> str:
    counts = [(kind, sum(f.severity == kind for f in plan.findings)) for kind in ("error", "warning", "note")]
    return ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts if n) or "none"


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"

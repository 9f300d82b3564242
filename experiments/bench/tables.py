"""What `python -m experiments bench` found, as text and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RATIOS = [  # what is divided by what, of tokens a second
    ("ppo", "tight loop"),
    ("ppo, separate critic", "tight loop, separate critic"),
    ("ppo", "trl ppo"),
    ("ppo, separate critic", "trl ppo"),
    ("rloo", "trl rloo"),
    ("rloo", "trl grpo"),
    ("sampling", "sampling, transformers"),
    ("sampling", "sampling, tight loop"),
]
PHASES = ("generate", "score", "forward", "backward", "step", "other")
BUSY = 0.9  # a process that had less than this share of a core was kept waiting by others


def table(found: dict[str, Any]) -> str:
    """Everything, in words and numbers."""
    lines = [f"$ {found['command']}", _load(found)]
    for size, variants in found.get("sizes", {}).items():
        lines += ["", *_variants(size, variants), "", *_ratios(variants)]
    for axis, cases in found.get("scaling", {}).items():
        lines += ["", f"tokens per CPU second by {axis}"]
        for value, variants in cases.items():
            told = ", ".join(f"{name} {seen['tokens_per_cpu_second']:,.0f}" for name, seen in variants.items())
            lines.append(f"  {value:>4}: {told}")
    if "environments" in found:
        lines += ["", "steps a second by slots"]
        for name, rates in found["environments"]["steps_per_second"].items():
            lines.append(f"  {name:36s}" + "".join(f"  {slots}: {rate:,.0f}" for slots, rate in rates.items()))
    return "\n".join(lines)


def _load(found: dict[str, Any]) -> str:
    """Whether the machine was ours."""
    seen = [variant for variants in found.get("sizes", {}).values() for variant in variants.values()]
    groups = [cases for axis in found.get("scaling", {}).values() for cases in axis.values()]
    seen += [variant for cases in groups for variant in cases.values()]
    share = sum(v["cpu"] for v in seen) / max(1e-9, sum(v["seconds"] for v in seen)) if seen else 1.0
    before, after = found["load_before"][0], found["load_after"][0]
    threads = found["flags"]["threads"]
    told = (
        f"{found['cores']} cores, load {before:.1f} before and {after:.1f} after; a process had {share:.0%} of a core"
    )
    if share / threads < BUSY or max(before, after) > found["cores"]:
        told += ": TOO BUSY to trust seconds; CPU seconds, on which ratios are taken, are what is left"
    return told + "."


def _variants(size: str, variants: dict[str, Any]) -> list[str]:
    head = f"{size:30s}{'tokens/s':>10s}{'per CPU s':>11s}{'MB':>7s}{'of work':>9s}   "
    lines = [head + "".join(f"{name:>9s}" for name in PHASES) + "   (share of a round)"]
    for name, seen in variants.items():
        line = f"{name:30s}{seen['tokens_per_second']:10,.0f}{seen['tokens_per_cpu_second']:11,.0f}"
        line += f"{seen['peak_mb']:7.0f}{seen['work_mb']:9.0f}   "
        whole = sum(seen["phases"].values())
        lines.append(line + "".join(f"{seen['phases'].get(p, 0.0) / whole:9.0%}" for p in PHASES if whole))
    return lines


def _ratios(variants: dict[str, Any]) -> list[str]:
    lines = []
    for ours, theirs in RATIOS:
        if ours in variants and theirs in variants:
            rate = variants[ours]["tokens_per_cpu_second"] / variants[theirs]["tokens_per_cpu_second"]
            memory = [variants[name][kind] for kind in ("peak_mb", "work_mb") for name in (ours, theirs)]
            told = f"memory {memory[0] / memory[1]:.2f}, of work alone {memory[2] / max(memory[3], 1e-9):.2f}"
            lines.append(f"{ours} / {theirs}: {rate:.2f} times the tokens per CPU second; {told}")
    return lines


def scaling_figure(found: dict[str, Any], path: Path) -> None:
    """Tokens per CPU second against answers an update, and against their length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (axis, cases) in zip(figure.subplots(1, 2), found.items(), strict=True):
        for name in next(iter(cases.values())):
            rates = [variants[name]["tokens_per_cpu_second"] for variants in cases.values()]
            axes.plot([int(value) for value in cases], rates, marker="o", label=name)
        axes.set(xscale="log", ylabel="response tokens per CPU second")
        axes.set_ylim(bottom=0)
        axes.set_xticks([int(value) for value in cases], list(map(str, cases)))
        axes.minorticks_off()
        axes.set_xlabel("answers an update" if axis == "answers" else "tokens an answer")
        axes.legend()
    figure.savefig(path, dpi=110)

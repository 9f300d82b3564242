"""What `python -m experiments bench` found, as text and as a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATIOS = [  # what is divided by what, of tokens a second
    ("ppo", "tight loop"),
    ("ppo, graph", "tight loop"),
    ("ppo, separate critic", "tight loop, separate critic"),
    ("ppo", "trl ppo"),
    ("ppo, graph", "trl ppo"),
    ("ppo, micro-batches", "trl ppo"),
    ("ppo, separate critic", "trl ppo"),
    ("ppo, separate critic, micro-batches", "trl ppo"),
    ("rloo", "trl rloo"),
    ("rloo", "trl grpo"),
    ("sampling", "sampling, transformers"),
    ("sampling, graph", "sampling, transformers"),
    ("sampling", "sampling, tight loop"),
    ("sampling, graph", "sampling, tight loop"),
    ("ppo, bfloat16", "ppo"),
    ("ppo, medium", "ppo"),
    ("ppo, compiled", "ppo"),
    ("ppo, graph", "ppo"),
    ("ppo, micro-batches", "ppo"),
    ("grpo, graph", "grpo"),
    ("grpo", "trl grpo"),
    ("grpo, graph", "trl grpo"),
    ("toy ppo", "toy sb3 ppo"),
    ("toy ppo", "toy sb3 ppo, mlp"),
    ("toy ppo", "toy sb3 ppo, default mlp"),
]
PHASES = ("generate", "score", "forward", "backward", "step", "other")
BUSY = 0.9  # a process that had less than this share of a core was kept waiting by others


def table(found: dict[str, Any]) -> str:
    """Everything, in words and numbers; each part says first whether the machine was ours."""
    lines = [f"$ {found['command']}", f"{found['cores']} cores, threads of a process: {found['flags']['threads']}"]
    if found["left_out"]:
        lines.append(f"not here, and so not measured: {', '.join(found['left_out'])}")
    sections = {
        "updates": updates,
        "options": options,
        "toys": toys,
        "exact": exact,
        "environments": environments,
        "gpu": gpu,
        "scaling": scaling,
    }
    for part, section in sections.items():
        if part in found:
            lines += ["", f"== {part}: {_machine(found, part)}", *section(found[part])]
    return "\n".join(lines)


def updates(found: dict[str, Any]) -> list[str]:
    """A row a variant, then what is divided by what."""
    lines = []
    for size, variants in found.items():
        lines += ["", *_variants(size, variants, _phases), "", *_ratios(variants)]
    return lines


def options(found: dict[str, Any]) -> list[str]:
    """As the updates; and how far pi, as the update reads it, is from pi as it sampled, before anything is learned."""
    told = "max(rho, 1/rho) - 1 in the first minibatch; seconds to start, kernels and all"
    lines = []
    for model, variants in found.items():
        lines += ["", f"{'':69s}{told}", *_variants(Path(model).name, variants, _first_ratio), "", *_ratios(variants)]
    return lines


def toys(found: dict[str, Any]) -> list[str]:
    """The same for a toy, with the tokens of an update and the size of the network."""
    work, variants = found["work"], found["variants"]
    told = (
        f"Toy-v0 with {work['vocab_size']} tokens, texts of {work['max_new_tokens']} at most; an update is of about "
        f"{work['envs'] * work['steps']} tokens (theirs: {work['steps']} of each of {work['envs']} texts; ours: whole "
        f"answers), {work['epochs']} epochs of {work['minibatches']} minibatches; tokens are written and trained"
    )
    return ["", told, "", *_variants("", variants, _network), "", *_ratios(variants)]


def exact(found: dict[str, Any]) -> list[str]:
    """Seconds and memory of each function."""
    lines = [
        "",
        f"{'':36s}{'seconds':>10s}{'CPU s':>11s}{'MB':>7s}{'of work':>9s}   {'texts':>12s}{'states read':>14s}",
    ]
    for name, seen in found.items():
        line = f"{name:36s}{seen['seconds']:10.1f}{seen['cpu']:11.1f}{seen['peak_mb']:7.0f}{seen['work_mb']:9.0f}"
        lines.append(f"{line}   {seen['tokens']:12,.0f}{seen['states']:14,.0f}")
    return lines


def environments(found: dict[str, Any]) -> list[str]:
    """Rates by slots."""
    lines = ["", "steps a second by slots"]
    for name, rates in found["steps_per_second"].items():
        lines.append(f"  {name:36s}" + "".join(f"  {slots}: {rate:,.0f}" for slots, rate in rates.items()))
    share = ", ".join(f"{name} {value:.0%}" for name, value in found["live"].items())
    steps = ", ".join(f"{size} tokens {us:.0f}" for size, us in found["mask"]["microseconds_a_step"].items())
    first, last = found["prefix"]["first"], found["prefix"]["last"]
    return [
        *lines,
        f"steps that are no resets, of all that are counted: {share}",
        f"microseconds a step of 64 slots by vocabulary, nothing masked: {steps}; one read-only mask: "
        f"{found['mask']['one_read_only_array']}",
        f"microseconds a step of 64 slots, first and last 64 of 512 tokens: {first:.0f}, {last:.0f}",
    ]


def gpu(found: dict[str, Any]) -> list[str]:
    """As the updates, by seconds; and what they would be if one H100's peak rates were all that takes time."""
    variants, bounds = found["variants"], found["bounds"]
    told = ", ".join(f"{name} {value:.3f} s" for name, value in bounds.items() if value)
    return [
        "",
        *_variants(found["device"], variants, _phases),
        "",
        *_ratios(variants, "seconds"),
        f"an H100 at its peak rates: {told}; a round of the fastest update took "
        f"{min(seen['seconds'] for name, seen in variants.items() if 'sampling' not in name):.2f} s",
    ]


def scaling(found: dict[str, Any]) -> list[str]:
    """RLOO's rates against the batch and against the length."""
    lines = []
    for axis, cases in found.items():
        lines += ["", f"tokens per CPU second by {axis}"]
        for value, variants in cases.items():
            told = ", ".join(f"{name} {seen['tokens_per_cpu_second']:,.0f}" for name, seen in variants.items())
            lines.append(f"  {value:>4}: {told}")
    return lines


def _machine(found: dict[str, Any], part: str) -> str:
    """Whether the machine was ours."""
    told = found["machine"][part]
    before, after, share = told["load_before"], told["load_after"], told["share_of_a_core"]
    line = f"load {before:.1f} before and {after:.1f} after; a process had {share:.0%} of a core"
    alone = found["flags"]["threads"] > 1 or share > BUSY  # several threads wait for each other too
    if not alone or max(before, after) > found["cores"]:
        line += ": TOO BUSY to trust seconds; CPU seconds, on which ratios are taken, are better"
    return line + "."


def _variants(size: str, variants: dict[str, Any], more: Callable[[dict[str, Any]], str]) -> list[str]:
    lines = [f"{size:36s}{'tokens/s':>10s}{'per CPU s':>11s}{'MB':>7s}{'of work':>9s}   {more({})}"]
    for name, seen in variants.items():
        line = f"{name:36s}{seen['tokens_per_second']:10,.0f}{seen['tokens_per_cpu_second']:11,.0f}"
        lines.append(f"{line}{seen['peak_mb']:7.0f}{seen['work_mb']:9.0f}   {more(seen)}".rstrip())
    return lines


# What stands behind those columns: of a variant, or the names of the columns if there is none.


def _phases(seen: dict[str, Any]) -> str:
    if not seen:
        return "".join(f"{name:>9s}" for name in PHASES) + "   (share of a round)"
    whole = sum(seen["phases"].values())
    return "".join(f"{seen['phases'].get(name, 0.0) / whole:9.0%}" for name in PHASES if whole)


def _first_ratio(seen: dict[str, Any]) -> str:
    return f"{seen['largest_ratio'] - 1:9.1e}{seen['start_seconds']:9.0f}" if seen else f"{'ratio':>9s}{'start':>9s}"


def _network(seen: dict[str, Any]) -> str:
    return f"{seen['tokens']:9,.0f}{seen['parameters']:13,.0f}" if seen else f"{'tokens':>9s}{'parameters':>13s}"


def _ratios(variants: dict[str, Any], by: str = "cpu") -> list[str]:
    """The median, and the middle half, of the ratios of rounds that were played one after the other."""
    lines = []
    for ours, theirs in RATIOS:
        if ours in variants and theirs in variants:
            pairs = zip(variants[ours]["rounds"], variants[theirs]["rounds"], strict=True)
            rates = [(a["tokens"] / a[by]) / (b["tokens"] / b[by]) for a, b in pairs]
            low, middle, high = np.quantile(rates, [0.25, 0.5, 0.75])
            memory = [variants[name][kind] for kind in ("peak_mb", "work_mb") for name in (ours, theirs)]
            told = f"memory {memory[0] / memory[1]:.2f}, of work alone {memory[2] / max(memory[3], 1e-9):.2f}"
            unit = "CPU second" if by == "cpu" else "second"
            lines.append(
                f"{ours} / {theirs}: {middle:.2f} ({low:.2f} .. {high:.2f}) times the tokens per {unit}; {told}"
            )
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

"""The results of `python -m experiments bench` as text and as a figure.

MB is the peak memory of the process, work MB what it has beyond the imports.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from agents.files import JsonObject

RATIOS = [  # numerator and denominator, of tokens per second
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
    ("grpo, exact KL in the loss", "grpo, k3 in the loss"),
    ("grpo", "trl grpo"),
    ("grpo, graph", "trl grpo"),
    ("toy ppo", "toy sb3 ppo"),
    ("toy ppo", "toy sb3 ppo, mlp"),
    ("toy ppo", "toy sb3 ppo, default mlp"),
]
COUNTED = [("sampling", "sampling, generate"), ("sampling", "sampling, transformers"), ("grpo", "trl grpo")]
KINDS = ("kernels", "waits")
AXES = {"completions": "completions per update", "tokens": "tokens per completion"}
PHASES = ("generate", "score", "forward", "backward", "step", "other")
BUSY = 0.9  # below this share of a core, other processes delayed the measurement


def table(found: JsonObject) -> str:
    """Formats all results; the title of each part says how busy the machine was."""
    lines = [f"$ {found['command']}", f"{found['cores']} cores, threads per process: {found['flags']['threads']}"]
    if found["left_out"]:
        lines.append(f"not installed here, and so not measured: {', '.join(found['left_out'])}")
    sections = {
        "updates": updates,
        "options": options,
        "toys": toys,
        "exact": exact,
        "environments": environments,
        "gpu": gpu,
        "device": device,
        "scaling": scaling,
    }
    for part, section in sections.items():
        if part in found:
            lines += ["", f"== {part}: {_machine(found, part)}", *section(found[part])]
    return "\n".join(lines)


def updates(found: JsonObject) -> list[str]:
    """A row per variant, then the ratios."""
    lines = []
    for size, variants in found.items():
        lines += ["", *_variants(size, variants, _phases), "", *_ratios(variants)]
    return lines


def options(found: JsonObject) -> list[str]:
    """Like `updates`, with the largest ratio of the first minibatch, where it is 1 up to rounding."""
    title = "max(rho, 1/rho) - 1 in the first minibatch; seconds to start, compilation included"
    lines = []
    for model, variants in found.items():
        lines += ["", f"{'':69s}{title}", *_variants(Path(model).name, variants, _first_ratio), "", *_ratios(variants)]
    return lines


def toys(found: JsonObject) -> list[str]:
    """Like `updates`, with the tokens per update and the number of parameters."""
    work, variants = found["work"], found["variants"]
    title = (
        f"Toy-v0 with {work['vocab_size']} tokens, completions of at most {work['max_new_tokens']}; an update has "
        f"about {work['envs'] * work['steps']} tokens (sb3: {work['steps']} in each of {work['envs']} environments; "
        f"ppo: whole completions), {work['epochs']} epochs of {work['minibatches']} minibatches; tokens are sampled "
        "and trained on"
    )
    return ["", title, "", *_variants("", variants, _network), "", *_ratios(variants)]


def exact(found: JsonObject) -> list[str]:
    """Seconds and memory of each function."""
    lines = [
        "",
        f"{'':36s}{'seconds':>10s}{'CPU s':>11s}{'MB':>7s}{'work MB':>9s}   {'completions':>12s}{'states':>14s}",
    ]
    for name, row in found.items():
        line = f"{name:36s}{row['seconds']:10.1f}{row['cpu']:11.1f}{row['peak_mb']:7.0f}{row['work_mb']:9.0f}"
        lines.append(f"{line}   {row['tokens']:12,.0f}{row['states']:14,.0f}")
    return lines


def environments(found: JsonObject) -> list[str]:
    """Steps per second by the number of environments, and the smaller measurements."""
    lines = ["", "steps per second by number of environments"]
    for name, rates in found["steps_per_second"].items():
        lines.append(f"  {name:36s}" + "".join(f"  {num_envs}: {rate:,.0f}" for num_envs, rate in rates.items()))
    share = ", ".join(f"{name} {value:.0%}" for name, value in found["live"].items())
    steps = ", ".join(f"{size} tokens {us:.0f}" for size, us in found["mask"]["microseconds_a_step"].items())
    first, last = found["prefix"]["first"], found["prefix"]["last"]
    return [
        *lines,
        f"share of steps that are not resets: {share}",
        f"microseconds per step of 64 environments by vocabulary, no token masked: {steps}; one read-only mask: "
        f"{found['mask']['one_read_only_array']}",
        f"microseconds per step of 64 environments, first and last 64 of 512 tokens: {first:.0f}, {last:.0f}",
    ]


def gpu(found: JsonObject) -> list[str]:
    """Like `updates`, in seconds, beside the estimates of `experiments/cost`."""
    variants = found["variants"]
    estimated = ", ".join(f"{name} {value:.3f} s" for name, value in found["estimated"].items() if value)
    return [
        "",
        *_variants(found["device"], variants, _phases),
        "",
        *_ratios(variants, "seconds"),
        f"estimated, of PPO: {estimated}; a round of the fastest update took "
        f"{min(row['seconds'] for name, row in variants.items() if 'sampling' not in name):.2f} s",
    ]


def device(found: JsonObject) -> list[str]:
    """Kernels and waits of a round of each variant, and those of the peers as multiples of ours."""
    lines = []
    for size, part in found.items():
        work, variants = part["work"], part["variants"]
        title = f"{size}: {work['completions']} completions of {work['tokens']} tokens, {work['epochs']} epochs"
        lines += ["", f"{title:60s}{'kernels':>9s}{'waits':>7s}"]
        lines += [f"{name:60s}{row['kernels']:9,.0f}{row['waits']:7,.0f}" for name, row in variants.items()]
        for first, second in COUNTED:
            if first in variants and second in variants:
                ratios = (f"{variants[second][kind] / variants[first][kind]:.2f} times the {kind}" for kind in KINDS)
                lines.append(f"{second} / {first}: {', '.join(ratios)}")
    return lines


def scaling(found: JsonObject) -> list[str]:
    """Rates of RLOO by completions per update and by completion length."""
    lines = []
    for axis, cases in found.items():
        lines += ["", f"tokens per CPU second by {AXES[axis]}"]
        for value, variants in cases.items():
            rates = ", ".join(f"{name} {row['tokens_per_cpu_second']:,.0f}" for name, row in variants.items())
            lines.append(f"  {value:>4}: {rates}")
    return lines


def _machine(found: JsonObject, part: str) -> str:
    """How busy the machine was during a part, and whether its seconds can be trusted."""
    machine = found["machine"][part]
    before, after, share = machine["load_before"], machine["load_after"], machine["share_of_a_core"]
    loads = [load for load in (before, after) if load is not None]  # Windows has none
    shown = f"load {before:.1f} before and {after:.1f} after" if loads else "load unknown"
    line = f"{shown}; a process had {share:.0%} of a core"
    alone = found["flags"]["threads"] > 1 or share > BUSY  # several threads wait for each other too
    if not alone or max(loads, default=0.0) > found["cores"]:
        line += ": TOO BUSY to trust seconds; CPU seconds, which the ratios use, are more reliable"
    return line + "."


def _variants(size: str, variants: JsonObject, more: Callable[[JsonObject], str]) -> list[str]:
    lines = [f"{size:36s}{'tokens/s':>10s}{'per CPU s':>11s}{'MB':>7s}{'work MB':>9s}   {more({})}"]
    for name, row in variants.items():
        line = f"{name:36s}{row['tokens_per_second']:10,.0f}{row['tokens_per_cpu_second']:11,.0f}"
        lines.append(f"{line}{row['peak_mb']:7.0f}{row['work_mb']:9.0f}   {more(row)}".rstrip())
    return lines


# The columns after those of `_variants`: the cells of a variant, or the titles if the dict is empty.


def _phases(row: JsonObject) -> str:
    if not row:
        return "".join(f"{name:>9s}" for name in PHASES) + "   (share of the round)"
    total = sum(row["phases"].values())
    return "".join(f"{row['phases'].get(name, 0.0) / total:9.0%}" for name in PHASES if total)


def _first_ratio(row: JsonObject) -> str:
    return f"{row['largest_ratio'] - 1:9.1e}{row['start_seconds']:9.0f}" if row else f"{'ratio':>9s}{'start':>9s}"


def _network(row: JsonObject) -> str:
    return f"{row['tokens']:9,.0f}{row['parameters']:13,.0f}" if row else f"{'tokens':>9s}{'parameters':>13s}"


def _ratios(variants: JsonObject, by: str = "cpu") -> list[str]:
    """The median and the quartiles of the ratios, each of two rounds that ran in turn."""
    lines = []
    for first, second in RATIOS:
        if first in variants and second in variants:
            pairs = zip(variants[first]["rounds"], variants[second]["rounds"], strict=True)
            rates = [(a["tokens"] / a[by]) / (b["tokens"] / b[by]) for a, b in pairs]
            low, middle, high = np.quantile(rates, [0.25, 0.5, 0.75])
            memory = [variants[name][kind] for kind in ("peak_mb", "work_mb") for name in (first, second)]
            more = f"memory {memory[0] / memory[1]:.2f}, work alone {memory[2] / max(memory[3], 1e-9):.2f}"
            unit = "CPU second" if by == "cpu" else "second"
            lines.append(
                f"{first} / {second}: {middle:.2f} ({low:.2f} .. {high:.2f}) times the tokens per {unit}; {more}"
            )
    return lines


def scaling_figure(found: JsonObject, path: Path) -> None:
    """Tokens per CPU second against completions per update, and against completion length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (axis, cases) in zip(figure.subplots(1, 2), found.items(), strict=True):
        for name in next(iter(cases.values())):
            rates = [variants[name]["tokens_per_cpu_second"] for variants in cases.values()]
            axes.plot([int(value) for value in cases], rates, marker="o", label=name)
        axes.set(xscale="log", ylabel="completion tokens per CPU second")
        axes.set_ylim(bottom=0)
        axes.set_xticks([int(value) for value in cases], list(map(str, cases)))
        axes.minorticks_off()
        axes.set_xlabel(AXES[axis])
        axes.legend()
    figure.savefig(path, dpi=110)

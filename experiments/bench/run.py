"""python -m experiments bench: the agents, the peers and a tight loop on the same work, in alternating rounds."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from agents.files import JsonObject
from agents.policy import cpp_compiler
from experiments.bench.environments import environments
from experiments.bench.exactness import EXACT, ExactWork
from experiments.bench.standin import FOLDER as STANDIN
from experiments.bench.standin import NAME
from experiments.bench.tables import scaling_figure, table
from experiments.bench.toys import TOYS, ToyWork
from experiments.bench.variant_process import share_of_a_core, take_turns
from experiments.bench.variants import VARIANTS
from experiments.bench.work import SIZES, Work
from experiments.cost import SHAPES, Job, estimate, measure_for
from experiments.errors import FlagError
from experiments.ranges import check_flags
from experiments.run_folder import plain

PEERS = Path(".venv-bench")  # created by `make bench`
TRL = ["trl ppo", "trl rloo", "trl grpo"]
PartName = Literal["updates", "options", "toys", "exact", "environments", "gpu", "device"]


def names_of(part: str) -> list[str]:
    """The variants that a part measures."""
    return [name for name, variant in VARIANTS.items() if part in variant.parts]


@dataclass
class BenchConfig:
    """Measure speed and memory: our agents, a tight loop, transformers' generate, Stable-Baselines3, CartPole, TRL.

    Their rounds alternate. TRL needs the environment that `make bench` creates, torch.compile a C++ compiler.
    """

    parts: tuple[PartName, ...] = ("updates", "options", "toys", "exact", "environments")
    """What to measure. updates: updates and sampling of all variants. options: PPO's options (bfloat16, float32
    matrices in medium precision, update or sampling compiled) and their effect on the first ratio; GRPO with the exact
    KL in its loss, beside k3. toys: training on a
    toy, beside Stable-Baselines3. exact: the oracle on a million completions. environments: steps of environments. Not
    by default: gpu, a GPT-2 of 124M in bfloat16 on a CUDA device, 512 completions of 64 tokens after prompts of 64;
    device, the kernels that a GPU would be given, and how often the host would wait for it, on the tests' stand-in
    device, in a checkout."""
    sizes: tuple[str, ...] = ("tiny", "small")
    """Models: tiny (GPT-2 2x128, vocabulary 512), small (4x256, 5000), smoke, gpt2 (12x768, 50257)."""
    variants: tuple[str, ...] = ()
    """The variants of the part updates, e.g. "ppo" "tight loop" "trl rloo"; by default all that can run."""
    model: str | None = None
    """The folder of a causal language model, on which the options are measured, too: random models are almost uniform,
    and rounding changes their log-probabilities less."""
    rounds: int = 7
    """Rounds of each variant; at most three for the oracle."""
    completions: int = 64
    """Completions per update."""
    prompt_tokens: int = 16
    """Length of the prompts."""
    completion_tokens: int = 32
    """Length of the completions."""
    epochs: int = 4
    """Epochs on each batch of completions."""
    threads: int = 1
    """Threads of each process."""
    environment_seconds: float = 20.0
    """Seconds for the part environments."""
    exact_tokens: int = 6
    """Maximum length of the completions that the oracle enumerates; with 6 there are 1.2 million."""
    scaling: bool = False
    """Instead of the parts: our RLOO and TRL's, by completions per update and by completion length, in a figure."""
    scaling_completions: tuple[int, ...] = (8, 32, 128, 512)
    """Completions per update, of `completion_tokens` tokens."""
    scaling_tokens: tuple[int, ...] = (16, 64, 256)
    """Completion lengths, with `completions` completions per update."""
    peers: Path = field(default=PEERS)
    """A virtual environment with TRL; its folder `trl-1.12` holds the last release with PPO."""
    out: Path | None = None
    """The folder for bench.json and bench.txt; by default nothing is written."""

    def __post_init__(self) -> None:
        check_flags(self)
        if unknown := set(self.sizes) - set(SIZES):
            raise FlagError(f"--sizes: {sorted(unknown)[0]!r} is none of {', '.join(SIZES)}.")
        known = [*names_of("updates"), *TRL]
        if unknown := set(self.variants) - set(known):
            raise FlagError(f"--variants: {sorted(unknown)[0]!r} is none of {', '.join(known)}.")
        if missing := set(self.variants) - set(self.runnable(self.variants)):
            lacks = "TRL, which `make bench` installs" if min(missing).startswith("trl") else "a C++ compiler"
            raise FlagError(f"--variants: {min(missing)!r} cannot run without {lacks}.")
        if "gpu" in self.parts and not torch.cuda.is_available():
            raise FlagError("--parts gpu: there is no CUDA device.")
        if "device" in self.parts and not STANDIN.is_dir():
            raise FlagError(
                f"--parts device: the stand-in device is a tool of the tests: run it in a checkout, got no {STANDIN}."
            )
        if self.scaling and not any("rloo" in name for name in self.variants or TRL):
            raise FlagError("--scaling measures RLOO: --variants must include rloo or trl rloo.")

    def runnable(self, names: Sequence[str], device: str = "cpu") -> list[str]:
        """Returns the names of the variants that can run on this machine."""
        compiles, peers = shutil.which(cpp_compiler()), (Path(self.peers) / "bin" / "python").exists()
        missing = () if compiles else ("compiled",) if device == "cuda" else ("compiled", "graph")
        return [name for name in names if (peers or not name.startswith("trl")) and not name.endswith(missing)]

    def work(self, size: str) -> Work:
        """The work of one update of the model `size`."""
        return Work(size, self.completions, self.prompt_tokens, self.completion_tokens, self.epochs)


def updates(config: BenchConfig) -> Any:
    """Updates and sampling, of the agents and the peers."""
    names = config.runnable(config.variants or [*names_of("updates"), *TRL])
    return {size: turns(config, names, config.work(size)) for size in config.sizes}


def options(config: BenchConfig) -> Any:
    """PPO with each of its options."""
    models = [*config.sizes, *filter(None, [config.model])]
    return {model: turns(config, config.runnable(names_of("options")), config.work(model)) for model in models}


def toys(config: BenchConfig) -> Any:
    """Training on a toy, `agents.PPO` and Stable-Baselines3's."""
    work = ToyWork()
    return {"work": dataclasses.asdict(work), "variants": turns(config, list(TOYS), work)}


def exact(config: BenchConfig) -> Any:
    """The functions of `textenv.exact`."""
    return turns(config, list(EXACT), ExactWork(max_new_tokens=config.exact_tokens), min(3, config.rounds))


def gpu(config: BenchConfig) -> Any:
    """GPT-2 on a GPU, beside the estimates of `experiments/cost` for it."""
    work = Work("gpt2", 512, 64, 64, epochs=1, micro_batch=64, device="cuda", dtype="bfloat16")
    job = Job(work.completions, work.prompt, work.tokens, work.micro_batch or work.completions, work.epochs)
    model = SHAPES["124M"].config
    estimated = estimate(model, job, measure_for(model, job, "cuda"), on_cpu=False)
    return {
        "device": torch.cuda.get_device_name(),
        "variants": turns(config, config.runnable([*names_of("gpu"), "trl grpo"], "cuda"), work, min(3, config.rounds)),
        "estimated": {phase: sum(terms.values()) for phase, terms in estimated.items()},
    }


def device(config: BenchConfig) -> Any:
    """Kernels and waits of a round on the stand-in device, of each model: rounds are alike, so one suffices."""
    names = config.runnable([*names_of("device"), "trl grpo"])
    works = {size: dataclasses.replace(config.work(size), device=NAME) for size in config.sizes}
    return {
        size: {"work": dataclasses.asdict(work), "variants": turns(config, names, work, 1)}
        for size, work in works.items()
    }


def stepping(config: BenchConfig) -> Any:
    """Environments, in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = environments(config.environment_seconds)
    return found | {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def scaling(config: BenchConfig) -> Any:
    """RLOO by completions per update and by completion length, one case after the other."""
    names = config.runnable([name for name in config.variants or ("rloo", "trl rloo") if "rloo" in name])
    found: JsonObject = {"completions": {}, "tokens": {}}
    for axis, values in (("completions", config.scaling_completions), ("tokens", config.scaling_tokens)):
        for value in values:
            changed: JsonObject = {axis: value}
            found[axis][value] = turns(config, names, dataclasses.replace(config.work(config.sizes[0]), **changed))
    return found


def turns(config: BenchConfig, names: list[str], work: Any, rounds: int | None = None) -> JsonObject:
    """Runs `take_turns` with the settings of the flags."""
    return take_turns(names, work, rounds or config.rounds, config.peers, config.threads)


PARTS: dict[str, Callable[[BenchConfig], Any]] = {
    "updates": updates,
    "options": options,
    "toys": toys,
    "exact": exact,
    "environments": stepping,
    "gpu": gpu,
    "device": device,
    "scaling": scaling,
}


def load_average() -> float | None:
    """Processes that run or wait, over the last minute; None on Windows, which does not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def bench(config: BenchConfig) -> JsonObject:
    """Runs the parts, prints their tables and writes them to `out`."""
    if config.model is not None and not (Path(config.model) / "config.json").is_file():
        raise FlagError(f"--model: {config.model!r} is not the folder of a language model (no config.json).")
    known = [*names_of("updates"), *names_of("options"), *TRL]
    found: JsonObject = {
        "command": "python -m experiments " + shlex.join(sys.argv[1:]),
        "flags": plain(config),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "stable-baselines3", "gymnasium", "numpy")
        },
        "cores": os.cpu_count(),
        "left_out": sorted(set(known) - set(config.runnable(known))),
        "machine": {},
    }
    name = "scaling" if config.scaling else "bench"
    if config.out is not None:
        try:
            config.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlagError(f"--out {str(config.out)!r} cannot be made: {error}") from error
    for part in ["scaling"] if config.scaling else config.parts:
        before = load_average()
        found[part] = PARTS[part](config)
        load = {"load_before": before, "load_after": load_average()}
        found["machine"][part] = load | {"share_of_a_core": share_of_a_core(found[part])}
        if config.out is not None:  # after each part, so that an interruption loses only the current one
            (config.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            (config.out / f"{name}.txt").write_text(table(found) + "\n", encoding="utf-8")
    print(table(found))
    if config.scaling and config.out is not None:
        scaling_figure(found["scaling"], config.out / "scaling.png")
    return found

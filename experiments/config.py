"""Flags of training: dataclasses, from which the command line is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents import Agent
from agents.files import JsonObject
from agents.policy import TransformerPolicy
from agents.sampling import Sampler
from agents.training import default_learning_rate
from experiments.agent_classes import METAVAR, Settings, check_distinct, complete_settings, find_agent, settings_key
from experiments.env_flags import EnvFlags
from experiments.errors import FlagError
from experiments.library_agent import LibraryAgent
from experiments.named_code import import_named
from experiments.ranges import check_flags, name_flags
from textenv import EnvLike, get_mdp
from textenv.references import CausalLMReference

# a new sampler is one entry here: a function as `agents.sampling.Sampler` defines, or a class that makes one
SAMPLERS = {
    "loop": "agents.sampling.loop:sample",
    "generate": "agents.sampling.generate:generate_sampler",
    "graph": "agents.sampling.graph:GraphSampler",
}


@dataclass
class TrainFlags(EnvFlags):
    """How to train: flags of all agents."""

    total_timesteps: int = 50_000
    """Tokens to sample; a timestep is a token."""
    learning_rate: float | None = None
    """Step size of the optimizer. By default it follows what is trained: 1e-4 for a LoRA adapter, 1e-5 for a pretrained
    model (the task's reference is a language model), 1e-3 for a toy's small transformer."""
    n_episodes: int = 64
    """Completions per update."""
    separate_critic: bool = False
    """Give the critic a transformer of its own; without it the critic shares the policy's."""
    temperature: float = 1.0
    """Divides the policy's logits, in sampling, reward and update alike."""
    eval_episodes: int = 256
    """Completions per evaluation, where the task is too large to enumerate; rounded up to equally many of each
    prompt."""
    num_evals: int = 25
    """Evaluations during training (for the curves)."""
    samples_per_eval: int = 4
    """Completions that are kept of each evaluation with the numbers of all their tokens, in samples/; 0: none."""
    optimum_completions: int = 0
    """Where the task is too large to enumerate: completions of the reference for each prompt, from which the optimum J*
    is estimated before the training; 0: J* is not known."""
    max_eval_prompts: int = 16
    """Where the task is too large to enumerate: the largest number of prompts, spread evenly over the task's, on which
    policies are measured and J* is estimated; equally many completions of each."""
    lora_rank: int = 0
    """Rank of a LoRA adapter on all linear layers, trained on top of the reference's weights; 0: train a copy of the
    weights."""
    gradient_checkpointing: bool = False
    """Store only each layer's input for the backward pass and recompute the rest: less memory, more time."""
    compile: bool = False
    """Compile the policy's forward pass in updates (torch.compile). That takes up to a minute at the start;
    `bench --parts options` measures what it saves. On a CPU it needs a C++ compiler."""
    sampler: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(SAMPLERS) + "}")] = "loop"
    """How completions are sampled. loop: agents/sampling/loop.py. generate: transformers' `generate`. graph: one decode
    step, captured as a CUDA graph and replayed (agents/sampling/graph.py); on a CPU it is compiled, which needs a C++
    compiler and some seconds at the start."""
    wandb_project: str | None = None
    """Log to this project of Weights & Biases too; needs pip install -e ".[wandb]"."""
    checkpoint_seconds: float | None = None
    """Seconds of training between checkpoints; 0: one after each update. By default 10, and more where checkpoints
    would take over a twentieth of the time."""
    keep_checkpoints: int = 2
    """Checkpoints to keep: the newest is checkpoint/, the one before checkpoint.1/. A damaged one is passed over."""
    out: Path | None = None
    """Output folder; by default a new one under runs/."""
    resume: bool = False
    """Resume the run in --out from its last checkpoint; begin it if there is none yet."""
    take_over: bool = False
    """With --out in use by a command on another host: use it nevertheless, since that command does not run any more."""
    accept_changes: bool = False
    """With --resume: resume though flags, prompts, models or rewards are not those that the run began with."""

    def __post_init__(self) -> None:
        check_flags(self)
        if self.sampler not in SAMPLERS:
            raise FlagError(f"--sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}.")

    def resolve_learning_rate(self, env: EnvLike) -> None:
        """Sets `learning_rate`, if it is None, to the agents' default for what is trained in an environment."""
        if self.learning_rate is None:
            pretrained = isinstance(get_mdp(env).reference, CausalLMReference)
            self.learning_rate = default_learning_rate(pretrained, self.lora_rank > 0)


@dataclass
class AgentFlags(TrainFlags):
    """How to train, and the settings of the agents that are trained."""

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    """The agents' own settings; those that are left out have their defaults."""


@dataclass
class TrialConfig(AgentFlags):
    """Train one agent with one seed.

    Flags of one agent begin with its name: `train --agent ppo --help` shows PPO's too. `-H` explains every flag.
    """

    log_completions: int = 0
    """Print some completions of the training batch every so many updates; 0: never."""
    agent: Annotated[str, tyro.conf.arg(metavar=METAVAR)] = "ppo"
    """Agent to train: one of this project, of Stable-Baselines3, of TRL (pip install -e ".[trl]"), or module:Class,
    an agent of your own."""
    seed: int = 0
    """Seed of prompts, tokens and minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = find_agent(self.agent)
        check_distinct([self.agent], SHARED_FLAGS, "--agent")
        self.settings = complete_settings(self.settings, [self.agent])
        if issubclass(kind, LibraryAgent):
            # they train a copy of the whole policy, and update on tokens of unfinished completions
            for name in ("lora_rank", "log_completions", "compile"):
                if getattr(self, name):
                    raise FlagError(f"--{name.replace('_', '-')} is for our agents, not for {self.agent}.")
            for name, default in (("dtype", "float32"), ("sampler", "loop")):
                if (value := getattr(self, name)) != default:
                    raise FlagError(f"--{name} {value} is for our agents, not for {self.agent}.")

    def make_sampler(self) -> Sampler:
        """Returns the sampler that the flags name."""
        named: Any = import_named(SAMPLERS[self.sampler], "--sampler")
        sampler: Sampler = named() if isinstance(named, type) else named
        return sampler

    def make_agent(self, policy: TransformerPolicy, env: EnvLike) -> Agent | LibraryAgent:
        """Returns the agent that the flags name; raises a FlagError where its settings do not fit each other."""
        self.resolve_learning_rate(env)
        try:
            return find_agent(self.agent)(policy, env, **self.hyperparameters())
        except ValueError as error:
            raise FlagError(name_flags(str(error), self, settings_key(self.agent))) from error

    def hyperparameters(self) -> JsonObject:
        """The agent's settings, without policy and env."""
        shared = {"learning_rate": self.learning_rate, "n_episodes": self.n_episodes, "seed": self.seed}
        return self.settings[settings_key(self.agent)] | shared


# the flags of `train` but the agents' settings
SHARED_FLAGS = [f.name for f in dataclasses.fields(TrialConfig) if f.name != "settings"]

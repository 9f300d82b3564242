"""Flags of training, and each agent's settings: dataclasses, from which the command line is made."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import docstring_parser
import tyro

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, Agent
from experiments.env_flags import EnvFlags
from experiments.errors import FlagError
from experiments.ranges import check_flags, name_flags
from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO, StableBaselines

AGENTS: dict[str, type[Agent] | type[StableBaselines]] = {
    "reinforce": REINFORCE,
    "actor_critic": ActorCritic,
    "ppo": PPO,
    "rloo": RLOO,
    "grpo": GRPO,
    "sb3-ppo": SB3PPO,
    "sb3-a2c": SB3A2C,
    "maskable-ppo": SB3MaskablePPO,
}


AgentName = Literal["reinforce", "actor_critic", "ppo", "rloo", "grpo", "sb3-ppo", "sb3-a2c", "maskable-ppo"]


def _settings(agent: type[Agent] | type[StableBaselines]) -> type[Any]:
    """Returns a dataclass of the agent's own hyperparameters: they become flags, with its docstrings as help."""
    shared = {f.name for f in dataclasses.fields(TrainFlags)} | {"policy", "initial_policy", "env", "seed"}
    documented = {
        parameter.arg_name: parameter.description
        for base in reversed(agent.__mro__[:-1])  # the last is `object`
        for parameter in docstring_parser.parse_from_object(base).params
    }
    types = get_type_hints(agent)
    settings = dataclasses.make_dataclass(
        f"{agent.__name__}Settings",
        [
            (f.name, Annotated[types[f.name], tyro.conf.arg(help=documented.get(f.name))], field(default=f.default))
            for f in dataclasses.fields(agent)
            if f.name not in shared
        ],
        namespace={"__doc__": f"Settings of {agent.__name__}."},
    )
    settings.__module__ = __name__  # a worker unpickles it by this name
    return settings


@dataclass
class TrainFlags(EnvFlags):
    """How to train: flags of all agents."""

    total_timesteps: int = 50_000
    """Tokens to sample; a timestep is a token."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    n_episodes: int = 64
    """Completions per update."""
    separate_critic: bool = False
    """Give the critic a transformer of its own; without it the critic shares the policy's."""
    temperature: float = 1.0
    """Divides the policy's logits, in sampling, reward and update alike."""
    eval_episodes: int = 256
    """Completions per evaluation, where the task is too large to enumerate."""
    num_evals: int = 25
    """Evaluations during training (for the curves)."""
    lora_rank: int = 0
    """Rank of a LoRA adapter on all linear layers, trained on top of the reference's weights; 0: train a copy of the
    weights."""
    gradient_checkpointing: bool = False
    """Store only each layer's input for the backward pass and recompute the rest: less memory, more time."""
    compile: bool = False
    """Compile the policy's forward pass in updates (torch.compile). That takes up to a minute at the start;
    `bench --parts options` measures what it saves. On a CPU it needs a C++ compiler."""
    sampler: Literal["loop", "generate", "graph"] = "loop"
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
        if self.lora_rank and importlib.util.find_spec("peft") is None:
            raise FlagError('--lora-rank needs peft: pip install -e ".[peft]".')
        if self.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise FlagError('--wandb-project needs Weights & Biases: pip install -e ".[wandb]".')


REINFORCESettings = _settings(REINFORCE)
ActorCriticSettings = _settings(ActorCritic)
PPOSettings = _settings(PPO)
RLOOSettings = _settings(RLOO)
GRPOSettings = _settings(GRPO)
SB3PPOSettings = _settings(SB3PPO)
SB3A2CSettings = _settings(SB3A2C)
SB3MaskablePPOSettings = _settings(SB3MaskablePPO)


@dataclass
class AgentFlags(TrainFlags):
    """How to train, and each agent's own settings."""

    reinforce: REINFORCESettings = field(default_factory=REINFORCESettings)
    actor_critic: ActorCriticSettings = field(default_factory=ActorCriticSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    rloo: RLOOSettings = field(default_factory=RLOOSettings)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    sb3_ppo: SB3PPOSettings = field(default_factory=SB3PPOSettings)
    sb3_a2c: SB3A2CSettings = field(default_factory=SB3A2CSettings)
    maskable_ppo: SB3MaskablePPOSettings = field(default_factory=SB3MaskablePPOSettings)


@dataclass
class TrialConfig(AgentFlags):
    """Train one agent with one seed."""

    log_completions: int = 0
    """Print some completions of the training batch every so many updates; 0: never."""
    agent: AgentName = "ppo"
    """Agent to train."""
    seed: int = 0
    """Seed of prompts, tokens and minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if issubclass(AGENTS[self.agent], StableBaselines):
            # they train a copy of the whole policy, and update on tokens of unfinished completions
            for name in ("lora_rank", "log_completions", "compile"):
                if getattr(self, name):
                    raise FlagError(f"--{name.replace('_', '-')} is for our agents, not for {self.agent}.")
            for name, default in (("dtype", "float32"), ("sampler", "loop")):
                if (value := getattr(self, name)) != default:
                    raise FlagError(f"--{name} {value} is for our agents, not for {self.agent}.")

    def make_agent(self, policy: Any, env: Any) -> Agent | StableBaselines:
        """Returns the agent that the flags name; raises a FlagError where its settings do not fit each other."""
        try:
            return AGENTS[self.agent](policy, env, **self.hyperparameters())
        except ValueError as error:
            raise FlagError(name_flags(str(error), self, self.agent.replace("-", "_"))) from error

    def hyperparameters(self) -> dict[str, Any]:
        """The agent's settings, without policy and env."""
        shared = {"learning_rate": self.learning_rate, "n_episodes": self.n_episodes, "seed": self.seed}
        return dataclasses.asdict(getattr(self, self.agent.replace("-", "_"))) | shared

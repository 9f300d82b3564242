"""What every command can be told: dataclasses, from which the command line is made."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import docstring_parser
import gymnasium as gym
import torch
import tyro
from transformers import AutoTokenizer

import textenv.rewards
from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, Agent
from experiments.errors import FlagError
from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO, StableBaselines
from textenv import get_mdp
from textenv.lm import check_causal
from textenv.references import CausalLMReference
from textenv.shaping import missing_eos_penalty

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
    """The agent's own hyperparameters as a dataclass, so that they become flags with its docstrings as help."""
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
    settings.__module__ = __name__  # pickled by name on the way to a process
    return settings


@dataclass
class EnvFlags:
    """Which environment."""

    env: str = "textenv/TajMahal-v0"
    """A registered id."""
    model: str | None = None
    """Text-v0, Sentiment-v0: the causal language model that is reference and first policy, a path or hub id."""
    prompts: str | None = None
    """Text-v0, Sentiment-v0: a file of prompts, .txt (one a line) or .jsonl (field "prompt")."""
    reward: list[str] | None = None
    """Text-v0, Sentiment-v0: one or more of "vader"; module:function with TRL's signature; a sequence classifier, a
    path or hub id, #LABEL behind it if it has several labels."""
    reward_weights: list[float] | None = None
    """With several of --reward: the weight of each in the score; by default 1."""
    gold_reward: str | None = None
    """Text-v0, Sentiment-v0: as --reward, shown and never paid: a judge that the policy is not trained on."""
    missing_eos_penalty: float = 0.0
    """What an answer pays that was cut at max_new_tokens instead of ending itself."""
    max_new_tokens: int | None = None
    """The longest answer; by default the task's."""
    kl_coef: float | None = None
    """beta; by default the task's."""
    env_args: dict[str, int | float | str] = field(default_factory=dict)
    """Further arguments of the task, e.g. vocab_size 4 task_seed 1."""
    device: str = "cpu"
    """Where the models are: cpu, cuda, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights of policy, reference and classifiers; log-probabilities, V and Adam's copies are in float32."""
    float32_matmul_precision: Literal["highest", "high", "medium"] | None = None
    """torch's, of the whole process: in what float32 matrices may be multiplied. high: TF32, on a GPU that has it.
    medium: bfloat16, on a CPU that has AMX; without, but with AVX-512, in float32 still and by oneDNN instead of MKL:
    faster on AMD's, `bench --parts options` says by how much (with eager attention; the other kind becomes slower)."""
    attn_implementation: str | None = None
    """How the policy, and a language model as reference, attend, in transformers' words: sdpa, eager,
    flash_attention_2, ...; by default its own choice."""

    def make_env(self) -> Any:
        """The batched environment that the flags name, its reference on `device`.

        Raises:
            FlagError: flags that do not fit.
        """
        check_device(self.device)
        arguments: dict[str, Any] = dict(self.env_args)
        if self.max_new_tokens is not None:
            arguments["max_new_tokens"] = self.max_new_tokens
        if self.kl_coef is not None:
            arguments["kl_coef"] = self.kl_coef
        if self.missing_eos_penalty:
            arguments["shaping"] = missing_eos_penalty(self.missing_eos_penalty)
        own = ("model", "prompts", "reward", "reward_weights", "gold_reward")
        given = [name for name in own if getattr(self, name) is not None]
        if self.env not in ("textenv/Text-v0", "textenv/Sentiment-v0") and given:
            raise FlagError(
                f"--{given[0].replace('_', '-')} is for --env textenv/Text-v0 and textenv/Sentiment-v0; {self.env} "
                "brings its own."
            )
        try:
            arguments |= self._text_arguments()
            envs = gym.make_vec(self.env, num_envs=1, **arguments)
            reference = get_mdp(envs).reference
            if isinstance(reference, CausalLMReference):
                reference.model.to(self.device, getattr(torch, self.dtype))
                if self.attn_implementation is not None:
                    set_attention(reference.model, self.attn_implementation)
        except FlagError:
            raise
        except (ValueError, TypeError, OSError, ImportError, gym.error.Error) as error:
            raise FlagError(f"{self.env}: {error}") from error
        return envs

    def _text_arguments(self) -> dict[str, Any]:
        """What Text-v0 and Sentiment-v0 are told by flags."""
        if self.env == "textenv/Text-v0" and (self.model is None or self.prompts is None or self.reward is None):
            raise FlagError("--env textenv/Text-v0 needs --model, --prompts and --reward.")
        if self.prompts is not None and not Path(self.prompts).is_file():
            raise FlagError(f"The prompt file {self.prompts!r} does not exist.")
        arguments: dict[str, Any] = {"prompts": self.prompts, "reward_weights": self.reward_weights}
        if self.reward is not None:
            arguments["reward"] = [load_reward(name, self.device, self.dtype) for name in self.reward]
        if self.gold_reward is not None:
            arguments["gold_reward"] = load_reward(self.gold_reward, self.device, self.dtype, "--gold-reward")
        if self.env == "textenv/Text-v0":
            arguments |= {"tokenizer": AutoTokenizer.from_pretrained(self.model), "reference": self.model}
        else:
            arguments["model"] = self.model
        return {name: value for name, value in arguments.items() if value is not None}


@dataclass
class TrainFlags(EnvFlags):
    """How to train, whatever the agent."""

    total_timesteps: int = 50_000
    """Tokens to write; a timestep is a token."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    n_episodes: int = 64
    """Answers an update."""
    separate_critic: bool = False
    """Give the critic a trunk of its own."""
    temperature: float = 1.0
    """Divides the policy's logits, in sampling, reward and update alike."""
    eval_episodes: int = 256
    """Answers of an evaluation where the task is too large to enumerate."""
    num_evals: int = 25
    """Evaluations during training (for the curves)."""
    lora_rank: int = 0
    """Train an adapter of this rank on all linear layers, on the reference's own weights; 0 trains a copy of them."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone while learning and compute the rest again: less memory, more time."""
    compile: bool = False
    """Compile the update's pass (torch.compile): a minute at first; what it then saves, `bench --parts options` says.
    On a CPU it needs a C++ compiler."""
    sampler: Literal["loop", "generate", "graph"] = "loop"
    """What generates: our loop, transformers' generate, or a step that is recorded once and played back
    (agents/recorded.py): as a CUDA graph; on a CPU compiled, which needs a C++ compiler and some seconds at first."""
    wandb_project: str | None = None
    """Log to this project of Weights & Biases too (pip install textenv[wandb])."""
    out: Path | None = None
    """The folder to write to; by default a new one under runs/."""
    resume: bool = False
    """Go on in --out where an interrupted run stopped."""

    def __post_init__(self) -> None:
        least = {
            "total_timesteps": 1,
            "n_episodes": 1,
            "num_evals": 1,
            "eval_episodes": 2,
            "log_completions": 0,
            "lora_rank": 0,
        }
        for name, low in least.items():
            if getattr(self, name, low) < low:
                raise FlagError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}.")
        if self.lora_rank and importlib.util.find_spec("peft") is None:
            raise FlagError("--lora-rank needs peft: pip install textenv[peft].")
        if self.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise FlagError("--wandb-project needs Weights & Biases: pip install textenv[wandb].")


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
    """Show some of the answers that were learned from on screen, every so many updates; 0 never does."""
    agent: AgentName = "ppo"
    """Which agent."""
    seed: int = 0
    """Seeds prompts, tokens and minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if issubclass(AGENTS[self.agent], StableBaselines):
            # they train a copy of the whole policy, and learn from tokens of texts that go on
            for name in ("lora_rank", "log_completions", "compile"):
                if getattr(self, name):
                    raise FlagError(f"--{name.replace('_', '-')} is for our agents, not for {self.agent}.")
            for name, usual in (("dtype", "float32"), ("sampler", "loop")):
                if (told := getattr(self, name)) != usual:
                    raise FlagError(f"--{name} {told} is for our agents, not for {self.agent}.")

    def make_agent(self, policy: Any, env: Any) -> Agent | StableBaselines:
        """The agent that the flags name."""
        return AGENTS[self.agent](policy, env, **self.hyperparameters())

    def hyperparameters(self) -> dict[str, Any]:
        """The agent's settings, without policy and env."""
        shared = {"learning_rate": self.learning_rate, "n_episodes": self.n_episodes, "seed": self.seed}
        return dataclasses.asdict(getattr(self, self.agent.replace("-", "_"))) | shared


def set_attention(model: Any, name: str) -> None:
    """Let a causal language model attend in another way.

    Raises:
        ValueError, ImportError: transformers has none of that name, or it looks ahead ("paged|eager" does).
    """
    model.set_attn_implementation(name)
    check_causal(model)


def check_device(device: str) -> None:
    """A device must be there; else a FlagError."""
    try:
        torch.zeros(1, device=device).item()  # which those without memory, "meta", cannot say
    except (RuntimeError, AssertionError) as error:
        raise FlagError(f"--device {device}: {str(error).splitlines()[0]}") from error


def load_reward(name: str, device: str = "cpu", dtype: str = "float32", flag: str = "--reward") -> Any:
    """The reward function that a flag names: "vader", `module:function`, or a classifier and its label."""
    if name == "vader":
        try:
            textenv.rewards.vader([], [], [])
        except ImportError as error:
            raise FlagError(str(error)) from error
        return textenv.rewards.vader
    module, _, function = name.rpartition(":")
    if not module:
        path, _, label = name.partition("#")
        try:
            classifier = textenv.rewards.RewardModel(path, label=int(label) if label.isdigit() else label or None)
        except (OSError, ValueError) as error:
            raise FlagError(
                f"{flag} must be 'vader', module:function, or a sequence classifier (path or hub id, #LABEL behind it "
                f"if it has several), got {name!r}: {str(error).splitlines()[0]}"
            ) from error
        classifier.model.to(device, getattr(torch, dtype))
        return classifier
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise FlagError(f"{flag} {name!r} could not be imported: {error}") from error

"""Flags that select the environment, and what they load: reward, device, attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch

import textenv.rewards
from agents import files
from experiments.errors import FlagError
from experiments.held_out import Environments, split, with_eval_prompts
from experiments.named_code import import_named, import_registrations
from experiments.task_arguments import check_flags_of_task, check_task_arguments
from textenv import get_mdp
from textenv.data import fill_holes, parse_json
from textenv.lm import find_cache_support, load_tokenizer
from textenv.references import CausalLMReference
from textenv.shaping import missing_eos_penalty

REWARDS = {"vader": "textenv.rewards.lexicon:vader"}  # a new reward with a name is one entry here
# flags of Text-v0 and Sentiment-v0, whose prompts are texts
OF_TEXTS = (
    "model", "prompts", "eval_prompts", "reward", "reward_weights", "gold_reward", "special_tokens_in_prompts",
    "chat_template_kwargs",
)  # fmt: skip


@dataclass
class EnvFlags:
    """Which environment."""

    env: str = "textenv/TajMahal-v0"
    """Registered id of the environment."""
    model: str | None = None
    """Text-v0, Sentiment-v0: path or hub id of the causal language model that is the reference; the policy starts at
    it."""
    prompts: str | None = None
    """Text-v0, Sentiment-v0: file of prompts, .txt (one prompt a line), .jsonl, .ndjson, .json, .csv or .parquet (field
    "prompt")."""
    eval_prompts: str | None = None
    """Text-v0, Sentiment-v0: file of prompts as in --prompts that are not trained on: policies are measured on them
    too."""
    held_out: float = 0.0
    """Share of the task's prompts that are not trained on: policies are measured on them too."""
    reward: list[str] | None = None
    """Text-v0, Sentiment-v0: one or more of "vader"; module:function with TRL's signature; path or hub id of a sequence
    classifier, followed by #LABEL if it has several labels."""
    reward_weights: list[float] | None = None
    """Weight of each --reward in the score; by default 1."""
    gold_reward: str | None = None
    """Text-v0, Sentiment-v0: a reward as in --reward that is measured but not part of the score: the policy is not
    trained on it."""
    on_reward_error: Literal["raise", "retry", "skip"] | None = None
    """Text-v0, Sentiment-v0: what happens where a reward or gold reward fails (an error, `sys.exit`, nan, None from
    all). raise (the default): the run stops. retry: the batch is scored again, in --reward-tries attempts. skip: as
    retry; then the completions that still fail are left out of training and evaluation, and counted. The stepping
    environments of Stable-Baselines3's agents do not skip."""
    reward_tries: int | None = None
    """With --on-reward-error retry and skip: attempts at scoring a batch, the first one included; by default 3."""
    reward_wait: float | None = None
    """With --on-reward-error retry and skip: seconds between these attempts, the same each time; by default 1."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the reward of a completion that is cut at max_new_tokens, without EOS."""
    max_new_tokens: int | None = None
    """Largest number of tokens of a completion; by default the task's."""
    kl_coef: float | None = None
    """beta, the weight of the KL to the reference; by default the task's."""
    env_args: dict[str, int | float | str] = field(default_factory=dict)
    """Further arguments of the task, numbers or texts, e.g. vocab_size 4 task_seed 1."""
    special_tokens_in_prompts: bool = False
    """Text-v0, Sentiment-v0: read the spelling of a special token in a prompt ("</s>") as that token, for prompts that
    a chat template has written. Without it such a spelling is ordinary text."""
    chat_template_kwargs: str | None = None
    """Text-v0, Sentiment-v0: further arguments of the tokenizer's chat template, a JSON object such as
    '{"enable_thinking": false}'. A field of that name in a prompt's row is for that prompt."""
    trust_remote_code: bool = False
    """Run the Python code that models and classifiers bring; without it those that need code are refused."""
    device: str = "cpu"
    """Device of policy, reference and classifiers: cpu, cuda, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights of policy, reference and classifiers. Log-probabilities, V and master weights are in
    float32."""
    float32_matmul_precision: Literal["highest", "high", "medium"] | None = None
    """Precision of float32 matrix products, a torch setting of the whole OS process. high: TF32, on a GPU that has it.
    medium: bfloat16, on a CPU that has AMX. On a CPU with AVX-512 and without AMX, medium computes in float32 by oneDNN
    instead of MKL. That is faster on AMD CPUs with eager attention and slower with other attention; `bench --parts
    options` measures it."""
    attn_implementation: str | None = None
    """Attention of the policy and of a language model as reference, by its name in transformers: sdpa, eager,
    flash_attention_2, ...; by default transformers chooses."""

    def make_environments(self) -> Environments:
        """Returns the environments that the flags name: `make_env`, without the prompts that are held out, and theirs.

        Raises:
            FlagError: flags that are invalid or contradict each other, or nothing is left on one side.
        """
        if self.held_out and self.eval_prompts is not None:
            raise FlagError(
                "--held-out and --eval-prompts both name prompts that are not trained on: give one of them."
            )
        env = self.make_env()
        try:
            if self.eval_prompts is not None:
                return with_eval_prompts(env, self.eval_prompts)
            return split(env, self.held_out) if self.held_out else Environments(env, None, env)
        except ValueError as error:
            raise FlagError(f"{self.env}: {error}") from error

    def make_env(self) -> Any:
        """Returns the batched environment that the flags name, with all its prompts, its reference on `device`.

        Raises:
            FlagError: flags that are invalid or contradict each other.
        """
        check_device(self.device)
        names = ("max_new_tokens", "kl_coef", "on_reward_error", "reward_tries", "reward_wait")
        flags = {name: value for name in names if (value := getattr(self, name)) is not None}
        arguments: dict[str, Any] = self.env_args | flags
        if self.missing_eos_penalty:
            arguments["shaping"] = missing_eos_penalty(self.missing_eos_penalty)
        given = [name for name in OF_TEXTS if getattr(self, name) not in (None, False)]
        if self.env not in ("textenv/Text-v0", "textenv/Sentiment-v0") and given:
            raise FlagError(
                f"--{given[0].replace('_', '-')} is for --env textenv/Text-v0 and textenv/Sentiment-v0; {self.env} "
                "brings its own."
            )
        import_registrations(self.env)
        try:
            check_task_arguments(self.env, self.env_args)
            check_flags_of_task(self.env, [*flags])
            arguments |= self._text_arguments()
            envs = gym.make_vec(self.env, num_envs=1, **arguments)
            mdp = get_mdp(envs)
            tries = [name for name in ("reward_tries", "reward_wait") if name in flags]
            if tries and mdp.reward.on_error == "raise":
                raise FlagError(f"--{tries[0].replace('_', '-')} is for --on-reward-error retry and skip.")
            reference = mdp.reference
            if isinstance(reference, CausalLMReference):
                if self.attn_implementation is not None:  # tried in float32, where no rounding hides an error
                    set_attention(reference.model, self.attn_implementation)
                reference.model.to(self.device, getattr(torch, self.dtype))
        except FlagError:
            raise
        except (ValueError, TypeError, OSError, ImportError, gym.error.Error) as error:
            raise FlagError(f"{self.env}: {error}") from error
        return envs

    def _text_arguments(self) -> dict[str, object]:
        """Arguments of Text-v0 and Sentiment-v0 that the flags set."""
        if self.env == "textenv/Text-v0" and (self.model is None or self.prompts is None or self.reward is None):
            raise FlagError("--env textenv/Text-v0 needs --model, --prompts and --reward.")
        if self.prompts is not None and not (path := Path(self.prompts)).is_file():
            raise FlagError(f"The prompt file {self.prompts!r} {'is no file' if path.exists() else 'does not exist'}.")
        arguments: dict[str, Any] = {"prompts": self.prompts, "reward_weights": self.reward_weights}
        arguments["special_tokens_in_prompts"] = self.special_tokens_in_prompts or None
        arguments["chat_template_kwargs"] = self._template_arguments()
        trust = self.trust_remote_code
        if self.reward is not None:
            arguments["reward"] = [
                load_reward(name, self.device, self.dtype, trust_remote_code=trust) for name in self.reward
            ]
        if self.gold_reward is not None:
            arguments["gold_reward"] = load_reward(
                self.gold_reward, self.device, self.dtype, "--gold-reward", trust_remote_code=trust
            )
        if self.model is not None:
            files.check_saved(self.model)
        if self.env == "textenv/Text-v0":
            tokenizer = fill_holes(load_tokenizer(str(self.model), trust_remote_code=trust))
            reference = CausalLMReference(str(self.model), vocab_size=len(tokenizer), trust_remote_code=trust)
            arguments |= {"tokenizer": tokenizer, "reference": reference}
        elif self.model is not None:
            arguments |= {"model": self.model, "trust_remote_code": trust}
        return {name: value for name, value in arguments.items() if value is not None}

    def _template_arguments(self) -> dict[str, Any] | None:
        if self.chat_template_kwargs is None:
            return None
        try:
            found = parse_json(self.chat_template_kwargs)
        except (ValueError, RecursionError) as error:
            found = str(error)
        if not isinstance(found, dict):
            given = self.chat_template_kwargs
            raise FlagError(f"--chat-template-kwargs must be a JSON object, got {given!r}: {found}.")
        return found


def set_attention(model: Any, name: str) -> None:
    """Sets the attention implementation of a causal language model.

    Raises:
        ValueError, ImportError: transformers has none of that name, or it is not causal ("paged|eager" is not).
    """
    model.set_attn_implementation(name)
    find_cache_support(model)


def check_device(device: str) -> None:
    """Raises a FlagError unless torch can use the device."""
    try:
        torch.zeros(1, device=device).item()  # `item` fails on devices without memory, such as "meta"
    except (RuntimeError, AssertionError) as error:
        raise FlagError(f"--device {device}: {str(error).splitlines()[0]}") from error


def load_reward(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    flag: str = "--reward",
    *,
    trust_remote_code: bool = False,
) -> Any:
    """Returns the reward function that a flag names: of `REWARDS`, `module:function`, or a classifier and its label.

    One of `REWARDS` is called with no completions, so that a package that it lacks is known at once.
    """
    if name in REWARDS:
        function = import_named(REWARDS[name], flag)
        try:
            function([], [], [])
        except ImportError as error:
            raise FlagError(str(error)) from error
        return function
    if ":" not in name:
        path, _, label = name.partition("#")
        files.check_saved(path)
        try:
            chosen = int(label) if label.isdigit() else label or None
            classifier = textenv.rewards.RewardModel(path, label=chosen, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise FlagError(
                f"{flag} must be {', '.join(map(repr, REWARDS))}, module:function, or a sequence classifier (path or "
                f"hub id, #LABEL behind it if it has several), got {name!r}: {str(error).splitlines()[0]}"
            ) from error
        classifier.model.to(device, getattr(torch, dtype))
        return classifier
    return import_named(name, flag)

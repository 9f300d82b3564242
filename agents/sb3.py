"""Stable-Baselines3 and sb3-contrib learn on text: what they need, through their public hooks alone.

    envs  = TextVecEnv(gym.make_vec("textenv/TajMahal-v0", num_envs=16, autoreset_mode="SameStep"))
    agent = MaskablePPO(MaskableCausalLMPolicy, envs, n_steps=64, gamma=1.0, normalize_advantage=False,
                        rollout_buffer_class=KLMaskableDictRolloutBuffer,
                        rollout_buffer_kwargs={"kl_coef": envs.unwrapped.process.kl_coef},
                        policy_kwargs={"language_model": TransformerPolicy.for_env(envs)})

The environment pays `score + beta log pi_ref(a|s)`; the other half, `- beta log pi(a|s)`, is paid by a rollout buffer
when a step is added to it, from the log-probability that the token was sampled with. `ent_coef = beta` is no
substitute: the entropy bonus looks one step ahead, the KL over the rest of the text.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from agents.policy import TransformerPolicy
from textenv.causal_lm import pack_left, position_ids
from textenv.vector import TextVectorEnv


class TextVecEnv(VecEnv):
    """A batched text environment as Stable-Baselines3 wants it: `reset` and `step` without Gymnasium's flags.

    Texts that end begin anew in the same step, so no transition is dead; what they ended as is in their `infos` row
    (`terminal_observation`, `prompt`, `response`, `score`, `finish_reason`). `TimeLimit.truncated` is always False: the
    score was paid, nothing is to be bootstrapped.

    Args:
        envs: of `gym.make_vec(..., autoreset_mode="SameStep")`.

    Raises:
        TypeError: not a batched environment of textenv.
        ValueError: another autoreset mode.
    """

    def __init__(self, envs: Any) -> None:
        inner = getattr(envs, "unwrapped", envs)
        if not isinstance(inner, TextVectorEnv):
            raise TypeError(f"TextVecEnv needs gym.make_vec('textenv/...'), got {type(envs).__name__}.")
        if inner.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"TextVecEnv needs gym.make_vec(..., autoreset_mode='SameStep'), got {inner.autoreset_mode.value!r}: "
                "Stable-Baselines3 would take the dead step of the other modes for a transition."
            )
        if envs is not inner:
            raise TypeError(
                f"{type(envs).__name__} around the environment would not be seen: put it into the task (reward=, "
                "shaping=), or around TextVecEnv (VecEnvWrapper)."
            )
        self.envs: TextVectorEnv = inner
        super().__init__(inner.num_envs, inner.single_observation_space, inner.single_action_space)

    @property
    def unwrapped(self) -> TextVectorEnv:
        """The environment, as our agents and the oracle want it."""
        return self.envs

    def reset(self) -> Any:
        if any(self._options):
            raise ValueError(f"TextVecEnv starts at drawn prompts and takes no options, got {self._options[0]}.")
        observations, _ = self.envs.reset(seed=self._seeds if any(s is not None for s in self._seeds) else None)
        self._reset_seeds()
        return observations

    def step_async(self, actions: Any) -> None:
        if self.envs.slots.policy is not None:
            raise ValueError("With a bound policy the environment pays the KL that PaysKL pays too: bind_policy(None).")
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminated, _, info = self.envs.step(self.actions)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for row in np.flatnonzero(terminated):
            infos[row]["terminal_observation"] = info["final_obs"][row]
            for name in ("prompt", "response", "score", "gold_score", "kl", "finish_reason"):
                if name in info["final_info"]:
                    infos[row][name] = info["final_info"][name][row]
        return observations, rewards.astype(np.float32), terminated, infos

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """`action_masks` of the rows; other methods of a single environment have no counterpart here."""
        if method_name != "action_masks":
            raise AttributeError(f"TextVecEnv can be asked for action_masks, not for {method_name!r}.")
        masks = self.envs.action_masks()
        return [masks[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class PaysKL:
    """For a rollout buffer: pay `- beta log pi(a|s)` for each step that is added, as it was sampled.

    Args:
        kl_coef: beta, which must be the environment's:
            `rollout_buffer_kwargs={"kl_coef": envs.unwrapped.process.kl_coef}`.
    """

    def __init__(self, *args: Any, kl_coef: float, **kwargs: Any) -> None:
        self.kl_coef = kl_coef
        super().__init__(*args, **kwargs)

    def add(
        self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Tensor, log_prob: Tensor, **more: Any
    ) -> None:
        """As the buffer's own, with the reward made whole."""
        own = log_prob.detach().cpu().numpy().reshape(np.shape(reward))
        super().add(obs, action, reward - self.kl_coef * own, episode_start, value, log_prob, **more)


class KLRolloutBuffer(PaysKL, RolloutBuffer):
    """For PPO and A2C on flat observations."""


class KLDictRolloutBuffer(PaysKL, DictRolloutBuffer):
    """For PPO and A2C on `Dict` observations."""


class KLMaskableRolloutBuffer(PaysKL, MaskableRolloutBuffer):
    """For MaskablePPO on flat observations."""


class KLMaskableDictRolloutBuffer(PaysKL, MaskableDictRolloutBuffer):
    """For MaskablePPO on `Dict` observations."""


class CausalLMExtractor(BaseFeaturesExtractor):
    """A language model's trunk as features: the last token's hidden state."""

    def __init__(self, observation_space: Any, language_model: TransformerPolicy) -> None:
        super().__init__(observation_space, language_model.value_head.in_features)
        self.language_model = copy.deepcopy(language_model)  # the one that was given is not trained

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Hidden states [B, hidden_size]; Stable-Baselines3 has made floats of the integers."""
        ids, mask = pack_left(observations["input_ids"].long(), observations["attention_mask"].long())
        output = self.language_model.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden


class LanguageModelHead(nn.Module):
    """Hidden states [B, hidden_size] to the language model's logits [B, V], over its temperature."""

    def __init__(self, language_model: TransformerPolicy) -> None:
        super().__init__()
        self.output = language_model.model.get_output_embeddings()
        self.vocab_size, self.temperature = language_model.vocab_size, language_model.temperature

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, V]."""
        logits: Tensor = self.output(hidden)[:, : self.vocab_size] / self.temperature
        return logits


class KeepsPretrained:
    """For an actor-critic policy: trunk, output layer and value head are the language model's, weights and all.

    Args (as `policy_kwargs`):
        language_model: a `TransformerPolicy`; a copy of it is trained.
    """

    def __init__(self, *args: Any, language_model: TransformerPolicy, **kwargs: Any) -> None:
        if language_model.critic is not None:
            raise ValueError("The value head reads the policy's trunk here: pass one without separate_critic.")
        if fixed := {"net_arch", "features_extractor_class", "features_extractor_kwargs", "ortho_init"} & set(kwargs):
            raise TypeError(f"The architecture is the language model's: leave out {', '.join(sorted(fixed))}.")
        super().__init__(
            *args,
            **kwargs,
            features_extractor_class=CausalLMExtractor,
            features_extractor_kwargs={"language_model": language_model},
            net_arch={"pi": [], "vf": []},
            ortho_init=False,
        )

    def _build(self: Any, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        model = self.features_extractor.language_model
        self.action_net, self.value_net = LanguageModelHead(model), model.value_head
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


class CausalLMPolicy(KeepsPretrained, MultiInputActorCriticPolicy):
    """For PPO and A2C: a language model as the policy, actor and critic on one trunk."""


class MaskableCausalLMPolicy(KeepsPretrained, MaskableMultiInputActorCriticPolicy):
    """The same for MaskablePPO."""

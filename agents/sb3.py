"""Stable-Baselines3 and sb3-contrib learn on text: what they need, through their public hooks alone.

    envs  = TextVecEnv(gym.make_vec("textenv/TajMahal-v0", num_envs=16, autoreset_mode="SameStep"))
    agent = MaskablePPO(MaskableCausalLMPolicy, envs, n_steps=64, gamma=1.0, normalize_advantage=False,
                        rollout_buffer_class=KLMaskableDictRolloutBuffer,
                        policy_kwargs={"language_model": TransformerPolicy.for_env(envs)})

The environment pays `score + beta log pi_ref(a|s)`; the other half, `- beta log pi(a|s)`, is paid by a rollout buffer
when a step is added to it, from the log-probability that the token was sampled with. `ent_coef = beta` is no
substitute: the entropy bonus looks one step ahead, the KL over the rest of the text. Who forgets the buffer is told
before the first update.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from agents.policy import TransformerPolicy
from textenv import InvalidAction, TextVectorEnv


class TextObservationSpace(spaces.Dict):
    """The observations of `TextVecEnv`, and what is owed for them.

    Stable-Baselines3 hands one and the same observation space to policy and buffer, and nothing else that both see: so
    the buffer reads beta off it, and the policy whether a buffer has paid.
    """

    def __init__(self, parts: dict[str, Any], kl_coef: float) -> None:
        super().__init__(parts)
        self.kl_coef = kl_coef
        self.owed = False  # a step was sampled, and its `- beta log pi(a|s)` not yet paid

    def __eq__(self, other: object) -> bool:
        """Of the same beta too: an agent that is loaded goes on with the one that it was saved with."""
        return super().__eq__(other) and getattr(other, "kl_coef", self.kl_coef) == self.kl_coef

    def __repr__(self) -> str:
        return f"{super().__repr__()} with kl_coef={self.kl_coef}"


class TextVecEnv(VecEnv):
    """A batched text environment as Stable-Baselines3 wants it: `reset` and `step` without Gymnasium's flags.

    Texts that end begin anew in the same step, so no transition is dead; what they ended as is in their `infos` row
    (`terminal_observation`, `prompt`, `completion`, `score`, `finish_reason`), beside what each step's says
    (`action_mask`, `ref_log_prob`, `reward_terms`). `TimeLimit.truncated` is always False: the score was paid, nothing
    is to be bootstrapped.

    It is for learning, where the policy's half of the KL is a buffer's to pay. To measure J, let `evaluate_policy` play
    a single environment that pays both: `gym.make("textenv/...", policy=language_model)`.

    Args:
        envs: of `gym.make_vec(..., autoreset_mode="SameStep")`.
        mask_in_observation: add `action_mask` to the observation, so that algorithms without masks (PPO, A2C) can have
            a policy that obeys it: `CausalLMPolicy` does. MaskablePPO asks for the masks by itself.

    Raises:
        TypeError: not a batched environment of textenv.
        ValueError: another autoreset mode.
    """

    def __init__(self, envs: Any, mask_in_observation: bool = False) -> None:
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
        self.mdp = inner.mdp  # where our agents and the oracle look for it
        self.prompts = inner.prompts
        self.mask_in_observation = mask_in_observation
        parts = dict(inner.single_observation_space.spaces)
        if mask_in_observation:
            parts["action_mask"] = spaces.Box(0, 1, (inner.mdp.vocab_size,), np.int8)
        super().__init__(inner.num_envs, TextObservationSpace(parts, inner.mdp.kl_coef), inner.single_action_space)

    def reset(self) -> Any:
        if any(self._options):
            raise ValueError(f"TextVecEnv starts at drawn prompts and takes no options, got {self._options[0]}.")
        observations, info = self.envs.reset(seed=self._seeds if any(s is not None for s in self._seeds) else None)
        self._reset_seeds()
        return self._shown(observations, info)

    def step_async(self, actions: Any) -> None:
        if self.envs.episodes.policy is not None:
            raise ValueError(
                "With a bound policy the environment pays the KL that KLRewardBuffer pays too: bind_policy(None). To evaluate "
                "with both halves paid, bind a single environment: gym.make('textenv/...', policy=language_model)."
            )
        self.actions = actions

    def step_wait(self) -> Any:
        try:
            observations, rewards, terminated, _, info = self.envs.step(self.actions)
        except InvalidAction as error:
            error.add_note(
                "MaskablePPO sees masks by itself; PPO and A2C do with TextVecEnv(..., mask_in_observation=True) and "
                "CausalLMPolicy, not with a network of Stable-Baselines3's own."
            )
            raise
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        _distribute_info(info, infos)
        if terminated.any():
            _distribute_info(
                info["final_info"], infos
            )  # of a text that ended its last state, as Stable-Baselines3 has it
        for row in np.flatnonzero(terminated):
            infos[row]["terminal_observation"] = self._shown(info["final_obs"][row], infos[row])
        return self._shown(observations, info), rewards.astype(np.float32), terminated, infos

    def _shown(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        if not self.mask_in_observation:
            return observation
        return observation | {"action_mask": info["action_mask"].copy()}  # where nothing is masked it is read-only

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """For all rows, which are one environment."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"The rows of TextVecEnv are one environment: {attr_name} is set for all of them.")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """`action_masks` of the rows; other methods of a single environment have no counterpart here."""
        if method_name != "action_masks":
            raise AttributeError(f"TextVecEnv can be asked for action_masks, not for {method_name!r}.")
        masks = self.envs.action_masks()
        return [masks[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def _distribute_info(info: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """To each row what Gymnasium's vector info says of it: `info[name][row]`, where `info["_name"][row]` is True."""
    for name, values in info.items():
        if name.startswith("_") or name in ("final_obs", "final_info"):
            continue
        known = np.flatnonzero(info[f"_{name}"])
        if isinstance(values, dict):
            parts: list[dict[str, Any]] = [{} for _ in rows]
            _distribute_info(values, parts)
            values = parts
        for row in known:
            rows[row][name] = values[row]


class KLRewardBuffer:
    """For a rollout buffer: pay `- beta log pi(a|s)` for each step that is added, as it was sampled.

    Args:
        kl_coef: beta, by default the environment's; to be passed, `rollout_buffer_kwargs={"kl_coef": beta}`, where a
            wrapper (`FlatTokens`) hides `TextVecEnv`'s observation space.
    """

    observation_space: Any

    def __init__(self, *args: Any, kl_coef: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        beta = getattr(self.observation_space, "kl_coef", kl_coef)
        if beta is None:
            raise TypeError("Only TextVecEnv tells its beta by itself: pass rollout_buffer_kwargs={'kl_coef': ...}.")
        if kl_coef is not None and kl_coef != beta:
            raise ValueError(f"The environment's kl_coef is {beta}, the buffer's {kl_coef}: leave the buffer's out.")
        self.kl_coef: float = beta

    def add(
        self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Tensor, log_prob: Tensor, **more: Any
    ) -> None:
        """As the buffer's own, with the reward made whole."""
        own = log_prob.detach().cpu().numpy().reshape(np.shape(reward))
        super().add(obs, action, reward - self.kl_coef * own, episode_start, value, log_prob, **more)
        if isinstance(self.observation_space, TextObservationSpace):
            self.observation_space.owed = False


class KLRolloutBuffer(KLRewardBuffer, RolloutBuffer):
    """For PPO and A2C on flat observations."""


class KLDictRolloutBuffer(KLRewardBuffer, DictRolloutBuffer):
    """For PPO and A2C on `Dict` observations."""


class KLMaskableRolloutBuffer(KLRewardBuffer, MaskableRolloutBuffer):
    """For MaskablePPO on flat observations."""


class KLMaskableDictRolloutBuffer(KLRewardBuffer, MaskableDictRolloutBuffer):
    """For MaskablePPO on `Dict` observations."""


class CausalLMExtractor(BaseFeaturesExtractor):
    """A language model as features: logits of the V tokens, and in the last column the value V(s)."""

    def __init__(self, observation_space: Any, language_model: TransformerPolicy) -> None:
        super().__init__(observation_space, language_model.vocab_size + 1)
        self.language_model = copy.deepcopy(language_model)  # the one that was given is not trained

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """[B, V + 1]; an `action_mask` in the observation is obeyed."""
        ids, attention = (observations[name].long() for name in ("input_ids", "attention_mask"))  # they come as floats
        allowed = observations["action_mask"] > 0 if "action_mask" in observations else None
        logits, values = self.language_model.next_token_logits_and_values(ids, attention, allowed)
        return torch.cat([logits, values[:, None]], dim=1)


class Columns(nn.Module):
    """Some columns of the features, as they are."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, features: Tensor) -> Tensor:
        """[B, number of columns]."""
        return features[:, self.columns]


class PretrainedPolicy:
    """For an actor-critic policy: logits and values are the language model's, weights and all.

    The features are [logits, V]; between them and the heads are no layers, and the heads only pick their columns.

    Args (as `policy_kwargs`):
        language_model: a `TransformerPolicy`; a copy of it is trained.
    """

    def __init__(self, *args: Any, language_model: TransformerPolicy, **kwargs: Any) -> None:
        architecture = {
            "net_arch",
            "features_extractor_class",
            "features_extractor_kwargs",
            "share_features_extractor",  # False would make two language models
            "ortho_init",
        }
        if fixed := architecture & set(kwargs):
            raise TypeError(f"The architecture is the language model's: leave out {', '.join(sorted(fixed))}.")
        if not isinstance(language_model, TransformerPolicy):
            raise TypeError(
                f"language_model must be a TransformerPolicy (for_env, from_pretrained), got {language_model!r}."
            )
        observation_space = kwargs.get("observation_space", args[0] if args else None)
        if not {"input_ids", "attention_mask"} <= set(getattr(observation_space, "spaces", ())):
            raise ValueError(
                "A language model reads a Dict of input_ids and attention_mask, as TextVecEnv shows it, got "
                f"{observation_space}."
            )
        action_space = kwargs.get("action_space", args[1] if len(args) > 1 else None)
        if (size := getattr(action_space, "n", None)) != language_model.vocab_size:
            raise ValueError(
                f"The language model writes {language_model.vocab_size} tokens, the environment's actions are {size}; "
                "use TransformerPolicy.for_env(envs), or pass vocab_size= to from_pretrained."
            )
        super().__init__(
            *args,
            **kwargs,
            features_extractor_class=CausalLMExtractor,
            features_extractor_kwargs={"language_model": language_model},
            net_arch={"pi": [], "vf": []},
        )

    def _build(self: Any, lr_schedule: Any) -> None:
        self._build_mlp_extractor()
        vocab_size = self.features_dim - 1
        self.action_net, self.value_net = Columns(slice(vocab_size)), Columns(slice(vocab_size, None))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Asked for by `save`, whose file would hold weights without the language model that they belong to."""
        raise NotImplementedError(
            "A policy alone is not saved: save the agent (agent.save), or the language model as a Hugging Face "
            "checkpoint (agent.policy.features_extractor.language_model.save_pretrained)."
        )

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Samples, as rollouts do; with the tokens the policy's half of their KL falls due."""
        if isinstance(self.observation_space, TextObservationSpace):
            self.observation_space.owed = self.observation_space.kl_coef > 0
        return super().forward(*args, **kwargs)

    def evaluate_actions(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As it was, for an update; refused where no buffer has paid for what was sampled."""
        if getattr(self.observation_space, "owed", False):
            raise ValueError(
                "Nobody has paid the policy's half of the KL, `- beta log pi(a|s)`: pass rollout_buffer_class="
                "KLDictRolloutBuffer, with MaskablePPO KLMaskableDictRolloutBuffer."
            )
        return super().evaluate_actions(*args, **kwargs)


class CausalLMPolicy(PretrainedPolicy, MultiInputActorCriticPolicy):
    """For PPO and A2C: a language model as the policy, actor and critic."""


class MaskableCausalLMPolicy(PretrainedPolicy, MaskableMultiInputActorCriticPolicy):
    """The same for MaskablePPO."""

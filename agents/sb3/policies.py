"""Actor-critic policies of Stable-Baselines3 that are a pretrained `TransformerPolicy`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.policy import TransformerPolicy
from agents.sb3.vec_env import TextObservationSpace


class CausalLMExtractor(BaseFeaturesExtractor):
    """A language model as features extractor: the logits of the V tokens, and V(s) in the last column."""

    def __init__(self, observation_space: Any, language_model: TransformerPolicy) -> None:
        super().__init__(observation_space, language_model.vocab_size + 1)
        self.language_model = copy.deepcopy(language_model)  # the given model is not trained

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Returns [logits, V(s)], [B, V + 1]; applies an `action_mask` in the observation."""
        ids, attention = (observations[name].long() for name in ("input_ids", "attention_mask"))  # floats in the buffer
        allowed = observations["action_mask"] > 0 if "action_mask" in observations else None
        logits, values = self.language_model.next_token_logits_and_values(ids, attention, allowed)
        return torch.cat([logits, values[:, None]], dim=1)


class SelectColumns(nn.Module):
    """A head that selects some columns of the features."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, features: Tensor) -> Tensor:
        """[B, number of columns]."""
        return features[:, self.columns]


class PretrainedPolicy:
    """Mixin for an actor-critic policy: logits and values are those of the language model.

    The features are [logits, V]. There are no layers between them and the heads, which only select their columns.

    Args (as `policy_kwargs`):
        language_model: a `TransformerPolicy`; a copy of it is trained.
    """

    def __init__(self, *args: Any, language_model: TransformerPolicy, **kwargs: Any) -> None:
        architecture = {
            "net_arch",
            "features_extractor_class",
            "features_extractor_kwargs",
            "share_features_extractor",  # False would create two language models
            "ortho_init",
        }
        if fixed := architecture & set(kwargs):
            raise TypeError(f"The architecture is the language model's: leave out {', '.join(sorted(fixed))}.")
        if not isinstance(language_model, TransformerPolicy):
            raise TypeError(
                f"language_model must be a TransformerPolicy (for_env, from_pretrained), got {language_model!r}."
            )
        if not any(parameter.requires_grad for parameter in language_model.parameters()):
            raise ValueError(
                "language_model must have weights to train, got one in which none requires a gradient; call "
                "language_model.requires_grad_(True)."
            )
        observation_space = kwargs.get("observation_space", args[0] if args else None)
        if not {"input_ids", "attention_mask"} <= set(getattr(observation_space, "spaces", ())):
            raise ValueError(
                "The observation must be a Dict of input_ids and attention_mask, as in TextVecEnv, got "
                f"{observation_space}."
            )
        action_space = kwargs.get("action_space", args[1] if len(args) > 1 else None)
        if (size := getattr(action_space, "n", None)) != language_model.vocab_size:
            raise ValueError(
                "The language model's vocab_size must be the environment's number of actions, got "
                f"{language_model.vocab_size} and {size}; use TransformerPolicy.for_env(envs), or pass vocab_size= to "
                "from_pretrained."
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
        self.action_net, self.value_net = SelectColumns(slice(vocab_size)), SelectColumns(slice(vocab_size, None))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Refuses to save the policy alone: the file would lack the language model."""
        raise NotImplementedError(
            "A policy alone cannot be saved: save the agent (agent.save), or the language model as a Hugging Face "
            "checkpoint (agent.policy.features_extractor.language_model.save_pretrained)."
        )

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Samples actions for a rollout; a buffer must then add the policy's half of the KL to their rewards."""
        if isinstance(self.observation_space, TextObservationSpace):
            self.observation_space.policy_kl_pending = self.observation_space.kl_coef > 0
        return super().forward(*args, **kwargs)

    def evaluate_actions(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the base class; raises if no buffer added the policy's half of the KL to the sampled steps."""
        if getattr(self.observation_space, "policy_kl_pending", False):
            raise ValueError(
                "The rewards must have the policy's half of the KL, `- beta log pi(a|s)`, which is missing: pass "
                "rollout_buffer_class=KLDictRolloutBuffer, with MaskablePPO KLMaskableDictRolloutBuffer."
            )
        return super().evaluate_actions(*args, **kwargs)


class CausalLMPolicy(PretrainedPolicy, MultiInputActorCriticPolicy):
    """A language model as actor and critic of PPO and A2C."""


class MaskableCausalLMPolicy(PretrainedPolicy, MaskableMultiInputActorCriticPolicy):
    """A language model as actor and critic of MaskablePPO."""

"""Stable-Baselines3 and sb3-contrib on textenv, through their public interfaces only.

    envs  = TextVecEnv(gym.make_vec("textenv/TajMahal-v0", num_envs=16, autoreset_mode="SameStep"))
    agent = MaskablePPO(MaskableCausalLMPolicy, envs, n_steps=64, gamma=1.0, normalize_advantage=False,
                        rollout_buffer_class=KLMaskableDictRolloutBuffer,
                        policy_kwargs={"language_model": TransformerPolicy.for_env(envs)})

The environment's reward has `score + beta log pi_ref(a|s)`. The acting side owes the policy's half of the KL,
`- beta log pi(a|s)`. A rollout buffer adds it to each step's reward, from the log-probability under which the token was
sampled. `ent_coef = beta` is no substitute: the entropy bonus covers the current step only, the KL all later ones too.
With the policies of this package, a missing buffer raises an error before the first update.
"""

from agents.sb3.buffers import (
    KLDictRolloutBuffer,
    KLMaskableDictRolloutBuffer,
    KLMaskableRolloutBuffer,
    KLRewardBuffer,
    KLRolloutBuffer,
)
from agents.sb3.policies import (
    CausalLMPolicy,
    MaskableCausalLMPolicy,
    PretrainedPolicy,
)
from agents.sb3.vec_env import TextVecEnv

__all__ = [
    "CausalLMPolicy",
    "KLDictRolloutBuffer",
    "KLMaskableDictRolloutBuffer",
    "KLMaskableRolloutBuffer",
    "KLRewardBuffer",
    "KLRolloutBuffer",
    "MaskableCausalLMPolicy",
    "PretrainedPolicy",
    "TextVecEnv",
]

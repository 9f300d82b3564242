"""The losses of the field, as the agents and settings that have them."""

from __future__ import annotations

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic
from agents.verification import AgentLoss, agent_loss

# Groups of two completions. "V = 0" has an untrained critic, all others the exact V.
LOSSES: dict[str, AgentLoss] = {
    "REINFORCE": agent_loss(REINFORCE, baseline=None),
    "REINFORCE, leave one out": agent_loss(REINFORCE, baseline="leave_one_out"),
    "REINFORCE, batch mean": agent_loss(REINFORCE, baseline="mean"),
    "REINFORCE++, whitened": agent_loss(REINFORCE, baseline=None, normalize_advantage=True),
    "ActorCritic, lambda .95": agent_loss(ActorCritic),
    "ActorCritic, lambda .95, V = 0": agent_loss(ActorCritic, critic="zero"),
    "PPO": agent_loss(PPO),
    "PPO, whitened": agent_loss(PPO, normalize_advantage=True),
    "PPO, weights by prefix, no clip": agent_loss(PPO, importance="prefix", gae_lambda=0.0, clip_range=None),
    "RLOO": agent_loss(RLOO),
    "RLOO, k1 in the loss": agent_loss(RLOO, kl_in="loss", kl_loss="k1"),
    "RLOO, k2 in the loss": agent_loss(RLOO, kl_in="loss", kl_loss="k2"),
    "RLOO, k3 in the loss": agent_loss(RLOO, kl_in="loss", kl_loss="k3"),
    "RLOO, rho k3 in the loss": agent_loss(RLOO, kl_in="loss", kl_loss="k3_rho"),
    "RLOO, exact KL of each state": agent_loss(RLOO, kl_in="loss", kl_loss="exact"),
    "Dr. GRPO": agent_loss(GRPO, scale_rewards=False),
    "Dr. GRPO, weights by sequence": agent_loss(GRPO, scale_rewards=False, importance="sequence"),
    "GRPO, sum over tokens": agent_loss(GRPO),
    "GRPO": agent_loss(GRPO, loss="grpo", clip_range_high=None),
    "GRPO, k3 in the loss": agent_loss(GRPO, loss="grpo", clip_range_high=None, kl_in="loss", kl_loss="k3"),
    "DAPO": agent_loss(GRPO, loss="dapo"),
    "GSPO": agent_loss(GRPO, loss="gspo", clip_range=3e-4, clip_range_high=4e-4),
    "CISPO": agent_loss(GRPO, loss="cispo"),
    "SAPO": agent_loss(GRPO, loss="sapo"),
}

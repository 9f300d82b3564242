"""TorchRL's losses on an enumerated batch: `ClipPPOLoss` and `PPOLoss` after `GAE`, `GRPOLoss` after `MCAdvantage`.

The modules are TorchRL's, unchanged. Policy and critic hand on what the batch's TensorDict holds: log pi(.|s_t) of the
table as logits, and the exact V(s_t). The loss is the sum of the entries `loss_*`, as in TorchRL's examples.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.modules import LLMMaskedCategorical, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.llm import GRPOLoss, MCAdvantage
from torchrl.objectives.value import GAE

from agents.sampling import Rollout


def total(losses: Any) -> Tensor:
    """The sum of the entries `loss_*`."""
    found = {name: value for name, value in losses.items() if name.startswith("loss_") and value is not None}
    return torch.stack([value.reshape(()) for value in found.values()]).sum()


class PPO:
    """`kind(actor, critic, **settings)` on the tokens of a batch as one stream of steps; lambda and gamma are 1."""

    def __init__(self, kind: type[Any] = ClipPPOLoss, **settings: Any) -> None:
        policy = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["logits"])
        actor = ProbabilisticActor(policy, in_keys=["logits"], distribution_class=Categorical)
        critic = TensorDictModule(nn.Identity(), in_keys=["value_observation"], out_keys=["state_value"])
        self.advantage = GAE(gamma=1.0, lmbda=1.0, value_network=critic)
        self.loss = kind(actor, critic, **settings)
        self.loss.set_keys(sample_log_prob="sample_log_prob")

    def __call__(self, rollout: Rollout, log_probs: Tensor, all_log_probs: Tensor, values: Tensor) -> Tensor:
        """The loss, see `agents.verification.verify`."""
        mask = rollout.mask
        last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        columns = mask.shape[1]
        done = last[mask][:, None]
        step = {
            "observation": all_log_probs[mask],
            "value_observation": values[mask][:, None],
            "action": rollout.input_ids[:, -columns:][mask],
            "sample_log_prob": rollout.log_probs[mask],
            "next": {
                "value_observation": following[mask][:, None],
                "reward": rollout.rewards[mask][:, None],
                "done": done,
                "terminated": done,
            },
        }
        return total(self.loss(self.advantage(TensorDict(step, batch_size=[len(done)]))))


class TableActor(nn.Module):
    """In place of TorchRL's wrapper of a language model: the distributions that the TensorDict holds."""

    def get_dist(self, batch: TensorDict, **_: Any) -> LLMMaskedCategorical:
        """pi(.|s), of which the tokens of completions count."""
        return LLMMaskedCategorical(logits=batch["logits"], mask=batch["masks", "all_assistant_mask"])


class GRPO:
    """`kind(actor, **settings)` on the sequences of a batch, padded to the longest.

    Args:
        kind: GRPOLoss or a subclass.
        kl_in_reward: the reward of a completion is its return, KL included; else its score.
        **settings: of the loss.
    """

    def __init__(self, kind: type[Any] = GRPOLoss, kl_in_reward: bool = False, **settings: Any) -> None:
        self.loss, self.kl_in_reward = kind(TableActor(), **settings), kl_in_reward

    def __call__(self, rollout: Rollout, log_probs: Tensor, all_log_probs: Tensor) -> Tensor:
        """The loss, see `agents.verification.verify`."""
        size, columns = rollout.mask.shape
        longest = int(rollout.mask.sum(dim=1).max())
        width = rollout.input_ids.shape[1] - columns

        def padded(tokens: Tensor) -> Tensor:
            """From the completions' tokens to those of whole sequences; 0 in the prompt."""
            prompt = tokens.new_zeros((size, width, *tokens.shape[2:]))
            return torch.cat([prompt, tokens[:, :longest]], dim=1)

        batch = {
            "tokens": {"full": rollout.input_ids[:, : width + longest]},
            "logits": padded(all_log_probs),
            "log_probs": {"full": padded(rollout.log_probs)},
            "masks": {"all_assistant_mask": padded(rollout.mask)},
            "advantage": self.advantages(rollout)[:, None, None],
            "next": {"ref_log_probs": {"full": padded(rollout.ref_log_probs)}},
        }
        return total(self.loss(TensorDict(batch, batch_size=[size])))

    def advantages(self, rollout: Rollout) -> Tensor:
        """The advantage of each completion, [B], by `MCAdvantage`: a completion is one step, as in TorchRL's chats."""
        rewards = rollout.rewards.sum(dim=1) if self.kl_in_reward else rollout.scores
        size = len(rewards)
        transform = MCAdvantage(grpo_size=size, prompt_key="group")
        done = torch.ones(size, 1, 1, dtype=torch.bool)
        steps = TensorDict(
            {
                "group": torch.zeros(size, 1, dtype=torch.int64),
                "next": {"reward": rewards[:, None, None], "done": done},
            },
            batch_size=[size, 1],
        )
        found: Tensor = transform.inv(steps)["advantage"]
        return found.flatten()

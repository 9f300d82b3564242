"""The KL to the reference as a term of the loss, beta times the sum over a completion's tokens, instead of the reward.

With l = log pi(a|s) - log pi_ref(a|s) at the sampled token, and rho = pi(a|s) / pi_old(a|s):

    name    term                                    its gradient at rho = 1     in expectation over a ~ pi(.|s)
    k1      l                                       grad log pi                 0: no KL at all
    k2      l^2 / 2                                 l grad log pi               grad KL(pi(.|s) || pi_ref(.|s))
    k3      exp(-l) - 1 + l                         (1 - exp(-l)) grad log pi   grad KL(pi_ref(.|s) || pi(.|s))
    k3_rho  rho (exp(-l) - 1 + l)                   l grad log pi, that of k2   grad KL(pi(.|s) || pi_ref(.|s))
    exact   sum_a pi(a|s) log(pi(a|s) / pi_ref(a|s))                            grad KL(pi(.|s) || pi_ref(.|s))

k3: GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 4). k3_rho: DeepSeek-V3.2 (arXiv:2512.02556), TRL's
`use_bias_correction_kl`. exact: the Rao-Blackwell estimate (Amini et al. 2025, arXiv:2504.10637).

None of the five has the gradient of the KL over whole sequences, E[sum_t KL(s_t)]: that has a second, score-function
term, as a token also changes which states come after it, grad log pi(a_t|s_t) sum_{s > t} KL(s_s). `with_later_states`
adds it. The KL in the reward has both. (Tang and Munos 2025, arXiv:2506.09477.) rho is that of the token at every level
of `importance`; TRL multiplies by the ratio of its level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from agents.functional.kl import k1, k2, k3
from agents.functional.returns import check_shapes, reward_to_go

KLLossName = Literal["k1", "k2", "k3", "k3_rho", "exact"]

# From l and log rho, [B, T] each. "exact" needs the probabilities of all tokens.
KL_LOSSES: dict[KLLossName, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": lambda log_ratio, log_rho: k1(log_ratio),
    "k2": lambda log_ratio, log_rho: k2(log_ratio),
    "k3": lambda log_ratio, log_rho: k3(log_ratio),
    "k3_rho": lambda log_ratio, log_rho: log_rho.exp() * k3(log_ratio),
}


def sampled_kl(
    name: KLLossName, log_probs: Tensor, ref_log_probs: Tensor, old_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """The term of each token by its name, [B, T]; 0 where the mask is False.

    Args:
        name: a name of the table in this file's docstring but "exact".
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        ref_log_probs: log pi_ref(a_t|s_t), [B, T].
        old_log_probs: log pi_old(a_t|s_t) of the behaviour policy, [B, T]; only k3_rho uses them.
        mask: bool [B, T].
    """
    check_shapes(mask, log_probs=log_probs, ref_log_probs=ref_log_probs, old_log_probs=old_log_probs)
    log_ratio, log_rho = (torch.where(mask, log_probs - x, 0.0) for x in (ref_log_probs, old_log_probs))
    return torch.where(mask, KL_LOSSES[name](log_ratio, log_rho), 0.0)


def exact_kl(all_log_probs: Tensor, ref_all_log_probs: Tensor, mask: Tensor) -> Tensor:
    """KL(s_t) = sum_a pi(a|s_t) log(pi(a|s_t) / pi_ref(a|s_t)), [B, T]; 0 where the mask is False.

    Its gradient has no noise from a_t. The score-function term is not in, see this file's docstring.

    Args:
        all_log_probs: log pi(.|s_t), with gradient, [B, T, V].
        ref_all_log_probs: log pi_ref(.|s_t), [B, T, V]. Where it is -inf, pi is 0 too, and the term counts as 0.
        mask: bool [B, T].
    """
    check_shapes(mask, all_log_probs=all_log_probs[..., 0], ref_all_log_probs=ref_all_log_probs[..., 0])
    support = ref_all_log_probs > -torch.inf
    log_ratio = (all_log_probs - ref_all_log_probs).masked_fill(~support, 0.0)
    probs = all_log_probs.masked_fill(~support, -torch.inf).exp()
    return torch.where(mask, (probs * log_ratio).sum(dim=-1), 0.0)


def with_later_states(kl: Tensor, log_probs: Tensor, mask: Tensor) -> Tensor:
    """KL(s_t) + log pi(a_t|s_t) sg(sum_{s > t} KL(s_s)), [B, T]: with the score-function term.

    On policy, with `exact_kl`, the sum over tokens has the gradient of E[sum_t KL(s_t)] in expectation, the KL over
    whole sequences. Its value is of no use.

    Args:
        kl: KL(s_t), with gradient, [B, T].
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        mask: bool [B, T].
    """
    check_shapes(mask, log_probs=log_probs)
    known = kl.detach()
    later = reward_to_go(known, mask) - torch.where(mask, known, 0.0)
    return torch.where(mask, kl + log_probs * later, 0.0)

"""Two processes x half of the answers learn what one process x all of them learns.

Both ranks run once for this file, over gloo, joined by accelerate as `accelerate launch` has it; what they found is
compared here with one process, and with what two would find that know nothing of each other.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from agents.training import all_reduce_sum, gather_tensor, rank, run_on_rank0, shard, world_size
from agents.training.ranks import gather_objects, rank_seed
from agents.training.updater import minibatches
from experiments.errors import FlagError
from experiments.launch import joined
from experiments.launch.ranks import sharding_from_environment
from experiments.trial import read_metrics
from tests.helpers.paths import ROOT
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, words
from textenv import exact

COUNT = 16  # answers, in groups of 4
EXACT, BROKEN = 1e-5, 1e-2
ROUNDED = (
    1e-4  # all in all, of weights in float32: Adam makes a step of about 1e-2 of any gradient, be it rounding alone
)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "REINFORCE, no baseline": (REINFORCE, {"baseline": None}),
    "REINFORCE, mean": (REINFORCE, {"baseline": "mean"}),
    "REINFORCE, leave one out": (REINFORCE, {"baseline": "leave_one_out"}),
    "REINFORCE, sequence, mean": (REINFORCE, {"baseline": "mean", "credit": "sequence", "micro_batch_size": 3}),
    # so cold that all continuations of a text are the same, whoever writes them
    "REINFORCE, q, mean": (REINFORCE, {"baseline": "mean", "credit": "q", "temperature": 1e-6}),
    "ActorCritic": (ActorCritic, {"num_generations": 1}),
    "ActorCritic, whitened": (ActorCritic, {"normalize_advantage": True}),
    "PPO": (PPO, {"n_epochs": 2}),
    "PPO, whitened": (PPO, {"normalize_advantage": True, "micro_batch_size": 4}),
    "PPO, V apart": (PPO, {"normalize_advantage": True, "separate_critic": True}),
    "RLOO": (RLOO, {}),
    "GRPO": (GRPO, {}),
}
# whose advantages need answers beyond the group
GLOBAL = [name for name in CASES if "mean" in name or "whitened" in name or "apart" in name]
GROUPED = ["REINFORCE, leave one out", "RLOO", "GRPO"]
SHARDED = ["PPO", "PPO, V apart", "RLOO"]
HAS_PEFT = importlib.util.find_spec("peft") is not None
STEERED = {"kl_target": 0.16, "kl_horizon": COUNT}


def task() -> Any:
    """Prompts whose answers are paid differently."""
    return make(words(4, kl_coef=0.2))


def agent_of(name: str, **more: Any) -> Any:
    """An agent whose steps change nothing, so that its gradient stays to be seen."""
    kind, settings = CASES[name]
    env = task()
    own = {key: settings[key] for key in ("separate_critic", "temperature") if key in settings}
    policy = random_policy(env, **own)
    still = {"learning_rate": 0.0, "max_grad_norm": 1e9, "n_episodes": COUNT, "num_generations": 4, "seed": 0}
    return kind(policy, env, **(still | {key: value for key, value in settings.items() if key not in own} | more))


def all_answers() -> Rollout:
    """The whole batch, from a policy that is not quite the one that learns; the second half another one's still."""
    env = task()
    rollout = collect(
        env, random_policy(env, seed=3, scale=0.1), COUNT, num_generations=4, generator=new_generator("cpu", 5)
    )
    rollout.rewards += torch.where(rollout.mask, rollout.prompt[:, None].float(), 0.0)  # some prompts are worth more
    values = torch.linspace(-1, 2, rollout.mask.numel(), dtype=torch.float64).view(rollout.mask.shape)
    return replace(rollout, values=torch.where(rollout.mask, values, 0.0))


def half(rollout: Rollout, r: int) -> Rollout:
    """Rank r's answers: two whole groups."""
    return rollout[slice(r * COUNT // 2, (r + 1) * COUNT // 2)]


def gradient(agent: Any, rollout: Rollout) -> Tensor:
    """What `train` leaves behind."""
    agent.train(rollout)
    masters = agent.master_weights.masters_of(agent.trained)
    return torch.cat([gather_tensor(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in masters])


def half_precision(name: str = "ActorCritic", **settings: Any) -> Any:
    """An agent whose trunk is in bfloat16, and V in float32; a quarter of the answers in memory at a time."""
    agent = agent_of(name, micro_batch_size=COUNT // 4, **settings)
    agent.policy.cast(torch.bfloat16).value_head.float()
    return agent


def sent(agent: Any, rollout: Rollout) -> list[tuple[int, torch.dtype]]:
    """How many numbers of which kind the ranks add up while this one trains, tensor by tensor."""
    tensors: list[tuple[int, torch.dtype]] = []

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        tensors.append((x.numel(), x.dtype))
        return all_reduce(x, *args, **kwargs)

    all_reduce = torch.distributed.all_reduce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", counted)
        agent.train(rollout)
    return tensors


def learnt(agent: Any, rollout: Rollout) -> dict[str, Any]:
    """One update of `learn` from these answers: metrics, beta, timesteps."""
    rows: list[dict[str, float]] = []
    agent.collect = lambda: rollout
    agent.learn(1, callback=lambda _agent, _rollout, metrics: rows.append(metrics))
    return {"metrics": rows[0], "kl_coef": agent.kl_coef, "num_timesteps": agent.num_timesteps}


def far_in_one_half(rollout: Rollout) -> Rollout:
    """Answers whose second half alone is far from the policy that learns."""
    env = task()
    near = random_policy(env).evaluate_actions(
        rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask, values=False
    )
    away = torch.arange(COUNT)[:, None] >= COUNT // 2
    return replace(rollout, log_probs=torch.where(rollout.mask, near.log_probs.detach() + away, 0.0))


def on_a_rank(r: int, folder: Path) -> None:
    """All that this file asks of two ranks, written to `folder`."""
    where = {"RANK": r, "LOCAL_RANK": r, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({key: str(value) for key, value in where.items()})
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(300, exit=True)  # ranks that wait for each other say where
    # they meet in a file, where a port might meanwhile be another's
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=r, world_size=2)
    with joined("cpu") as (wrap, _):
        assert wrap is None  # whole weights, unless accelerate was told otherwise
        found = found_by(r, folder) | found_sharded(r, folder)
    torch.save(found, folder / f"{r}.pt")


def found_by(r: int, folder: Path) -> dict[str, Any]:
    """What rank r has to say, each with whole weights."""
    rollout, found = all_answers(), {}
    for name, how in itertools.product(CASES, ("whole", "sharded")):
        agent = agent_of(name)
        if how == "sharded":
            agent.distribute(shard)
        found[f"{name}, {how}"] = gradient(agent, half(rollout, r))
    for how in ("whole", "sharded"):
        agent = half_precision()
        if how == "sharded":
            agent.distribute(shard)
        found[f"bfloat16, {how}"] = gradient(agent, half(rollout, r))
    found["sent"] = sent(half_precision("RLOO", n_epochs=2), half(rollout, r))
    policy = random_policy(task(), seed=r)
    found["own weights"] = torch.cat([p.detach().flatten() for p in policy.parameters()])
    found["begun with"] = torch.cat([p.detach().flatten() for p in RLOO(policy, task(), n_episodes=COUNT).trained])
    found["learnt"] = learnt(agent_of("PPO", **STEERED), half(rollout, r))
    found["continued"] = learnt(agent_of("REINFORCE, q, mean"), half(rollout, r))["num_timesteps"]
    agent = agent_of("PPO", target_kl=0.1)
    found["minibatches"] = agent.train(half(far_in_one_half(rollout), r))["num_minibatches"]
    agent, shown = agent_of("RLOO"), io.StringIO()
    with contextlib.redirect_stderr(shown):
        agent.learn(100_000, callback=lambda agent, *_: r == 0 or agent.num_updates < 2, progress_bar=True)
    found["stopped after"], found["shown"] = agent.num_updates, shown.getvalue()
    agent = agent_of("REINFORCE, mean", learning_rate=1e-2)
    found["seed"] = agent.generator.initial_seed()
    agent.learn(200)
    agent.save(folder / "saved")
    gather_objects(None)  # wait until it is written
    found["trained"] = torch.cat([p.detach().flatten() for p in agent.trained])
    found["counted"] = agent.num_timesteps
    loaded = REINFORCE.load(folder / "saved", env=task())
    found["collected"] = [a.collect().input_ids for a in (agent, loaded)]
    found["told"] = run_on_rank0(lambda: f"from {r}")
    found["ranks"] = (rank(), world_size(), all_reduce_sum(torch.tensor(r + 1.0)).item(), gather_objects(r))
    try:
        agent_of("GRPO", n_episodes=12)
    except ValueError as error:
        found["refused"] = str(error)
    return found


def learner(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """An agent that does learn."""
    agent = agent_of(name, learning_rate=1e-2, max_grad_norm=1.0)
    agent.policy.to(dtype)
    return agent


def learned(agent: Any, rollout: Rollout, updates: int = 3) -> Tensor:
    """The weights of the policy, which writes, after some updates from the same answers."""
    for _ in range(updates):
        agent.train(rollout)
    return torch.cat([p.detach().flatten() for p in agent.trained])


def adapter_learner() -> tuple[Any, Rollout]:
    """An adapter on the reference's weights, and answers to learn from."""
    from tests import test_lora

    env = test_lora.task("gpt2")
    agent = RLOO(test_lora.adapted(env, 0.1), env, n_episodes=COUNT, learning_rate=1e-2, seed=0)
    generator = new_generator("cpu", 5)
    return agent, collect(env, agent.policy, COUNT, num_generations=4, generator=generator, values=False)


def found_sharded(r: int, folder: Path) -> dict[str, Any]:
    """What rank r has to say with a part of the weights."""
    found: dict[str, Any] = {}
    mine = half(all_answers(), r)
    for name in SHARDED:
        agent = learner(name)
        agent.distribute(shard)
        with pytest.MonkeyPatch.context() as patch:  # whole weights would read prompts once, however short they are
            patch.setattr("textenv.lm.inputs.MIN_SAVED_TOKENS", 1)
            patch.setattr("textenv.lm.inputs.MIN_SAVED_FRACTION", 0)
            found[f"learned, {name}"] = learned(agent, mine)
        found[f"kept, {name}"] = sum(
            master.to_local().numel() for master in agent.master_weights.masters_of(agent.trained)
        )
        agent = learner(name, torch.float32)  # as checkpoints are
        agent.distribute(shard)
        learned(agent, mine)
        agent.save(folder / name)
        gather_objects(None)  # wait until it is written
        loaded = CASES[name][0].load(folder / name, env=task(), wrap=shard)
        found[f"going on, {name}"] = [learned(agent, mine), learned(loaded, mine)]
        agent = CASES[name][0].load(folder / f"{name}, one process", env=task(), wrap=shard)
        found[f"from one process, {name}"] = learned(agent, mine)
    agent = half_precision("RLOO", learning_rate=1e-2)
    agent.distribute(shard)
    learned(agent, mine)
    agent.save(folder / "bfloat16")
    gather_objects(None)  # wait until it is written
    loaded = RLOO.load(folder / "bfloat16", env=task(), wrap=shard)
    found["masters"] = [one.master_weights.state() for one in (agent, loaded)]
    if HAS_PEFT:
        agent, rollout = adapter_learner()
        agent.distribute(shard)
        found["learned, adapter"] = learned(agent, half(rollout, r))
    agent = learner("PPO")
    agent.train(mine)
    for wrap in (shard, fully_shard):
        try:
            agent.distribute(wrap)
        except ValueError as error:
            found[f"refused {wrap.__name__}"] = str(error)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where agents are saved."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    for name in SHARDED:
        agent = learner(name, torch.float32)
        learned(agent, all_answers())
        agent.save(folder / f"{name}, one process")
    torch.multiprocessing.spawn(on_a_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(2)]


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "sharded"])
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_gradient_of_one(name: str, how: str, ranks: list[dict[str, Any]]) -> None:
    """The same on both, within 1e-5 of one process with all answers; either half alone has another."""
    whole = gradient(agent_of(name), all_answers())
    found = [each[f"{name}, {how}"] for each in ranks]
    assert torch.equal(*found)
    assert distance(found[0], whole) < EXACT
    assert distance(gradient(agent_of(name), half(all_answers(), 0)), whole) > BROKEN


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_two_ranks_in_bfloat16_have_the_gradient_of_one(how: str, ranks: list[dict[str, Any]]) -> None:
    """Within 1e-5: parts and ranks are added up in float32; a mean that was sent in bfloat16 would be nowhere near."""
    whole = gradient(half_precision(), all_answers())
    found = [each[f"bfloat16, {how}"] for each in ranks]
    assert torch.equal(*found)
    assert distance(found[0], whole) < EXACT
    halves = [gradient(half_precision(), half(all_answers(), r)) for r in range(2)]
    assert distance(halves[0], whole) > BROKEN
    assert distance(sum(halves) / 2, whole) < EXACT
    assert distance((halves[0].bfloat16() + halves[1].bfloat16()) / 2, whole) > 100 * EXACT


@pytest.mark.slow
def test_gradients_are_sent_once_a_step(ranks: list[dict[str, Any]]) -> None:
    """In float32, by two epochs of two parts each; the value head, which RLOO does not ask, is not."""
    agent = half_precision("RLOO")
    learns = sum(p.numel() for p in agent.policy.model.parameters())
    for found in ranks:
        assert {dtype for _, dtype in found["sent"]} == {torch.float32}
        assert sum(number for number, _ in found["sent"]) == 2 * learns


@pytest.mark.slow
def test_all_ranks_begin_with_the_policy_of_the_first(ranks: list[dict[str, Any]]) -> None:
    """Where each made one of its own."""
    first = ranks[0]["own weights"]
    assert not first.equal(ranks[1]["own weights"])
    assert all(found["begun with"].equal(first) for found in ranks)


@pytest.mark.slow
def test_a_callback_of_one_rank_stops_all(ranks: list[dict[str, Any]]) -> None:
    """Here the second's, in the second update; the first draws the progress bar."""
    assert [found["stopped after"] for found in ranks] == [2, 2]
    assert "tok" in ranks[0]["shown"] and ranks[1]["shown"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_ranks_learn_what_one_process_learns(name: str, ranks: list[dict[str, Any]]) -> None:
    """The policy's weights after some updates, of which each rank kept half; half of the answers teach others."""
    whole = learned(learner(name), all_answers())
    assert torch.equal(ranks[0][f"learned, {name}"], ranks[1][f"learned, {name}"])
    assert (ranks[0][f"learned, {name}"] - whole).abs().max() < EXACT
    assert (learned(learner(name), half(all_answers(), 0)) - whole).abs().max() > BROKEN
    kept = [found[f"kept, {name}"] for found in ranks]
    assert sum(kept) == len(whole) and max(kept) < 0.51 * len(whole)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
def test_a_sharded_adapter_learns_what_a_whole_one_learns(ranks: list[dict[str, Any]]) -> None:
    """The copy that learns has the reference's weights too, spread; those that the reference reads stay whole."""
    agent, rollout = adapter_learner()
    whole = learned(agent, rollout)
    other, _ = adapter_learner()
    for found in ranks:
        assert (found["learned, adapter"] - whole).abs().max() < EXACT
    assert (learned(other, half(rollout, 0)) - whole).abs().max() > BROKEN


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_checkpoints_are_whole(name: str, ranks: list[dict[str, Any]], folder: Path) -> None:
    """Saved by two ranks, loaded by two or by one, and the other way: weights and moments go on as they would have."""
    agent = learner(name, torch.float32)
    learned(agent, all_answers())
    whole = learned(agent, all_answers())
    for found in ranks:
        assert torch.equal(*found[f"going on, {name}"])
        for way in (found[f"going on, {name}"][0], found[f"from one process, {name}"]):
            assert distance(way, whole) < ROUNDED
    loaded = CASES[name][0].load(folder / name, env=task())
    assert distance(learned(loaded, all_answers()), whole) < ROUNDED
    forgetful = CASES[name][0].load(folder / name, env=task())
    forgetful.optimizer.state.clear()
    assert distance(learned(forgetful, all_answers()), whole) > BROKEN


@pytest.mark.slow
def test_what_rounding_took_is_saved_by_ranks_that_share_it(ranks: list[dict[str, Any]], folder: Path) -> None:
    """In bfloat16: two ranks and one process go on from the same masters, which the weights alone do not say."""
    agent = RLOO.load(folder / "bfloat16", env=task())
    before, again = ranks[0]["masters"]
    assert len(before) == len(agent.master_weights.copies) > 0
    for saved, *found in zip(before, again, agent.master_weights.state(), strict=True):
        assert saved.dtype == torch.float32 and all(saved.equal(each) for each in found)
    assert not all(saved.equal(saved.bfloat16().float()) for saved in before)


@pytest.mark.slow
def test_what_cannot_be_sharded_is_refused(ranks: list[dict[str, Any]]) -> None:
    """The policy itself, and what has begun to learn."""
    for found in ranks:
        assert "told before learning" in found["refused shard"]
        assert "must stay whole" in found["refused fully_shard"]


def test_a_compiled_policy_is_not_sharded() -> None:
    """A copy would silently not be compiled."""
    policy = random_policy(task())
    torch.nn.Module.compile(policy)
    with pytest.raises(ValueError, match="compiled policy cannot be sharded"):
        shard(policy)


@pytest.mark.parametrize("name", CASES)
def test_local_statistics_have_another_gradient(name: str) -> None:
    """The mean of two gradients that know nothing of each other: right only where no statistic crosses a group."""
    rollout = all_answers()
    whole = gradient(agent_of(name), rollout)
    alone = sum(gradient(agent_of(name), half(rollout, r)) for r in range(2)) / 2
    error = distance(alone, whole)
    assert error > BROKEN if name in GLOBAL else error < EXACT


@pytest.mark.parametrize("name", GROUPED)
def test_groups_that_are_split_have_another_gradient(name: str) -> None:
    """Why a rank has whole groups: the halves of one compare with half as many answers."""
    rollout = all_answers()
    whole = gradient(agent_of(name), rollout)
    split = [torch.arange(COUNT).view(-1, 2)[r::2].flatten() for r in range(2)]
    alone = sum(gradient(agent_of(name, num_generations=2), rollout[rows]) for rows in split) / 2
    assert distance(alone, whole) > BROKEN


@pytest.mark.slow
def test_metrics_beta_and_timesteps_are_those_of_all_answers(ranks: list[dict[str, Any]]) -> None:
    """One process says the same; beta and explained variance of a half would differ."""
    rollout = all_answers()
    whole, alone = (learnt(agent_of("PPO", **STEERED), answers) for answers in (rollout, half(rollout, 0)))
    for found in (ranks[0]["learnt"], ranks[1]["learnt"]):
        assert found["num_timesteps"] == whole["num_timesteps"] == int(rollout.mask.sum())
        assert found["kl_coef"] == pytest.approx(whole["kl_coef"], rel=1e-6)
        for name in [
            name for name in whole["metrics"] if name.startswith(("objective", "completions", "loss", "policy"))
        ]:
            assert found["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-5), name
        for name in ("val/explained_variance", "val/ratio_error_max", "val/ess", "val/ratio", "grad_norm"):
            assert found["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-5), name
    assert abs(alone["kl_coef"] / whole["kl_coef"] - 1) > BROKEN
    assert abs(alone["metrics"]["val/explained_variance"] - whole["metrics"]["val/explained_variance"]) > BROKEN


@pytest.mark.slow
def test_tokens_of_continuations_are_counted_once_by_all(ranks: list[dict[str, Any]]) -> None:
    """With credit="q": those that either rank wrote, more than the answers' own."""
    rollout = all_answers()
    whole = learnt(agent_of("REINFORCE, q, mean"), rollout)["num_timesteps"]
    assert [found["continued"] for found in ranks] == [whole, whole]
    assert whole > int(rollout.mask.sum())


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_minibatch(ranks: list[dict[str, Any]]) -> None:
    """Where one half alone is far from the old policy; its owner would stop alone, and leave the other hanging."""
    rollout = far_in_one_half(all_answers())
    assert [found["minibatches"] for found in ranks] == [0.0, 0.0]
    alone = [agent_of("PPO", target_kl=0.1).train(half(rollout, r))["num_minibatches"] for r in range(2)]
    assert alone == [2.0, 0.0]


@pytest.mark.slow
def test_ranks_write_answers_of_their_own_and_learn_one_policy(ranks: list[dict[str, Any]]) -> None:
    """Different prompts and tokens, the same weights and count; a saved agent goes on with each rank's own numbers."""
    assert torch.equal(ranks[0]["trained"], ranks[1]["trained"])
    assert ranks[0]["counted"] == ranks[1]["counted"] >= 200
    drawn = [found["collected"] for found in ranks]
    for resume_hint, loaded in drawn:
        assert len(resume_hint) == COUNT // 2 and resume_hint.equal(loaded)
    assert not drawn[0][0].equal(drawn[1][0])
    assert ranks[0]["seed"] == 0 != ranks[1]["seed"]  # the first one's is the seed itself, as in one process


@pytest.mark.slow
def test_what_ranks_tell_each_other(ranks: list[dict[str, Any]]) -> None:
    """Rank, how many, a sum, a list; what the first one makes; and shares that are no whole groups are refused."""
    for r, found in enumerate(ranks):
        assert found["ranks"] == (r, 2, 3.0, [0, 1])
        assert found["told"] == "from 0"
        assert "n_episodes must be a multiple of 8" in found["refused"]


def test_one_process_is_all_there_is() -> None:
    """Nothing changes without a launcher."""
    x = torch.tensor([1.0, 2.0])
    assert all_reduce_sum(x) is x and gather_objects(3) == [3] and run_on_rank0(lambda: 4) == 4
    assert (rank(), world_size(), rank_seed(7), rank_seed(None)) == (0, 1, 7, None)


def test_shares_of_shuffles_are_shuffles_of_the_whole() -> None:
    """Each rank's minibatches part its own answers; side by side they part all of them, without a repetition."""
    parts = [minibatches(8, 2, 4, torch.Generator().manual_seed(r)) for r in range(2)]
    epochs = [torch.cat([parts[r][i] + 8 * r for i in (2 * e, 2 * e + 1) for r in range(2)]) for e in range(2)]
    for rows in epochs:
        assert rows.sort().values.tolist() == list(range(16))


# -- the command line --------------------------------------------------------------------------------------------------

TINY = "--env textenv/Toy-v0 --env-args vocab_size 3 max_new_tokens 2 num_prompts 1 --n-episodes 16 --num-evals 3"


DDP, FSDP = ["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]


def launch(
    *arguments: str, how: list[str] = DDP, module: str = "experiments", folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch -m experiments ...` on two processes; modules are looked for in `folder` too."""
    launcher = ["-m", "accelerate.commands.launch", *how, "--num_processes", "2", "--main_process_port", "0"]
    path = ":".join(str(place) for place in (ROOT, folder) if place is not None)
    return subprocess.run(
        [sys.executable, *launcher, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def on_a_model(folder: Path, reward: str) -> list[str]:
    """The flags of a task whose reference, a model of a hundred numbers, is made in `folder`."""
    if not (folder / "model").is_dir():
        _write_model(folder / "model")
        (folder / "prompts.txt").write_text("a b\n")
    flags = f"--env textenv/Text-v0 --reward {reward} --max-new-tokens 2 --n-episodes 16 --eval-episodes 4"
    return [*flags.split(), "--model", str(folder / "model"), "--prompts", str(folder / "prompts.txt")]


@pytest.mark.slow
@pytest.mark.parametrize("how", [DDP, FSDP], ids=["whole", "sharded"])
def test_the_command_line_trains_on_two_ranks(how: list[str], tmp_path: Path) -> None:
    """One folder, written by one of them; tokens are counted once; a finished run is resumed without doing it again."""
    flags = ["train", *TINY.split(), "--total-timesteps", "400", "--agent", "grpo", "--out", str(tmp_path / "run")]
    done = launch(*flags, how=how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1 and done.stdout.count('"objective"') == 1
    rows = read_metrics(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("events.out.tfevents*"))) == 1
    counts = [row["num_updates"] for row in rows]
    assert counts == sorted(set(counts)) and 400 <= rows[-1]["num_timesteps"] < 432
    assert all(16 <= b["num_timesteps"] - a["num_timesteps"] <= 32 for a, b in itertools.pairwise(rows))
    assert launch(*flags, "--resume", how=how).returncode == 0 and read_metrics(tmp_path / "run") == rows
    saved = TransformerPolicy.from_pretrained(tmp_path / "run" / "checkpoint")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    tiny = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 1}
    assert exact.evaluate(gym.make("textenv/Toy-v0", **tiny), saved).objective == pytest.approx(
        summary["objective"], abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [DDP, FSDP], ids=["whole", "sharded"])
def test_an_interrupted_run_of_two_ranks_resumes_where_it_stopped(how: list[str], tmp_path: Path) -> None:
    """In bfloat16, ended after a checkpoint and some lost updates: `--resume` writes what a whole run would have."""
    (tmp_path / "counted.py").write_text(
        "def words(prompts, completions, completion_ids, **columns):\n"
        "    return [float(text.count('a')) for text in completions]\n"
    )
    (tmp_path / "stopping.py").write_text(
        "from experiments.__main__ import main\nfrom experiments.trial import TrialLog\n\nwrite = TrialLog.sample\n\n"
        "def stop(self, row):\n    sample(self, row)\n"
        "    if row['num_updates'] == 3:\n        self.checkpoint()\n"
        "    if row['num_updates'] == 5:\n        raise RuntimeError('stopped')\n\n"
        "TrialLog.write = stop\nmain()\n"
    )
    flags = ["train", *on_a_model(tmp_path, "counted:words"), "--agent", "ppo", "--total-timesteps", "250"]
    flags += ["--dtype", "bfloat16", "--num-evals", "3", "--gradient-checkpointing"]
    whole, stopped = ["--out", str(tmp_path / "whole")], ["--out", str(tmp_path / "stopped")]
    assert launch(*flags, *whole, how=how, folder=tmp_path).returncode == 0
    ended = launch(*flags, *stopped, how=how, module="stopping", folder=tmp_path)
    assert ended.returncode != 0 and "RuntimeError: stopped" in ended.stderr
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert [row["num_updates"] for row in read_metrics(tmp_path / "stopped")] == list(range(6))
    done = launch(*flags, *stopped, "--resume", how=how, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (read_metrics(tmp_path / name) for name in ("whole", "stopped"))
    assert len(before) > 6
    for row in (*before, *after):
        del row["seconds"]
    assert before == after
    saved = TransformerPolicy.from_pretrained(tmp_path / "stopped" / "checkpoint")
    assert saved.model.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "told"),
    [("raise RuntimeError('no reward today')", "no reward today"), ("os.kill(os.getpid(), 9)", "SIGKILL")],
)
def test_a_rank_that_fails_ends_the_run_with_its_error(end: str, told: str, tmp_path: Path) -> None:
    """Raised or killed; not with a hang: the other one waits for it in vain, and is ended within seconds."""
    (tmp_path / "broken_reward.py").write_text(
        "import os\n\ndef fails(prompts, completions, completion_ids, **columns):\n"
        f"    if os.environ['RANK'] == '1' and len(prompts) == 8:\n        {end}\n"
        "    return [0.0] * len(prompts)\n"
    )
    flags = ["--agent", "ppo", "--out", str(tmp_path / "run")]
    began = time.monotonic()
    done = launch("train", *on_a_model(tmp_path, "broken_reward:fails"), *flags, folder=tmp_path)
    assert done.returncode != 0
    assert told in done.stderr
    assert time.monotonic() - began < 200  # no hang: a rank that waits for another does so for half an hour


@pytest.mark.slow
def test_what_cannot_be_launched_is_refused(tmp_path: Path) -> None:
    """`compare` on two ranks would do all twice; another library's agent has one process; no graph is of parts."""
    done = launch("compare", *TINY.split(), "--out", str(tmp_path / "run"))
    assert done.returncode != 0 and "is for `train`" in done.stderr
    done = launch("train", *TINY.split(), "--agent", "sb3-ppo", "--out", str(tmp_path / "run"))
    assert done.returncode != 0 and "trains in one process" in done.stderr
    done = launch("train", *TINY.split(), "--compile", "--out", str(tmp_path / "run"), how=FSDP)
    assert done.returncode != 0 and "leave out --compile" in done.stderr


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "add --fsdp_version 2"),
        ({"FSDP_VERSION": "1"}, "add --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params false"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient-checkpointing"),
    ],
)
def test_sharding_that_is_not_ours_is_refused(
    told: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What accelerate can be told and `shard` does not do: said in a line, with the flag to change."""
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FlagError, match=message):
        sharding_from_environment()


def test_what_accelerate_was_told_of_sharding_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether layers are gathered again; and never that other ranks begin with weights of noise."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    for told in ("true", "false"):
        monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", told)
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        wrap: Any = sharding_from_environment()
        assert wrap.func is shard and wrap.keywords == {"reshard_after_forward": told == "true"}
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def _write_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, "a": 1, "b": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, n_positions=8, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(folder)

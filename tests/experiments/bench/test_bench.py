"""The benchmark: the tight loop does the same work as the agents, and the command runs. No test compares times."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import Generation, collect, sample, sample_prompts
from experiments.bench import BenchConfig, bench, tables
from experiments.bench.exactness import EXACT, ExactWork
from experiments.bench.run import names_of
from experiments.bench.tight_loop import Batch, TightPPO, hidden_states, token_log_probs
from experiments.bench.toys import TOYS, ToyWork, size
from experiments.bench.variant_process import share_of_a_core, take_turns
from experiments.bench.variants import VARIANTS, distinct_scores, environment, largest_ratio, rounds_of, sampling
from experiments.bench.work import Work, distinct
from experiments.errors import FlagError
from tests.helpers.commands import call
from tests.helpers.paths import ROOT
from textenv import get_mdp
from textenv.tree import enumerate_tree

WORK = Work("smoke", completions=8, prompt=5, tokens=6, epochs=2)


@pytest.mark.parametrize("separate_critic", [False, True])
def test_ppo_takes_the_same_steps_as_the_tight_loop(separate_critic: bool) -> None:
    """On the same completions, both have the same values and weights over three updates: no work is skipped."""
    env = environment(WORK)
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic)
    agent = PPO(policy, env, learning_rate=3e-4, n_episodes=WORK.completions, n_epochs=WORK.epochs, seed=0)
    loop = TightPPO(WORK.model(), separate_critic, reward=distinct_scores, kl_coef=0.05)
    for _ in range(3):
        rollout = agent.collect()
        tokens = rollout.num_tokens
        assert tokens == WORK.tokens and rollout.mask.all()
        with torch.no_grad():
            hidden = hidden_states(loop.trunk, rollout.input_ids[:, :-1])[:, -tokens:]
            values = loop.values(hidden, rollout.input_ids)
            own = token_log_probs(loop.trunk, hidden, rollout.tokens)
        assert rollout.values is not None
        assert torch.allclose(rollout.values, values, atol=1e-5)
        assert torch.allclose(rollout.log_probs, own, atol=1e-5)
        batch = Batch(rollout.input_ids, rollout.log_probs, rollout.ref_log_probs, values, rollout.rewards)
        agent.train(rollout)
        loop.train(batch, WORK.epochs)
        for ours, theirs in zip(policy.model.transformer.parameters(), loop.trunk.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=2e-5)
        assert torch.allclose(policy.value_head.weight[0], loop.head, atol=2e-5)
    start = WORK.model().transformer.wte.weight
    assert float((loop.trunk.wte.weight - start).abs().max()) > 1e-3  # control: the weights change


def test_the_tight_loop_has_the_rewards_of_the_environment() -> None:
    """Its rewards equal those computed from the environment's reference and `distinct` on the same completions."""
    env = environment(WORK)
    loop = TightPPO(WORK.model(), separate_critic=False, reward=distinct_scores, kl_coef=0.05)
    prompts = torch.as_tensor(get_mdp(env).prompts.input_ids)
    batch = loop.collect(prompts, WORK.tokens)
    completions = batch.ids[:, -WORK.tokens :]
    ref_log_probs = get_mdp(env).reference.token_log_probs(batch.ids, torch.ones_like(batch.ids), WORK.tokens)
    assert torch.allclose(batch.ref_log_probs, ref_log_probs, atol=1e-5)
    expected = -0.05 * (batch.log_probs - ref_log_probs)
    expected[:, -1] += torch.tensor(distinct(None, None, completions.tolist()))
    assert torch.allclose(batch.rewards, expected, atol=1e-6)


SLOW = {"ppo, compiled"}
LESS_EXACT = {"ppo, bfloat16", "ppo, medium"}  # the latter where a CPU has AMX


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(VARIANTS)]
)
def test_every_variant_does_the_whole_work(name: str) -> None:
    """A round samples all completion tokens, and phases are times; an agent's first ratio is 1 up to rounding.

    No model has dropout, which would cost time in TRL only.
    """
    assert all(module.p == 0 for module in WORK.model().modules() if isinstance(module, torch.nn.Dropout))
    tokens, phases, numbers = VARIANTS[name].start(WORK)()
    assert tokens == WORK.completions * WORK.tokens
    assert all(seconds >= 0 for seconds in phases.values())
    if name.startswith(("ppo", "rloo")):
        assert 1 <= numbers["largest_ratio"] < (1.1 if name in LESS_EXACT else 1 + 1e-5)


def test_tokens_are_counted() -> None:
    """The tokens of a round are those sampled, not those requested (control of the test above)."""

    def shorter(policy: Any, mdp: Any, state: Any, generator: Any) -> Generation:
        generation = sample(policy, mdp, state, generator)
        return generation._replace(attention_mask=generation.attention_mask[:, :-2])

    assert sampling(WORK, shorter)().tokens == WORK.completions * (WORK.tokens - 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", names_of("gpu"))
def test_every_variant_does_the_whole_work_on_a_gpu(name: str) -> None:
    """Like the test above, in bfloat16 and with micro-batches."""
    work = replace(WORK, device="cuda", dtype="bfloat16", micro_batch=4)
    tokens, _, numbers = VARIANTS[name].start(work)()
    assert tokens == WORK.completions * WORK.tokens
    assert 1 <= numbers.get("largest_ratio", 1) < 1.1


@pytest.mark.slow
def test_the_gpu_table_shows_tokens_per_second_and_the_estimates(tmp_path: Path) -> None:
    """From some of the part's variants run on the CPU, and given estimates."""
    work = replace(WORK, micro_batch=4, dtype="bfloat16")
    names = ["grpo", "grpo, graph", "sampling, graph", "sampling, transformers"]
    assert set(names) <= set(names_of("gpu"))
    variants = take_turns(names, work, 1, tmp_path, 1)
    text = "\n".join(
        tables.gpu({"device": "a card", "variants": variants, "estimated": {"sampling": 0.25, "network": 0.0}})
    )
    for line in ("a card", "sampling, graph / sampling, transformers:", "grpo, graph / grpo:", "sampling 0.250 s"):
        assert line in text
    assert "tokens per second" in text and "network" not in text


def test_the_largest_ratio_compares_the_learner_with_the_sampler() -> None:
    """1 for the policy itself; for another learner, the largest max(rho, 1 / rho), computed by hand."""
    env = environment(WORK)
    policy, other = TransformerPolicy.for_env(env), TransformerPolicy.for_env(env, temperature=0.5)
    agent = PPO(policy, env, n_episodes=WORK.completions, seed=0)
    assert largest_ratio(agent) == pytest.approx(1, abs=1e-5)
    agent.optimization.learner = other
    generator = agent.generator.get_state()
    found = largest_ratio(agent)
    agent.generator.set_state(generator)
    rollout = agent.collect()
    with torch.no_grad():
        log_probs = other.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
    rho = (log_probs - rollout.log_probs).exp()
    assert found == pytest.approx(float(torch.maximum(rho, 1 / rho).max())) and found > 1.01


def test_toy_variants_train_on_as_many_tokens_in_as_many_steps() -> None:
    """SB3 samples `steps` tokens per environment, `agents.PPO` about as many; all take epochs x minibatches steps."""
    work = ToyWork(vocab_size=5, max_new_tokens=4, envs=16, steps=8, epochs=3, minibatches=2, hidden_size=16)
    steps: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        for name, make in TOYS.items():
            run_round = make(work)
            steps.clear()
            tokens, _, numbers = run_round()
            assert len(steps) == work.epochs * work.minibatches, name
            assert abs(tokens / work.tokens - 1) < 0.2 if name == "toy ppo" else tokens == work.tokens
            parameters = size(work.policy(work.environment()))
            if name != "toy sb3 ppo, default mlp":
                assert 0.9 * parameters < numbers["parameters"] <= parameters
    finally:
        hook.remove()


def test_rounds_count_the_sampled_tokens_of_the_toy() -> None:
    """All tokens of the completions, EOS included, and no padding after them."""
    work = ToyWork(vocab_size=5, max_new_tokens=4, envs=4, steps=4, minibatches=2, hidden_size=16)
    env = work.environment()
    agent = PPO(work.policy(env), env, n_episodes=8, seed=0)
    state = agent.generator.get_state()
    rollout = agent.collect()
    agent.generator.set_state(state)
    assert rounds_of(agent, {})().tokens == rollout.mask.sum() < rollout.mask.numel()


@pytest.mark.parametrize("name", sorted(EXACT))
def test_the_oracle_evaluates_each_state_once(name: str) -> None:
    """However many completions pass through it; the gradient evaluates each state twice, once with gradients."""
    work = ExactWork(vocab_size=3, max_new_tokens=3, num_prompts=2)
    tree = enumerate_tree(work.environment())
    run_round = EXACT[name](work)
    for _ in range(2):
        tokens, _, numbers = run_round()
        assert tokens == tree.num_completions == 2 * (1 + 2 + 4 * 3)
        assert numbers["states"] == len(tree.prompt) * (2 if "gradient" in name else 1)
    assert (tree.paths()[0] >= 0).sum() > len(tree.prompt)  # control: states along all paths are more


def test_the_share_of_a_core_is_over_all_results() -> None:
    """CPU seconds over seconds, at any depth of nesting."""
    nested = {"ppo": {"cpu": 1.0, "seconds": 2.0, "phases": {"step": 9.0}}}
    assert share_of_a_core({"small": nested, "cpu": 1.0, "seconds": 3.0}) == pytest.approx(0.4)


def test_prompts_have_the_length_of_the_work() -> None:
    """All sampled prompts have `work.prompt` tokens, and all completions `work.tokens`."""
    mdp = get_mdp(environment(WORK))
    state = sample_prompts(mdp, WORK.completions, 1, torch.Generator().manual_seed(0))
    assert mdp.prompt_width == WORK.prompt and state.attention_mask[:, : WORK.prompt].all()
    assert collect(environment(WORK), TransformerPolicy.for_env(environment(WORK)), 8).mask.all()


def run(*arguments: str) -> Any:
    """Runs the command as users type it."""
    command = [sys.executable, "-m", "experiments", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    """Parts with rates, ratios and load, as a table and as JSON; the scaling figure in a second run."""
    parts = ["updates", "toys", "exact", "environments"]
    tiny = [
        "--sizes",
        "smoke",
        "--rounds",
        "1",
        "--completions",
        "8",
        "--completion-tokens",
        "4",
        "--out",
        str(tmp_path),
    ]
    names = ["ppo", "tight loop", "sampling", "sampling, transformers"]
    small = ["--environment-seconds", "0.2", "--exact-tokens", "2", "--peers", str(tmp_path)]
    process = run(*tiny, "--parts", *parts, "--variants", *names, *small)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == (tmp_path / "bench.txt").read_text().strip()
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["updates"]["smoke"]) == names
    assert set(found["updates"]["smoke"]["ppo"]["phases"]) == set(found["updates"]["smoke"]["tight loop"]["phases"])
    variants = [*found["updates"]["smoke"].values(), *found["exact"].values()]
    variants += found["toys"]["variants"].values()
    assert all(variant["peak_mb"] > variant["work_mb"] > 0 for variant in variants)
    for line in ("ppo / tight loop:", "toy ppo / toy sb3 ppo:", "CartPoleVectorEnv"):
        assert line in process.stdout
    assert list(found["machine"]) == parts
    assert all(f"== {part}: load" in process.stdout for part in found["machine"])
    assert all(0 < part["share_of_a_core"] < 1.2 for part in found["machine"].values())
    assert found["versions"]["torch"] and found["command"].startswith("python -m experiments bench")
    scaled = run(
        *tiny, "--scaling", "--scaling-completions", "8", "16", "--scaling-tokens", "2", "--peers", str(tmp_path)
    )
    assert scaled.returncode == 0, scaled.stderr
    assert (tmp_path / "scaling.png").stat().st_size > 0
    assert list(json.loads((tmp_path / "scaling.json").read_text())["scaling"]["completions"]) == ["8", "16"]


@pytest.mark.slow
def test_a_part_alone_on_a_real_model(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the options, also of the model in a folder: its first ratio shows the rounding of bfloat16."""
    monkeypatch.setenv("CXX", "no-such-compiler")  # compiling takes a minute
    model = str(assets / "stories260k")
    process = run("--parts", "options", "--model", model, "--rounds", "1", "--sizes", "smoke", "--out", str(tmp_path))
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["options"]) == ["smoke", model] and list(found["machine"]) == ["options"]
    variants = found["options"][model]
    losses = ["grpo, k3 in the loss", "grpo, exact KL in the loss"]
    assert list(variants) == ["ppo", "ppo, bfloat16", "ppo, medium", *losses]
    assert "grpo, exact KL in the loss / grpo, k3 in the loss:" in process.stdout
    assert variants["ppo"]["largest_ratio"] < 1 + 1e-3 < variants["ppo, bfloat16"]["largest_ratio"]


def test_variants_that_cannot_run_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TRL without its environment, torch.compile without a C++ compiler; naming such a variant is an error."""
    config = BenchConfig(peers=tmp_path)
    names = ["ppo", "ppo, compiled", "sampling, graph", "trl ppo"]
    monkeypatch.setenv("CXX", sys.executable)
    assert config.runnable(names) == names[:3]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert config.runnable(names) == ["ppo"] and config.runnable(names, "cuda") == ["ppo", "sampling, graph"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert config.runnable(names) == ["ppo", "trl ppo"]
    with pytest.raises(FlagError, match="'sampling, graph' cannot run without a C.. compiler"):
        BenchConfig(variants=("sampling, graph",))
    with pytest.raises(FlagError, match="'trl ppo' cannot run without TRL"):
        BenchConfig(variants=("trl ppo",), peers=tmp_path / "nowhere")


def test_bad_flags_are_errors_of_one_line() -> None:
    """Unknown names, values out of range, and a part that cannot run here."""
    without = [] if torch.cuda.is_available() else [["--parts", "gpu"]]
    for flags in (*without, ["--sizes", "huge"], ["--variants", "magic"], ["--rounds", "0"]):
        process = call("bench", *flags)
        assert process.returncode == 2 and flags[0] in process.stderr and "Traceback" not in process.stderr
    with pytest.raises(FlagError, match="--model: 'x' is not the folder of a language model"):
        bench(BenchConfig(model="x"))


def test_kernels_are_counted_in_a_checkout_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stand-in device is a tool of the tests, which are not installed with the package."""
    assert BenchConfig(parts=("device",)).parts == ("device",)  # control
    monkeypatch.setattr("experiments.bench.run.STANDIN", tmp_path / "standin")
    with pytest.raises(FlagError, match=r"--parts device: .* in a checkout"):
        BenchConfig(parts=("device",))


@pytest.mark.parametrize("name", ["bench/bench", "bench/scaling", "prompts/bench", "device/bench"])
def test_the_committed_tables_are_those_of_the_committed_numbers(name: str) -> None:
    """And would not be of other numbers."""
    path = ROOT / "experiments" / "results" / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    committed = path.with_suffix(".txt").read_text(encoding="utf-8")
    assert tables.table(found) + "\n" == committed
    part = next(part for part in ("updates", "scaling", "device") if part in found)
    found["machine"][part]["load_before"] += 1.0  # control
    assert tables.table(found) + "\n" != committed

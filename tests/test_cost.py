"""What a run costs, on paper: the formulas against real models, and what they must not get wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from experiments.config import FlagError
from experiments.cost import GB, SHAPES, Device, Job, Shape, memory, roomiest, seconds
from experiments.cost_check import check
from experiments.cost_table import CHECKED, CostConfig, cost


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("124M", GPT2Config()),
        (
            "1B",
            LlamaConfig(
                hidden_size=2048,
                num_hidden_layers=16,
                num_attention_heads=32,
                num_key_value_heads=8,
                intermediate_size=8192,
                vocab_size=128256,
                tie_word_embeddings=True,
            ),
        ),
        ("7B", LlamaConfig()),
    ],
)
def test_parameters_are_counted(name: str, config: object) -> None:
    """Within 1% of the model that transformers would make; the table's shapes are those of the configs."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert Shape.of(config) == SHAPES[name]
    assert SHAPES[name].parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)


def test_an_adapter_is_counted(assets: Path) -> None:
    """As many numbers as peft trains."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(assets / "stories260k")
    shape = Shape.of(model.config)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape.adapter(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260k", "stories3m"])
def test_peak_memory_is_what_paper_says(name: str, assets: Path) -> None:
    """Within 10%, writing and learning alike, for small and large parts; times are not faster than paper allows."""
    for job in CHECKED:
        found = check(str(assets / name), job)
        for what, (paper, measured) in found.items():
            if what.startswith("peak"):
                assert paper == pytest.approx(measured, rel=0.1), (what, job)
            elif what.startswith("seconds"):
                assert measured > 0.5 * paper, (what, job)


def test_what_devices_and_settings_change() -> None:
    """Answers are divided, states only where they are sharded; an adapter has no reference; checkpoints save memory."""
    shape, one = SHAPES["1B"], Job()
    eight = replace(one, devices=8)
    assert memory(shape, eight)["KV cache"] == memory(shape, one)["KV cache"] / 8
    assert memory(shape, eight)["optimizer"] == memory(shape, one)["optimizer"]
    assert memory(shape, replace(eight, sharded=True))["optimizer"] == memory(shape, one)["optimizer"] / 8
    whole, sharded = (memory(shape, job)["weights"] for job in (eight, replace(eight, sharded=True)))
    assert sharded == whole * (1 + 1 / 8)  # a copy learns
    assert memory(shape, replace(one, lora_rank=8))["reference"] == 0
    small = memory(shape, replace(one, checkpointing=True))["activations"]
    assert small < memory(shape, one)["activations"] / 5
    times, more = (seconds(shape, job, Device()) for job in (one, eight))
    assert 2 * more["sending"] == seconds(shape, replace(eight, sharded=True), Device())["sending"]
    assert times["sending"] == 0 < more["sending"] and more["update"] < times["update"]


def test_what_fits_on_one_card() -> None:
    """GPT-2's 124M with 512 x (64 + 64) tokens does on 80 GB; 7B does not, and sharded over 8 it does."""
    assert memory(SHAPES["124M"], Job(micro_batch=8))["total"] < 80 * GB
    assert memory(SHAPES["7B"], Job(micro_batch=1))["total"] > 80 * GB
    assert memory(SHAPES["7B"], Job(micro_batch=1, devices=8, sharded=True))["total"] < 80 * GB
    room = roomiest(SHAPES["124M"], Job(), Device())
    assert memory(SHAPES["124M"], room)["total"] < 80 * GB
    assert memory(SHAPES["124M"], replace(room, micro_batch=2 * room.micro_batch))["total"] > 80 * GB


def test_the_table_is_printed(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a model and number of devices, with a yes or a no; a given model is read from its config."""
    cost(CostConfig())
    shown = capsys.readouterr().out
    assert all(name in shown for name in SHAPES) and shown.count("yes") + shown.count(" no ") == 15
    cost(CostConfig(model=str(assets / "stories260k"), devices=[1]))
    assert capsys.readouterr().out.count("yes") == 1


def test_flags_that_do_not_fit_are_named() -> None:
    """Shares must be whole, sizes positive, models there."""
    with pytest.raises(FlagError, match="--devices must divide"):
        CostConfig(n_episodes=4, devices=[3])
    with pytest.raises(FlagError, match="--n-epochs must be positive"):
        CostConfig(n_epochs=0)
    with pytest.raises(FlagError, match="--model nowhere"):
        cost(CostConfig(model="nowhere"))

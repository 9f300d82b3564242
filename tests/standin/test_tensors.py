"""A tensor of the device behaves as a tensor does: in place, as a view, with out=, copied, in a module, in a file."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.standin import DEVICE

Function = Callable[[Tensor], Any]


def numbers(device: str = DEVICE) -> Tensor:
    """A matrix [3, 4], the same on each device."""
    return torch.arange(12.0, device=device).reshape(3, 4) / 7 - 0.4


def same(found: Any, expected: Any) -> None:
    """The first is on the device; shapes, strides, dtypes and numbers are those of the second, on the CPU."""
    if isinstance(expected, Tensor):
        assert (found.device.type, expected.device.type) == (DEVICE, "cpu")
        assert (found.shape, found.stride(), found.storage_offset(), found.dtype) == (
            expected.shape,
            expected.stride(),
            expected.storage_offset(),
            expected.dtype,
        )
        assert torch.equal(found.cpu(), expected)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            same(*pair)
    else:
        assert found == expected


def test_the_comparison_fails_for_other_numbers_strides_and_devices() -> None:
    """Control of `same`."""
    for found, expected in [
        (numbers() + 1e-6, numbers("cpu")),
        (numbers().T, numbers("cpu").T.contiguous()),
        (numbers("cpu"), numbers("cpu")),
        (numbers().double(), numbers("cpu")),
        ([numbers()], [numbers("cpu")] * 2),
    ]:
        with pytest.raises(AssertionError):
            same(found, expected)


VIEWS: dict[str, Function] = {
    "row": lambda x: x[1],
    "columns": lambda x: x[:, 1:3],
    "transposed": lambda x: x.T,
    "reshaped": lambda x: x.view(2, 6),
    "expanded": lambda x: x[:, :1].expand(3, 5),
    "diagonal": lambda x: x.diagonal(),
    "windows": lambda x: x.unfold(1, 2, 1),
    "detached": lambda x: x.detach(),
    "strided": lambda x: x.as_strided((2, 2), (5, 1), 1),
    "bits": lambda x: x.view(torch.int32),
    "of a view": lambda x: x[1:].T[1],
    "split": lambda x: x.split(2, dim=1),
    "unbound": lambda x: x.unbind(1),
    "squeezed": lambda x: x[None].squeeze(0).unsqueeze(1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_shares_the_memory_of_its_base(name: str) -> None:
    """What is written through the view is seen in the base, and the reverse."""
    for mode in (torch.no_grad(), torch.inference_mode()):
        base, expected = numbers(), numbers("cpu")
        with mode:
            view, expected_view = VIEWS[name](base), VIEWS[name](expected)
            same(view, expected_view)
            parts = (
                zip(view, expected_view, strict=True) if isinstance(view, (list, tuple)) else [(view, expected_view)]
            )
            if name != "expanded":  # several of its elements are one
                for part, expected_part in parts:
                    assert part.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
                    part.add_(3)
                    expected_part.add_(3)
            same(base, expected)
            base.zero_()
            expected.zero_()
            same(view, expected_view)


IN_PLACE: dict[str, Function] = {
    "add": lambda x: x.add_(2),
    "operator": lambda x: x.__imul__(x),
    "row": lambda x: x[1].fill_(5),
    "set item": lambda x: x.__setitem__((slice(None), 2), torch.tensor(4.0)),
    "set by positions": lambda x: x.__setitem__(torch.tensor([0, 2], device=x.device), x[1] + 1),
    "set by a mask": lambda x: x.__setitem__(x > 0.5, 0.0),
    "rows set by a mask": lambda x: x.__setitem__(x[:, 0] > 0, 0.0),
    "columns set by a mask": lambda x: x.__setitem__((slice(None), x[0] > 0), 0.0),
    "masked fill": lambda x: x.masked_fill_(x < 0, 9),
    "copy": lambda x: x.copy_(x.flip(0)),
    "added by a mask": lambda x: x.index_put_((x > 0.5,), torch.tensor(2.0, device=x.device), accumulate=True),
    "index add": lambda x: x.index_add_(0, torch.tensor([0, 0, 1], device=x.device), x.clone()),
    "scatter": lambda x: x.scatter_(1, torch.zeros(3, 1, dtype=torch.long, device=x.device), 7.0),
    "cumulative": lambda x: x.cumsum_(1),
    "transposed": lambda x: x.t_(),
    "unsqueezed": lambda x: x.unsqueeze_(0),
    "resized": lambda x: x.resize_(2, 3),
    "grown": lambda x: x.resize_(5, 4)[:3],
    "other data": lambda x: setattr(x, "data", x.data[:2] + 1),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_operator_in_place_changes_the_tensor(name: str) -> None:
    """And returns it, where it returns a tensor."""
    tensor, expected = numbers(), numbers("cpu")
    found, expected_found = IN_PLACE[name](tensor), IN_PLACE[name](expected)
    if isinstance(found, Tensor):
        same(found, expected_found)
    same(tensor[:3] if name == "grown" else tensor, expected[:3] if name == "grown" else expected)


NUMBERS: dict[str, Function] = {
    "remainder": lambda x: x % 2,
    "of integers": lambda x: x.int() % 3,
    "of no dimensions": lambda x: (x[0, 1] % 3, x.int()[1, 1] % 3, x.int()[1, 1] * 1.5),
    "power": lambda x: (x**2, 2**x, x.int() ** 2),
    "bits": lambda x: (x.int() & 3, x.bool() | True),
    "comparison": lambda x: (x > 1, x.int() == 1.0),
    "choice": lambda x: (torch.where(x > 1, x, 0), torch.where(x > 1, 1, 0)),
    "division": lambda x: (x // 2, 1 / (x + 1), x.int() / 2),
    "limits": lambda x: x.clamp(min=0.1),
    "maximum": lambda x: torch.fmod(x, 0.3),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_arguments(name: str) -> None:
    """With the dtypes that they lead to."""
    same(NUMBERS[name](numbers()), NUMBERS[name](numbers("cpu")))


OUT: dict[str, Callable[..., Any]] = {
    "add": lambda x, out: torch.add(x, x, out=out),
    "matmul": lambda x, out: torch.matmul(x, x.T, out=out),
    "arange": lambda x, out: torch.arange(5.0, device=x.device, out=out),
    "cat": lambda x, out: torch.cat([x, x], out=out),
    "sum": lambda x, out: torch.sum(x, dim=1, out=out),
}


@pytest.mark.parametrize("name", OUT)
def test_out_is_written_and_resized(name: str) -> None:
    """An empty tensor grows to the result's shape. One of that shape, also a view, is written where it is."""
    tensor, expected = numbers(), numbers("cpu")
    empty, expected_empty = torch.empty(0, device=DEVICE), torch.empty(0)
    assert OUT[name](tensor, empty) is empty
    same(empty, OUT[name](expected, expected_empty))
    base = torch.zeros(2, *empty.shape, device=DEVICE)
    OUT[name](tensor, base[1])
    assert not bool(base[0].any()) and torch.equal(base[1], empty)


def test_several_results_go_to_out() -> None:
    """Values and positions of `max`."""
    values, positions = torch.empty(0, device=DEVICE), torch.empty(0, dtype=torch.long, device=DEVICE)
    torch.max(numbers(), dim=1, out=(values, positions))
    same([values, positions], list(torch.max(numbers("cpu"), dim=1)))


MADE: dict[str, Callable[[str], Tensor]] = {
    "tensor": lambda device: torch.tensor([[1.5, 2], [3, 4]], device=device),
    "as_tensor": lambda device: torch.as_tensor([1, 2], device=device),
    "of an array": lambda device: torch.as_tensor(numbers("cpu").numpy(), device=device),
    "number": lambda device: torch.tensor(3, device=device),
    "booleans": lambda device: torch.tensor([True, False], device=device),
    "zeros": lambda device: torch.zeros(2, 3, device=device),
    "full": lambda device: torch.full((2,), 3, device=device),
    "arange": lambda device: torch.arange(1, 9, 3, device=device),
    "linspace": lambda device: torch.linspace(0, 1, 4, device=device),
    "eye": lambda device: torch.eye(3, device=device),
    "none": lambda device: torch.zeros(0, 4, device=device),
    "like": lambda device: torch.ones_like(numbers(device), dtype=torch.int8),
    "new": lambda device: numbers(device).new_zeros(2),
    "half": lambda device: numbers(device).to(torch.bfloat16),
    "moved": lambda device: numbers("cpu").T.to(device),
}


@pytest.mark.parametrize("name", MADE)
def test_a_tensor_is_made_on_the_device(name: str) -> None:
    """Also within `torch.device(...)`, where it is the default."""
    same(MADE[name](DEVICE), MADE[name]("cpu"))
    with torch.device("meta"):  # no kernel computes on the default device of its caller
        same(MADE[name](DEVICE), MADE[name]("cpu"))
        assert torch.tensor([]).device.type == torch.rand(2).device.type == torch.randperm(3).device.type == "meta"
    with torch.device(DEVICE):
        assert torch.zeros(2).device.type == torch.tensor([1]).device.type == torch.rand(2).device.type == DEVICE
    assert torch.zeros(2).device.type == "cpu"


def small_module() -> nn.Module:
    """Two layers with one weight, and a buffer."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    module = nn.Sequential(first, nn.Tanh(), second, nn.LayerNorm(4))
    module.register_buffer("scale", torch.ones(1))
    return module


def test_a_module_moves_with_its_shared_weights() -> None:
    """Parameters stay the same objects, as on CUDA: an optimizer made before keeps training them."""
    module = small_module()
    weight = module[0].weight
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.to(DEVICE)
    assert module[0].weight is module[2].weight is weight and weight.device.type == DEVICE
    module(numbers()).square().mean().backward()
    before = weight.detach().clone()
    optimizer.step()
    assert weight.grad.device.type == DEVICE and not torch.equal(before, weight)
    module.to("cpu")
    assert module[0].weight is module[2].weight is weight and weight.device.type == "cpu"


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop"])
@pytest.mark.parametrize("foreach", [True, False])
def test_optimizers_compute_what_they_compute_on_the_cpu(name: str, foreach: bool) -> None:
    """Gradients, their norm and the steps, with one kernel for all tensors and without."""
    modules = small_module(), small_module().to(DEVICE)
    for module in modules:
        device = module[0].weight.device
        optimizer = getattr(torch.optim, name)(module.parameters(), lr=0.1, foreach=foreach)
        for _ in range(3):
            optimizer.zero_grad()
            module(numbers(device)).square().mean().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
    for expected, found in zip(*(module.parameters() for module in modules), strict=True):
        assert found.device.type == DEVICE and torch.allclose(found.cpu(), expected, atol=1e-6)


def test_a_copy_is_independent() -> None:
    """`copy.deepcopy` and `clone`, of tensors and modules; what is one tensor in the original is one in the copy."""
    module = small_module().to(DEVICE)
    copied = copy.deepcopy(module)
    assert copied[0].weight is copied[2].weight is not module[0].weight
    assert copied[0].weight.device.type == copied.scale.device.type == DEVICE
    tensor = numbers()
    views = copy.deepcopy([tensor, tensor[0]])
    with torch.no_grad():
        module[0].weight.zero_()
        tensor.zero_()
    assert bool(copied[0].weight.any()) and torch.equal(views[0].cpu(), numbers("cpu"))
    views[1].fill_(8)
    assert views[0][0].tolist() == [8.0] * 4
    view = tensor.clone()
    view.fill_(1)
    assert not bool(tensor.any())


def test_a_state_dict_goes_there_and_back() -> None:
    """Through `load_state_dict`, and through a file: to the device that it came from, or to another."""
    module, other = small_module().to(DEVICE), small_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    state = module.state_dict()
    assert {x.device.type for x in state.values()} == {DEVICE}
    other.load_state_dict(state)
    assert all(torch.equal(other.state_dict()[name], x.cpu()) for name, x in state.items())
    file = io.BytesIO()
    torch.save(state, file)
    for place in (None, "cpu", DEVICE):
        file.seek(0)
        loaded = torch.load(file, map_location=place, weights_only=True)
        assert {x.device.type for x in loaded.values()} == {place or DEVICE}
        assert all(torch.equal(loaded[name].cpu(), x.cpu()) for name, x in state.items())
    assert loaded["0.weight"].data_ptr() == loaded["2.weight"].data_ptr() != state["0.weight"].data_ptr()


def test_a_tensor_is_pickled_with_its_device() -> None:
    """As one of CUDA."""
    same(pickle.loads(pickle.dumps(numbers())), numbers("cpu"))


def test_inference_mode() -> None:
    """Tensors made within are inference tensors, which autograd refuses later; views of others are none."""
    base = numbers().requires_grad_()
    with torch.inference_mode():
        made, view = base * 2, base[0]
        made.add_(1)
        same(made, numbers("cpu") * 2 + 1)
    assert made.is_inference() and not view.is_inference() and not base.is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        (base * made).sum().backward()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        made.add_(1)
    (base * 2).sum().backward()  # control
    assert base.grad is not None


def test_autograd_notices_what_is_overwritten() -> None:
    """A tensor that the gradient needs must not change in place. Control: without the change there is a gradient."""
    x = numbers().requires_grad_()
    y = x.exp()
    y.sum().backward()
    y = x.exp()
    y[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_are_those_of_the_cpu() -> None:
    """Through a layer, attention, a softmax and positions; in bfloat16 too."""
    gradients = {}
    for device in ("cpu", DEVICE):
        for dtype in (torch.float32, torch.bfloat16):
            x = numbers(device).to(dtype).requires_grad_()
            heads = x.reshape(1, 2, 3, 2)
            attended = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
            rows, targets = (torch.tensor(i, device=device) for i in ([0, 2], [1, 0, 3]))
            loss = (
                nn.functional.cross_entropy(x, targets) + attended.float().square().sum() + x[rows].logsumexp(1).sum()
            )
            loss.backward()
            gradients[device, dtype] = x.grad
    for dtype, error in ((torch.float32, 1e-6), (torch.bfloat16, 3e-2)):
        found, expected = gradients[DEVICE, dtype], gradients["cpu", dtype]
        assert found.device.type == DEVICE and torch.allclose(found.cpu(), expected, atol=error)


def test_a_gradient_flows_through_copies_between_devices() -> None:
    """There and back."""
    x = numbers("cpu").requires_grad_()
    there = x.to(DEVICE)
    (there.square().cpu() * 3).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, 6 * numbers("cpu"))
    y = numbers().requires_grad_()
    y.cpu().square().sum().backward()
    same(y.grad, 2 * numbers("cpu"))


def test_it_is_shown() -> None:
    """`repr` names the device."""
    assert repr(torch.ones(2, device=DEVICE)) == "tensor([1., 1.], device='standin:0')"

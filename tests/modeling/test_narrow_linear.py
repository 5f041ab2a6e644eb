"""A part of a projection is that part of the whole product, whatever a tool has put in the projection's place."""

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.utils import parametrize

from modeling.narrow_linear import narrow, narrow_parts

IN, OUT = 6, 8


def plain() -> nn.Linear:
    return nn.Linear(IN, OUT)


def hooked() -> nn.Linear:
    """Doubles its outputs after its forward."""
    linear = plain()
    linear.register_forward_hook(lambda module, arguments, output: 2 * output)
    return linear


def pre_hooked() -> nn.Linear:
    linear = plain()
    linear.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    return linear


def divided() -> nn.Linear:
    """Its weight is there in its forward alone, as under ZeRO-3."""
    linear = plain()
    weight, empty = linear.weight.data, torch.empty(0)

    def fetch(module, arguments):
        module.weight.data = weight

    def release(module, arguments, output):
        module.weight.data = empty

    linear.register_forward_pre_hook(fetch)
    linear.register_forward_hook(release)
    linear.weight.data = empty
    return linear


def offloaded() -> nn.Module:
    """Its weight lies on the meta device until accelerate loads it."""
    return cpu_offload(plain(), execution_device=torch.device("cpu"))


def adapted() -> LoraLinear:
    """peft's own layer, with an adapter that does something."""
    linear = LoraLinear(plain(), "default", LoraConfig(), r=2, lora_alpha=4)
    nn.init.normal_(linear.lora_B["default"].weight)
    return linear


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized() -> nn.Linear:
    linear = plain()
    parametrize.register_parametrization(linear, "weight", Doubled())
    return linear


class Quantised(torch.Tensor):
    """A weight that has no slices, as of torchao. Its product is twice that of its values."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        assert function is not torch.Tensor.__getitem__, "sliced"
        result = super().__torch_function__(function, types, arguments, named or {})
        return 2 * result.as_subclass(torch.Tensor) if function is nn.functional.linear else result


def quantised() -> nn.Linear:
    linear = plain()
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Quantised))
    return linear


class TakesSlices(nn.Linear):
    """Says that it knows slices, and what it was asked for."""

    takes_slices = True

    def forward(self, x, rows=None, columns=None):
        self.asked = (rows, columns)
        return super().forward(x) if rows is None and columns is None else narrow(self.plain, x, rows, columns)


def takes_slices() -> nn.Linear:
    linear = TakesSlices(IN, OUT)
    linear.plain = plain()
    linear.plain.weight, linear.plain.bias = linear.weight, linear.bias
    return linear


WHOLE = [hooked, pre_hooked, divided, offloaded, adapted, parametrized, quantised]


@pytest.mark.parametrize("make", [plain, takes_slices, *WHOLE])
@pytest.mark.parametrize("chosen", [3, slice(2, 5), torch.tensor([4, 1])], ids=str)
def test_a_part_is_that_of_the_whole(make, chosen):
    torch.manual_seed(0)
    projection, x = make(), torch.randn(2, 5, IN)
    index = slice(chosen) if isinstance(chosen, int) else chosen
    whole = projection(x)
    torch.testing.assert_close(narrow(projection, x), whole)
    torch.testing.assert_close(narrow(projection, x, rows=chosen), whole[..., index])
    first, second = narrow_parts(projection, x, [chosen, slice(1, 3)])
    torch.testing.assert_close(first, whole[..., index])
    torch.testing.assert_close(second, whole[..., 1:3])
    masked = torch.zeros_like(x)
    masked[..., index] = x[..., index]
    torch.testing.assert_close(narrow(projection, x[..., index], columns=chosen), projection(masked))
    torch.testing.assert_close(narrow(projection, x[..., index], 2, chosen), projection(masked)[..., :2])
    torch.testing.assert_close(narrow(projection, x, OUT, IN), whole)
    assert (projection(masked) - whole).abs().max() > 1e-2


@pytest.mark.parametrize("make", [plain, hooked])
def test_gradients_of_a_part_are_those_of_the_whole(make):
    projection, x, index = make(), torch.randn(5, IN, requires_grad=True), torch.tensor([4, 1])
    inputs = (x, *projection.parameters())
    masked = torch.zeros(5, IN).index_copy(1, index, torch.ones(5, 2))
    for part, whole in (
        (narrow(projection, x, rows=index), projection(x)[:, index]),
        (narrow(projection, x[:, index], columns=index), projection(x * masked)),
    ):
        for one, other in zip(
            torch.autograd.grad(part.pow(2).sum(), inputs), torch.autograd.grad(whole.pow(2).sum(), inputs), strict=True
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_of_the_backward_pass_are_called(register):
    projection, calls = plain(), []
    getattr(projection, register)(lambda *_: calls.append(1))
    narrow(projection, torch.randn(5, IN, requires_grad=True), rows=3).sum().backward()
    assert calls == [1]


def test_what_is_left_out_of_a_plain_projection_is_absent():
    """A weight that is no number is not met. In a whole product it is."""
    x = torch.randn(5, 4)
    for make, is_absent in ((plain, True), (hooked, False)):
        projection = make()
        projection.weight.data[:, 4:] = torch.nan
        assert bool(narrow(projection, x, columns=4).isfinite().all()) == is_absent


def test_one_that_knows_slices_is_asked_for_them():
    projection = takes_slices()
    narrow(projection, torch.randn(5, IN), rows=3)
    assert projection.asked == (3, None)
    narrow_parts(projection, torch.randn(5, IN), [2, slice(4, 5)])
    assert projection.asked == (slice(4, 5), None)


def test_several_parts_cost_one_whole_product():
    projection, calls = plain(), []
    projection.register_forward_hook(lambda *_: calls.append(1))
    narrow_parts(projection, torch.randn(5, IN), [2, slice(4, 5)])
    assert len(calls) == 1

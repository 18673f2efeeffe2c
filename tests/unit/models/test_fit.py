"""The trainings' loop: what is computed in float32, and which steps never reach the weights."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Conv3d, Linear, Sequential

from retouch.errors import Diverged
from retouch.models.fit import REFUSALS, Fit


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()


def test_three_dimensional_convolutions_are_computed_in_full_on_a_processor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0))
    network = Sequential(layer, Linear(5, 2))
    told: list[Mapping[str, object]] = []
    fitted = Fit(network, tmp_path, rate=1e-3, precision=torch.bfloat16, tell=told.append)
    assert told == [{"computed in float32": "0"}]
    x = random(1, 4, 6, 5, 5)
    full = Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)).requires_grad_()
    full.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    layer(x).float().square().sum().backward()
    full(x.float()).bfloat16().float().square().sum().backward()
    assert layer(x).dtype == layer.weight.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert full.weight.grad is not None
    assert torch.equal(layer.weight.grad, full.weight.grad.bfloat16())
    assert fitted.network is network


def spoiled(grad: Tensor) -> Tensor:
    return grad * float("nan")


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path: Path) -> None:
    fitted = Fit(Linear(3, 2), tmp_path, rate=1e-2, precision=torch.bfloat16)
    before = {name: value.clone() for name, value in fitted.masters.items()}

    def step(*, whole: bool) -> None:
        out = fitted.network(random(4, 3))
        if not whole:
            out.register_hook(spoiled)
        fitted.descend(out.float().square().mean(), 4)

    step(whole=False)
    assert all(torch.equal(value, before[name]) for name, value in fitted.masters.items())
    assert fitted.step == 1
    step(whole=True)
    assert not torch.equal(fitted.masters["weight"], before["weight"])
    learned = fitted.masters["weight"].clone()
    for _ in range(REFUSALS):
        step(whole=False)
    with pytest.raises(Diverged, match=f"{REFUSALS + 1} gradients in a row are not finite"):
        step(whole=False)
    assert torch.equal(fitted.masters["weight"], learned)


def test_a_loss_that_is_no_number_ends_the_training_before_the_weights(tmp_path: Path) -> None:
    fitted = Fit(Linear(3, 2), tmp_path, rate=1e-2, precision=torch.bfloat16)
    before = fitted.masters["weight"].clone()
    with pytest.raises(Diverged, match="the loss is nan at step 1"):
        fitted.descend(fitted.network(random(4, 3)).float().sum() * float("nan"), 4)
    assert torch.equal(fitted.masters["weight"], before)

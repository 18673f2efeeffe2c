"""Fixed points in few calls: exact where f is a straight line, no slower elsewhere, whole under rounding."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retouch.diffusion.fixed_point import REACH, fixed_point

SHAPE = (3, 2, 4, 4)


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted(f: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    asked: list[Tensor] = []

    def ask(x: Tensor) -> Tensor:
        asked.append(x)
        return f(x)

    return ask, asked


def repeated(f: Callable[[Tensor], Tensor], x: Tensor, calls: int) -> Tensor:
    for _ in range(calls):
        x = f(x)
    return x


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_f_is_called_as_often_as_said_and_once_is_a_plain_call(calls: int) -> None:
    f, asked = counted(torch.cos)
    found = fixed_point(f, drawn(0), calls=calls)
    assert len(asked) == calls
    assert calls > 1 or torch.equal(found, drawn(0).cos())


@given(st.lists(st.floats(-3, 0.8).filter(lambda slope: abs(slope) > 1e-3), min_size=3, max_size=3))
def test_straight_lines_are_solved_in_two_calls_each_frame_by_its_own(slopes: list[float]) -> None:
    slope = torch.tensor(slopes, dtype=torch.float64).reshape(3, 1, 1, 1)
    solution = drawn(1)
    found = fixed_point(lambda x: solution + slope * (x - solution), drawn(2), calls=2)
    torch.testing.assert_close(found, solution, rtol=0, atol=1e-5)


@pytest.mark.parametrize("calls", [3, 4, 6])
def test_a_map_of_many_directions_is_solved_more_closely_than_by_asking_again(calls: int) -> None:
    turn: Tensor = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)).double()).Q
    matrix: Tensor = turn @ torch.diag(torch.linspace(-0.8, 0.6, 16, dtype=torch.float64)) @ turn.T

    def f(x: Tensor) -> Tensor:
        moved: Tensor = ((x - 0.3).flatten(2) @ matrix).reshape(SHAPE)
        return moved.sin() + 0.3

    solution = repeated(f, drawn(4), 400)
    ours, plain = fixed_point(f, drawn(4), calls=calls), repeated(f, drawn(4), calls)
    assert float((ours - solution).norm()) < 0.7 * float((plain - solution).norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_calls_beyond_the_precision_of_numbers_stay_at_the_solution(dtype: torch.dtype) -> None:
    solution = drawn(5).to(dtype)
    found = fixed_point(lambda x: solution + 0.4 * (x - solution), drawn(6).to(dtype), calls=40)
    assert found.dtype == dtype
    near = 4 * REACH * torch.finfo(dtype).eps
    torch.testing.assert_close(found, solution, rtol=near, atol=near)
    held = fixed_point(lambda _: solution, solution, calls=3)
    assert torch.equal(held, solution)

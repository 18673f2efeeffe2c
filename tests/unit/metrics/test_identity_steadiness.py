import pytest
import torch

from retouch.errors import InputError
from retouch.metrics.identity import identity_steadiness


def faces(noise: float, drift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ways = torch.eye(16)[:2]
    turned = torch.linspace(0, drift, 12)[:, None]
    rows = turned.cos() * ways[0] + turned.sin() * ways[1]
    return rows + noise * torch.randn(12, 16, generator=generator)


def test_a_clip_is_as_steady_as_itself() -> None:
    assert identity_steadiness(faces(0.1), faces(0.1)) == pytest.approx((1, 1))


def test_flicker_lowers_both_and_drift_the_whole_clip_more() -> None:
    near, far = identity_steadiness(faces(0.3), faces(0.01))
    assert near < 0.9
    assert far < 0.9
    near, far = identity_steadiness(faces(0.0, drift=1.5), faces(0.0))
    assert near > 0.98
    assert far < 0.9


def test_one_frame_is_refused() -> None:
    with pytest.raises(InputError, match="between frames"):
        identity_steadiness(faces(0.1)[:1], faces(0.1)[:1])

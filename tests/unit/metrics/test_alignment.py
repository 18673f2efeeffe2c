from dataclasses import dataclass, field
from typing import final

import numpy as np
import pytest
import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.metrics.alignment import (
    AT_ONCE,
    ImageTextEncoder,
    clip_direction,
    clip_text,
    figure_key,
    frame_accuracy,
    frame_similarity,
)

SINGLE = 1e-6  # cosines of float32 vectors

AXES = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


@final
@dataclass
class ColourEyes:
    """Sees nothing but the mean colour: red, green and blue are the axes of its space."""

    calls: list[int] = field(default_factory=list)

    def images(self, frames: np.ndarray) -> Tensor:
        self.calls.append(len(frames))
        means = torch.from_numpy(frames.astype(np.float32).mean(axis=(2, 3)))
        return torch.nn.functional.normalize(means, dim=-1)

    def texts(self, words: list[str]) -> Tensor:
        return torch.tensor([AXES[word] for word in words])


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    """One frame a colour."""
    return np.broadcast_to(
        np.array(colours, dtype=np.uint8)[:, :, None, None], (len(colours), 3, 8, 8)
    ).copy()


RED, GREEN, BLUE, YELLOW = (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)


def test_the_stand_in_is_a_pair_of_eyes() -> None:
    assert isinstance(ColourEyes(), ImageTextEncoder)


def test_clip_text_is_the_mean_cosine_with_the_prompt() -> None:
    encoder = ColourEyes()
    assert clip_text(plain(RED, RED), "red", encoder) == pytest.approx(1, abs=SINGLE)
    assert clip_text(plain(RED, BLUE), "red", encoder) == pytest.approx(0.5, abs=SINGLE)
    assert clip_text(plain(YELLOW), "red", encoder) == pytest.approx(2**-0.5, abs=SINGLE)


def test_clip_direction_is_one_for_the_asked_change_negative_for_its_reverse() -> None:
    encoder = ColourEyes()
    assert clip_direction(plain(BLUE), plain(RED), "blue", "red", encoder) == pytest.approx(1, abs=SINGLE)
    assert clip_direction(plain(RED), plain(BLUE), "blue", "red", encoder) == pytest.approx(-1, abs=SINGLE)
    assert clip_direction(plain(GREEN), plain(RED), "blue", "red", encoder) == pytest.approx(0.5, abs=SINGLE)


def test_clip_direction_gives_nothing_for_doing_nothing() -> None:
    assert clip_direction(plain(RED, BLUE), plain(RED, BLUE), "blue", "red", ColourEyes()) == 0


def test_clip_direction_of_equal_prompts_is_an_error() -> None:
    with pytest.raises(InputError, match="the same to the network"):
        clip_direction(plain(BLUE), plain(RED), "red", "red", ColourEyes())


def test_frame_similarity_sees_neighbours_only() -> None:
    encoder = ColourEyes()
    assert frame_similarity(plain(RED, RED, RED), encoder) == pytest.approx(1, abs=SINGLE)
    assert frame_similarity(plain(RED, RED, BLUE), encoder) == pytest.approx(0.5, abs=SINGLE)
    assert frame_similarity(plain(RED, BLUE, RED), encoder) == pytest.approx(0, abs=SINGLE)


def test_frame_similarity_of_one_frame_is_an_error() -> None:
    with pytest.raises(InputError, match="one frame"):
        frame_similarity(plain(RED), ColourEyes())


def test_frame_accuracy_counts_frames_nearer_to_the_target_and_ties() -> None:
    encoder = ColourEyes()
    assert frame_accuracy(plain(RED, BLUE, GREEN, RED), "blue", "red", encoder) == pytest.approx(
        0.5, abs=SINGLE
    )
    assert frame_accuracy(plain(YELLOW), "red", "green", encoder) == 1


def test_a_long_clip_is_looked_at_in_parts_with_the_same_result() -> None:
    encoder = ColourEyes()
    clip = np.random.default_rng(0).integers(0, 256, (AT_ONCE + 5, 3, 8, 8), dtype=np.uint8)
    whole = ColourEyes().images(clip) @ torch.tensor(AXES["green"])
    assert clip_text(clip, "green", encoder) == pytest.approx(float(whole.mean()), abs=SINGLE)
    assert encoder.calls == [AT_ONCE, 5]


def test_a_key_names_network_crop_and_frames() -> None:
    assert figure_key("clip-f", "vit-b32", "224c") == "clip-f@vit-b32/224c/all"

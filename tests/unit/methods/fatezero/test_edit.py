from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from retouch.compute import Compute
from retouch.errors import Cancelled, EmptyMask, MethodError, ModelMismatch, ParamsError
from retouch.events import Advanced, Event, Notice, Reused
from retouch.media.io import write_picture
from retouch.methods.fatezero.edit import edit, edit_with
from retouch.methods.fatezero.spec import SPEC, FateZeroParams
from retouch.models.image import StableDiffusion
from retouch.run import Edited, Run
from retouch.testing import NoOp, check_method
from retouch.video import Video

ROUNDING_LEVELS = 1
"""Sums in another order may tip a byte's rounding."""
SOURCE, TARGET = "a red plain ball on grass", "a blue plain ball on grass"


def clip(frames: int = 3, height: int = 32, width: int = 64) -> Video:
    """A red square that moves right over green."""
    pictures = np.zeros((frames, 3, height, width), np.uint8)
    pictures[:, 1] = 150
    for at in range(frames):
        pictures[at, :, 8:24, 8 + at : 24 + at] = np.array([200, 30, 30], np.uint8)[:, None, None]
    return Video(pictures, Fraction(12))


def params(preset: str | None = None, /, **values: object) -> FateZeroParams:
    given = {
        "source_prompt": SOURCE,
        "prompt": TARGET,
        "steps": 3,
        "size": "clip",
        "fixed_point": 1,
        **values,
    }
    filled = SPEC.fill(given, preset=preset)
    assert isinstance(filled, FateZeroParams)
    return filled


def edited(
    folder: Path,
    video: Video | None = None,
    listen: Callable[[Event], None] | None = None,
    /,
    **values: object,
) -> Edited:
    preset = values.pop("preset", None)
    run = Run.alone(folder, compute=Compute(device="cpu"))
    run = replace(run, listen=listen) if listen else run
    return edit(video or clip(), params(str(preset) if preset else None, **values), run)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


@pytest.mark.slow
def test_fatezero_keeps_the_contract(tmp_path: Path) -> None:
    given = {"source_prompt": SOURCE, "prompt": TARGET, "steps": 6, "size": "clip"}
    nothing = {**given, "prompt": SOURCE, "fixed_point": 4}
    sd = StableDiffusion.from_pretrained("tiny:sd", Compute(device="cpu"))
    pixels = clip().pixels()
    autoencoder = psnr(clip().like(sd.decode(sd.encode(pixels))).frames, clip().frames)
    check_method(
        SPEC, clip(), given, tmp_path, no_op=NoOp(nothing, autoencoder - 1), compute=Compute(device="cpu")
    )


@pytest.mark.parametrize("preset", ["style", "shape"])
def test_an_edit_to_the_same_prompt_is_the_inversions_round_trip_at_any_guidance(
    tmp_path: Path, preset: str
) -> None:
    words = {"object_words": ["ball"], "new_words": ["ball"]} if preset != "style" else {}
    same = {"prompt": SOURCE, "preset": preset, "keep_outside": False, **words}
    weak = edited(tmp_path / "edit", **same, guidance=1.0).video.frames.astype(int)
    strong = edited(tmp_path / "edit", **same, guidance=7.5).video.frames.astype(int)
    loose = {"cross_until": 0.0, "self_until": 0.0, "blend": False, "mask_self": False}
    plain = edited(tmp_path / "edit", **{**same, **loose}, guidance=1.0).video.frames
    sd = StableDiffusion.from_pretrained("tiny:sd", Compute(device="cpu"))
    limit = clip().like(sd.decode(sd.encode(clip().pixels()))).frames
    assert np.abs(weak - strong).max() <= ROUNDING_LEVELS
    assert psnr(strong, limit) >= psnr(plain, limit) - 0.5


def test_a_second_edit_starts_from_the_kept_inversion_and_the_same_request_gives_the_same_bytes(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    first = edited(tmp_path).video.frames.copy()
    again = edited(tmp_path, None, events.append).video.frames.copy()
    other = edited(tmp_path, None, events.append, prompt="a green plain ball on grass").video.frames
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert [event.kind for event in events if isinstance(event, Reused)] == ["trajectory", "trajectory"]
    assert not [event for event in events if isinstance(event, Advanced) and event.stage == "invert"]


@pytest.mark.parametrize(("preset", "frames"), [("style", 2), ("shape", 1)])
def test_one_and_two_frames_can_be_edited(tmp_path: Path, preset: str, frames: int) -> None:
    result = edited(tmp_path, clip(frames), preset=preset).video
    assert result.frames.shape == (frames, 3, 32, 64)


def test_a_size_that_the_network_does_not_fit_is_padded_or_resized(tmp_path: Path) -> None:
    odd = clip(2, 36, 50)
    for size in ("clip", "model"):
        assert edited(tmp_path, odd, size=size).video.frames.shape == odd.frames.shape


@pytest.mark.slow
def test_a_long_clip_goes_in_windows_with_a_shared_anchor(tmp_path: Path) -> None:
    long = clip(7)
    whole = edited(tmp_path / "a", long, window=7, overlap=0, steps=2).video.frames.astype(int)
    parts = edited(tmp_path / "b", long, window=4, overlap=1, steps=2).video.frames.astype(int)
    assert np.abs(whole - parts).max() <= ROUNDING_LEVELS, (
        "looking at the middle frame only, windows change nothing"
    )
    neighbours = {"attend": ["-1", "first"], "attend_level": 0}
    linked = edited(tmp_path / "c", long, window=4, overlap=2, steps=2, **neighbours).video.frames
    assert linked.shape == long.frames.shape


@pytest.mark.parametrize("stage", ["invert", "edit"])
def test_a_stopped_run_goes_on_to_the_bytes_of_an_unbroken_one(tmp_path: Path, stage: str) -> None:
    values = {"preset": "shape", "steps": 7}
    unbroken = edited(tmp_path / "whole", **values).video.frames.copy()
    sd = StableDiffusion.from_pretrained("tiny:sd", Compute(device="cpu"))
    before = dict(sd.unet.attn_processors)
    done: list[Event] = []

    def stopped() -> bool:
        return any(isinstance(event, Advanced) and event.stage == stage and event.done == 6 for event in done)

    run = replace(
        Run.alone(tmp_path / "broken", compute=Compute(device="cpu")), listen=done.append, stopped=stopped
    )
    filled = params("shape", steps=7)
    with pytest.raises(Cancelled):
        edit(clip(), filled, run)
    assert dict(sd.unet.attn_processors) == before
    done.clear()
    resumed = edit(clip(), filled, replace(run, stopped=lambda: False))
    advanced = [event.done for event in done if isinstance(event, Advanced) and event.stage == stage]
    assert advanced[0] >= 5, "it goes on and does not begin anew"
    assert np.array_equal(resumed.video.frames, unbroken)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_near_the_full_one(tmp_path: Path, dtype: str) -> None:
    full = edited(tmp_path / "full", preset="shape").video.frames.astype(int)
    run = Run.alone(tmp_path / "half", compute=Compute.model_validate({"device": "cpu", "dtype": dtype}))
    half = edit(clip(), params("shape"), run).video.frames.astype(int)
    assert np.abs(full - half).mean() < {"bfloat16": 12, "float16": 4}[dtype]


def test_outside_the_users_mask_every_byte_stays(tmp_path: Path) -> None:
    mask = np.zeros((32, 64, 3), np.uint8)
    mask[8:24, 8:40] = 255
    write_picture(mask, tmp_path / "mask.png")
    result = edited(
        tmp_path, mask=tmp_path / "mask.png", guidance=20.0, feather=2.0, cross_until=0.0, self_until=0.0
    )
    changed = (result.video.frames != clip().frames).any(1, keepdims=True)
    assert result.touched is not None
    assert changed.any()
    assert not (changed & ~result.touched).any()
    assert not result.touched[:, :, :6].any()
    assert not result.touched[:, :, :, 42:].any()


def test_a_mask_that_selects_nothing_is_an_error(tmp_path: Path) -> None:
    write_picture(np.zeros((32, 64, 3), np.uint8), tmp_path / "mask.png")
    with pytest.raises(EmptyMask, match="selects nothing"):
        edited(tmp_path, mask=tmp_path / "mask.png")


def test_keep_outside_leaves_the_clips_pixels_where_no_object_was_found(tmp_path: Path) -> None:
    result = edited(tmp_path, blend=True, keep_outside=True, threshold=0.97, feather=1.0)
    assert result.touched is not None
    changed = (result.video.frames != clip().frames).any(1, keepdims=True)
    assert not (changed & ~result.touched).any()


def test_keep_outside_says_when_it_keeps_nothing(tmp_path: Path) -> None:
    heard: list[Event] = []
    edited(tmp_path, None, heard.append, blend=True, keep_outside=True, threshold=0.0)
    said = [event.text for event in heard if isinstance(event, Notice)]
    assert [text for text in said if "keeps nothing" in text and "threshold" in text]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"object_words": ["zebra"], "blend": True}, "'zebra' is not in the prompt"),
        ({"emphasise": ["zebra=3"]}, "'zebra' is not in the prompt"),
        ({"word_cross": ["zebra=0.3"]}, "'zebra' is not in the prompt"),
        ({"alignment": "replace", "prompt": "a blue ball"}, "has 6 words"),
        ({"prompt": "ball " * 90}, "tokens"),
        ({"prompt": SOURCE, "blend": True}, "no word names it"),
    ],
)
def test_what_does_not_fit_the_prompts_is_an_error(
    tmp_path: Path, values: dict[str, object], words: str
) -> None:
    with pytest.raises(ParamsError, match=words):
        edited(tmp_path, **values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"guidance": 0.5}, "at least 1"),
        ({"guidance": 1.0, "faithful": True}, "above 1"),
        ({"attend": ["middle"]}, "first, mid, last"),
        ({"emphasise": ["blue"]}, "word=factor"),
        ({"word_cross": ["blue=0.8-0.2"]}, "word=until"),
        ({"cross_from": 0.9, "cross_until": 0.5}, "cross_until"),
        ({"keep_outside": True}, "needs a mask"),
        ({"window": 4, "overlap": 4}, "below window"),
        ({"negative_prompt": "grey"}, "not read"),
        ({"faithful": True, "mask": "mask.png"}, "knows none"),
        ({"tuned": "x", "tune_steps": 3}, "exclude each other"),
    ],
)
def test_parameters_that_do_not_fit_together_are_an_error(values: dict[str, object], words: str) -> None:
    with pytest.raises(ParamsError, match=words):
        params(**values)


def test_what_is_allowed_but_perhaps_not_meant_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    edited(tmp_path / "a", None, events.append, prompt=SOURCE, guidance=1.0)
    edited(tmp_path / "b", None, events.append, blend=True)
    told = " / ".join(event.text for event in events if isinstance(event, Notice))
    for words in (
        "guidance is 1",
        "both prompts are the same",
        "object found by: ball; in the edit by: ball",
    ):
        assert words in told


def test_the_released_way_runs_and_differs_from_the_right_one(tmp_path: Path) -> None:
    alike = {"guide_from": "nothing", "clip_norm": True}
    right = edited(tmp_path / "a", **alike).video.frames
    released = edited(tmp_path / "b", **alike, faithful=True).video.frames
    assert not np.array_equal(right, released)


def test_the_released_mask_says_where_it_does_not_work(tmp_path: Path) -> None:
    words = {"object_words": ["red"], "new_words": ["blue"]}
    with pytest.raises(MethodError, match="several sizes"):
        edited(tmp_path, **words, preset="shape", faithful=True)


@pytest.mark.slow
def test_tuning_changes_the_edit_and_leaves_the_model_alone(tmp_path: Path) -> None:
    sd = StableDiffusion.from_pretrained("tiny:sd", Compute(device="cpu"))
    plain = edited(tmp_path / "a").video.frames.copy()
    learned = edited(tmp_path / "b", tune_steps=2).video.frames.copy()
    again = edited(tmp_path / "c").video.frames
    assert np.array_equal(plain, again)
    assert sd.identity == StableDiffusion.from_pretrained("tiny:sd", Compute(device="cpu")).identity
    assert learned.shape == plain.shape


def test_tuned_weights_of_another_model_are_an_error(tmp_path: Path) -> None:
    from retouch.diffusion.tune import Tuned

    Tuned({"nowhere.to_q.weight": torch.zeros(2, 2)}).save(tmp_path / "weights")
    with pytest.raises(ModelMismatch, match="nowhere"):
        edited(tmp_path, tuned=tmp_path / "weights")


def test_a_network_whose_layers_wait_in_main_memory_is_edited_to_the_same_bytes(tmp_path: Path) -> None:
    compute = Compute(device="cpu")
    waiting = StableDiffusion.from_pretrained("tiny:sd", compute)
    waiting.enable_offload("sequential", torch.device("cpu"))
    plain = edited(tmp_path / "a", clip(1), preset="shape").video.frames.copy()
    filled, run = params("shape"), Run.alone(tmp_path / "b", compute=compute)
    assert np.array_equal(edit_with(waiting, clip(1), filled, run).video.frames, plain)
    hooked = [name for name, module in waiting.unet.named_modules() if "_hf_hook" in vars(module)]
    assert hooked, "the layers still wait when the edit is over"
    assert all(parameter.is_meta for parameter in waiting.unet.parameters())


def test_tuned_weights_are_refused_where_layers_wait_one_by_one(tmp_path: Path) -> None:
    from retouch.diffusion.tune import Tuned

    sd = StableDiffusion.from_pretrained("tiny:sd", Compute(device="cpu"))
    name = next(name for name, _ in sd.unet.named_parameters() if name.endswith("to_q.weight"))
    Tuned({name: sd.unet.get_parameter(name).clone()}).save(tmp_path / "weights")
    sd.enable_offload("sequential", torch.device("cpu"))
    with pytest.raises(ModelMismatch, match="cannot take tuned weights"):
        edit_with(sd, clip(1), params(tuned=tmp_path / "weights"), Run.alone(tmp_path / "run"))

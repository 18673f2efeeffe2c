from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from retouch.compute import Compute
from retouch.diffusion.resize import Resize
from retouch.diffusion.tune import REFUSALS, Tuning, tune
from retouch.errors import Cancelled, Diverged, ParamsError
from retouch.events import Advanced, Event, Reused
from retouch.methods.tune_a_video.edit import edit
from retouch.methods.tune_a_video.spec import SPEC, TuneAVideoParams
from retouch.models.image import StableDiffusion
from retouch.run import Run
from retouch.testing import check_method
from retouch.video import Video

CPU = Compute(device="cpu")
SOURCE = "a red plain ball on grass"


def clip(frames: int = 2) -> Video:
    pictures = np.random.default_rng(0).integers(0, 255, (1, 3, 32, 32), dtype=np.uint8)
    return Video(np.concatenate([np.roll(pictures, at, 3) for at in range(frames)]), Fraction(12))


def model() -> StableDiffusion:
    return StableDiffusion.from_pretrained("tiny:sd", CPU)


def weights(sd: StableDiffusion) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}


@pytest.mark.slow
def test_tune_a_video_keeps_the_contract(tmp_path: Path) -> None:
    given = {
        "source_prompt": SOURCE,
        "prompt": "a blue ball on sand",
        "steps": 3,
        "size": "clip",
        "tune_steps": 3,
    }
    check_method(SPEC, clip(), given, tmp_path, compute=CPU)


@pytest.mark.parametrize("rank", [0, 2])
def test_tuning_learns_and_leaves_the_model_as_it_was(tmp_path: Path, rank: int) -> None:
    sd = model()
    before, grads = weights(sd), {name: p.requires_grad for name, p in sd.unet.named_parameters()}
    modules = {name: type(module) for name, module in sd.unet.named_modules()}
    how = Tuning(SOURCE, Resize.for_image_model(32, 64, sd, "clip"), steps=3, rate=1e-3, rank=rank)
    learned = tune(clip(), sd, how, run=Run.alone(tmp_path, compute=CPU))
    after = weights(sd)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: p.requires_grad for name, p in sd.unet.named_parameters()} == grads
    assert all(p.grad is None for p in sd.unet.parameters())
    assert {name: type(module) for name, module in sd.unet.named_modules()} == modules
    assert learned.queries.keys() == {name for name in before if name.endswith(".to_q.weight")}
    moved = [
        name for name, weight in learned.queries.items() if not torch.allclose(weight, before[name].float())
    ]
    assert len(moved) == len(learned.queries)
    outs = [tensor for name, tensor in learned.temporal.items() if name.endswith("to_out.weight")]
    assert outs
    assert all(bool(tensor.abs().sum() > 0) for tensor in outs)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_stopped_tuning_goes_on_to_the_same_weights(tmp_path: Path, rank: int) -> None:
    sd, events = model(), list[Event]()
    how = Tuning(SOURCE, Resize.for_image_model(32, 64, sd, "clip"), steps=27, rate=1e-3, rank=rank)
    whole = tune(clip(1), sd, how, run=Run.alone(tmp_path / "whole", compute=CPU))
    run = replace(Run.alone(tmp_path / "broken", compute=CPU), listen=events.append)
    stopping = replace(run, stopped=lambda: sum(isinstance(event, Advanced) for event in events) == 26)
    with pytest.raises(Cancelled):
        tune(clip(1), sd, how, run=stopping)
    events.clear()
    resumed = tune(clip(1), sd, how, run=run)
    assert [event.done for event in events if isinstance(event, Advanced)] == [25, 26, 27]
    assert all(torch.equal(resumed.queries[name], weight) for name, weight in whole.queries.items())
    assert all(torch.equal(resumed.temporal[name], weight) for name, weight in whole.temporal.items())


@contextmanager
def broken_gradients(sd: StableDiffusion, calls: range) -> Iterator[None]:
    """In those calls of the UNet, gradients that come back through it are not numbers."""
    counted = count()

    def spoil(_module: object, _given: object, out: UNet2DConditionOutput) -> None:
        if next(counted) in calls:
            out.sample.register_hook(lambda grad: grad * float("nan"))

    hook = sd.unet.register_forward_hook(spoil)
    yield
    hook.remove()


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path: Path) -> None:
    sd = model()
    how = Tuning(SOURCE, Resize.for_image_model(32, 32, sd, "clip"), steps=3, rate=1e-3, rank=2)
    with broken_gradients(sd, range(1)):
        learned = tune(clip(1), sd, how, run=Run.alone(tmp_path / "one", compute=CPU))
    assert all(bool(torch.isfinite(weight).all()) for weight in learned.queries.values())
    assert any(not torch.equal(weight, weights(sd)[name].float()) for name, weight in learned.queries.items())
    how = replace(how, steps=REFUSALS + 5)
    with (
        broken_gradients(sd, range(99)),
        pytest.raises(
            Diverged, match=rf"gradients of {REFUSALS + 1} steps in a row, to {REFUSALS + 1}, are not"
        ),
    ):
        tune(clip(1), sd, how, run=Run.alone(tmp_path / "all", compute=CPU))


def test_tuned_weights_are_kept_and_can_be_used_again(tmp_path: Path) -> None:
    events: list[Event] = []
    run = replace(Run.alone(tmp_path, compute=CPU), listen=events.append)
    given = {"source_prompt": SOURCE, "prompt": "a blue ball on sand", "steps": 2, "size": "clip"}
    learning = SPEC.fill({**given, "tune_steps": 2, "keep_weights": True})
    reading = SPEC.fill({**given, "tuned": str(tmp_path / "tuned")})
    assert isinstance(learning, TuneAVideoParams)
    assert isinstance(reading, TuneAVideoParams)
    first = edit(clip(), learning, run).video.frames.copy()
    again = edit(clip(), learning, run).video.frames.copy()
    assert [event.kind for event in events if isinstance(event, Reused)] == ["tuned", "trajectory"]
    assert np.array_equal(first, again)
    assert np.array_equal(edit(clip(), reading, run).video.frames, first)


def test_guidance_below_one_is_an_error() -> None:
    with pytest.raises(ParamsError, match="at least 1"):
        SPEC.fill({"source_prompt": "a", "prompt": "b", "guidance": 0.5})

"""Tuning on one picture with the embedded models: what is learned, and that nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retouch.compute import Compute
from retouch.diffusion.tune_picture import LowRank, Said, TunedModel, changed, matrices, tune_picture
from retouch.models.image import StableDiffusion
from retouch.models.image_prompt import ImagePrompt
from retouch.models.noise_path import Level
from retouch.run import Run
from retouch.world import Clip, Scene

CPU = Compute(device="cpu")
SOURCE = "a red ball on sand"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion.from_pretrained("tiny:sd", CPU)


@pytest.fixture(scope="module")
def adapter() -> ImagePrompt:
    return ImagePrompt.from_pretrained("tiny:ip", CPU)


def weights(sd: StableDiffusion) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def learned(sd: StableDiffusion, adapter: ImagePrompt, folder: Path, steps: int) -> LowRank:
    picture = np.asarray(Clip.of(Scene.of(SOURCE, 1), 1, 64).video.frames)[0]
    matte = torch.ones(1, 1, 64 // sd.factor, 64 // sd.factor)
    run = Run.alone(folder, compute=CPU)
    given = {"prompt": SOURCE, "steps": steps, "rate": 1e-3, "rank": 2, "scale": 1.0}
    return tune_picture(picture, matte, sd, adapter, run=run, **given)  # type: ignore[arg-type]


def test_tuning_leaves_the_model_as_it_was_and_learns_all_matrices_of_attention(
    sd: StableDiffusion, adapter: ImagePrompt, tmp_path: Path
) -> None:
    before, modules = weights(sd), [type(module) for module in sd.unet.modules()]
    grads = [parameter.requires_grad for parameter in sd.unet.parameters()]
    found = learned(sd, adapter, tmp_path, 2)
    assert same(weights(sd), before)
    assert [type(module) for module in sd.unet.modules()] == modules
    assert [parameter.requires_grad for parameter in sd.unet.parameters()] == grads
    assert set(found.down) == set(found.up) == set(matrices(sd.unet))
    assert {name.rsplit(".to_", 1)[1] for name in found.down} == {"q", "k", "v", "out.0"}
    assert all(bool(up.abs().max() > 0) for up in found.up.values())
    assert not any("_ip" in name for name in found.down)


def test_before_the_first_step_there_is_no_change(
    sd: StableDiffusion, adapter: ImagePrompt, tmp_path: Path
) -> None:
    found = learned(sd, adapter, tmp_path, 0)
    assert all(bool((up == 0).all()) for up in found.up.values())


def test_what_was_learned_comes_on_by_its_share_and_goes_off_also_after_an_error(
    sd: StableDiffusion,
) -> None:
    before, name = weights(sd), matrices(sd.unet)[0]
    own = sd.unet.get_parameter(f"{name}.weight").clone()
    outer, inner = own.shape
    found = LowRank({name: torch.ones(1, inner)}, {name: torch.full((outer, 1), 0.5)})
    with changed(sd.unet, found, 0.5):
        assert torch.allclose(sd.unet.get_parameter(f"{name}.weight"), own + 0.25)
    with pytest.raises(RuntimeError, match="stop"), changed(sd.unet, found, 1.0):
        raise RuntimeError("stop")
    assert same(weights(sd), before)


def test_the_change_fades_towards_the_clean_end(sd: StableDiffusion) -> None:
    name = matrices(sd.unet)[0]
    outer, inner = sd.unet.get_parameter(f"{name}.weight").shape
    found = LowRank({name: torch.ones(1, inner)}, {name: torch.ones(outer, 1)})
    said, z = Said(sd.embed(SOURCE)), torch.ones(1, 4, 8, 8)
    clean = Level(1.0, 0.0, 0, "v_prediction")
    plain = TunedModel(sd).predict(z, clean, said)
    assert torch.equal(TunedModel(sd, found, late=0.0).predict(z, clean, said), plain)
    assert not torch.allclose(TunedModel(sd, found, late=0.5).predict(z, clean, said), plain)
    noisy = Level(0.6, 0.8, 500, "v_prediction")
    early = TunedModel(sd, found, late=0.0).predict(z, noisy, said)
    assert torch.equal(early, TunedModel(sd, found).predict(z, noisy, said))

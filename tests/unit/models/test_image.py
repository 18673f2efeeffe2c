import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline

from retouch.compute import Compute
from retouch.errors import InputError, ModelMismatch, ParamsError
from retouch.models.image import Control, StableDiffusion, ddim_schedule
from retouch.models.loading import weights_identity
from retouch.models.noise_path import step

SINGLE_PRECISION = 2e-5
"""A few units in the last place of float32 at values around 1, through a few layers."""
CPU = Compute(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def sd(small_sd: Path) -> StableDiffusion:
    return StableDiffusion.from_pretrained(str(small_sd), CPU)


def latents(frames: int = 2) -> torch.Tensor:
    return torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def pixels(frames: int = 2) -> torch.Tensor:
    return torch.rand(frames, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


def changed_copy(folder: Path, into: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, into)
    change(into)
    return into


def set_config(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_stock_diffusers_gives_the_same_words_latents_and_noise(small_sd: Path, sd: StableDiffusion) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        small_sd, safety_checker=None, requires_safety_checker=False
    )
    theirs, _ = pipe.encode_prompt("a cat", "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(sd.embed("a cat"), theirs[0], atol=SINGLE_PRECISION, rtol=0)
    with torch.no_grad():
        z = pipe.vae.encode(pixels()).latent_dist.mode() * pipe.vae.config.scaling_factor
        eps = pipe.unet(latents(), 500, theirs.expand(2, -1, -1)).sample
        out = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(sd.encode(pixels()), z, atol=SINGLE_PRECISION, rtol=0)
    torch.testing.assert_close(sd.predict(latents(), 500, theirs[0]), eps, atol=SINGLE_PRECISION, rtol=0)
    torch.testing.assert_close(sd.decode(z), out.clamp(-1, 1), atol=SINGLE_PRECISION, rtol=0)


def test_a_wrapped_pipeline_is_the_same_model(small_sd: Path, sd: StableDiffusion) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        small_sd, safety_checker=None, requires_safety_checker=False
    )
    wrapped = StableDiffusion.wrap(pipe)
    words = sd.embed("x")
    torch.testing.assert_close(wrapped.predict(latents(), 9, words), sd.predict(latents(), 9, words))
    with torch.no_grad():
        before = wrapped.identity
        pipe.unet.conv_in.bias.add_(1)
    assert StableDiffusion.wrap(pipe).identity != before


def test_words_may_differ_from_frame_to_frame(sd: StableDiffusion) -> None:
    words = torch.stack([sd.embed("a"), sd.embed("zebra")])
    together = sd.predict(latents(), 300, words)
    for n in range(2):
        alone = sd.predict(latents()[n : n + 1], 300, words[n])
        torch.testing.assert_close(together[n : n + 1], alone, atol=SINGLE_PRECISION, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    ],
)
def test_steps_over_the_schedule_are_those_of_diffusers(options: dict[str, object]) -> None:
    theirs = ddim(**options)
    z = expected = latents()
    levels = ddim_schedule(theirs, 10)
    theirs.set_timesteps(10)
    for (hi, lo), t in zip(levels.down(), theirs.timesteps, strict=True):
        assert hi.t == int(t)
        z = step(z, torch.tanh(z), hi, lo)
        expected = theirs.step(torch.tanh(expected), t, expected).prev_sample
    torch.testing.assert_close(z, expected, atol=SINGLE_PRECISION, rtol=0)


def test_a_schedule_that_cannot_be_inverted_is_refused() -> None:
    pure = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    velocity = ddim(prediction_type="v_prediction", **pure)
    assert len(ddim_schedule(velocity, 2).down()) == 2
    with pytest.raises(ModelMismatch, match="pure noise"):
        ddim_schedule(velocity, 1)
    with pytest.raises(ModelMismatch, match="pure noise"):
        ddim_schedule(ddim(**pure), 2)
    with pytest.raises(ModelMismatch, match="'sample'"):
        ddim_schedule(ddim(prediction_type="sample"), 4)
    with pytest.raises(ParamsError, match="only 1000 levels apart"):
        ddim_schedule(ddim(timestep_spacing="linspace"), 1000 + 1)


def ddim(**options: object) -> DDIMScheduler:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDIMScheduler(**betas, clip_sample=False, **options)


def _schedule(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {key: value for key, value in config.items() if key not in ("_class_name", "skip_prk_steps")}


@pytest.mark.parametrize(
    ("spacing", "steps"), [("leading", 50), ("leading", 30), ("trailing", 20), ("linspace", 7)]
)
def test_levels_are_those_of_diffusers_and_end_where_the_model_says(
    small_sd: Path, tmp_path: Path, spacing: str, steps: int
) -> None:
    folder = changed_copy(
        small_sd,
        tmp_path / "other",
        lambda f: set_config(f / "scheduler" / "scheduler_config.json", timestep_spacing=spacing),
    )
    model = StableDiffusion.from_pretrained(str(folder), CPU)
    scheduler = DDIMScheduler(**{**_schedule(folder), "timestep_spacing": spacing})
    scheduler.set_timesteps(steps)
    levels = model.schedule(steps).levels
    assert [level.t for level in levels[:-1]] == scheduler.timesteps.tolist()
    assert levels[-1].signal == pytest.approx(float(scheduler.alphas_cumprod[0]) ** 0.5)


def test_encoding_draws_from_the_posterior_only_with_a_generator(sd: StableDiffusion) -> None:
    assert torch.equal(sd.encode(pixels()), sd.encode(pixels()))
    first, again = (sd.encode(pixels(), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sd.encode(pixels()))


def test_many_frames_encode_as_one_by_one(sd: StableDiffusion) -> None:
    many = pixels(19)
    one_by_one = torch.cat([sd.encode(many[n : n + 1]) for n in range(19)])
    torch.testing.assert_close(sd.encode(many), one_by_one, atol=SINGLE_PRECISION, rtol=0)


def test_a_size_that_does_not_fit_is_an_error_that_names_one_that_does(sd: StableDiffusion) -> None:
    with pytest.raises(InputError, match=r"36x32.*multiples of 8") as caught:
        sd.encode(torch.zeros(1, 3, 32, 36))
    assert "40x32" in caught.value.hint or "32x32" in caught.value.hint
    height, width = sd.working_size(480, 854)
    assert (height, width) == (32, 56)


def test_a_control_holds_the_prediction_as_in_diffusers(small_control: Path, sd: StableDiffusion) -> None:
    control = Control.from_pretrained(str(small_control), CPU)
    words, edges = sd.embed("x"), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        residuals = control.residuals(edges, latents(), 400, words, scale=0.5)
        ours = sd.predict(latents(), 400, words, residuals=residuals)
        net = ControlNetModel.from_pretrained(small_control, local_files_only=True)
        down, mid = net(
            latents(), 400, words.expand(2, -1, -1), edges, conditioning_scale=0.5, return_dict=False
        )
        theirs = sd.unet(
            latents(),
            400,
            words.expand(2, -1, -1),
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
    torch.testing.assert_close(ours, theirs, atol=SINGLE_PRECISION, rtol=0)
    assert float((ours - sd.predict(latents(), 400, words)).abs().max()) > 100 * SINGLE_PRECISION


def test_a_control_of_another_base_model_is_refused(small_control: Path, sd: StableDiffusion) -> None:
    control = Control.from_pretrained(str(small_control), CPU)
    control.check_fit(sd)
    with pytest.raises(ModelMismatch, match="block_out_channels") as caught:
        control.check_fit(StableDiffusion.from_pretrained("tiny:sd", CPU))
    assert caught.value.hint


def test_identity_follows_the_content_and_not_the_place(
    small_sd: Path, tmp_path: Path, sd: StableDiffusion
) -> None:
    copy = changed_copy(small_sd, tmp_path / "copy", Path.exists)
    assert StableDiffusion.from_pretrained(str(copy), CPU).identity == sd.identity
    other = changed_copy(
        small_sd,
        tmp_path / "other",
        lambda f: set_config(f / "scheduler" / "scheduler_config.json", steps_offset=0),
    )
    assert StableDiffusion.from_pretrained(str(other), CPU).identity != sd.identity


def _to_pickle(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )


def _without_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def _without_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _to_xl(folder: Path) -> None:
    set_config(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")


def _to_inpainting(folder: Path) -> None:
    set_config(folder / "unet" / "config.json", in_channels=9)


def _without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_to_pickle, "pickle"),
        (_without_vae, "no vae folder"),
        (_without_weights, "no weights"),
        (_to_xl, "StableDiffusionXLPipeline"),
        (_to_inpainting, "9 input channels"),
        (_without_index, "no model_index.json"),
        (_broken_index, "not JSON"),
    ],
)
def test_what_is_no_stable_diffusion_in_safetensors_is_refused(
    small_sd: Path, tmp_path: Path, change: Callable[[Path], object], says: str
) -> None:
    folder = changed_copy(small_sd, tmp_path / "other", change)
    with pytest.raises(ModelMismatch, match=says) as caught:
        StableDiffusion.from_pretrained(str(folder), CPU)
    assert caught.value.hint


def test_a_control_is_not_taken_for_a_model_nor_a_model_for_a_control(
    small_sd: Path, small_control: Path
) -> None:
    with pytest.raises(ModelMismatch):
        StableDiffusion.from_pretrained(str(small_control), CPU)
    with pytest.raises(ModelMismatch, match="not a ControlNetModel"):
        Control.from_pretrained(str(small_sd / "unet"), CPU)


def test_half_precision_stays_inside_the_networks(small_sd: Path) -> None:
    model = StableDiffusion.from_pretrained(str(small_sd), Compute(device="cpu", dtype="bfloat16"))
    assert model.unet.dtype == torch.bfloat16
    z = model.encode(pixels())
    assert {z.dtype, model.embed("x").dtype, model.decode(z).dtype} == {torch.float32}
    assert model.predict(z, 500, model.embed("x")).dtype == torch.float32


@pytest.mark.slow
def test_loading_opens_no_connection(small_sd: Path) -> None:
    program = f"""
import socket
def refuse(*args, **kwargs):
    raise SystemExit("a connection was tried")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from retouch.models.image import StableDiffusion
from retouch.errors import ModelNotFound
StableDiffusion.from_pretrained({str(small_sd)!r})
for ref in ("sd15", "hf:nobody/nothing@main"):
    try:
        StableDiffusion.from_pretrained(ref)
    except ModelNotFound:
        pass
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.strip().endswith("done"), ended.stderr
    assert socket.socket is not None


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_networks_that_wait_until_they_are_called_give_the_same_numbers(small_sd: Path, how: str) -> None:
    plain = StableDiffusion.from_pretrained(str(small_sd), CPU)
    waiting = StableDiffusion.from_pretrained(str(small_sd), CPU)
    waiting.enable_offload("model" if how == "model" else "sequential", torch.device("cpu"))
    assert how == "model" or all(parameter.is_meta for parameter in waiting.unet.parameters())
    assert waiting.device == torch.device("cpu")
    assert waiting.identity == plain.identity
    z, words = latents(), plain.embed("x")
    assert torch.equal(waiting.embed("x"), words)
    assert torch.equal(waiting.predict(z, 500, words), plain.predict(z, 500, words))
    pixels = plain.decode(z)
    assert torch.equal(waiting.decode(z), pixels)
    assert torch.equal(waiting.encode(pixels), plain.encode(pixels))


def test_weights_are_told_apart_to_the_last_counter() -> None:
    norm = torch.nn.BatchNorm2d(2)
    before = weights_identity({"norm": norm}, "")
    norm.register_buffer("num_batches_tracked", torch.tensor(1))
    assert weights_identity({"norm": norm}, "") != before

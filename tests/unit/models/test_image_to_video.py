"""What every image-to-video model promises an editor, and what Stable Video Diffusion's adapter adds.

Real classes at tiny sizes with random weights: Stable Video Diffusion (a path of growing noise, one
latent a frame) and Wan (a rectified flow, four frames a latent, a prompt).
"""

import gc
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from retouch.compute import Compute
from retouch.diffusion.inversion import invert
from retouch.diffusion.sampling import sample
from retouch.errors import ModelMismatch, ModelNotFound, ParamsError, PluginError
from retouch.media.pictures import write_picture
from retouch.methods.videoshop.edit import edit_with
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.models.image_to_video import Condition, ImageToVideo, StableVideo
from retouch.models.image_to_video_any import AnyImageToVideo
from retouch.models.image_to_video_flow import WanVideo
from retouch.models.noise_path import Level, Schedule, extrapolate, guided, inverse_step, step
from retouch.run import Run
from retouch.video import Video

PIPELINE = Path(__file__).resolve().parents[2] / "parity" / "data" / "videoshop" / "pipeline"
STEPS, STRENGTH = 4, 0.75  # three steps each way
EXACT = 1e-5  # float32 through a network, once
HALVED = 0.05  # eight bits of mantissa through a deep network; 0.02 was seen
SIX_ROUNDS = 1e-4  # what six rounds of a contracting fixed point leave of random weights


def small_wan() -> WanVideo:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        out_channels=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "ball": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=4, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()
    pipe = WanImageToVideoPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>"),
        text_encoder=text,
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.eval(),
    )
    return WanVideo.wrap(pipe)


@pytest.fixture(scope="module")
def svd() -> StableVideo:
    return StableVideo.from_pretrained(str(PIPELINE), Compute(device="cpu"))


@pytest.fixture(scope="module", params=["svd", "wan"])
def model(request: pytest.FixtureRequest, svd: StableVideo) -> ImageToVideo:
    return svd if request.param == "svd" else small_wan()


def clip(frames: int = 5, height: int = 32, width: int = 48) -> Tensor:
    """Smooth pictures that move, in [-1, 1]; wider than high, so that mixed up axes show."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    large = torch.nn.functional.interpolate(coarse, (height + frames, width + frames), mode="bicubic").clamp(
        -1, 1
    )
    return torch.cat([large[:, :, i : i + height, i : i + width] for i in range(frames)])


def conditions(model: ImageToVideo, pixels: Tensor) -> tuple[Condition, Condition]:
    count = len(pixels)
    return (
        model.condition(pixels[0], frames=count, prompt="a ball"),
        model.condition(-pixels[0], frames=count, prompt="a ball"),
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_both_are_what_an_editor_talks_to(model: ImageToVideo) -> None:
    assert isinstance(model, ImageToVideo)


def test_latents_lie_frame_first_with_height_before_width(model: ImageToVideo) -> None:
    pixels, traits = clip(), model.traits
    latents = model.encode(pixels)
    count = 4 // traits.frame_stride + 1
    side = traits.latent_factor
    assert latents.shape == (count, traits.latent_channels, 32 // side, 48 // side)
    assert model.decode(latents).shape == pixels.shape
    assert 48 % traits.size_multiple == 0


def test_the_first_latent_is_of_the_first_picture_alone(model: ImageToVideo) -> None:
    pixels = clip()
    changed = pixels.clone()
    changed[1:] *= -1
    alone = model.encode(pixels[:1])
    assert relative(model.encode(changed)[:1], alone) < EXACT
    assert relative(model.encode(changed)[1:], model.encode(pixels)[1:]) > 100 * EXACT


def test_a_step_on_the_models_own_levels_is_undone_by_its_inverse(model: ImageToVideo) -> None:
    pixels = clip()
    x = model.encode(pixels)
    condition, _ = conditions(model, pixels)
    for hi, lo in model.schedule(STEPS, STRENGTH, x).down():
        velocity = model.predict(x, hi, condition)
        assert relative(inverse_step(step(x, velocity, hi, lo), velocity, lo, hi), x) < EXACT


def test_six_rounds_bring_the_source_back(model: ImageToVideo, tmp_path: Path) -> None:
    pixels = clip()
    latents, (condition, _) = model.encode(pixels), conditions(model, pixels)
    schedule = model.schedule(10, 0.7, latents)  # small steps, for the rounds to converge
    noise, back = round_trip(model, latents, schedule, condition, 6, Run.alone(tmp_path))
    assert relative(back, latents) < SIX_ROUNDS
    assert relative(noise, latents) > 0.1


def test_each_round_brings_the_source_several_times_nearer(svd: StableVideo, tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, condition = svd.encode(pixels), svd.condition(pixels[0], frames=2)
    schedule, run = svd.schedule(8, 0.8, latents), Run.alone(tmp_path)
    back = [round_trip(svd, latents, schedule, condition, rounds, run)[1] for rounds in (1, 2, 3)]
    errors = [relative(one, latents) for one in back]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def round_trip(
    model: ImageToVideo, latents: Tensor, schedule: Schedule, condition: Condition, rounds: int, run: Run
) -> tuple[Tensor, Tensor]:
    """The noise that an inversion finds, and what sampling makes of it."""

    def predict(x: Tensor, level: Level) -> Tensor:
        return model.predict(x, level, condition)

    trajectory = latents.new_empty(len(schedule.up()) + 1, *latents.shape)
    trajectory[0] = latents
    up, down = run.steps("invert", schedule.up()), run.steps("sample", schedule.down())
    invert(trajectory, predict, up, calls=rounds, start=extrapolate)
    return trajectory[-1], sample(trajectory[-1], predict, down)


def test_an_edit_runs_over_windows_of_either(model: ImageToVideo, tmp_path: Path) -> None:
    video = Video((clip(8) * 127.5 + 127.5).to(torch.uint8).numpy(), Fraction(8))
    same = video.frames[0].transpose(1, 2, 0).copy()
    painted = same.copy()
    painted[8:24, 8:24] = (250, 20, 60)
    results = []
    for name, picture in (("same", same), ("painted", painted)):
        params = VideoshopParams(
            first=write_picture(picture, tmp_path / f"{name}.png"),
            steps=3,
            strength=1.0,
            guidance=30.0,  # random weights hardly look at a condition
            rescale="none",
            window=5,
            overlap=1,
            short_side=32,
            region="everywhere",
            source_prompt="a ball",
        )
        results.append(edit_with(model, video, params, Run.alone(tmp_path)).video.frames.astype(int))
    assert results[0].shape == video.frames.shape
    for half in (slice(0, 4), slice(4, 8)):
        assert (results[0][half] != results[1][half]).any()


def test_two_conditions_at_once_are_two_predictions(model: ImageToVideo) -> None:
    pixels = clip()
    x = model.encode(pixels)
    one, other = conditions(model, pixels)
    at = model.schedule(STEPS, STRENGTH, x).down()[0][0]
    apart = guided(model.predict(x, at, other), model.predict(x, at, one), 3.0)
    assert relative(model.predict(x, at, one, negative=other, guidance=3.0), apart) < EXACT
    assert relative(model.predict(x, at, one), apart) > EXACT


def test_a_weight_a_frame_is_a_ramp(model: ImageToVideo) -> None:
    pixels = clip()
    x = model.encode(pixels)
    one, other = conditions(model, pixels)
    at = model.schedule(STEPS, STRENGTH, x).down()[0][0]
    ramp = torch.linspace(1, 4, len(x))
    mixed = model.predict(x, at, one, negative=other, guidance=ramp)
    last = model.predict(x, at, one, negative=other, guidance=4.0)[-1]
    assert relative(mixed[0], model.predict(x, at, one)[0]) < EXACT
    assert relative(mixed[-1], last) < EXACT


def test_the_empty_condition_is_another_one(model: ImageToVideo) -> None:
    pixels = clip()
    x, (condition, _) = model.encode(pixels), conditions(model, pixels)
    at = model.schedule(STEPS, STRENGTH, x).down()[0][0]
    empty = model.unconditional(condition)
    assert relative(model.predict(x, at, empty), model.predict(x, at, condition)) > EXACT
    assert empty.identity != condition.identity


def test_everything_is_decided_by_its_arguments_and_retains_no_graph(model: ImageToVideo) -> None:
    pixels = clip().requires_grad_()
    first, again = conditions(model, pixels)[0], conditions(model, pixels)[0]
    latents = model.encode(pixels)
    at = model.schedule(STEPS, STRENGTH, latents).down()[0][0]
    out = model.predict(latents, at, first)
    assert first.identity == again.identity
    assert torch.equal(out, model.predict(latents, at, again))
    assert not (latents.requires_grad)
    assert not (out.requires_grad)
    assert not (model.decode(latents).requires_grad)


def test_no_tensor_outlives_its_last_name(model: ImageToVideo) -> None:
    pixels = clip()
    latents = model.encode(pixels)
    watched = weakref.ref(latents)
    model.predict(latents, model.schedule(STEPS, STRENGTH, latents).levels[0], conditions(model, pixels)[0])
    del latents
    gc.collect()
    assert watched() is None


def test_a_strength_without_a_step_is_refused_with_the_least_that_has_one(model: ImageToVideo) -> None:
    with pytest.raises(ParamsError, match="leave no step") as caught:
        model.schedule(10, 0.05, torch.zeros(1, 4, 4, 4))
    assert "0.1" in caught.value.hint


def test_levels_fall_to_the_clean_one(model: ImageToVideo) -> None:
    schedule = model.schedule(10, 0.5, torch.zeros(1, 4, 4, 4))
    noise = [level.noise / (level.signal + level.noise) for level in schedule.levels]
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] == 0
    assert len(schedule.down()) == 5
    assert schedule.up()[0][0] == schedule.levels[-1]


def test_the_clip_picture_is_the_pipelines_own_by_default(svd: StableVideo) -> None:
    pixels = clip(1, 72, 104)
    side = svd.pipe.image_encoder.config.image_size
    theirs = (_resize_with_antialiasing(pixels, (side, side)) + 1) / 2
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    wanted = (theirs - mean[:, None, None]) / std[:, None, None]
    assert relative(svd.clip_input(pixels), wanted) < EXACT
    other = svd.with_conditioning(clip_resize="antialiased")
    assert relative(other.clip_input(pixels), wanted) > 0.01


def test_noise_on_the_picture_is_as_strong_as_the_model_is_told(svd: StableVideo) -> None:
    first, eps = clip()[0], torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(5))
    told = svd.with_conditioning(fps=12, motion_bucket_id=30, noise_aug_strength=0.5)
    condition = told.condition(first, frames=5, noise=eps)
    assert condition.added_time_ids.tolist() == [11, 30, 0.5]
    assert relative(condition.image_latents * svd.scale, svd.encode((first + 0.5 * eps)[None])[0]) < EXACT


def test_known_latents_take_the_place_of_encoding(svd: StableVideo) -> None:
    first, latent = clip()[0], torch.ones(4, 8, 12)
    assert torch.equal(svd.condition(first, frames=5, latent=latent).image_latents, latent / svd.scale)


def test_a_part_decoded_beside_its_neighbours_is_nearer_to_the_whole_than_alone(svd: StableVideo) -> None:
    latents = svd.encode(clip(9))
    whole, parts = svd.decode(latents), svd.decode(latents, chunk_size=3)
    alone = torch.cat([svd.decode(part) for part in torch.split(latents, 3)])
    assert parts.shape == whole.shape
    assert relative(parts, whole) < 0.5 * relative(alone, whole)


def test_a_wrapped_pipeline_predicts_as_a_loaded_one(svd: StableVideo) -> None:
    pixels = clip(2)
    wrapped = StableVideo.wrap(svd.pipe)
    assert torch.equal(wrapped.encode(pixels), svd.encode(pixels))
    assert wrapped.identity == StableVideo(svd.pipe).identity
    assert wrapped.identity != wrapped.with_conditioning(motion_bucket_id=1).identity


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_full(svd: StableVideo, dtype: Literal["bfloat16", "float16"]) -> None:
    half = StableVideo.from_pretrained(str(PIPELINE), Compute(device="cpu", dtype=dtype))
    # Its configuration warns of halves in the autoencoder; bfloat16 has the range that they lack.
    assert half.pipe.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)
    for whole, near in zip(worked(svd), worked(half), strict=True):
        assert near.dtype == torch.float32
        assert relative(near, whole) < HALVED
    assert half.identity != svd.identity


def worked(model: StableVideo) -> tuple[Tensor, ...]:
    """Every kind of call once: encoded, predicted under guidance, decoded whole and in parts."""
    pixels = clip()
    latents, condition = model.encode(pixels), model.condition(pixels[0], frames=len(pixels))
    at = model.schedule(STEPS, STRENGTH, latents).down()[0][0]
    guided_there = model.predict(
        latents, at, condition, negative=model.unconditional(condition), guidance=2.0
    )
    return latents, guided_there, model.decode(latents), model.decode(latents, chunk_size=2)


def test_networks_that_wait_to_be_called_give_the_same(svd: StableVideo) -> None:
    waiting = StableVideo.from_pretrained(str(PIPELINE), Compute(device="cpu"))
    waiting.pipe.enable_model_cpu_offload(device="cpu")
    for whole, same in zip(worked(svd), worked(waiting), strict=True):
        assert torch.equal(whole, same)


def test_layers_that_wait_to_be_called_give_the_same(svd: StableVideo) -> None:
    waiting = StableVideo.from_pretrained(str(PIPELINE), Compute(device="cpu"))
    networks = (waiting.pipe.unet, waiting.pipe.vae, waiting.pipe.image_encoder)
    for network in networks:
        cpu_offload(network, torch.device("cpu"), offload_buffers=True)
    for whole, same in zip(worked(svd), worked(waiting), strict=True):
        assert torch.equal(whole, same)
    # What is not at work lies nowhere near the device.
    for network in networks:
        assert {weight.device.type for weight in network.parameters()} == {"meta"}


def test_a_processor_alone_has_nowhere_to_put_networks_aside(svd: StableVideo) -> None:
    for offload in ("model", "sequential"):
        here = StableVideo.from_pretrained(
            str(PIPELINE), Compute.model_validate({"device": "cpu", "offload": offload})
        )
        assert torch.equal(worked(here)[1], worked(svd)[1])
        assert here.identity == svd.identity


def test_the_kind_of_model_is_read_from_its_folder(tmp_path: Path) -> None:
    assert isinstance(AnyImageToVideo.from_pretrained(str(PIPELINE)).model, StableVideo)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelMismatch, match="StableDiffusionPipeline"):
        AnyImageToVideo.from_pretrained(str(tmp_path))
    with pytest.raises(ModelMismatch):
        StableVideo.from_pretrained(str(tmp_path))
    with pytest.raises(ModelNotFound):
        AnyImageToVideo.from_pretrained(str(tmp_path / "nowhere"))


def test_a_plug_in_brings_the_adapter_of_its_pipelines_folders(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StillPipeline"}')
    (tmp_path / "config.json").write_text('{"gain": 0.25}')
    model = AnyImageToVideo.from_pretrained(str(tmp_path)).model
    assert isinstance(model, ImageToVideo)
    assert torch.equal(model.encode(clip()), clip() / 4)


def test_a_plug_in_whose_adapter_does_not_work_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[retouch.models]\nLost = nowhere:lost\nNumber = math:pi\n")
    monkeypatch.syspath_prepend(tmp_path)
    for kind, said in (("Lost", "the plug-in 'Lost' cannot be loaded"), ("Number", "math:pi is a float")):
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{kind}"}}')
        with pytest.raises(PluginError, match=said):
            AnyImageToVideo.from_pretrained(str(tmp_path))


def test_a_model_that_predicts_something_else_is_refused(tmp_path: Path) -> None:
    for part in PIPELINE.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "scheduler").unlink()
    (tmp_path / "scheduler").mkdir()
    text = (PIPELINE / "scheduler" / "scheduler_config.json").read_text().replace("v_prediction", "epsilon")
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(ModelMismatch, match="epsilon"):
        StableVideo.from_pretrained(str(tmp_path))


def test_loading_leaves_the_pipeline_a_stock_one(svd: StableVideo) -> None:
    assert isinstance(svd.pipe, StableVideoDiffusionPipeline)
    assert not any(weight.requires_grad for weight in svd.pipe.unet.parameters())

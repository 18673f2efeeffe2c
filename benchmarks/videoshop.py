"""How closely, how fast and in how much memory Videoshop works: the figures of `videoshop.md`.

Run:  python benchmarks/videoshop.py accuracy [--model REF]
      python benchmarks/videoshop.py length [--model REF] [--frames 8 25 50 100] [--size 64]
      python benchmarks/videoshop.py gpu

`accuracy`: a no-op edit, the first frame handed in as it is: how far the latents that come back are from
the clip's own, in the authors' way and in ours. `length`: the same with windows over clips of growing
length, each in a process of its own: processor time, peak memory, and how far the colours drift from window
to window. `gpu`: a whole edit at the size of Stable Video Diffusion, 14 frames of 576 x 1024 in half
precision with random weights: seconds and peak memory by where the networks wait and how many frames are
decoded together; without a GPU it says so and measures nothing.

The model may be one with random weights, whose autoencoder is no good: colours are compared with those
that the autoencoder alone gives the clip.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from retouch.compute import Compute
from retouch.diffusion.inversion import Start, draw_noise, invert
from retouch.diffusion.sampling import sample
from retouch.diffusion.windows import sequential
from retouch.events import Event, Kept
from retouch.media.pictures import write_picture
from retouch.methods.videoshop import released
from retouch.methods.videoshop.edit import edit, edit_with
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.metrics.colour import delta_e, lab_of
from retouch.models.image_to_video import Condition, ImageToVideo, StableVideo, place_pipeline
from retouch.models.image_to_video_any import AnyImageToVideo
from retouch.models.noise_path import Level, Schedule, extrapolate
from retouch.run import Run
from retouch.video import Video
from retouch.world import Scene, film

Offload: TypeAlias = Literal["none", "model", "sequential"]

OVERLAP = 1
PARITY = Path(__file__).resolve().parents[1] / "tests" / "parity" / "data" / "videoshop" / "pipeline"


def main() -> None:
    """Measures what was asked for and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("accuracy", "length", "one-length", "gpu"))
    parser.add_argument("--model", default=str(PARITY))
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 25, 50, 100])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    if asked.what == "accuracy":
        accuracy(asked.model, asked.size)
    elif asked.what == "length":
        length(asked.model, asked.frames, asked.size, asked.steps)
    elif asked.what == "gpu":
        gpu()
    else:
        print(json.dumps(one_length(asked.model, asked.frames[0], asked.size, asked.steps)))


def accuracy(ref: str, size: int) -> None:
    """A no-op edit in latents: rel-L2 to the clip's own, for the authors' way, parts of it, and ours."""
    torch.set_num_threads(1)
    model, clip = StableVideo.from_pretrained(ref), _clip(8, size)
    told = model.with_conditioning(**dataclasses.asdict(released.CONDITIONING))
    pixels = clip.pixels()
    print("| steps, strength | way | a step up | rel-L2 of the no-op edit | calls |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        run = Run.alone(Path(folder))
        latents, like = model.encode(pixels), torch.empty(3, size, size)
        eps = run.noise("guesses", latents)
        source = model.condition(pixels[0], frames=len(pixels), noise=run.noise("picture", like))
        for steps, strength in ((25, 0.55), (8, 0.8)):
            schedule = model.schedule(steps, strength, latents)
            n = len(schedule.up())
            draws = released.Draws(run.noise("a", like), run.noise("b", like), eps)
            settings = released.Settings(steps=steps, strength=strength)
            whole = released.carry_frame(
                told, pixels, pixels[0], size=(size, size), draws=draws, settings=settings, run=run
            )
            row = f"| {steps}, {strength} |"
            print(
                row, f"faithful, as released | 1 | {_relative(whole.rescaled, latents):.1e} | {n} + 2 x {n} |"
            )
            ways: list[tuple[str, Start | None, tuple[int, ...]]] = [
                (
                    "same conditions, no guidance, released rule",
                    draw_noise(eps * latents.std()),
                    (1, 2, 3),
                ),
                ("... without extrapolation", None, (1,)),
                ("... extrapolated throughout (default: 3)", extrapolate, (1, 2, 3)),
            ]
            for name, start, rounds in ways:
                for k in rounds:
                    back = round_trip(model, latents, schedule, source, start, k, run)
                    print(row, f"{name} | {k} | {_relative(back, latents):.1e} | {n * k} + {n} |")


def round_trip(
    model: ImageToVideo,
    latents: Tensor,
    schedule: Schedule,
    source: Condition,
    start: Start | None,
    calls: int,
    run: Run,
) -> Tensor:
    """Return what sampling makes of the noise that an inversion finds."""

    def predict(x: Tensor, level: Level) -> Tensor:
        return model.predict(x, level, source)

    trajectory = latents.new_empty(len(schedule.up()) + 1, *latents.shape)
    trajectory[0] = latents
    invert(trajectory, predict, run.steps("invert", schedule.up()), calls=calls, start=start)
    return sample(trajectory[-1], predict, run.steps("sample", schedule.down()))


def length(ref: str, lengths: list[int], size: int, steps: int) -> None:
    """A no-op edit over growing lengths."""
    names = ("frames", "windows", "CPU s", "CPU ms a frame", "anonymous peak MB", "worst window, dE2000")
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for frames in lengths:
        command = [sys.executable, __file__, "one-length", "--model", ref, "--frames", str(frames)]
        command += ["--size", str(size), "--steps", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        got = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {frames} | {got['windows']:.0f} | {got['cpu']:.1f} | {1000 * got['cpu'] / frames:.0f} "
            f"| {got['anonymous'] / 2**20:.0f} | {got['drift']:.3f} |",
            flush=True,
        )


def one_length(ref: str, frames: int, size: int, steps: int) -> dict[str, float]:
    """One clip of a length through the whole method, in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip, kept = _clip(frames, size), list[Event]()
        run = Run.alone(folder, listen=kept.append)
        first = write_picture(clip.frames[0].transpose(1, 2, 0).copy(), folder / "first.png")
        params = VideoshopParams(
            model=ref,
            first=first,
            region="everywhere",
            hold="nothing",  # the walks alone: what is held cannot drift
            steps=steps,
            short_side=size,
            overlap=OVERLAP,
            check_inversion=False,
        )
        model = run.load(ref, AnyImageToVideo).model
        started = time.process_time()
        with peak_memory() as peak:
            edited = edit(clip, params, run)
        cpu = time.process_time() - started
        drift = _drift(model, clip, kept, run)
        return {"cpu": cpu, "anonymous": max(peak), "drift": drift, "windows": edited.figures["windows"]}


def gpu() -> None:
    """A whole edit at Stable Video Diffusion's size, for each way to save memory; says so without a GPU."""
    if not torch.cuda.is_available():
        print("Skipped: these rows need a GPU, and torch finds none on this machine.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, 14 frames of 576 x 1024, float16\n")
    print("| way | networks wait | decoded together | seconds | peak GB on the GPU |\n|---|---|---|---|---|")
    clip = film(Scene.sample(11), 14, (576, 1024), Fraction(7))
    ways: list[tuple[bool, Offload, int | None]] = [
        (False, "none", None),
        (False, "none", 4),
        (False, "model", None),
        (False, "model", 4),
        (False, "sequential", 4),
        (True, "none", None),
    ]
    for faithful, offload, together in ways:
        pipe = random_svd()
        place_pipeline(pipe, Compute(device="cuda", dtype="float16", offload=offload))
        model = StableVideo(pipe, weights="random")
        seconds, peak = on_gpu(model, clip, faithful=faithful, together=together)
        way = "as released" if faithful else "default"
        print(f"| {way} | {offload} | {together or 14} | {seconds:.1f} | {peak / 2**30:.1f} |", flush=True)
        del model, pipe
        torch.cuda.empty_cache()


def on_gpu(model: StableVideo, clip: Video, *, faithful: bool, together: int | None) -> tuple[float, int]:
    """Seconds and peak bytes of one edit over the whole picture; a first short one warms everything up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write_picture(255 - clip.frames[0].transpose(1, 2, 0), folder / "first.png")
        given = VideoshopParams(
            first=first,
            region="everywhere",
            faithful=faithful,
            guidance=4.0 if faithful else 1.5,
            decode_chunk_size=together,
            check_inversion=False,
        )
        edit_with(model, clip[:2], given.model_copy(update={"steps": 2}), Run.alone(folder / "warm"))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        edit_with(model, clip, given, Run.alone(folder / "run"))
        torch.cuda.synchronize()
        return time.perf_counter() - begun, torch.cuda.max_memory_allocated()


def random_svd() -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion for 14 frames as its folder describes it, with random weights."""
    sees = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        projection_dim=1024,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    wide = (128, 256, 512, 512)
    torch.manual_seed(0)
    with torch.device("cuda"):
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=wide,
            down_block_types=("DownEncoderBlock2D",) * len(wide),
            layers_per_block=2,
            sample_size=768,
        )
        unet = UNetSpatioTemporalConditionModel(num_frames=14).half()
        tower = CLIPVisionModelWithProjection(sees).half()
    levels = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        steps_offset=1,
    )
    pipe = StableVideoDiffusionPipeline(vae, tower, unet, levels, None)
    for network in (vae, unet, tower):
        network.eval().requires_grad_(False)
    return pipe.to("cpu")


def memory() -> int:
    """Bytes that this process holds and nobody else can use: pages of mapped files are not among them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """What this process alone holds, above what it held before, sampled fifty times a second."""
    before, seen, done = memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _drift(model: ImageToVideo, clip: Video, kept: list[Event], run: Run) -> float:
    """The worst window's dE2000 between mean colours: of its edited latents decoded, and of the source's."""
    edited = [event.key for event in kept if isinstance(event, Kept) and event.kind == "videoshop_latents"]
    windows = sequential(len(clip), [0], size=model.traits.native_frames, overlap=OVERLAP)
    worst = 0.0
    for window, key in zip(windows, edited, strict=True):
        found = run.store.find("videoshop_latents", key)
        assert found is not None
        part = clip[window.slice]
        with torch.no_grad():
            both = found[1]["value"], model.encode(part.pixels())
            pair = [_mean_lab(part.like(model.decode(latents)).frames) for latents in both]
        worst = max(worst, float(delta_e(*pair)[0]))
    return worst


def _mean_lab(frames: np.ndarray) -> np.ndarray:
    colours = lab_of(frames.transpose(0, 2, 3, 1).reshape(-1, 3).copy())
    return np.asarray(colours.mean(axis=0, keepdims=True))


def _clip(frames: int, size: int) -> Video:
    """A clip of the world: one that no embedded model was trained on."""
    return film(Scene.sample(11), frames, size, Fraction(12))


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


if __name__ == "__main__":
    main()

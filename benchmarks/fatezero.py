"""What fusing attention costs in memory and time: the figures of `fatezero.md`.

Run:  python benchmarks/fatezero.py

One random network of Stable Diffusion's layout and small width, the same for all. `ours` asks the network
again at kept latents; `store` keeps every attention map of the inversion and puts it in place of the
edit's, as the paper describes it, with nothing added; `plain` inverts and edits without touching
attention. Each figure comes from a process of its own, on one thread, time in processor seconds, memory
as the peak above what the process had when the network was loaded.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from retouch.diffusion.attention import Attend, Gather, Layer, Neighbours, Rule, controlled
from retouch.diffusion.inversion import Trajectory, invert
from retouch.diffusion.windows import overlapping
from retouch.diffusion.words import Alignment, CrossFusion, emphasis_table, step_range, weight_table
from retouch.methods.fatezero.edit import sample
from retouch.methods.fatezero.fusion import (
    MOST_TOKENS,
    FusedPrediction,
    FusionSchedule,
    State,
    Texts,
    fused_layers,
)
from retouch.models.image import ddim_schedule
from retouch.models.noise_path import Level, Schedule, Timestep, guided, step
from retouch.run import Run, Step

WORDS = 77
FUSED = 0.8
"""Share of the steps in which both kinds of attention are the source's, as in the paper's style edits."""
SAME = 1e-3
"""`ours` and `store` are one computation in two orders of summing, relative to the greatest latent."""


@final
@dataclass(frozen=True)
class Net:
    """The network as the walk sees a model."""

    unet: UNet2DConditionModel

    def predict(
        self, z: Tensor, t: Timestep, text: Tensor, *, attention: Mapping[str, object] | None = None
    ) -> Tensor:
        """The network's own output."""
        out: Tensor = self.unet(
            z, t, text.expand(len(z), *text.shape), cross_attention_kwargs=dict(attention or {})
        ).sample
        return out


def network(channels: tuple[int, ...]) -> Net:
    """A random network, always the same."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=16,
    )
    return Net(unet.eval().requires_grad_(False))


def levels(steps: int) -> Schedule:
    """Stable Diffusion's noise levels."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return ddim_schedule(scheduler, steps)


def word_fusion(steps: int) -> CrossFusion:
    """Five new words in front of a source prompt of ten, one of them emphasised."""
    mapper = [0, *[-1] * 5, *range(1, WORDS - 5)]
    table = weight_table(steps, WORDS, (0.0, FUSED), {})
    return CrossFusion(Alignment.refined(mapper), table, emphasis_table(WORDS, {(1,): 2.0}))


# ------------------------------------------------------------------------------------------------ the
# paper's way


@final
@dataclass
class KeepMaps:
    """Attention as the paper describes it: the whole map, kept."""

    gather: Gather
    layers: frozenset[Layer]
    maps: dict[Layer, Tensor] = field(default_factory=dict)

    def __call__(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Answers plainly."""
        if layer not in self.layers:
            return Attend(self.gather)(layer, q, k, v)
        k, v = (k, v) if layer.kind == "cross" else (self.gather(layer, k), self.gather(layer, v))
        self.maps[layer] = torch.softmax(q @ k.transpose(2, 3) / float(q.shape[-1]) ** 0.5, dim=-1)
        return self.maps[layer] @ v


@final
@dataclass(frozen=True)
class UseMaps:
    """The edit's attention with kept maps in the place of its own."""

    gather: Gather
    maps: Mapping[Layer, Tensor]
    cross: tuple[Tensor, Tensor]

    def __call__(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Answers with the kept map, or with both mixed."""
        if layer not in self.maps:
            return Attend(self.gather)(layer, q, k, v)
        if layer.kind == "self":
            return self.maps[layer] @ self.gather(layer, v)
        own = torch.softmax(q @ k.transpose(2, 3) / float(q.shape[-1]) ** 0.5, dim=-1)
        return (self.maps[layer] @ self.cross[0] + own * self.cross[1]) @ v


def stored(
    net: Net, z: Tensor, plan: Schedule, texts: Texts, gather: Gather, layers: frozenset[Layer]
) -> Tensor:
    """Inverts keeping every map of every step, then edits with them."""
    kept: list[dict[Layer, Tensor]] = []
    for lo, hi in plan.up():
        rule = KeepMaps(gather, layers)
        out = net.predict(z, hi.t, texts.source, attention={"rule": rule})
        z = (z - lo.noise * out) / lo.signal * hi.signal + hi.noise * out
        kept.append(rule.maps)
    fusion = word_fusion(len(kept))
    for index, (hi, lo) in enumerate(plan.down()):
        factors = fusion.at(index)
        rule_now: Rule = UseMaps(gather, kept[-1 - index], factors) if factors else Attend(gather)
        positive = net.predict(z, hi.t, texts.target, attention={"rule": rule_now})
        negative = net.predict(z, hi.t, texts.negative, attention={"rule": Attend(gather)})
        z = step(z, guided(negative, positive, 7.5), hi, lo)
    return z


# ------------------------------------------------------------------------------------------------ one figure


def inverted(net: Net, z: Tensor, plan: Schedule, text: Tensor, gather: Gather) -> Trajectory:
    """The trajectory of a clip."""
    ups = plan.up()
    latents = torch.zeros(len(ups) + 1, *z.shape)
    latents[0] = z

    def predict(given: Tensor, level: Level) -> Tensor:
        return net.predict(given, level.t, text, attention={"rule": Attend(gather)})

    invert(latents, predict, [Step("invert", k, len(ups), pair) for k, pair in enumerate(ups)])
    return Trajectory(latents, reconstruction=math.nan)


@torch.no_grad()
def figure(way: str, frames: int, side: int, steps: int, channels: tuple[int, ...]) -> dict[str, float]:
    """Runs one way on one clip."""
    torch.set_num_threads(1)
    net, plan, neighbours = network(channels), levels(steps), Neighbours(("mid",), least_level=1)
    gather = neighbours.among(range(frames), frames)
    draw = torch.Generator().manual_seed(1)
    source, target, against = (torch.randn(WORDS, 32, generator=draw) for _ in range(3))
    texts = Texts(source, target, against)
    z = torch.randn(frames, 4, side, side, generator=draw)
    before = peak()
    with controlled(net.unet, size=(side, side)) as layers:
        net.predict(z[:1], 1, texts.source)
        start = time.process_time()
        if way == "store":
            done = stored(net, z, plan, texts, gather, fused_layers(layers, MOST_TOKENS))
            middle = start
        else:
            trajectory = inverted(net, z, plan, texts.source, gather)
            middle = time.process_time()
            fused = way == "ours"
            fusion = FusionSchedule(MOST_TOKENS)
            if fused:
                held = step_range((0.0, FUSED), steps)
                fusion = FusionSchedule(MOST_TOKENS, held, word_fusion(steps), source_lag=1)
            with tempfile.TemporaryDirectory() as folder:
                state = State.allocate(
                    sampler := FusedPrediction(net, trajectory, texts, fusion, 7.5, neighbours, layers),
                    Run.alone(Path(folder)),
                )
                downs = [Step("edit", index, steps, down) for index, down in enumerate(plan.down())]
                for _ in sample(sampler, overlapping(frames, size=frames, overlap=0), downs, state):
                    pass
                done = state.z.clone()
    end = time.process_time()
    return {
        "megabytes": (peak() - before) / 2**20,
        "seconds": end - start,
        "edit": end - middle,
        "sum": float(done.double().abs().sum()),
    }


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(way: str, frames: int, side: int, steps: int, channels: tuple[int, ...]) -> dict[str, float]:
    """The same in a process of its own."""
    arguments = [way, str(frames), str(side), str(steps), ",".join(map(str, channels))]
    ran = subprocess.run(
        [sys.executable, __file__, "--one", *arguments], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints the tables of `fatezero.md`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=5)
    asked = parser.parse_args()
    if asked.one:
        way, frames, side, steps, channels = asked.one
        widths = tuple(int(width) for width in channels.split(","))
        print(json.dumps(figure(way, int(frames), int(side), int(steps), widths)))
        return
    small = (32, 64, 64)
    print("| frames | latents | ours MB | store MB | plain MB |\n|---|---|---|---|---|")
    for frames, side in ((4, 16), (8, 16), (16, 16), (32, 16), (4, 24), (4, 32)):
        found = {way: apart(way, frames, side, 6, small) for way in ("ours", "store", "plain")}
        assert abs(found["ours"]["sum"] / found["store"]["sum"] - 1) < SAME, found
        sizes = " | ".join(f"{found[way]['megabytes']:.0f}" for way in ("ours", "store", "plain"))
        print(f"| {frames} | {side}x{side} | {sizes} |", flush=True)
    print("\n| way | inversion and edit, CPU s | edit alone, CPU s | ratio to plain |\n|---|---|---|---|")
    plain = apart("plain", 8, 32, 10, (64, 128, 128))
    for way in ("plain", "ours", "store"):
        found_now = plain if way == "plain" else apart(way, 8, 32, 10, (64, 128, 128))
        alone = "" if way == "store" else f"{found_now['edit']:.1f}"
        ratio = found_now["seconds"] / plain["seconds"]
        print(f"| {way} | {found_now['seconds']:.1f} | {alone} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()

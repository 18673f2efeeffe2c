import json
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from retouch.compute import Compute
from retouch.errors import ModelMismatch, ModelNotFound, ParamsError
from retouch.models.face import (
    CLEAN,
    PUBLISHED,
    FaceConfig,
    FaceDiffusion,
    FaceNetwork,
    encoding,
    follow,
    noised,
    published_timesteps,
    schedule_at,
)
from retouch.models.noise_path import Level, step

CPU = Compute(device="cpu", dtype="float32")
ROUNDING = 1e-5
"""Of pictures in single precision, divided by noise shares of a hundredth."""


def small_network(
    *, patch: int = 4, detail: int = 8, prediction: Literal["epsilon", "sample"] = "sample"
) -> FaceNetwork:
    torch.manual_seed(0)
    unet = {
        "sample_size": 8,
        "in_channels": 3 * patch**2,
        "out_channels": (detail or 3) * patch**2,
        "block_out_channels": [16, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": "identity",
        "time_embedding_dim": 16,
        "freq_shift": 0,
    }
    return FaceNetwork(FaceConfig(unet, 6, 4, prediction, patch, detail, lo=60, hi=800)).eval()


def test_a_face_is_seen_by_who_it_is_and_how_it_moves() -> None:
    network = small_network()
    model, x = FaceDiffusion.wrap(network), torch.rand(2, 3, 32, 32)
    level = model.schedule(3).levels[1]
    who, how = torch.rand(2, 6), torch.rand(2, 4)
    with torch.no_grad():
        seen = model.clean(x, level, model.code(who, how))
        assert seen.shape == x.shape
        assert seen.abs().max() <= 1
        assert not torch.equal(seen, model.clean(x, level, model.code(who.flip(0), how)))
        assert not torch.equal(seen, model.clean(x, level, model.code(who, how.flip(0))))
        assert not torch.equal(seen, model.clean(x, model.schedule(3).levels[0], model.code(who, how)))


def test_a_network_that_gives_the_noise_is_asked_for_the_clean_picture() -> None:
    model = FaceDiffusion.wrap(small_network(patch=1, detail=0, prediction="epsilon"))
    x, code, level = torch.rand(1, 3, 8, 8), torch.rand(1, 16), schedule_at([500]).levels[0]
    with torch.no_grad():
        eps = model.network(x, torch.tensor([500]), code)
        seen = model.clean(x, level, code)
    assert torch.allclose(seen, step(x, eps, level, CLEAN).clamp(-1, 1))
    assert torch.allclose(noised(step(x, eps, level, CLEAN), eps, torch.tensor([500])), x, atol=ROUNDING)


def test_a_saved_model_comes_back_the_same(tmp_path: Path) -> None:
    model = FaceDiffusion.wrap(small_network())
    model.save(tmp_path / "face")
    back = FaceDiffusion.from_pretrained(str(tmp_path / "face"), CPU)
    x, code, level = torch.rand(1, 3, 32, 32), torch.rand(1, 16), model.schedule(2).levels[0]
    with torch.no_grad():
        assert torch.equal(model.clean(x, level, code), back.clean(x, level, code))
    assert back.config == model.config
    assert back.config.side == 32
    assert back.identity != model.identity  # one is of files, the other of numbers
    assert FaceDiffusion.wrap(back.network).identity == model.identity


@pytest.mark.parametrize("damage", ["kind", "shape", "missing", "option"])
def test_a_damaged_model_is_refused(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "face"
    FaceDiffusion.wrap(small_network()).save(folder)
    config, weights = (
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
    )
    if damage == "kind":
        config["_class_name"] = "UNet2DModel"
    if damage == "option":
        config["strength"] = 3
    if damage == "shape":
        weights["merge.bias"] = weights["merge.bias"][:-1].clone()
    if damage == "missing":
        del weights["merge.bias"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelMismatch):
        FaceDiffusion.from_pretrained(str(folder), CPU)
    with pytest.raises(ModelNotFound):
        FaceDiffusion.from_pretrained(str(tmp_path / "nowhere"), CPU)


def test_the_way_up_begins_at_the_cleanest_noise_and_each_step_asks_at_the_level_it_leaves() -> None:
    schedule, asked = schedule_at([0, 250, 500, 750]), []

    def clean(x: torch.Tensor, level: Level) -> torch.Tensor:
        asked.append(level.t)
        return 0.5 * x

    x = torch.rand(1, 3, 4, 4)
    up = [state for state, _ in follow(x, encoding(schedule), clean)]
    assert asked == [0, 250, 500]
    asked.clear()
    down = [state for state, _ in follow(up[-1], schedule.down(), clean)]
    assert asked == [750, 500, 250, 0]
    assert torch.equal(down[-1], 0.5 * down[-2])


def test_up_and_down_with_the_same_clean_pictures_meet() -> None:
    schedule, x, seen = schedule_at([60, 200, 400, 800]), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    up = [state for state, _ in follow(x, encoding(schedule), lambda _x, _level: seen)]
    down = [state for state, _ in follow(up[-1], schedule.down(), lambda _x, _level: seen)]
    assert torch.allclose(down[-2], x, atol=ROUNDING)
    assert torch.equal(down[-1], seen)


def test_published_timesteps_are_multiples_and_others_are_refused_with_the_nearest() -> None:
    for steps in (2, 10, 143, 1000):
        times = published_timesteps(steps)
        assert len(times) == steps
        assert times[0] == 0
        assert times[-1] < 1000
        assert len({b - a for a, b in pairwise(times)}) == 1
    with pytest.raises(ParamsError, match="300") as caught:
        published_timesteps(300)
    assert caught.value.hint == "near it: [250, 334]"


def test_the_published_network_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        network = FaceNetwork(FaceConfig(PUBLISHED))
    counted = [sum(p.numel() for p in part.parameters()) for part in (network.unet, network.merge)]
    assert counted == [190_576_643, 314_880]

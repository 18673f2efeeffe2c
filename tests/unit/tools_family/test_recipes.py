"""The recipes of the embedded family, on a few pictures and a few steps."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import retouch
from retouch.models.fit import Fit, load_average

RECIPES = Path(__file__).parents[3] / "tools" / "family"
FEW = {"easy": 24}


class Recipes:
    """The recipes' modules; they are scripts that import each other by name."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def recipes() -> Iterator[Recipes]:
    sys.path.insert(0, str(RECIPES))
    yield Recipes()
    sys.path.remove(str(RECIPES))


@pytest.fixture(scope="module")
def work(recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which each part that others build on has been trained for a few steps."""
    folder = tmp_path_factory.mktemp("family")
    recipes.train_vae.train(folder, size=64, images=16 * 8, device="cpu", counts=FEW)
    recipes.train_clip.train(folder, size=64, images=16 * 8, device="cpu", counts=FEW, count=16)
    recipes.train_unet.train(folder, size=64, images=8 * 4, device="cpu", counts=FEW, count=8)
    return folder


def falls(losses: list[float]) -> bool:
    """Whether the last third of a short training lies clearly below the first."""
    third = len(losses) // 3
    return float(np.mean(losses[-third:])) < 0.85 * float(np.mean(losses[:third]))


def test_every_word_is_one_token_and_others_fall_apart(recipes: Recipes, tmp_path: Path) -> None:
    tokenizer = recipes.architecture.tokenizer(tmp_path)
    for word in recipes.tokens.WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    assert len(tokenizer("zebra").input_ids) > 3
    caption = "a red striped car on grass, pencil sketch"
    assert (
        tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True).replace(" ,", ",") == caption
    )


def test_every_caption_of_the_world_fits_the_text_encoder(recipes: Recipes, tmp_path: Path) -> None:
    tokenizer = recipes.architecture.tokenizer(tmp_path)
    captions = {recipes.pictures.scene_of("full", seed).caption for seed in range(300)}
    longest = max(len(tokenizer(caption).input_ids) for caption in captions)
    assert longest <= recipes.architecture.TEXT_LENGTH
    unknown = {w for c in captions for w in c.replace(",", "").split()} - set(recipes.tokens.WORDS)
    assert not unknown


def test_drawing_goes_on_where_it_stopped_and_draws_the_same(recipes: Recipes, tmp_path: Path) -> None:
    one = recipes.pictures.prepared(tmp_path / "a", "easy", 6, 64)
    two = recipes.pictures.prepared(tmp_path / "b", "easy", 6, 64)
    assert np.array_equal(one.pixels, two.pixels)
    assert one.captions == two.captions
    again = recipes.pictures.prepared(tmp_path / "a", "easy", 6, 64)
    assert np.array_equal(again.masks, one.masks)
    held = recipes.pictures.held_out("easy", 6, 64)
    assert not np.array_equal(held.pixels, one.pixels)


def test_masks_lie_on_the_objects(recipes: Recipes) -> None:
    drawn = recipes.pictures.held_out("easy", 8, 64)
    assert (drawn.masks[:, 8, 8] > 128).all()
    assert (drawn.masks[:, 0, 0] == 0).all()


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_as_an_unbroken_one(recipes: Recipes, tmp_path: Path) -> None:
    def judge(folder: Path, images: int) -> dict[str, torch.Tensor]:
        fit = recipes.judge.train(folder, size=64, images=images, device="cpu", counts=FEW)
        return dict(fit.masters)

    whole = judge(tmp_path / "whole", 64 * 4)
    judge(tmp_path / "parts", 64 * 2)
    parts = judge(tmp_path / "parts", 64 * 4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0)


LINE_FIT = """
import sys
from pathlib import Path

import torch
from retouch.models.fit import Fit, join_processes

join_processes()
torch.manual_seed(0)
line = torch.nn.Sequential(torch.nn.Conv1d(2, 6, 3), torch.nn.Linear(6, 3))
fit = Fit(line, Path(sys.argv[1]), rate=1e-2, precision=torch.float32, orthogonal=True)


def look(generator):
    x = torch.randn(int(sys.argv[3]), 2, 8, generator=generator)
    return (fit.network(x) - x.mean()).square().mean(), len(x)


fit.until(int(sys.argv[2]), look, every=100)
"""
"""A training of both kinds of weights, matrices and vectors: folder, images, batch."""


def run_line_fit(folder: Path, images: int, batch: int, *launcher: str) -> dict[str, torch.Tensor]:
    script = folder.parent / "line.py"
    script.write_text(LINE_FIT, "utf-8")
    paths = {
        "PYTHONPATH": str(Path(retouch.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, *launcher, str(script), str(folder), str(images), str(batch)]
    subprocess.run(command, check=True, env=os.environ | paths, timeout=240)
    return load_file(folder / "checkpoint.safetensors")


@pytest.mark.slow
def test_orthogonal_steps_go_on_where_they_stopped(tmp_path: Path) -> None:
    whole = run_line_fit(tmp_path / "whole", 4 * 8, 4)
    run_line_fit(tmp_path / "parts", 4 * 4, 4)
    parts = run_line_fit(tmp_path / "parts", 4 * 8, 4)
    assert whole.keys() == parts.keys()
    assert any(name.startswith("momentum_buffer/") for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_step_along_the_mean_of_their_gradients(tmp_path: Path) -> None:
    pair = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    together = run_line_fit(tmp_path / "together", 2 * 4, 4, *pair)
    draws = [torch.Generator().manual_seed(13 + 104_729 * n) for n in range(2)]
    torch.manual_seed(0)
    line = torch.nn.Sequential(torch.nn.Conv1d(2, 6, 3), torch.nn.Linear(6, 3))
    fit = Fit(line, tmp_path / "alone", rate=1e-2, precision=torch.float32, orthogonal=True)
    batches = [torch.randn(4, 2, 8, generator=draw) for draw in draws]
    fit.descend(sum((line(x) - x.mean()).square().mean() for x in batches) / 2, 8)
    for name, value in fit.masters.items():
        torch.testing.assert_close(together[f"master/{name}"], value)


@pytest.mark.slow
def test_a_short_training_lowers_the_loss_of_the_autoencoder(recipes: Recipes, tmp_path: Path) -> None:
    fit = recipes.train_vae.train(tmp_path, size=64, images=16 * 30, device="cpu", counts=FEW)
    assert falls(fit.losses)


@pytest.mark.slow
def test_a_short_training_lowers_the_loss_of_clip(recipes: Recipes, tmp_path: Path) -> None:
    fit = recipes.train_clip.train(tmp_path, size=64, images=24 * 45, device="cpu", counts=FEW, count=24)
    assert falls(fit.losses)


def test_a_short_training_lowers_the_loss_of_the_judge(recipes: Recipes, tmp_path: Path) -> None:
    fit = recipes.judge.train(tmp_path, size=64, images=64 * 18, device="cpu", counts=FEW)
    assert falls(fit.losses)


@pytest.mark.slow
def test_a_short_training_lowers_the_loss_of_the_unet(recipes: Recipes, tmp_path: Path, work: Path) -> None:
    for part in ("vae-64px", "clip", "tokenizer"):
        (tmp_path / part).symlink_to(work / part)
    fit = recipes.train_unet.train(tmp_path, size=64, images=8 * 60, device="cpu", counts=FEW, count=8)
    assert falls(fit.losses)


@pytest.mark.slow
def test_standard_latents_change_no_picture(recipes: Recipes, work: Path) -> None:
    plain = load_average(recipes.architecture.autoencoder(64), work / "vae-64px")
    finished = recipes.latents.finished_autoencoder(work, 64)
    pixels = recipes.pictures.held_out("full", 64, 64).pixels
    z = recipes.latents.encoded(finished, pixels)
    assert float(z.mean((0, 2, 3)).abs().max()) < 0.5
    assert float((z.std((0, 2, 3)) - 1).abs().max()) < 0.5
    with torch.no_grad():
        before = plain.decode(recipes.latents.encoded(plain, pixels[:4])).sample
        after = finished.decode(z[:4]).sample
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    one = plain.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    other = finished.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    ratio = (one.std / other.std).mean((0, 2, 3))
    deviation = torch.tensor(json.loads((work / "vae-64px" / "latents.json").read_text())["deviation"])
    torch.testing.assert_close(ratio, deviation, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_probe_sees_a_word_that_matters(recipes: Recipes, work: Path) -> None:
    tokenizer = recipes.architecture.tokenizer(work / "tokenizer")
    seen = recipes.latents.latents_of(work, recipes.pictures.held_out("easy", 8, 64), 64, tokenizer)
    tokens = torch.from_numpy(seen.tokens.astype(np.int64))
    swapped = recipes.probe.swapped(tokens, seen, "object", tokenizer)
    assert ((swapped != tokens).sum(1) == 1).all()

    class Reader(torch.nn.Module):
        """Answers with the truth where the caption is right, and with nothing where it is wrong."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z: torch.Tensor, _: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            right = torch.stack([(tokens == w).all(1).any() for w in words])
            return torch.where(right[:, None, None, None], 0.9 * z, torch.zeros_like(z))

    rises = recipes.probe.word_swap(Reader(), seen, tokenizer)
    assert rises["swap_object"] != 0


def test_lessons_come_in_order_and_end_with_the_whole_world(recipes: Recipes) -> None:
    shares = recipes.train_unet.shares_at
    assert shares(0) == {"easy": 1.0}
    assert "full" in shares(10**9)
    assert all(abs(sum(shares(n).values()) - 1) < 1e-9 for n in (0, 100_000, 200_000, 10**9))


@pytest.mark.slow
def test_a_reference_shows_the_same_thing_in_any_of_its_pictures(recipes: Recipes) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (200, 5), dtype=np.uint8)
    rows = rng.integers(0, 200, 500)
    found = recipes.train_ip.Alike(labels).one_for_each(rows, torch.Generator().manual_seed(1))
    ground = list(recipes.pictures.FACTORS).index("background")
    same = labels[rows] == labels[found]
    assert np.delete(same, ground, 1).all()
    assert 0.3 < same[:, ground].mean() < 0.7
    assert len(set(found.tolist())) > 150


@pytest.mark.slow
def test_the_siblings_train_and_the_adapter_loads(recipes: Recipes, work: Path, tmp_path: Path) -> None:
    canny = recipes.train_control.train(work, size=64, images=16, device="cpu", counts=FEW, count=8)
    prompt = recipes.train_ip.train(work, size=64, images=16, device="cpu", counts=FEW, count=8)
    video = recipes.train_svd.train_unet(work, size=64, images=16, device="cpu", clips=2, count=1)
    temporal = recipes.train_svd.train_autoencoder(work, size=64, images=16, device="cpu", clips=2)
    for fit in (canny, prompt, video, temporal):
        assert all(np.isfinite(fit.losses))
    recipes.train_ip.save_adapter(work, 64, tmp_path / "ip_adapter.safetensors")
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    unet = recipes.architecture.unet()
    assert isinstance(unet, UNet2DConditionLoadersMixin)
    flat = load_file(tmp_path / "ip_adapter.safetensors")
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in flat.items():
        group, _, rest = name.partition(".")
        state[group][rest] = value.float()
    unet._load_ip_adapter_weights([state])
    with torch.no_grad():
        words, z = torch.zeros(1, 32, 128), torch.zeros(1, 4, 16, 16)
        seen = [torch.ones(1, 1, 128)]
        out = unet(z, 500, words, added_cond_kwargs={"image_embeds": seen}).sample
    assert bool(torch.isfinite(out).all())

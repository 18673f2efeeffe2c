import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from retouch.errors import InputError, ModelMismatch, NoFace, ResourceError
from retouch.media.pictures import read_picture
from retouch.models.face import (
    FaceConfig,
    FaceDiffusion,
    FaceNetwork,
    begin_still,
    published_unet,
    schedule_at,
)
from retouch.models.face_losses import losses
from retouch.models.face_model import FaceModel
from retouch.models.face_training import (
    check_training_room,
    drawn_history,
    face_record,
    gather_faces,
    held_out_error,
    take_faces,
    train_network,
)
from retouch.models.refs import resolve
from retouch.run import Run
from retouch.world import Portrait, face_picture

SIDE, BATCH = 8, 8


def small(prediction: Literal["epsilon", "sample"] = "sample") -> FaceDiffusion:
    """A network for pictures of 8 pixels, told who in three numbers and how in two."""
    unet = published_unet(SIDE, (8,), (True,), layers=1, code=8)
    unet |= {"norm_num_groups": 4, "attn_norm_num_groups": 4}
    torch.manual_seed(0)
    network = FaceNetwork(FaceConfig(unet, 3, 2, prediction, lo=60))
    begin_still(network)
    return FaceDiffusion.wrap(network.eval().requires_grad_(False))


def blobs(count: int) -> np.ndarray:
    """Faces that are one colour, which is who they are, above a line whose place is how they move."""
    dice = np.random.default_rng(0)
    faces = np.zeros(count, face_record(small().config))
    colour, line = dice.random((count, 3)), dice.integers(2, 7, count)
    rows = np.arange(SIDE)[None, None, :, None] < line[:, None, None, None]
    faces["pixels"] = (255 * colour[..., None, None] * rows).astype(np.uint8)
    faces["mask"] = 1
    faces["told"] = np.concatenate([colour - 0.5, line[:, None] / SIDE, np.zeros((count, 1))], 1)[:, None]
    return faces


def trained(folder: Path, images: int) -> FaceDiffusion:
    faces = blobs(64)
    net, history = train_network(
        small(), faces, np.arange(8, 64), np.arange(8), folder, images=images, batch=BATCH, rate=1e-2,
        every=12, run=Run.alone(folder),
    )  # fmt: skip
    assert history[-1]["images"] == images
    return net


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_training_lowers_the_held_out_error_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    device = torch.device("cpu")
    faces = take_faces(blobs(64), np.arange(8), torch.zeros(8, dtype=torch.long), small().config, device)
    whole = trained(tmp_path / "whole", 24 * BATCH)
    before, after = (held_out_error(net, *faces) for net in (small(), whole))
    assert after["own_600"] < 0.7 * before["own_600"]
    assert before["swap_600"] == 0  # an answer that begins at nothing says nothing of who it is
    assert (tmp_path / "whole" / "losses.svg").read_text().count("<polyline") == 9
    sheets = sorted(path.name for path in (tmp_path / "whole").glob("sample-*.png"))
    assert sheets == [f"sample-{n * BATCH:09}.png" for n in (0, 12, 24)]
    assert read_picture(tmp_path / "whole" / sheets[-1]).shape == (3 * SIDE, 6 * SIDE, 3)
    trained(tmp_path / "parts", 12 * BATCH)
    parts = trained(tmp_path / "parts", 24 * BATCH).network.state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.network.state_dict().items())


def test_a_mirrored_face_takes_what_was_read_off_the_mirrored_picture() -> None:
    faces = blobs(4)
    faces["pixels"][..., 0] = 7
    faces["told"][:, 1] = -1
    turned = torch.tensor([0, 1, 0, 1])
    seen = take_faces(faces, np.arange(4), turned, small().config, torch.device("cpu"))
    left, right = ((seen.pixels[..., column] + 1) * 127.5 for column in (0, -1))
    assert torch.allclose(left[0], torch.tensor(7.0), atol=1e-3)
    assert torch.allclose(right[1], torch.tensor(7.0), atol=1e-3)
    assert (seen.identity[turned == 1] == -1).all()
    assert (seen.identity[turned == 0] != -1).all()


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_network_that_answers_rightly_costs_nothing_whatever_it_gives(
    prediction: Literal["epsilon", "sample"],
) -> None:
    net, x = small(prediction), torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    t, noise, mask = torch.tensor([200, 700]), torch.randn(2, 3, SIDE, SIDE), torch.ones(2, 1, SIDE, SIDE)

    def answer(*_: object) -> Tensor:
        return noise if prediction == "epsilon" else x

    hook = net.network.register_forward_hook(answer)
    code = torch.zeros(2, 8)
    right = losses(net.network, x, code, t, (noise, noise), mask)
    assert right.total < 1e-5
    hook.remove()
    assert losses(net.network, x, code, t, (noise, noise), mask).simple.min() > 0.1


def crops_of(seeds: list[int]) -> Tensor:
    pictures = np.stack([face_picture(Portrait.sample(seed), size=64) for seed in seeds])
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


def test_faces_are_gathered_once_and_one_clip_in_ten_is_held_out(tmp_path: Path) -> None:
    model, asked = FaceModel.from_pretrained("tiny:face"), list[int]()

    def cut(number: int) -> Tensor:
        asked.append(number)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return crops_of([number] * 4) if number != 2 else torch.zeros(0, 3, 64, 64)

    with pytest.raises(KeyboardInterrupt):
        gather_faces(model, [5] * 4, cut, Run.alone(tmp_path))
    faces, learned, judged = gather_faces(model, [5] * 4, cut, Run.alone(tmp_path))
    assert asked == [0, 1, 2, 2, 3]
    assert judged.tolist() == [0, 1, 2, 3]
    assert learned.tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    shown = ((crops_of([3])[0] + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(faces[8]["pixels"], shown)
    who = model.vectors(crops_of([3])).numpy()
    assert np.allclose(faces[8]["told"][0, :64], who, atol=1e-5)
    assert 0.2 < faces[8]["mask"].mean() < 0.9


def test_too_few_faces_and_none_are_refused(tmp_path: Path) -> None:
    model = FaceModel.from_pretrained("tiny:face")
    with pytest.raises(NoFace):
        gather_faces(model, [2, 2], lambda _: torch.zeros(0, 3, 64, 64), Run.alone(tmp_path / "none"))
    with pytest.raises(InputError, match="2 faces to learn from and 2 to judge by"):
        gather_faces(model, [2, 2], lambda n: crops_of([n, n]), Run.alone(tmp_path / "few"))
    with pytest.raises(ResourceError, match="the training needs"):
        check_training_room(model, [10**12], tmp_path)


def test_a_new_network_is_built_as_the_models_own_or_as_published(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(resolve("tiny:face"), tmp_path / "face"))
    new, own = FaceModel.untrained(str(folder)), FaceModel.from_pretrained(str(folder))
    assert new.diffusion.config == own.diffusion.config
    assert new.attributes is not None
    level = new.diffusion.schedule(3).levels[0]
    with torch.no_grad():
        code = new.diffusion.code(torch.ones(1, 64) / 8, torch.rand(1, 42))
        assert new.diffusion.clean(torch.rand(1, 3, 64, 64), level, code).abs().max() == 0
    assert 0.3 < code.std() < 3
    (folder / "config.json").write_text('{"_class_name": "Other"}')
    with pytest.raises(ModelMismatch, match="is no face model"):
        FaceModel.untrained(str(folder))


def test_rises_that_are_none_leave_a_gap_in_the_picture() -> None:
    row = {"step": 0.0, "images": 0.0, "loss": 0.0, "own_100": 0.2}
    drawn = drawn_history([row, {**row, "images": 16.0, "loss": 0.5}])
    assert drawn.count("<polyline") == 2
    assert drawn.count(",") == 3
    assert len(schedule_at([100]).levels) == 2

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from retouch.errors import InputError, NoFace, ParamsError
from retouch.events import Event, Notice
from retouch.media.pictures import write_picture
from retouch.methods.face.align import ReaderFinder, follow_face, gaps
from retouch.methods.face.edit import edit_with
from retouch.methods.face.spec import SPEC, FaceParams
from retouch.models.face import FaceDiffusion, FaceNetwork
from retouch.models.face_attributes import save_direction
from retouch.models.face_model import ANCHORS, FaceModel, SmallFaceReader
from retouch.models.face_parts import FoundFace
from retouch.run import Edited, Run
from retouch.video import FRAMES_AT_ONCE, Video
from retouch.world import LANDMARKS, PARTS, FaceClip, Portrait, face_picture

STEPS = 4
NEAR = 1.5
"""Pixels within which eyes and mouth are found, of a face about 40 wide."""


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel.from_pretrained("tiny:face")


@pytest.fixture(scope="module")
def clip() -> FaceClip:
    return FaceClip.of(Portrait.sample(5), 4, 96)


def edited(
    video: Video, model: FaceModel, folder: Path, told: list[Event] | None = None, **given: object
) -> Edited:
    params = SPEC.fill({"attribute": ("beard=1",), "steps": STEPS, **given})
    assert isinstance(params, FaceParams)
    return edit_with(
        model, video, params, Run.alone(folder, listen=(told if told is not None else []).append)
    )


@contextmanager
def calls_of(model: FaceModel, part: Literal["network", "reader"] = "network") -> Iterator[list[int]]:
    """Count the frames that the network, or what reads faces, is asked about."""
    seen: list[int] = []
    assert isinstance(model.reader, SmallFaceReader)
    asked = model.diffusion.network.unet if part == "network" else model.reader.network
    hook = asked.register_forward_pre_hook(lambda _net, given: seen.append(len(given[0])))
    yield seen
    hook.remove()


def test_a_beard_comes_nearer_to_the_true_edit_than_the_source_and_all_else_stays(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    made, true = edited(clip.video, model, tmp_path), clip.edited("beard=yes").video
    assert made.touched is not None
    changed = np.broadcast_to((true.frames != clip.video.frames).any(1, keepdims=True), true.frames.shape)
    ours, was = (
        np.square(video.frames[changed].astype(float) - true.frames[changed]).mean()
        for video in (made.video, clip.video)
    )
    assert ours < was / 5
    outside = ~np.broadcast_to(made.touched, true.frames.shape)
    assert (made.video.frames == clip.video.frames)[outside].all()
    assert outside.mean() > 0.5


def test_a_neck_takes_the_colour_of_the_skin_and_keeps_it_where_skin_stays(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    darker, true = edited(clip.video, model, tmp_path, attribute=("dark-skin=1",)), clip.edited("skin=dark")
    neck = np.broadcast_to(clip.parts == PARTS.index("neck"), clip.video.frames.shape)
    ours, was = (
        np.abs(frames[neck].astype(float) - true.video.frames[neck]).mean()
        for frames in (darker.video.frames, clip.video.frames)
    )
    assert ours < was / 2
    hatted = edited(clip.video, model, tmp_path, attribute=("red-hat=1",)).video.frames
    assert np.abs(hatted[neck].astype(float) - clip.video.frames[neck]).mean() < was / 20


def test_the_first_edit_takes_two_calls_a_step_and_frame_and_a_second_one_one(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    with calls_of(model) as seen:
        edited(clip.video, model, tmp_path)
    assert sum(seen) == 2 * STEPS * len(clip.video)
    with calls_of(model) as seen:
        edited(clip.video, model, tmp_path, attribute=("glasses=1",))
    assert sum(seen) == STEPS * len(clip.video)


def test_strength_zero_gives_the_clip_back(model: FaceModel, clip: FaceClip, tmp_path: Path) -> None:
    made = edited(clip.video, model, tmp_path, attribute=("beard=0", "glasses=0"))
    assert np.array_equal(made.video.frames, clip.video.frames)


def test_a_clip_of_one_frame_and_a_curve_over_time(model: FaceModel, clip: FaceClip, tmp_path: Path) -> None:
    assert len(edited(clip.video[:1], model, tmp_path / "one").video) == 1
    made = edited(clip.video, model, tmp_path / "curve", attribute=("beard=0:0,3:1",))
    apart = (made.video.frames != clip.video.frames).any(1).mean((1, 2))
    assert apart[0] == 0
    assert apart[3] > 0.02


def test_another_identity_is_taken_on(model: FaceModel, clip: FaceClip, tmp_path: Path) -> None:
    write_picture(face_picture(Portrait.sample(8), size=96), tmp_path / "other.png")
    made = edited(clip.video, model, tmp_path, attribute=(), identity=tmp_path / "other.png")
    assert (made.video.frames != clip.video.frames).any(1).mean() > 0.1
    write_picture(np.zeros((64, 64, 3), np.uint8), tmp_path / "black.png")
    with pytest.raises(NoFace, match="black"):
        edited(clip.video, model, tmp_path, attribute=(), identity=tmp_path / "black.png")


def test_as_published_the_drawn_face_is_pasted_inside_a_hard_mask(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    made = edited(clip.video, model, tmp_path, faithful=True, steps=5)
    assert made.touched is not None
    assert 0 < made.touched.mean() < 0.5


def test_the_face_is_found_where_it_is(model: FaceModel, clip: FaceClip) -> None:
    (found,) = ReaderFinder(model).find(clip.video.frames[0])
    true = clip.landmarks[0][[LANDMARKS.index(name) for name in ANCHORS]]
    assert np.abs(found.points - true).max() < NEAR


def test_of_two_people_the_one_chosen_is_edited_and_none_without_a_choice(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    other = FaceClip.of(Portrait.sample(3), len(clip.video), 96)
    both = Video(np.concatenate([clip.video.frames, other.video.frames], axis=3), clip.video.fps)
    with pytest.raises(ParamsError, match="frame 0 shows 2 faces"):
        edited(both, model, tmp_path)
    made = edited(both, model, tmp_path, face=1)
    changed = (made.video.frames != both.frames).any((0, 1, 2))
    assert not changed[:90].any()
    assert changed[96:].any()


def test_a_clip_without_a_face_is_refused_with_its_frames(model: FaceModel, tmp_path: Path) -> None:
    nobody = Video(np.full((3, 3, 64, 64), 90, np.uint8), FaceClip.of(Portrait.sample(1), 1, 16).video.fps)
    with pytest.raises(NoFace, match="frames 0 to 2"):
        edited(nobody, model, tmp_path)


def test_frames_without_the_face_are_named_short_gaps_filled_and_long_ones_left(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    frames = np.concatenate([clip.video.frames, np.full((12, 3, 96, 96), 90, np.uint8)])
    frames[1] = 90
    told: list[Event] = []
    made = edited(Video(frames, clip.video.fps), model, tmp_path, told)
    said = [event.text for event in told if isinstance(event, Notice)]
    assert any("frame 1" in text and "filled in" in text for text in said)
    assert any("frames 4 to 15" in text and "stay as they are" in text for text in said)
    assert np.array_equal(made.video.frames[4:], frames[4:])


def test_a_face_in_the_middle_of_a_clip_is_followed_both_ways(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    frames = np.concatenate([np.full((2, 3, 96, 96), 90, np.uint8), clip.video.frames])
    track = follow_face(Video(frames, clip.video.fps), model, None, None, run=Run.alone(tmp_path))
    assert (track.score > 0).tolist() == [False] * 2 + [True] * 4
    assert [list(gap) for gap in gaps(track.score > 0)] == [[0, 1]]


def test_encoders_of_another_network_are_refused(model: FaceModel) -> None:
    from retouch.errors import ModelMismatch

    reader = model.reader
    assert isinstance(reader, SmallFaceReader)
    other = SmallFaceReader(reader.network, [*reader.point_names[:-1], "chin"])
    with pytest.raises(ModelMismatch, match="its network takes"):
        replace(model, reader=other).check("mine")
    assert torch.equal(reader.motion(torch.zeros(1, 22, 2)), torch.zeros(1, 42))


@final
class FinderOfBrightFrames:
    """Finds one face where it is told, in frames that are not black."""

    identity = property(lambda _: "bright")

    def __init__(self, points: np.ndarray) -> None:
        self.points = points

    def find(self, frame: np.ndarray) -> list[FoundFace]:
        return [FoundFace(self.points, 1.0)] if frame.any() else []


def test_of_a_hundred_frames_those_ten_are_followed_that_show_the_face(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    frames = np.zeros((100, 3, 96, 96), np.uint8)
    frames[40:50] = clip.video.frames[0]
    points = clip.landmarks[0][[LANDMARKS.index(name) for name in ANCHORS]].astype(np.float64)
    track = follow_face(
        Video(frames, clip.video.fps), model, FinderOfBrightFrames(points), None, run=Run.alone(tmp_path)
    )
    assert np.flatnonzero(track.shown).tolist() == list(range(40, 50))


def test_words_that_say_the_same_give_the_clip_back(model: FaceModel, clip: FaceClip, tmp_path: Path) -> None:
    made = edited(clip.video, model, tmp_path, attribute=(), prompt="a face", source_prompt="A face.")
    assert np.array_equal(made.video.frames, clip.video.frames)


def test_words_are_followed(model: FaceModel, clip: FaceClip, tmp_path: Path) -> None:
    made = edited(
        clip.video[:2], model, tmp_path, attribute=(), prompt="a face with a beard",
        source_prompt="a face without a beard",
    )  # fmt: skip
    true = clip.edited("beard=yes").video.frames[:2]
    changed = np.broadcast_to((true != clip.video.frames[:2]).any(1, keepdims=True), true.shape)
    ours, was = (
        np.square(frames[changed].astype(float) - true[changed]).mean()
        for frames in (made.video.frames, clip.video.frames[:2])
    )
    assert ours < was / 2


def test_words_are_followed_by_pictures_as_published(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    made = edited(
        clip.video[:2], model, tmp_path, attribute=(), prompt="a face with a beard", faithful=True, steps=2,
        search=2,
    )  # fmt: skip
    assert (made.video.frames != clip.video.frames[:2]).any()


def test_a_direction_of_another_model_or_none_is_refused(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    file = save_direction(tmp_path / "a.safetensors", torch.ones(1, 8), {"model": "mine"})
    with pytest.raises(InputError, match="8 features; this model's have 64"):
        edited(clip.video, model, tmp_path, attribute=(), direction=file)
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no direction"):
        edited(clip.video, model, tmp_path, attribute=(), direction=tmp_path / "b.safetensors")


def test_a_model_without_words_is_told_from_one_with(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    with pytest.raises(ParamsError, match="knows no words"):
        edited(clip.video, replace(model, words=None), tmp_path, attribute=(), prompt="a face with a hat")


def placed_on_grey(
    frames: np.ndarray, size: tuple[int, int], shape: tuple[int, int] = (64, 96)
) -> np.ndarray:
    """Frames shrunk or squeezed to a size of rows and columns, in the middle of grey ones."""
    small = interpolate(torch.tensor(frames).float(), size, mode="area").byte().numpy()
    grey = np.full((len(frames), 3, *shape), 110, np.uint8)
    y, x = ((whole - part) // 2 for whole, part in zip(shape, size, strict=True))
    grey[:, :, y : y + size[0], x : x + size[1]] = small
    return grey


@pytest.mark.parametrize(
    ("size", "shape"), [((20, 20), (120, 200)), ((64, 14), (64, 96))], ids=["small", "turned"]
)
def test_a_face_of_twenty_pixels_or_from_the_side_is_refused_with_its_frames(
    size: tuple[int, int], shape: tuple[int, int], model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    frames = placed_on_grey(clip.video.frames[:2], size, shape)
    with pytest.raises(NoFace, match="no face was found in frames 0 to 1") as caught:
        edited(Video(frames, clip.video.fps), model, tmp_path)
    assert "upright and not too small" in caught.value.hint


def test_frames_in_which_a_face_turns_away_are_named_and_left(
    model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    front = placed_on_grey(clip.video.frames[:2], (64, 64))
    away = np.repeat(placed_on_grey(clip.video.frames[:1], (64, 14)), 3, axis=0)
    told: list[Event] = []
    made = edited(Video(np.concatenate([front, away]), clip.video.fps), model, tmp_path, told)
    said = [event.text for event in told if isinstance(event, Notice)]
    assert any("frames 2 to 4" in text and "stay as they are" in text for text in said)
    assert np.array_equal(made.video.frames[2:], away)
    assert (made.video.frames[:2] != front).any()


@pytest.mark.parametrize("patches", [8, 32])
def test_a_model_for_another_size_is_used_at_its_own(
    patches: int, model: FaceModel, clip: FaceClip, tmp_path: Path
) -> None:
    config = model.diffusion.config
    other = FaceNetwork(replace(config, unet={**config.unet, "sample_size": patches}))
    other.load_state_dict(model.diffusion.network.state_dict())
    sized = replace(
        model, diffusion=FaceDiffusion.wrap(other.eval().requires_grad_(False)), digest=str(patches)
    )
    sized.check("sized")
    made = edited(clip.video[:1], sized, tmp_path, steps=2)
    assert made.touched is not None
    assert (made.video.frames != clip.video.frames[:1]).any()
    assert np.array_equal(
        made.video.frames[~np.broadcast_to(made.touched, made.video.frames.shape)],
        clip.video.frames[:1][~np.broadcast_to(made.touched, made.video.frames.shape)],
    )


def test_a_longer_clip_needs_no_more_at_once(model: FaceModel, clip: FaceClip, tmp_path: Path) -> None:
    most = []
    for count in (6, 12):
        frames = np.concatenate([clip.video.frames] * 3)[:count]
        with calls_of(model) as seen, calls_of(model, "reader") as read:
            made = edited(Video(frames, clip.video.fps), model, tmp_path / str(count), steps=2, window=3)
        most.append((max(seen), max(read)))
        assert isinstance(made.video.frames, np.memmap)
        assert isinstance(made.touched, np.memmap)
    assert most[0][0] == most[1][0] == 3
    assert most[1][1] <= max(most[0][1], FRAMES_AT_ONCE)

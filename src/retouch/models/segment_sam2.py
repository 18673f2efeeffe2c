"""Object masks by SAM 2 (Ravi et al., 2024), behind the `Segmenter` protocol.

Boxes and strokes become the model's box and points, polygons and drawn masks its masks, on any frames. Each
object is followed alone, forwards and backwards from its first marked frame. Frames are prepared here, in
plain torch, when they are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, final

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from retouch.compute import Compute
from retouch.errors import EmptyMask, ModelMismatch, ParamsError
from retouch.events import Advanced, Ended, Listener, Started, ignore
from retouch.models.loading import folder_identity, load_network, placed, weights_identity
from retouch.models.refs import check_weights, read_config, resolve
from retouch.tracking.segment import (
    ObjectMark,
    ObjectMasks,
    Shelf,
    check_marks,
    in_memory,
    losses,
    tracking_size,
)
from retouch.video import Video

# The colours that the image encoder was trained on.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE: Final = 512
"""Long side, in pixels, that masks are kept at: twice what the model's decoder draws at."""
STROKE_POINTS: Final = 8
"""Points that stand for a stroke: the model was trained on a handful of clicks, not on paths."""
INSIDE, OUTSIDE, CORNER, OTHER_CORNER = 1, 0, 2, 3
"""What the model calls a point's kind."""


@final
@dataclass(frozen=True, eq=False)
class _LazyFrames:
    """A clip's frames as the model wants them, each made when it is asked for."""

    video: Video
    side: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, t: int) -> Float[Tensor, "3 side side"]:
        frame = torch.from_numpy(np.ascontiguousarray(self.video.frames[t])).float()[None] / 255
        size = (self.side, self.side)
        square = interpolate(frame, size=size, mode="bilinear", align_corners=False, antialias=True)[0]
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        return ((square - mean) / std).to(self.dtype)


@final
class Sam2Segmenter:
    """SAM 2's video model: follows objects that flow and colour cannot."""

    def __init__(self, model: Sam2VideoModel, *, identity: str | None = None) -> None:
        self.model = model
        self._identity = identity or weights_identity({"sam2": model}, model.config.to_json_string())

    @classmethod
    def from_pretrained(cls, ref: str, compute: Compute | None = None) -> Self:
        """Load the model that `ref` names, from this machine only.

        Raises:
            ModelNotFound: it is not here.
            ModelMismatch: the folder is no SAM 2 for video in safetensors.
        """
        folder = resolve(ref)
        kind = read_config(folder / "config.json", ref).get("model_type")
        if kind != Sam2VideoConfig.model_type:
            raise ModelMismatch(
                f"{ref} is a {kind}, not a SAM 2 for video",
                hint="name one in the transformers layout, such as hf:facebook/sam2.1-hiera-tiny",
            )
        check_weights(folder, ref)
        device, dtype = placed(compute)
        model = load_network(Sam2VideoModel, folder, device, dtype)
        return cls(model, identity=folder_identity(folder))

    @property
    def identity(self) -> str:
        """A hash of weights and configuration, the precision, and the size that masks are kept at."""
        return f"sam2-{self._identity}-{self.model.dtype}-{SIDE}"

    @torch.no_grad()
    def segment(
        self,
        video: Video,
        marks: Sequence[ObjectMark],
        *,
        listen: Listener = ignore,
        shelf: Shelf = in_memory,
    ) -> ObjectMasks:
        """Find the marked objects in every frame.

        Raises:
            ParamsError: there are no marks, or one lies outside the clip.
            EmptyMask: the model finds nothing on a marked frame.
        """
        check_marks(video, marks)
        names = tuple(dict.fromkeys(mark.name for mark in marks))
        size = tracking_size(video.height, video.width, SIDE)
        masks = shelf("masks", (len(names), len(video), *size), np.uint8)
        sessions = [self._session(video) for _ in names]
        for session in sessions:
            session.cache = sessions[0].cache  # what the encoder made of a frame serves every object
        listen(Started("masks", masks[:, :, 0, 0].size))
        done = 0
        for session, name, own in zip(sessions, names, masks, strict=True):
            self._prompt(session, video, [mark for mark in marks if mark.name == name])
            first = min(mark.frame for mark in marks if mark.name == name)
            for steps, back in ((range(first, len(video)), False), (range(first - 1, -1, -1), True)):
                for t in steps:
                    own[t] = self._followed(session, t, size, back=back)
                    done += 1
                    listen(Advanced("masks", done, masks[:, :, 0, 0].size))
        listen(Ended("masks"))
        warnings = [said for name, own in zip(names, masks, strict=True) for said in losses(video, name, own)]
        return ObjectMasks(names, masks, video.height, video.width, tuple(warnings))

    def _session(self, video: Video) -> Sam2VideoInferenceSession:
        session = Sam2VideoInferenceSession(
            video_height=video.height,
            video_width=video.width,
            inference_device=self.model.device,
            inference_state_device=self.model.device,
            dtype=self.model.dtype,
        )
        session.processed_frames = _LazyFrames(video, self.model.image_size, self.model.dtype)
        return session

    def _prompt(self, session: Sam2VideoInferenceSession, video: Video, marks: Sequence[ObjectMark]) -> None:
        """Tell the model one object's marks, frame by frame."""
        if all(mark.kind == "not" for mark in marks):
            raise ParamsError(
                f"nothing marks what {marks[0].name} is, only what it is not", hint="add a box or a stroke"
            )
        index = session.obj_id_to_idx(0)
        for t in sorted({mark.frame for mark in marks}):
            here = [mark for mark in marks if mark.frame == t]
            if any(mark.kind in ("polygon", "mask") for mark in here):
                drawn = torch.from_numpy(_drawn_mask(here, video)).float()[None, None] / 255
                side = self.model.image_size
                square = interpolate(drawn, size=(side, side), mode="bilinear", antialias=True)
                session.add_mask_inputs(index, t, (square >= 0.5).float())
            else:
                points, labels = _mark_points(here, video, self.model.image_size)
                session.add_point_inputs(index, t, {"point_coords": points, "point_labels": labels})
            session.obj_with_new_inputs = [0]
            found = self.model(inference_session=session, frame_idx=t).pred_masks
            if not bool((found > 0).any()):
                raise EmptyMask(
                    f"nothing was found where {here[0].name} is marked on frame {t}",
                    hint="mark more of it, or another frame",
                )

    def _followed(
        self, session: Sam2VideoInferenceSession, t: int, size: tuple[int, int], *, back: bool
    ) -> UInt8[np.ndarray, "h w"]:
        """One object's mask in the next frame."""
        logits = self.model(inference_session=session, frame_idx=t, reverse=back).pred_masks
        _forget_frames(session, t, self._reach())
        grown = interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0, 0]
        return (grown.sigmoid() * 255).round().byte().cpu().numpy()

    def _reach(self) -> int:
        """How many frames the model looks back over."""
        config = self.model.config
        return int(max(config.num_maskmem, config.max_object_pointers_in_encoder)) + 1


def _forget_frames(session: Sam2VideoInferenceSession, t: int, reach: int) -> None:
    """Drop what following never asks for again, or a clip would take megabytes a frame."""
    held = session.output_dict_per_obj[0]
    for outputs in held.values():
        if t in outputs:
            outputs[t].pop("high_res_masks", None)
    for other in [other for other in held["non_cond_frame_outputs"] if abs(other - t) > reach]:
        del held["non_cond_frame_outputs"][other]


def _drawn_mask(marks: Sequence[ObjectMark], video: Video) -> UInt8[np.ndarray, "h w"]:
    """Polygons and drawn masks of a frame, with the strokes of that frame on top."""
    canvas = np.zeros((video.height, video.width), np.uint8)
    order = ("box", "polygon", "mask", "stroke", "not")
    for mark in sorted(marks, key=lambda mark: order.index(mark.kind)):
        path = np.round(np.array(mark.points, np.float64)).astype(np.int32)
        width = max(1, round(2 * (mark.radius or 0.01 * max(canvas.shape))))
        if mark.drawn is not None:
            np.maximum(canvas, np.where(mark.drawn > 127, 255, 0).astype(np.uint8), out=canvas)
        elif mark.kind == "polygon":
            cv2.fillPoly(canvas, [path], 255)
        elif mark.kind in ("stroke", "not"):
            cv2.polylines(canvas, [path], False, 255 if mark.kind == "stroke" else 0, width)
    return canvas


def _mark_points(
    marks: Sequence[ObjectMark], video: Video, side: int
) -> tuple[Float[Tensor, "1 1 n 2"], Int[Tensor, "1 1 n"]]:
    """Boxes and strokes of a frame as the model's points; the box comes first, as it was trained."""
    corners = np.array([point for mark in marks if mark.kind == "box" for point in mark.points])
    rows: list[tuple[float, float]] = []
    labels: list[int] = []
    if len(corners):  # the model takes one box: the one around all
        rows += [tuple(corners.min(0).tolist()), tuple(corners.max(0).tolist())]
        labels += [CORNER, OTHER_CORNER]
    for mark in marks:
        if mark.kind in ("stroke", "not"):
            some = _points_along(mark.points)
            rows += some
            labels += [INSIDE if mark.kind == "stroke" else OUTSIDE] * len(some)
    scale = torch.tensor([side / video.width, side / video.height])
    # The model counts from pixel edges and adds the half itself.
    places = (torch.tensor(rows, dtype=torch.float32) + 0.5) * scale - 0.5
    return places[None, None], torch.tensor(labels, dtype=torch.int32)[None, None]


def _points_along(path: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points evenly along a path, both ends among them."""
    points = np.array(path, np.float64)
    walked = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    if walked[-1] == 0:
        return [tuple(points[0].tolist())]
    at = np.linspace(0, walked[-1], STROKE_POINTS)
    return list(zip(*(np.interp(at, walked, points[:, i]).tolist() for i in (0, 1)), strict=True))

"""An edited picture laid over its source, though whoever edited it shifted or zoomed it.

Networks that edit by words draw the whole picture anew, a little beside where it was, and no pixel of it
stays the same. Here the answer is brought to where the source has the same things, by a similarity and by
what flow is left; then only what the edit changed is taken, so that the rest is the source's, bit for bit.
"""

import math
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from retouch.errors import MethodError
from retouch.media.composite import blend
from retouch.tracking.flow import DisFlow, consistent_flow, inside_frame, pixel_grid, remap

Placement: TypeAlias = Float64[np.ndarray, "2 3"]
"""Where a pixel of the source, x then y from its middle, lies in the answer, from the middle as well."""

COARSE_SIDE: Final = 160
"""Longest side at which a similarity is looked for."""
FINE_SIDE: Final = 400
"""Longest side at which it is refined; what is still left is flow."""
TRIED: Final = tuple((zoom, turn) for turn in (0, -3, 3) for zoom in np.linspace(0.88, 1.12, 13).tolist())
"""Zooms, and turns in degrees, that are tried."""
LEAST_AGREEMENT: Final = 0.35
"""Share of the source outside the edit that must be found again."""
LEAST_BESIDE: Final = 0.02
"""Share of a picture that must lie outside a mask for the answer to be placed by that alone."""
LEAST_OVERLAP: Final = 0.5
"""Share of the source that must lie in the answer."""
NO_GAIN: Final = 0.01
"""Agreement by which moving the answer must be better than leaving it: each reading blurs it."""
SETTLED: Final = 0.02
"""Pixels below which a step of refinement is the last."""
PULL: Final = 0.5
"""Difference of two local contrasts at which they count as half alike."""
LEAST_CONTRAST: Final = 4.0
"""Levels below which a picture shows no contrast but noise."""
NOISE_LEVELS: Final = (10.0, 48.0)
"""The least and the most levels by which an edit must differ; between them the answer's own noise decides."""


@final
@dataclass(frozen=True)
class Offset:
    """How an answer lay beside its source."""

    x: float = 0.0
    y: float = 0.0
    """Pixels to the right and down, in the middle of the picture."""
    zoom: float = 1.0
    turn: float = 0.0
    """Degrees clockwise."""

    def words(self) -> str:
        """Return the offset as a sentence says it."""
        return f"{self.x:+.1f}, {self.y:+.1f} pixels, zoom {self.zoom:.3f}, turn {self.turn:+.1f} degrees"


@final
@dataclass(frozen=True, eq=False)
class RegisteredEdit:
    """The source with what an edit changed, and where that is."""

    picture: UInt8[np.ndarray, "h w 3"]
    changed: Bool[np.ndarray, "h w"]
    offset: Offset = Offset()
    agreement: float = 1.0
    """Share of what was not changed that the answer shows where the source has it."""


def register_edit(
    source: UInt8[np.ndarray, "h w 3"],
    answer: UInt8[np.ndarray, "h w 3"],
    *,
    mask: Bool[np.ndarray, "h w"] | None = None,
) -> RegisteredEdit:
    """Lay an edited picture over its source, and take what it changed, within a mask if there is one.

    Raises:
        MethodError: it does not show the source anywhere; says the offset that comes nearest.
    """
    beside = _beside(source, mask)
    aligned, there, offset, found = _aligned(source, answer, beside)
    changed = changed_region(source, aligned, beside) & there
    changed = changed if mask is None else changed & mask
    feather = min(source.shape[:2]) / 160
    cover = np.uint8(255) * changed[None, None]
    layers = (shown.transpose(2, 0, 1)[None] for shown in (source, aligned))
    picture = blend(next(layers), next(layers), cover, feather)[0].transpose(1, 2, 0)
    return RegisteredEdit(np.ascontiguousarray(picture), changed, offset, found)


def register_answer(
    source: UInt8[np.ndarray, "h w 3"],
    answer: UInt8[np.ndarray, "h w 3"],
    *,
    mask: Bool[np.ndarray, "h w"],
    taken: Bool[np.ndarray, "h w"] | None = None,
) -> RegisteredEdit:
    """Lay all of an edited picture over its source within a mask, whether it changed there or not.

    Args:
        source: The picture that was edited.
        answer: The picture after that.
        mask: Where the edit should be; what is beside it places the answer.
        taken: Where the answer is laid over, if that is more.

    Raises:
        MethodError: as `register_edit`.
    """
    aligned, there, offset, found = _aligned(source, answer, _beside(source, mask))
    laid = (mask if taken is None else taken) & there
    return RegisteredEdit(np.where(laid[..., None], aligned, source), laid, offset, found)


def _beside(
    source: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"] | None
) -> Bool[np.ndarray, "h w"]:
    """Return where an edit should have changed nothing; everywhere, if that is too little to go by."""
    beside = np.ones(source.shape[:2], bool) if mask is None else ~mask
    return beside if beside.mean() > LEAST_BESIDE else np.ones_like(beside)


def _aligned(
    source: UInt8[np.ndarray, "h w 3"], answer: UInt8[np.ndarray, "h w 3"], beside: Bool[np.ndarray, "h w"]
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"], Offset, float]:
    """Return an answer brought to where the source has the same, where it reaches, its offset and agreement.

    Raises:
        MethodError: it does not show the source anywhere.
    """
    placement = find_placement(source, answer, beside)
    stays = agreement(source, answer, standing_still(), beside)
    found = agreement(source, answer, placement, beside)
    if found < stays + NO_GAIN:
        placement, found = standing_still(), stays
    offset = offset_of(placement)
    if found < LEAST_AGREEMENT:
        raise MethodError(
            f"the answer shows another picture: at best {found:.0%} of the frame is found in it, at "
            f"{offset.words()}",
            hint="try other words, another seed or a lower strength, or say with a mask where to edit",
        )
    places = places_in(placement, *source.shape[:2])
    flow = residual_flow(source, remap(answer, places), beside)
    bent = remap(places, pixel_grid(*source.shape[:2]) + flow)
    if (
        closeness(source, remap(answer, bent), beside)
        > closeness(source, remap(answer, places), beside) + NO_GAIN
    ):
        places = bent
    aligned = cv2.remap(answer, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(aligned), inside_frame(places, margin=0.5), offset, found


def standing_still() -> Placement:
    """Return the placement of an answer that was not moved."""
    return np.eye(2, 3)


def offset_of(placement: Placement) -> Offset:
    """Return what a placement is in words that a user knows."""
    (a, _, x), (b, _, y) = placement.tolist()
    return Offset(x, y, math.hypot(a, b), math.degrees(math.atan2(b, a)))


def find_placement(
    source: UInt8[np.ndarray, "h w 3"], answer: UInt8[np.ndarray, "h w 3"], beside: Bool[np.ndarray, "h w"]
) -> Placement:
    """Find the similarity under which an answer shows most of the source: search coarsely, then refine."""
    coarse, fine = (min(1.0, side / max(source.shape[:2])) for side in (COARSE_SIDE, FINE_SIDE))
    near, far, where = (_scaled(picture, coarse) for picture in (source, answer, beside.astype(np.uint8)))
    tried = [standing_still(), *(_shifted(near, far, where > 0, *pair) for pair in TRIED)]
    tried.sort(key=lambda placement: agreement(near, far, placement, where > 0))
    refined = [refine_placement(near, far, placement, where > 0) for placement in tried[-2:]]
    best = max(refined, key=lambda placement: agreement(near, far, placement, where > 0))
    best = best * [[1, 1, fine / coarse]]
    if fine > coarse:
        near, far, where = (_scaled(picture, fine) for picture in (source, answer, beside.astype(np.uint8)))
        best = refine_placement(near, far, best, where > 0)
    return np.asarray(best / [[1, 1, fine]])


def _scaled(picture: UInt8[np.ndarray, "h w *c"], scale: float) -> UInt8[np.ndarray, "y x *c"]:
    made = (
        cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    )
    return np.asarray(made)


def _shifted(
    source: UInt8[np.ndarray, "h w 3"],
    answer: UInt8[np.ndarray, "h w 3"],
    beside: Bool[np.ndarray, "h w"],
    zoom: float,
    turn: float,
) -> Placement:
    """Return the shift at which an answer, so zoomed and turned, correlates best with the source."""
    height, width = source.shape[:2]
    angle = math.radians(turn)
    placement = zoom * np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
    )
    zoomed = places_in(placement, height, width)
    seen = local_contrast(remap(answer, zoomed)) * inside_frame(zoomed)
    size = (2 * height, 2 * width)
    spectra = [np.fft.rfft2(plane, size) for plane in (local_contrast(source) * beside, seen)]
    match = np.fft.irfft2(spectra[0].conj() * spectra[1], size)
    y, x = (int(i) for i in np.unravel_index(match.argmax(), match.shape))
    x, y = (x + width) % (2 * width) - width, (y + height) % (2 * height) - height
    placement[:, 2] = placement[:, :2] @ (x, y)
    return placement


def refine_placement(
    source: UInt8[np.ndarray, "h w 3"],
    answer: UInt8[np.ndarray, "h w 3"],
    placement: Placement,
    beside: Bool[np.ndarray, "h w"],
    *,
    rounds: int = 12,
) -> Placement:
    """Refine a similarity by Gauss-Newton steps on local contrast, in which what differs loses its weight."""
    there, here = local_contrast(answer), local_contrast(source)
    height, width = here.shape
    slopes = np.stack([cv2.Scharr(there, cv2.CV_32F, *axis) / 32 for axis in ((1, 0), (0, 1))], -1)
    x, y = np.moveaxis(pixel_grid(height, width), -1, 0) - [[[(width - 1) / 2]], [[(height - 1) / 2]]]
    best, reach = placement, agreement(source, answer, placement, beside)
    for _ in range(rounds):
        places = places_in(placement, height, width)
        error = remap(there, places) - here
        slope_x, slope_y = np.moveaxis(remap(slopes, places), -1, 0)
        terms = np.stack([slope_x * x + slope_y * y, slope_y * x - slope_x * y, slope_x, slope_y])
        weight = (beside & inside_frame(places)) / (1 + np.square(error / PULL)) ** 2
        normal = np.einsum("ihw,jhw,hw->ij", terms, terms, weight) + 1e-6 * np.eye(4)
        a, b, right, down = -np.linalg.solve(normal, np.einsum("ihw,hw,hw->i", terms, error, weight))
        placement = placement + np.array([[a, -b, right], [b, a, down]])
        if max(abs(a) * width, abs(b) * height, abs(right), abs(down)) < SETTLED:
            break
        if (now := agreement(source, answer, placement, beside)) > reach:
            best, reach = placement, now
    return best


def agreement(
    source: UInt8[np.ndarray, "h w 3"],
    answer: UInt8[np.ndarray, "h w 3"],
    placement: Placement,
    beside: Bool[np.ndarray, "h w"],
) -> float:
    """Return the share of the source that an answer shows at a placement, 0 where the two hardly overlap."""
    places = places_in(placement, *source.shape[:2])
    there = inside_frame(places)
    return closeness(source, remap(answer, places), beside & there) if there.mean() > LEAST_OVERLAP else 0.0


def closeness(
    source: UInt8[np.ndarray, "h w 3"], answer: UInt8[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"]
) -> float:
    """Return the share of two pictures, weighted by their detail, that has the same local contrast."""
    here, there = local_contrast(source), local_contrast(answer)
    weight = where * (np.abs(here) + np.abs(there))
    alike = 1 / (1 + np.square((here - there) / PULL))
    return float((weight * alike).sum() / max(float(weight.sum()), 1e-6)) if where.any() else 0.0


def local_contrast(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """Return how far each pixel is from the grey around it, in deviations of what is around it."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    sigma = max(2.0, min(grey.shape) / 24)
    apart = grey - cv2.GaussianBlur(grey, None, sigma)
    power = cv2.GaussianBlur(np.square(apart), None, sigma)
    return np.asarray(apart / np.sqrt(power + LEAST_CONTRAST**2), np.float32)


def places_in(placement: Placement, height: int, width: int) -> Float32[np.ndarray, "h w 2"]:
    """Return where each pixel lies in the answer."""
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    found = (pixel_grid(height, width) - middle) @ placement[:, :2].T + placement[:, 2] + middle
    return np.asarray(found, np.float32)


def residual_flow(
    source: UInt8[np.ndarray, "h w 3"], aligned: UInt8[np.ndarray, "h w 3"], beside: Bool[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w 2"]:
    """Return the small flow that is left outside an edit, and smoothly on into it."""
    search = DisFlow()
    there, back = search.pair(source, aligned), search.pair(aligned, source)
    small = np.hypot(*there) < 1 + 0.02 * max(source.shape[:2])
    sure = beside & small & consistent_flow(there, back)
    sure = sure & (np.abs(local_contrast(source) - local_contrast(remap(aligned, _moved(there)))) < PULL)
    weight, sigma = sure.astype(np.float32), max(3.0, min(source.shape[:2]) / 20)
    flow = there.transpose(1, 2, 0) * weight[..., None]
    total = cv2.GaussianBlur(weight, None, sigma)[..., None]
    return np.asarray(cv2.GaussianBlur(flow, None, sigma) / np.maximum(total, 1e-3), np.float32)


def _moved(flow: Float32[np.ndarray, "2 h w"]) -> Float32[np.ndarray, "h w 2"]:
    return np.asarray(pixel_grid(*flow.shape[1:]) + flow.transpose(1, 2, 0))


def changed_region(
    source: UInt8[np.ndarray, "h w 3"], aligned: UInt8[np.ndarray, "h w 3"], beside: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Return where an answer differs by more than its own noise and than a pixel's worth of misplacement."""
    beyond = np.maximum(_beyond(aligned, source), _opened(_beyond(source, aligned)))
    # In a rough texture any colour has its like beside it; its mean has not.
    beyond = np.maximum(beyond, _beyond(*(cv2.GaussianBlur(shown, None, 2.0) for shown in (aligned, source))))
    low, high = NOISE_LEVELS
    least = float(np.clip(4 * np.median(beyond[beside]) + low, low, high))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    differs = _opened((cv2.blur(beyond, (3, 3)) > least).astype(np.uint8))
    closed = cv2.morphologyEx(
        differs, cv2.MORPH_CLOSE, kernel, iterations=max(1, min(source.shape[:2]) // 100)
    )
    reach = 1 + math.ceil(min(source.shape[:2]) / 160)
    return np.asarray(cv2.dilate(closed, kernel, iterations=reach) > 0)


def _beyond(
    picture: UInt8[np.ndarray, "h w 3"], other: UInt8[np.ndarray, "h w 3"]
) -> Float32[np.ndarray, "h w"]:
    """Return by how many levels pixels lie beyond what another picture shows there or right beside."""
    kernel = np.ones((3, 3), np.uint8)
    low, high, own = (
        p.astype(np.float32) for p in (cv2.erode(other, kernel), cv2.dilate(other, kernel), picture)
    )
    return np.asarray(np.maximum(np.maximum(low - own, own - high), 0).max(2))


def _opened(plane: np.ndarray) -> np.ndarray:
    """Return a plane without what is thinner than three pixels."""
    return np.asarray(cv2.morphologyEx(plane, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))

"""Whether what `paint` says of an edit comes true: where it will slide, and where it is hidden.

    python benchmarks/transport_warnings.py                                 drawn scenes and drawn clips
    python benchmarks/transport_warnings.py --clips FOLDER [--fits PLACE]   also real clips

Discs of a sixteenth of the width are painted on each layer of a clip's middle frame, apart from one another.
For each of them and each frame it is known whether the disc's points lie more than two pixels from where they
belong, in the median: from the drawn truth, or on real clips from SIFT matches (mutual, ratio 0.6, at least
five in the disc), which nothing that is measured uses. That is held against the frames that the edit's own
warning names. `textures` is `--transport atlas`; `auto` is the default, which is asked where the default
carries the disc straight.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch

from atlas import NAMES, packed, run_in
from retouch.atlas.atlas import Atlas
from retouch.atlas.decompose import decompose_clip
from retouch.atlas.edit import PaintedFrame, Period, patches_from_frames
from retouch.atlas.paint_report import examine_paint
from retouch.atlas.pyramid import AtlasSettings
from retouch.atlas.transported_paint import slips_in_textures, transport_paint
from retouch.tracking.flow import remap
from retouch.video import Video
from retouch.world import Clip, Scene
from transport import CLIPS, fitted, solid, textures, upright
from transport_scenes import KEY, SCENES, Drawn, direct_shown, drawn

SLID: Final = 2.0
"""Pixels in the median from which on a disc has slid."""
FEWEST: Final = 20
"""Points of a disc that must be seen in a frame for it to count; five, where they are matches."""
DISCS: Final = 6
WORLD: Final = range(90_000, 90_012)
"""Seeds of drawn clips that no setting was chosen on."""

Judge = Callable[[int, np.ndarray, np.ndarray, np.ndarray], float | None]
"""How far a disc lies off in a frame, whose map says which places of the painted one it shows, and where."""


class Told(NamedTuple):
    """What was said of one disc in one frame, and what came of it."""

    slid: bool | None
    said: bool
    hidden: bool | None = None
    said_hidden: bool = False


def discs(own: np.ndarray, radius: float) -> Iterator[np.ndarray]:
    """Yield discs that lie well inside a layer, apart from one another."""
    room = cv2.distanceTransform(np.pad(own, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.mgrid[: own.shape[0], : own.shape[1]]
    for _ in range(DISCS):
        row, column = np.unravel_index(room.argmax(), room.shape)
        if room[row, column] < 0.7 * radius:
            return
        away = np.hypot(x - column, y - row)
        room[away < 2 * radius] = 0
        yield (away < radius) & own


def by_matches(video: Video, key: int) -> Judge:
    """Judge by features that are found again."""
    sift, matcher = cv2.SIFT.create(8000), cv2.BFMatcher()
    first = sift.detectAndCompute(upright(video, key), None)
    kept = dict[int, tuple[np.ndarray, np.ndarray]]()

    def pairs(t: int) -> tuple[np.ndarray, np.ndarray]:
        if t not in kept:
            second = sift.detectAndCompute(upright(video, t), None)
            there, back = (
                {
                    m.queryIdx: m.trainIdx
                    for m, n in matcher.knnMatch(a, b, k=2)
                    if m.distance < 0.6 * n.distance
                }
                for a, b in ((first[1], second[1]), (second[1], first[1]))
            )
            mutual = [(a, b) for a, b in there.items() if back.get(b) == a]
            kept[t] = (
                np.float32([first[0][a].pt for a, _ in mutual]).reshape(-1, 2),
                np.float32([second[0][b].pt for _, b in mutual]).reshape(-1, 2),
            )
        return kept[t]

    def judge(t: int, disc: np.ndarray, places: np.ndarray, known: np.ndarray) -> float | None:
        here, there = pairs(t)
        (u, v), (x, y) = (p.round().astype(int).T for p in (here, there))
        use = disc[v.clip(0, disc.shape[0] - 1), u.clip(0, disc.shape[1] - 1)]
        use &= known[y.clip(0, disc.shape[0] - 1), x.clip(0, disc.shape[1] - 1)]
        if use.sum() < 5:
            return None
        read = cv2.remap(places, *there[use].T[..., None], cv2.INTER_LINEAR)[:, 0]
        return float(np.median(np.linalg.norm(read - here[use], axis=1)))

    return judge


def by_surface(scene: Drawn) -> Judge:
    """Judge by where a painted surface truly lies."""
    surface = scene.surfaces[scene.painted]
    home = cv2.invertAffineTransform(surface.places[KEY])

    def judge(t: int, disc: np.ndarray, places: np.ndarray, known: np.ndarray) -> float | None:
        points = np.argwhere(disc & (scene.seen[KEY] == scene.painted))[:, ::-1].astype(float)
        at = (points @ home[:, :2].T + home[:, 2]) @ surface.places[t][:, :2].T + surface.places[t][:, 2]
        whole = cv2.erode((scene.seen[t] == scene.painted).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        near = np.rint(at).astype(int)
        size = np.array(disc.shape[::-1])
        u, v = near.clip(0, size - 1).T
        use = ((near >= 2) & (near < size - 2)).all(1) & (whole & known)[v, u]
        if use.sum() < FEWEST:
            return None
        read = cv2.remap(places, *at[use].astype(np.float32).T[..., None], cv2.INTER_LINEAR)[:, 0]
        return float(np.median(np.linalg.norm(read - points[use], axis=1)))

    return judge


def by_coordinates(clip: Clip, layer: int, key: int) -> Judge:
    """Judge by the coordinates that a drawn clip gives every pixel on its surface."""
    truth, share = clip.layers[layer].coordinates, clip.shares[:, layer]
    slope = np.stack([np.gradient(truth[key, i], axis=(1, 0)) for i in (0, 1)])

    def judge(t: int, disc: np.ndarray, places: np.ndarray, known: np.ndarray) -> float | None:
        whole = cv2.erode((share[t] == 255).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        use = whole & known & (remap(disc.astype(np.float32), places) > 0.5)
        if use.sum() < FEWEST:
            return None
        here = np.ascontiguousarray(truth[key].transpose(1, 2, 0), np.float32)
        wrong = (remap(here, places) - truth[t].transpose(1, 2, 0))[use]
        x, y = places[use].round().astype(int).clip(0, np.array(disc.shape[::-1]) - 1).T
        jacobian = np.moveaxis(slope[:, :, y, x], 2, 0).astype(np.float64)
        sound = np.abs(np.linalg.det(jacobian)) > 1e-9
        off = np.linalg.solve(jacobian[sound], wrong[sound][..., None])[..., 0]
        return float(np.median(np.linalg.norm(off, axis=1)))

    return judge


def hidden_in(scene: Drawn, disc: np.ndarray, t: int) -> bool | None:
    """Return whether most of a disc is covered by another surface; None where it is not in the picture."""
    surface = scene.surfaces[scene.painted]
    home = cv2.invertAffineTransform(surface.places[KEY])
    points = np.argwhere(disc & (scene.seen[KEY] == scene.painted))[:, ::-1].astype(float)
    at = (points @ home[:, :2].T + home[:, 2]) @ surface.places[t][:, :2].T + surface.places[t][:, 2]
    near, size = np.rint(at).astype(int), np.array(disc.shape[::-1])
    inside = ((near >= 0) & (near < size)).all(1)
    if len(points) < FEWEST or inside.sum() < 0.5 * len(points):
        return None
    u, v = near[inside].T
    return float((scene.seen[t][v, u] != scene.painted).mean()) > 0.5


def told_of_layer(
    video: Video, atlas: Atlas, key: int, layer: int, judge: Judge, scene: Drawn | None = None
) -> dict[str, list[Told]]:
    """Return what came of each disc on a layer in each frame, through the textures and by default."""
    maps = {
        "textures": {t: (p.astype(np.float32), k) for t, p, k in textures(video, atlas, key, layer)},
        "auto": {t: (p, k) for t, p, k in direct_shown(video, atlas, key, layer)},
    }
    rows: dict[str, list[Told]] = {"textures": [], "auto": []}
    whole = Period(0, len(video))
    own = solid(atlas, key, layer)
    if scene is not None:
        own &= scene.seen[key] == scene.painted
    for disc in discs(own, video.width / 16):
        cover = torch.from_numpy(disc).float()[None]
        shot = PaintedFrame(key, torch.zeros(3, *disc.shape), cover)
        patches = patches_from_frames(atlas, [shot], [layer])
        with tempfile.TemporaryDirectory() as place:
            run = run_in(place)
            straight = transport_paint(atlas, video, [shot], layers=[layer], choose=True, run=run)
            slips = slips_in_textures(atlas, video, [shot], layers=[layer], period=whole, run=run)
            reports = {"textures": examine_paint(atlas, video, patches, [key], whole, None, slips)}
            if straight.layers:
                reports["auto"] = examine_paint(atlas, video, patches, [key], whole, straight)
            for way, report in reports.items():
                sliding, hidden = set(report.sliding()), set(report.hidden())
                for t, (places, known) in maps[way].items():
                    if t != key:
                        off = judge(t, disc, places, known)
                        lost = hidden_in(scene, disc, t) if scene else None
                        rows[way].append(
                            Told(None if off is None else off > SLID, t in sliding, lost, t in hidden)
                        )
    return rows


def line(name: str, way: str, rows: list[Told]) -> str:
    """Return a row of the table."""
    slid = [row.said for row in rows if row.slid]
    still = [row.said for row in rows if row.slid is False]
    lost = [row.said_hidden for row in rows if row.hidden]
    seen = [row.said_hidden for row in rows if row.hidden is False]
    parts = (f"{sum(part)} of {len(part)}" if part else "-" for part in (slid, still, lost, seen))
    return f"| {name} | {way} | " + " | ".join(parts) + " |"


def all_clips(clips: Path | None, fits: Path | None) -> Iterator[tuple[str, dict[str, list[Told]]]]:
    """Yield what came of the discs on each clip."""
    for name in SCENES:
        scene = drawn(name)
        atlas = fit(scene.video, scene.share)
        layer = scene.surfaces[scene.painted].layer
        yield name, told_of_layer(scene.video, atlas, KEY, layer, by_surface(scene), scene)
    for seed in WORLD:
        clip = Clip.of(Scene.sample(seed), 16, (96, 160), Fraction(12))
        atlas = fit(clip.video, clip.shares[:, 0])
        for layer in (0, len(clip.layers) - 1):
            at = min(layer, len(NAMES) - 1)
            yield (
                "clips of the drawn world",
                told_of_layer(clip.video, atlas, 8, at, by_coordinates(clip, layer, 8)),
            )
    for name, (_, key) in CLIPS.items():
        if clips and (clips / f"{name}.mp4").exists():
            video, atlas, _ = fitted(clips, name, fits)
            for layer, what in enumerate(NAMES):
                yield f"{name}, {what}", told_of_layer(video, atlas, key, layer, by_matches(video, key))


def fit(video: Video, share: np.ndarray) -> Atlas:
    """Return the atlas of a clip whose object's share of each pixel is known."""
    with tempfile.TemporaryDirectory() as place:
        return decompose_clip(video, packed(share), NAMES, AtlasSettings(), run=run_in(place))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, help="folder with the clips")
    parser.add_argument("--fits", type=Path, help="folder that keeps the fitted atlases")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(
        "| clip | carried by | slid: said | did not: said | hidden: said | seen: said |\n|" + "---|" * 6,
        flush=True,
    )
    world: dict[str, list[Told]] = {"textures": [], "auto": []}
    for name, rows in all_clips(given.clips, given.fits):
        for way, found in rows.items():
            if name.startswith("clips"):
                world[way] += found
            elif found:
                print(line(name, way, found), flush=True)
    for way, found in world.items():
        print(line(f"{len(WORLD)} clips of the drawn world", way, found), flush=True)


if __name__ == "__main__":
    main()

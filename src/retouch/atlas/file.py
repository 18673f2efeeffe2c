"""The `.atlas` file: an atlas in one zip that any paint program can look into; and export for compositors.

    atlas.json               what it is: format, version, the clip's digest, layers, charts
    numbers.safetensors      matrices, controls, boxes, blends and gains of every chart
    textures/K.png           the texture of chart K, 16 bit
    textures/K.seen.png      how much of the clip showed each texel; 0 was filled in
    mattes/L/NNNNN.png       the matte of layer L in frame NNNNN, 8 bit

Members are stored, not compressed again. A reader ignores what it does not know, and refuses a file that asks
for a newer one.
"""

import json
import os
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt16
from safetensors import SafetensorError
from safetensors.torch import load as load_numbers
from safetensors.torch import save as save_numbers
from torch import Tensor

from retouch.atlas.atlas import Atlas, Chart, Mattes
from retouch.atlas.mapping import Mapping
from retouch.atlas.textures import as_picture
from retouch.errors import ArtifactError, InputError
from retouch.media.exr import write_exr
from retouch.video import Video

FORMAT: Final = "retouch-atlas"
VERSION: Final = 1
"""Goes up when an older reader would get it wrong; additions leave it alone."""
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The time of every member, so that the same atlas makes the same bytes."""
MOST: Final = 1 << 34
"""Bytes that a member may claim to hold."""
_DAMAGE: Final = (
    zipfile.BadZipFile,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    SafetensorError,
    cv2.error,
)


def save_atlas(atlas: Atlas, path: Path, *, force: bool = False) -> Path:
    """Write an atlas in one step: the file is there whole or not at all.

    Raises:
        InputError: the file exists and `force` is not given.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists", hint="choose another name, or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name, content in _members(atlas):
                archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _members(atlas: Atlas) -> "list[tuple[str, bytes]]":
    atlas = atlas.to("cpu")
    charts, pictures = [], []
    numbers: dict[str, Tensor] = {}
    for k, chart in enumerate(atlas.charts):
        most = max(1e-6, float(chart.seen.max()))
        charts.append(
            {
                "layer": chart.layer,
                "reference": chart.reference,
                "start": chart.start,
                "scale": chart.scale,
                "extent": list(chart.mapping.extent),
                "seen": most,
            }
        )
        parts = {
            "matrices": chart.mapping.matrices,
            "controls": chart.mapping.controls,
            "origins": chart.mapping.origins,
            "blend": chart.blend,
            "gain": chart.gain,
        }
        numbers |= {f"{k}.{name}": part.contiguous().clone() for name, part in parts.items()}
        pictures.append((f"textures/{k}.png", _png16(chart.texture)))
        pictures.append((f"textures/{k}.seen.png", _png16(chart.seen / most)))
    for layer, matte in enumerate(atlas.mattes):
        pictures += [(f"mattes/{layer}/{t:05d}.png", matte.packed_frame(t)) for t in range(len(matte))]
    described = {
        "format": FORMAT,
        "version": VERSION,
        "names": list(atlas.names),
        "frames": atlas.frames,
        "height": atlas.height,
        "width": atlas.width,
        "fps": str(atlas.fps),
        "source": atlas.source,
        "stage": atlas.stage,
        "settings": json.loads(atlas.settings),
        "charts": charts,
    }
    text = json.dumps(described, indent=1).encode()
    return [("atlas.json", text), ("numbers.safetensors", save_numbers(numbers)), *pictures]


def load_atlas(path: Path, video: Video | None = None) -> Atlas:
    """Read an atlas.

    Args:
        path: The file.
        video: The clip it should belong to, if that is to be checked.

    Raises:
        ArtifactError: it is no atlas, damaged, from a newer version, or of another clip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.file_size > MOST for member in archive.infolist()):
                raise ArtifactError(f"{path} claims to hold more than any atlas does")
            atlas = _read(archive, path)
    except FileNotFoundError:
        raise ArtifactError(f"there is no {path}", hint="make it: retouch atlas fit") from None
    except _DAMAGE as error:
        raise ArtifactError(
            f"{path} is no atlas, or damaged ({type(error).__name__}: {error})",
            hint="make it again: retouch atlas fit",
        ) from None
    if video is not None and atlas.source != video.digest:
        raise ArtifactError(f"{path} belongs to another clip", hint="make its own: retouch atlas fit")
    return atlas


def _read(archive: zipfile.ZipFile, path: Path) -> Atlas:
    said: dict[str, Any] = json.loads(archive.read("atlas.json"))
    if said.get("format") != FORMAT:
        raise ArtifactError(f"{path} is no atlas of this program", hint="make one: retouch atlas fit")
    if int(said["version"]) > VERSION:
        raise ArtifactError(
            f"{path} is of version {said['version']}; this program reads up to {VERSION}",
            hint="upgrade retouch",
        )
    frames, height, width = int(said["frames"]), int(said["height"]), int(said["width"])
    numbers = load_numbers(archive.read("numbers.safetensors"))
    charts = tuple(_chart(archive, numbers, k, one, height, width) for k, one in enumerate(said["charts"]))
    mattes = tuple(
        Mattes.pack([archive.read(f"mattes/{layer}/{t:05d}.png") for t in range(frames)], height, width)
        for layer in range(len(said["names"]) - 1)
    )
    if {chart.layer for chart in charts} != set(range(len(said["names"]))) or not mattes:
        raise ValueError("layers that do not fit together")
    if any(matte.frame(0).shape != (height, width) for matte in mattes):
        raise ValueError("parts that do not fit together")
    return Atlas(
        names=tuple(str(name) for name in said["names"]),
        charts=charts,
        mattes=mattes,
        frames=frames,
        height=height,
        width=width,
        fps=Fraction(said["fps"]),
        source=str(said["source"]),
        stage=str(said.get("stage", "")),
        settings=json.dumps(said.get("settings", {})),
    )


def _chart(
    archive: zipfile.ZipFile,
    numbers: dict[str, Tensor],
    k: int,
    said: dict[str, Any],
    height: int,
    width: int,
) -> Chart:
    matrices, controls = numbers[f"{k}.matrices"], numbers[f"{k}.controls"]
    if matrices.shape[1:] != (3, 3) or controls.shape[:2] != (len(matrices), 2):
        raise ValueError(f"chart {k} has mappings of odd shapes")
    extent = (float(said["extent"][0]), float(said["extent"][1]))
    mapping = Mapping(matrices, controls, numbers[f"{k}.origins"], extent, height, width)
    return Chart(
        layer=int(said["layer"]),
        reference=int(said["reference"]),
        start=int(said["start"]),
        mapping=mapping,
        scale=float(said["scale"]),
        blend=numbers[f"{k}.blend"],
        texture=_from_png16(archive.read(f"textures/{k}.png")),
        seen=_from_png16(archive.read(f"textures/{k}.seen.png"))[:1] * float(said["seen"]),
        gain=numbers[f"{k}.gain"],
    )


def _png16(picture: Float[Tensor, "c v u"]) -> bytes:
    return _packed16((picture.clamp(0, 1) * 65535).round().int().numpy().astype(np.uint16).transpose(1, 2, 0))


def _packed16(picture: UInt16[np.ndarray, "v u c"]) -> bytes:
    swapped = picture[..., ::-1] if picture.shape[2] == 3 else picture
    done, packed = cv2.imencode(".png", np.ascontiguousarray(swapped), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return bytes(packed.tobytes())


def _from_png16(content: bytes) -> Float[Tensor, "c v u"]:
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.uint16:
        raise ValueError("a texture cannot be read")
    picture = np.atleast_3d(picture)
    turned = picture[..., ::-1] if picture.shape[2] == 3 else picture
    return torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1)).astype(np.float32) / 65535)


def texture_name(atlas: Atlas, index: int) -> str:
    """Return the name of a chart's texture outside: the layer's, with a number if it has several."""
    chart = atlas.charts[index]
    row = sorted((c.start, i) for i, c in enumerate(atlas.charts) if c.layer == chart.layer)
    name = atlas.names[chart.layer]
    return name if len(row) == 1 else f"{name}.{[i for _, i in row].index(index)}"


def texture_index(atlas: Atlas, name: str) -> int:
    """Find the chart that goes by a name.

    Raises:
        InputError: none does.
    """
    names = [texture_name(atlas, i) for i in range(len(atlas.charts))]
    if name not in names:
        raise InputError(f"the atlas has no texture {name!r}", hint=f"it has {', '.join(names)}")
    return names.index(name)


def export(atlas: Atlas, folder: Path, *, force: bool = False, exr: bool = False) -> list[Path]:
    """Write textures, mattes and ST-maps as pictures that a compositor reads.

    An ST-map holds, for every pixel of a frame, where it lies in the texture: red is (x + 1/2) / width, green
    is 1 - (y + 1/2) / height, so that it counts from the lower left as compositors do; blue is how much the
    frame takes from this texture. Both are 16-bit PNG, or with `exr` OpenEXR with all that floats hold, which
    textures of thousands of texels need. Textures are 8-bit PNG, to be painted on.

    Raises:
        InputError: the folder holds files and `force` is not given.
    """
    if folder.exists() and any(folder.iterdir()) and not force:
        raise InputError(f"{folder} is not empty", hint="choose another folder, or --force")
    written = []
    atlas = atlas.to("cpu")
    for index, chart in enumerate(atlas.charts):
        name = texture_name(atlas, index)
        written.append(_write(folder / f"{name}.png", _png8(as_picture(chart.texture))))
        known = (chart.seen > 0.05).float()
        written.append(_write(folder / f"{name}.seen.png", _png8(as_picture(known))))
        written += [
            _written(folder / "st" / name / f"{t:05d}", st_map(atlas, index, t), exr=exr)
            for t in range(chart.start, chart.stop)
        ]
    for layer, name in enumerate(atlas.names):
        for t in range(atlas.frames):
            share = atlas.shares(t, t + 1)[layer][0]
            written.append(_written(folder / "mattes" / name / f"{t:05d}", share, exr=exr))
    return written


def _written(stem: Path, picture: Float[Tensor, "c h w"], *, exr: bool) -> Path:
    """Return a picture for compositors: grey or in three colours."""
    if not exr:
        return _write(stem.with_suffix(".png"), _png16(picture))
    stem.parent.mkdir(parents=True, exist_ok=True)
    names = "RGB" if len(picture) == 3 else "Y"
    return write_exr(stem.with_suffix(".exr"), dict(zip(names, picture.numpy(), strict=True)))


def st_map(atlas: Atlas, index: int, t: int) -> Float[Tensor, "3 h w"]:
    """Return where each pixel of a frame lies in a chart's texture, as `export` says it."""
    chart = atlas.charts[index]
    part = chart.part(t, t + 1)
    window = part.window()
    size = chart.texture.new_tensor([chart.texture.shape[2], chart.texture.shape[1]])[:, None, None]
    at = (part.uv(window) + 0.5) / size
    taken = torch.full_like(at[:, :1], float(chart.blend[t - chart.start]))
    return window.paste(torch.cat([at[:, :1], 1 - at[:, 1:], taken], 1), atlas.height, atlas.width)[0]


def _png8(picture: np.ndarray) -> bytes:
    swapped = picture[..., ::-1] if picture.shape[2] == 3 else picture
    done, packed = cv2.imencode(".png", np.ascontiguousarray(swapped))
    assert done
    return bytes(packed.tobytes())


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path

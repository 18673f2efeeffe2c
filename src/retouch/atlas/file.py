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
import zipfile
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Annotated, Final, TypeVar, final

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt16
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load as load_numbers
from safetensors.torch import save as save_numbers
from torch import Tensor

from retouch.atlas.atlas import Atlas, Chart, PackedMattes
from retouch.atlas.mapping import ChartMapping
from retouch.atlas.textures import as_picture
from retouch.compute import Compute
from retouch.errors import ArtifactError, InputError, RetouchError
from retouch.files import replace_whole
from retouch.media.exr import write_exr
from retouch.media.opening import LARGEST_PICTURE, LARGEST_SIDE
from retouch.media.png import check_rows, read_png_header
from retouch.models.estimate import Estimate
from retouch.regular import open_regular
from retouch.video import Video

FORMAT: Final = "retouch-atlas"
VERSION: Final = 1
"""Goes up when an older reader would get it wrong; additions leave it alone."""
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The time of every member, so that the same atlas makes the same bytes."""
NAME: Final = r"[a-z0-9 _-]{1,64}"
"""What a layer may be called: `export_atlas` writes files of that name."""
_MOST_CONTROLS: Final = 1 << 14
_MOST_GAINS: Final = 1 << 10
_LARGEST_NUMBER: Final = 1e9
_BLEND_SLACK: Final = 1e-2
_STRICT: Final = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

M = TypeVar("M", bound=BaseModel)


def save_atlas(atlas: Atlas, path: Path, *, force: bool = False) -> Path:
    """Write an atlas in one step: the file is there whole or not at all.

    Raises:
        VideoError: the file exists and `force` is not given.
    """
    with (
        replace_whole(path, force=force) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, content in _read_members(atlas):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
    return path


def _read_members(atlas: Atlas) -> "list[tuple[str, bytes]]":
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
        pictures.append((f"textures/{k}.png", _encode_png16(chart.texture)))
        pictures.append((f"textures/{k}.seen.png", _encode_png16(chart.seen / most)))
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
        "first": atlas.first,
        "stage": atlas.stage,
        "settings": json.loads(atlas.settings),
        "charts": charts,
    }
    text = json.dumps(described, indent=1).encode()
    return [("atlas.json", text), ("numbers.safetensors", save_numbers(numbers)), *pictures]


Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Counted = Annotated[int, Field(ge=0, lt=1 << 20)]
Length = Annotated[float, Field(gt=0, le=1 << 16)]


@final
class _ChartFacts(BaseModel):
    """What `atlas.json` says of one chart."""

    model_config = _STRICT

    layer: Counted
    reference: Counted
    start: Counted
    scale: Annotated[float, Field(gt=0, le=16)]
    extent: tuple[Length, Length]
    seen: Annotated[float, Field(gt=0, le=1e9)]


@final
class _Kind(BaseModel):
    """What every version of the file says."""

    model_config = _STRICT

    format: str
    version: int


@final
class _Facts(BaseModel):
    """What `atlas.json` says."""

    model_config = _STRICT

    names: Annotated[tuple[Name, ...], Field(min_length=2, max_length=64)]
    frames: Annotated[int, Field(ge=1, lt=1 << 20)]
    height: Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
    width: Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
    fps: Annotated[str, Field(pattern=r"^[1-9]\d{0,8}(/[1-9]\d{0,8})?$")]
    source: Annotated[str, Field(max_length=256)]
    first: Counted = 0
    stage: Annotated[str, Field(max_length=256)] = ""
    settings: dict[str, object] = Field(default_factory=dict)
    charts: Annotated[tuple[_ChartFacts, ...], Field(min_length=1, max_length=4096)]


def load_atlas(path: Path, video: Video | None = None) -> Atlas:
    """Read an atlas.

    Args:
        path: The file.
        video: The clip it should belong to, if that is to be checked.

    Raises:
        ArtifactError: it is no atlas, damaged, from a newer version, or of another clip.
        OutOfBudget: its textures do not fit into memory.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            atlas = _read_member(archive, path)
    except RetouchError:
        raise
    except FileNotFoundError:
        raise ArtifactError(f"there is no {path}", hint="make it: retouch atlas fit") from None
    except Exception as error:  # readers meet strangers' bytes with whatever exception comes up in them
        said = str(error).strip("'\"") or type(error).__name__
        raise ArtifactError(
            f"{path} is no atlas, or damaged: {said}", hint="make it again: retouch atlas fit"
        ) from None
    if video is not None and atlas.source != video.digest:
        raise ArtifactError(f"{path} belongs to another clip", hint="make its own: retouch atlas fit")
    return atlas


def _read_member(archive: zipfile.ZipFile, path: Path) -> Atlas:
    text = _member(archive, "atlas.json", 1 << 22)
    kind = _validated(_Kind, text)
    if kind.format != FORMAT:
        raise ArtifactError(f"{path} is no atlas of this program", hint="make one: retouch atlas fit")
    if kind.version > VERSION:
        raise ArtifactError(
            f"{path} is of version {kind.version}; this program reads up to {VERSION}", hint="upgrade retouch"
        )
    said = _validated(_Facts, text)
    if len(set(said.names)) < len(said.names):
        raise ValueError("atlas.json: two layers have one name")
    knots = len(said.charts) * said.frames * (12 + 2 * _MOST_CONTROLS + 3 * _MOST_GAINS)
    _require(8 * min(knots, archive.start_dir))
    numbers = load_numbers(_member(archive, "numbers.safetensors", 8 * knots + (1 << 16)))
    charts = tuple(_read_chart(archive, numbers, k, said) for k in range(len(said.charts)))
    blends = torch.zeros(len(said.names), said.frames)
    for chart in charts:
        blends[chart.layer, chart.start : chart.stop] += chart.blend
    if not torch.allclose(blends, torch.ones(()), atol=_BLEND_SLACK):
        layer, t = divmod(int((blends - 1).abs().argmax()), said.frames)
        raise ValueError(f"numbers.safetensors: {said.names[layer]!r} has no whole picture of frame {t}")
    mattes = tuple(
        PackedMattes.pack(
            [_matte(archive, layer, t, said) for t in range(said.frames)], said.height, said.width
        )
        for layer in range(len(said.names) - 1)
    )
    return Atlas(
        names=said.names,
        charts=charts,
        mattes=mattes,
        frames=said.frames,
        height=said.height,
        width=said.width,
        fps=Fraction(said.fps),
        source=said.source,
        first=said.first,
        stage=said.stage,
        settings=json.dumps(said.settings),
    )


def _validated(kind: type[M], text: bytes) -> M:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"atlas.json: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The bytes of a member, which is stored as it is and has no more of them than it may."""
    if name not in archive.NameToInfo:
        raise ValueError(f"{name} is missing")
    told = archive.getinfo(name)
    if told.compress_type != zipfile.ZIP_STORED or told.compress_size != told.file_size:
        raise ValueError(f"{name} is compressed; members are stored as they are")
    if told.file_size > most:
        raise ValueError(f"{name} has {told.file_size} bytes, more than its clip needs")
    try:
        return archive.read(name)
    except Exception as error:
        raise ValueError(f"{name}: {error or type(error).__name__}") from None


def _require(size: int) -> None:
    """Refuse what memory has no room for, before any of it is taken."""
    Estimate(size).require(Compute())


def _read_chart(archive: zipfile.ZipFile, numbers: dict[str, Tensor], k: int, clip: _Facts) -> Chart:
    said = clip.charts[k]
    matrices = _numbers(numbers, f"{k}.matrices", -1, 3, 3)
    f = len(matrices)
    controls = _numbers(numbers, f"{k}.controls", f, 2, -1, -1)
    gain = _numbers(numbers, f"{k}.gain", f, 3, -1, -1)
    for name, grid, most in (("controls", controls, _MOST_CONTROLS), ("gain", gain, _MOST_GAINS)):
        if min(grid.shape[2:]) < 4 or grid.shape[2] * grid.shape[3] > most:
            raise ValueError(f"numbers.safetensors: {k}.{name} has a grid of {tuple(grid.shape[2:])}")
    if not (said.layer < len(clip.names) and said.reference < clip.frames and said.start + f <= clip.frames):
        raise ValueError(f"atlas.json: charts.{k} speaks of layers or frames that are not there")
    side = 64 + 9 * said.scale * max(clip.height, clip.width)
    mapping = ChartMapping(
        matrices, controls, _numbers(numbers, f"{k}.origins", f, 2), said.extent, clip.height, clip.width
    )
    texture = _texture(archive, f"textures/{k}.png", 3, side)
    seen = _texture(archive, f"textures/{k}.seen.png", 1, side)
    if seen.shape[1:] != texture.shape[1:]:
        raise ValueError(f"textures/{k}.seen.png is of another size than textures/{k}.png")
    return Chart(
        layer=said.layer,
        reference=said.reference,
        start=said.start,
        mapping=mapping,
        scale=said.scale,
        blend=_numbers(numbers, f"{k}.blend", f),
        texture=texture,
        seen=seen * said.seen,
        gain=gain,
    )


def _numbers(numbers: dict[str, Tensor], name: str, *shape: int) -> Tensor:
    """A tensor of this shape, in which -1 stands for any length."""
    if name not in numbers:
        raise ValueError(f"numbers.safetensors: {name} is missing")
    tensor = numbers[name]
    fits = tensor.ndim == len(shape) and all(n in (-1, m) for n, m in zip(shape, tensor.shape, strict=True))
    if not fits or tensor.dtype not in (torch.float32, torch.float64) or not tensor.numel():
        raise ValueError(f"numbers.safetensors: {name} is {tensor.dtype} {tuple(tensor.shape)}")
    if not bool((tensor.abs() < _LARGEST_NUMBER).all()):  # what is no number is not smaller either
        raise ValueError(f"numbers.safetensors: {name} holds what is no number, or none that can be meant")
    return tensor


def _texture(archive: zipfile.ZipFile, name: str, channels: int, side: float) -> Float[Tensor, "c v u"]:
    content = _picture(archive, name, 16, channels, lambda width, height: max(width, height) <= side)
    picture = np.atleast_3d(np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)))
    turned = picture[..., ::-1] if channels == 3 else picture
    return torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1)).astype(np.float32) / 65535)


def _matte(archive: zipfile.ZipFile, layer: int, t: int, clip: _Facts) -> bytes:
    fits = (clip.width, clip.height)
    return _picture(archive, f"mattes/{layer}/{t:05d}.png", 8, 1, lambda *size: size == fits)


def _picture(
    archive: zipfile.ZipFile, name: str, bits: int, channels: int, fits: Callable[[int, int], bool]
) -> bytes:
    """The bytes of a PNG that has this depth, a size that fits, and all its rows."""
    content = _member(archive, name, 2 * channels * LARGEST_PICTURE)
    try:
        told = read_png_header(BytesIO(content))
        if max(told.width, told.height) > LARGEST_SIDE or not fits(told.width, told.height):
            raise ValueError(f"it is {told.width}x{told.height}, which its clip does not justify")
        if (told.bits, told.channels) != (bits, channels):
            raise ValueError(f"it has {told.channels} channels of {told.bits} bits")
        _require(4 * channels * told.width * told.height)
        check_rows(BytesIO(content))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return content


def _encode_png16(picture: Float[Tensor, "c v u"]) -> bytes:
    return _pack_sixteen(
        (picture.clamp(0, 1) * 65535).round().int().numpy().astype(np.uint16).transpose(1, 2, 0)
    )


def _pack_sixteen(picture: UInt16[np.ndarray, "v u c"]) -> bytes:
    swapped = picture[..., ::-1] if picture.shape[2] == 3 else picture
    done, packed = cv2.imencode(".png", np.ascontiguousarray(swapped), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return bytes(packed.tobytes())


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


def export_atlas(atlas: Atlas, folder: Path, *, force: bool = False, exr: bool = False) -> list[Path]:
    """Write textures, mattes and ST-maps as pictures that a compositor reads.

    An ST-map holds, for every pixel of a frame, where it lies in the texture: red is (x + 1/2) / width, green
    is 1 - (y + 1/2) / height, so that it counts from the lower left as compositors do; blue is how much the
    frame takes from this texture. Both are 16-bit PNG, or with `exr` OpenEXR with all that floats hold, which
    textures of thousands of texels need. Textures are 8-bit PNG, to be painted on.

    Raises:
        VideoError: the folder holds files and `force` is not given, or files that are not of an export.
    """
    with replace_whole(folder, force=force, folder=True) as draft:
        written = [path.relative_to(draft) for path in _export_into(draft, atlas, exr=exr)]
    return [folder / path for path in written]


def _export_into(folder: Path, atlas: Atlas, *, exr: bool) -> list[Path]:
    written = []
    atlas = atlas.to("cpu")
    for index, chart in enumerate(atlas.charts):
        name = texture_name(atlas, index)
        written.append(_write_member(folder / f"{name}.png", _encode_png8(as_picture(chart.texture))))
        known = (chart.seen > 0.05).float()
        written.append(_write_member(folder / f"{name}.seen.png", _encode_png8(as_picture(known))))
        written += [
            _write_compositor(folder / "st" / name / f"{t:05d}", st_map(atlas, index, t), exr=exr)
            for t in range(chart.start, chart.stop)
        ]
    for layer, name in enumerate(atlas.names):
        for t in range(atlas.frames):
            share = atlas.shares(t, t + 1)[layer][0]
            written.append(_write_compositor(folder / "mattes" / name / f"{t:05d}", share, exr=exr))
    return written


def _write_compositor(stem: Path, picture: Float[Tensor, "c h w"], *, exr: bool) -> Path:
    """Return a picture for compositors: grey or in three colours."""
    if not exr:
        return _write_member(stem.with_suffix(".png"), _encode_png16(picture))
    stem.parent.mkdir(parents=True, exist_ok=True)
    names = "RGB" if len(picture) == 3 else "Y"
    return write_exr(stem.with_suffix(".exr"), dict(zip(names, picture.numpy(), strict=True)))


def st_map(atlas: Atlas, index: int, t: int) -> Float[Tensor, "3 h w"]:
    """Return where each pixel of a frame lies in a chart's texture, as `export_atlas` says it."""
    chart = atlas.charts[index]
    part = chart.part(t, t + 1)
    window = part.window()
    size = chart.texture.new_tensor([chart.texture.shape[2], chart.texture.shape[1]])[:, None, None]
    at = (part.uv(window) + 0.5) / size
    taken = torch.full_like(at[:, :1], float(chart.blend[t - chart.start]))
    return window.paste(torch.cat([at[:, :1], 1 - at[:, 1:], taken], 1), atlas.height, atlas.width)[0]


def _encode_png8(picture: np.ndarray) -> bytes:
    swapped = picture[..., ::-1] if picture.shape[2] == 3 else picture
    done, packed = cv2.imencode(".png", np.ascontiguousarray(swapped))
    assert done
    return bytes(packed.tobytes())


def _write_member(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path

"""How a clip is to be written: what the user may ask for, and which encoder, pixels and container that means.

Imports no torch.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Literal, final

import av

from retouch.errors import ParamsError, VideoError

Codec = Literal["auto", "h264", "hevc", "vp9", "av1", "prores", "ffv1", "gif", "png"]


@final
@dataclass(frozen=True)
class Encoding:
    """What to write with. `codec="auto"` goes by the suffix of the file: H.264 for most.

    `lossless` keeps every RGB byte; `crf` is the codec's own scale of quality, lower is better; `sound=False`
    leaves the source's audio out.
    """

    codec: Codec = "auto"
    crf: int | None = None
    lossless: bool = False
    bits: Literal[8, 10] = 8
    sound: bool = True

    def check_codec(self, codec: str) -> None:
        """Refuse what a codec cannot do.

        Raises:
            ParamsError: names a codec that can.
        """
        if self.lossless and codec in _LOSSY_ONLY:
            raise ParamsError(
                f"{_LOSSY_ONLY[codec]} does not keep every RGB byte",
                hint="Use ffv1 in .mkv, or a folder of PNG files.",
            )
        if self.bits == 10 and (codec not in ("h264", "hevc", "av1", "prores") or self.lossless):
            raise ParamsError(
                f"{'lossless ' * self.lossless}{codec} is not written with 10 bits",
                hint="Use hevc, h264, av1 or prores, not lossless; frames have 8 bits, so 8 lose nothing.",
            )
        if self.crf is not None:
            largest = _LARGEST_CRF.get(codec)
            if largest is None:
                raise ParamsError(
                    f"{codec} has no crf", hint="Leave --crf out, or use h264, hevc, vp9 or av1."
                )
            if not 0 <= self.crf <= largest:
                raise ParamsError(f"crf is {self.crf}; {codec} takes 0 to {largest}", hint="Lower is better.")

    def encoder_for(self, codec: str, *, odd: bool, alpha: bool) -> tuple[str, str, dict[str, str]]:
        """Return the encoder of a codec, its pixel format and its options."""
        crf = str(_USUAL_CRF.get(codec, 0) if self.crf is None else self.crf)
        deep = "10le" if self.bits == 10 else ""
        half = ("yuv444p" if odd else "yuv420p") + deep
        clear = "a" if alpha else ""
        if self.lossless and codec == "h264":
            return "libx264rgb", "rgb24", {"qp": "0", "preset": "veryfast"}
        if self.lossless and codec == "hevc":
            return "libx265", "gbrp", {"preset": "fast", "x265-params": "lossless=1:log-level=none"}
        if self.lossless and codec == "vp9":
            return "libvpx-vp9", "gbrp", {"lossless": "1", "cpu-used": "4"}
        if codec == "vp9":
            options = {"crf": crf, "b": "0", "cpu-used": "3", **({"auto-alt-ref": "0"} if alpha else {})}
            return "libvpx-vp9", f"yuv{clear}420p", options
        if codec == "prores":
            options = {"profile": "4444" if alpha else "hq"}
            return "prores_ks", "yuva444p10le" if alpha else "yuv422p10le", options
        kinds: dict[str, tuple[str, str, dict[str, str]]] = {
            "h264": ("libx264", half, {"crf": crf, "preset": "medium", **_SAME_BYTES}),
            "hevc": ("libx265", half, {"crf": crf, "preset": "medium", "x265-params": "log-level=none"}),
            "av1": ("libsvtav1", f"yuv420p{deep}", {"crf": crf, "preset": "7"}),
            "ffv1": ("ffv1", "bgra" if alpha else "bgr0", {"level": "3", "slicecrc": "1", "g": "1"}),
            # Frames have palettes of their own, between which the encoder's savings go wrong.
            "gif": ("gif", "pal8", {"gifflags": "-offsetting-transdiff"}),
            "apng": ("apng", "rgba" if alpha else "rgb24", {}),
        }
        return kinds[codec]


@final
@dataclass(frozen=True)
class EncoderSettings:
    """A decided encoding: what FFmpeg is asked for. `container` is "" for a folder of PNG files."""

    codec: str
    container: str
    encoder: str = ""
    pixel_format: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""
    remarks: tuple[str, ...] = ()

    def check_source(self, path: Path, *, fps: Fraction, variable_rate: bool, sounds: Iterable[str]) -> None:
        """Refuse a container that cannot show frames when they are to be shown, or does not take the audio.

        Raises:
            VideoError: names a container that can.
        """
        if self.container == "avi" and variable_rate:
            raise VideoError(
                "AVI has no variable rate, which the source has", hint=f"Use {path.with_suffix('.mkv')}."
            )
        if self.container == "gif" and fps > 50:
            raise VideoError(
                f"GIF shows at most 50 frames a second; the clip has {float(fps):.2f}",
                hint=f"Use {path.with_suffix('.apng')} or {path.with_suffix('.mp4')}.",
            )
        for codec in () if self.container in SILENT else sounds:
            if not _carries(self.container, codec):
                raise VideoError(
                    f"{path.suffix} does not hold the source's {codec} audio",
                    hint="Write to .mkv, which holds it, or leave it out with Encoding(sound=False).",
                )


# Suffix: the container's name at FFmpeg, and the codecs it takes, the default first.
_CONTAINERS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        ".mp4": ("mp4", ("h264", "hevc", "av1", "vp9")),
        ".m4v": ("mp4", ("h264", "hevc")),
        ".mov": ("mov", ("h264", "hevc", "prores")),
        ".mkv": ("matroska", ("h264", "hevc", "vp9", "av1", "prores", "ffv1")),
        ".webm": ("webm", ("vp9", "av1")),
        ".avi": ("avi", ("h264", "ffv1")),
        ".gif": ("gif", ("gif",)),
        ".apng": ("apng", ("apng",)),
        "": ("", ("png",)),
    }
)
SILENT = ("", "gif", "apng")
"""Containers without audio."""
_LOSSLESS_DEFAULT = MappingProxyType({".mkv": "ffv1", ".avi": "ffv1"})
_WITH_ALPHA = frozenset({"prores", "ffv1", "vp9", "png", "apng", "gif"})
_LOSSY_ONLY = MappingProxyType({"prores": "ProRes", "gif": "GIF", "av1": "the AV1 encoder"})
_LARGEST_CRF = MappingProxyType({"h264": 51, "hevc": 51, "vp9": 63, "av1": 63})
_USUAL_CRF = MappingProxyType({"h264": 17, "hevc": 19, "vp9": 22, "av1": 24})


# x264's macroblock tree reads memory that nobody has set, in its AVX-512 code and on pictures of few blocks:
# the same clip then becomes other bytes now and then. Without those instructions it does not, and is as fast.
_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
_SAME_BYTES = {"x264-params": "asm=avx2"} if _ON_X86 else {}
# Below this width x265's AVX2 code writes behind its buffers, and the process dies of it sooner or later. The
# library chooses its code once a process, so that an encoder cannot be told to do without.
_LEAST_HEVC_WIDTH = 64


def choose_settings(
    path: Path, encoding: Encoding, *, width: int, height: int, alpha: bool
) -> EncoderSettings:
    """Decides how to write pictures of a size to `path`.

    Raises:
        VideoError: if the suffix is unknown, or the container does not take the codec.
        ParamsError: if the codec cannot do what is asked of it.
    """
    suffix = path.suffix.lower()
    if suffix not in _CONTAINERS:
        raise VideoError(
            f"no clip is written as {path.suffix}",
            hint=f"Use {', '.join(filter(None, _CONTAINERS))}, or a name without suffix for PNG files.",
        )
    container, codecs = _CONTAINERS[suffix]
    codec: str = encoding.codec
    if codec == "auto":
        codec = _LOSSLESS_DEFAULT.get(suffix, codecs[0]) if encoding.lossless else codecs[0]
    if codec not in codecs:
        others = [known for known, (_, taken) in _CONTAINERS.items() if codec in taken]
        place = others[0] or "a name without suffix, for a folder"
        raise VideoError(
            f"{path.suffix or 'a folder'} does not hold {codec}", hint=f"Write to {place} instead."
        )
    if codec == "hevc" and width < _LEAST_HEVC_WIDTH:
        raise VideoError(
            f"HEVC is written from {_LEAST_HEVC_WIDTH} pixels of width on; the clip has {width}",
            hint="Use h264, or ffv1 in .mkv.",
        )
    encoding.check_codec(codec)
    remarks: tuple[str, ...] = ()
    if alpha and (codec not in _WITH_ALPHA or (codec == "vp9" and encoding.lossless)):
        alpha = False
        remarks = (
            f"{codec} has no alpha here and it is left out; .mov with prores and .mkv with ffv1 keep it",
        )
    if container == "":
        return EncoderSettings(codec, container, remarks=remarks)
    encoder, pixel_format, options = encoding.encoder_for(
        codec, odd=bool(width % 2 or height % 2), alpha=alpha
    )
    if pixel_format.startswith("yuv444") and codec in ("h264", "hevc"):
        remarks = (
            *remarks,
            f"{width}x{height} has an odd side, so colour is kept at full size (4:4:4): not for all players",
        )
    if container == "avi" and codec == "h264":
        options["bf"] = "0"  # AVI has no timestamps to bring frames back into order with
    tag = "hvc1" if codec == "hevc" and container in ("mp4", "mov") else ""
    return EncoderSettings(codec, container, encoder, pixel_format, MappingProxyType(options), tag, remarks)


def _carries(container: str, codec: str) -> bool:
    """Whether a container takes an audio codec, by FFmpeg's own list."""
    codec = {"mp3float": "mp3", "libopus": "opus", "libvorbis": "vorbis"}.get(codec, codec)
    with av.open(BytesIO(), "w", format=container) as empty:
        return codec in empty.supported_codecs

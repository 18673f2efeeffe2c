"""The atlas file: comes back as it was, and refuses what is not one."""

import json
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from retouch.atlas.atlas import Atlas
from retouch.atlas.file import export_atlas, load_atlas, save_atlas, st_map, texture_index, texture_name
from retouch.errors import ArtifactError, InputError
from retouch.video import Video

SIXTEEN_BITS = 1 / 65535


def test_an_atlas_comes_back_as_it_was(atlas: Atlas, clip: Video, tmp_path: Path) -> None:
    back = load_atlas(save_atlas(atlas, tmp_path / "a.atlas"), clip)
    assert (back.names, back.frames, back.fps, back.source) == (
        atlas.names,
        atlas.frames,
        atlas.fps,
        atlas.source,
    )
    for ours, theirs in zip(atlas.charts, back.charts, strict=True):
        assert torch.equal(ours.mapping.matrices, theirs.mapping.matrices)
        assert torch.equal(ours.mapping.controls, theirs.mapping.controls)
        assert ours.mapping.extent == theirs.mapping.extent
        assert float((ours.texture - theirs.texture).abs().max()) < SIXTEEN_BITS
    np.testing.assert_array_equal(atlas.mattes[0].frames(0, 10), back.mattes[0].frames(0, 10))
    assert torch.allclose(back.reconstruct(3, 5), atlas.reconstruct(3, 5), atol=1e-3)


def test_the_same_atlas_makes_the_same_bytes_twice(atlas: Atlas, tmp_path: Path) -> None:
    one, two = save_atlas(atlas, tmp_path / "a.atlas"), save_atlas(atlas, tmp_path / "b.atlas")
    assert one.read_bytes() == two.read_bytes()
    again = save_atlas(load_atlas(one), tmp_path / "c.atlas")
    assert again.read_bytes() == one.read_bytes()


def test_an_existing_file_is_not_overwritten(atlas: Atlas, tmp_path: Path) -> None:
    path = tmp_path / "a.atlas"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        save_atlas(atlas, path)
    assert path.read_bytes() == b"mine"
    save_atlas(atlas, path, force=True)
    assert load_atlas(path).frames == 10
    assert [p.name for p in tmp_path.iterdir()] == ["a.atlas"]


def test_an_atlas_of_another_clip_is_refused(atlas: Atlas, clip: Video, tmp_path: Path) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    with pytest.raises(ArtifactError, match="another clip"):
        load_atlas(path, clip[:4])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(atlas: Atlas, tmp_path: Path, share: float) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError):
        load_atlas(path)


def test_a_flipped_bit_is_noticed(atlas: Atlas, tmp_path: Path) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="damaged"):
        load_atlas(path)


def rewritten(path: Path, **changes: object) -> Path:
    """The file with other words in its description."""
    members = members_of(path)
    members["atlas.json"] = json.dumps({**json.loads(members["atlas.json"]), **changes}).encode()
    return packed(path, members)


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_newer_version_is_refused_and_unknown_words_are_not(atlas: Atlas, tmp_path: Path) -> None:
    path = rewritten(save_atlas(atlas, tmp_path / "a.atlas"), weather="fine")
    assert load_atlas(path).frames == 10
    with pytest.raises(ArtifactError, match="version 99"):
        load_atlas(rewritten(path, version=99))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "tar"},
        {"frames": 400},
        {"names": []},
        {"names": ["car", "car"]},
        {"names": {"car": 1}},
        {"height": "tall"},
        {"height": 1 << 40},
        {"charts": []},
        {"charts": {}},
        {"fps": "x"},
        {"fps": "1/0"},
        {"fps": "1e999"},
        {"fps": 25},
        {"settings": []},
        {"version": "1"},
    ],
)
def test_a_description_that_does_not_fit_is_refused_and_its_place_told(
    atlas: Atlas, tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(ArtifactError) as caught:
        load_atlas(rewritten(save_atlas(atlas, tmp_path / "a.atlas"), **changes))
    assert any(
        word in str(caught.value)
        for word in (*changes, "no atlas of this program", "no whole picture", "two layers")
    )
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "[]", "-1", "null"])
@pytest.mark.parametrize("place", ["scale", "seen", "extent", "start"])
def test_a_number_that_is_none_is_refused_with_its_place(
    atlas: Atlas, tmp_path: Path, place: str, number: str
) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    members = members_of(path)
    said = json.loads(members["atlas.json"])
    said["charts"][0][place] = [1.5, "HERE"] if place == "extent" else "HERE"
    members["atlas.json"] = json.dumps(said).replace('"HERE"', number).encode()
    with pytest.raises(ArtifactError, match=r"atlas\.json"):
        load_atlas(packed(path, members))


def test_numbers_that_are_none_or_of_other_shapes_are_refused_with_their_place(
    atlas: Atlas, tmp_path: Path
) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    members = members_of(path)
    sound = load(members["numbers.safetensors"])
    for name, value in sound.items():
        broken = value.clone()
        broken.flatten()[0] = float("nan")
        for wrong in (broken, value[..., :0], value[None], value.to(torch.int64)):
            content = save({**sound, name: wrong.contiguous()})
            with pytest.raises(ArtifactError, match=f"numbers.safetensors: {name}"):
                load_atlas(packed(path, {**members, "numbers.safetensors": content}))
        left = {key: tensor for key, tensor in sound.items() if key != name}
        with pytest.raises(ArtifactError, match=f"numbers.safetensors: {name} is missing"):
            load_atlas(packed(path, {**members, "numbers.safetensors": save(left)}))
    half = {**sound, "0.blend": sound["0.blend"] / 2}
    with pytest.raises(ArtifactError, match="no whole picture of frame"):
        load_atlas(packed(path, {**members, "numbers.safetensors": save(half)}))


def test_odd_pictures_are_refused_with_their_place(atlas: Atlas, tmp_path: Path) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    members = members_of(path)
    height, width = atlas.height, atlas.width
    pictures = {
        "small": np.zeros((8, 8), np.uint8),
        "deep": np.zeros((height, width), np.uint16),
        "colour": np.zeros((height, width, 3), np.uint8),
        "vast": np.zeros((1, 16384), np.uint16),
    }
    for name in ("mattes/0/00003.png", "textures/0.png", "textures/0.seen.png"):
        for picture in pictures.values():
            content = bytes(cv2.imencode(".png", picture)[1].tobytes())
            with pytest.raises(ArtifactError, match=name):
                load_atlas(packed(path, {**members, name: content}))
        for content in (b"%!PS-Adobe", b"", members[name][:-40], members[name][:60] + members[name][90:]):
            with pytest.raises(ArtifactError, match=name):
                load_atlas(packed(path, {**members, name: content}))
        with pytest.raises(ArtifactError, match=f"{name} is missing"):
            load_atlas(packed(path, {key: value for key, value in members.items() if key != name}))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(atlas: Atlas, tmp_path: Path, method: int) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    with pytest.raises(ArtifactError, match="is compressed"):
        load_atlas(packed(path, members_of(path), method=method))


def test_a_packing_that_nobody_knows_is_refused(atlas: Atlas, tmp_path: Path) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    for _ in range(len(members_of(path))):
        content[at + 10 : at + 12] = b"\x63\0"
        at = content.rfind(b"PK\1\2", 0, at)
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="compressed"):
        load_atlas(path)


def test_a_member_larger_than_the_clip_needs_is_refused_unread(atlas: Atlas, tmp_path: Path) -> None:
    path = save_atlas(atlas, tmp_path / "a.atlas")
    members = members_of(path)
    with pytest.raises(ArtifactError, match=r"atlas\.json has 4195000 bytes"):
        load_atlas(packed(path, {**members, "atlas.json": bytes(4_195_000)}))
    content = save({"0.matrices": torch.zeros(1 << 24)})
    with pytest.raises(ArtifactError, match=r"numbers\.safetensors has"):
        load_atlas(packed(path, {**members, "numbers.safetensors": content}))


@pytest.mark.parametrize("name", ["../up", "/etc/up", "a/b", "Car", "a.b", "", "x" * 65, "a\nb", "ü"])
def test_a_layer_whose_name_could_be_a_path_is_refused(atlas: Atlas, tmp_path: Path, name: str) -> None:
    path = rewritten(save_atlas(atlas, tmp_path / "a.atlas"), names=[name, "background"])
    with pytest.raises(ArtifactError, match=r"names\.0"):
        load_atlas(path)


def test_what_is_not_there_or_no_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no"):
        load_atlas(tmp_path / "none.atlas")
    (tmp_path / "text.atlas").write_text("hello")
    with pytest.raises(ArtifactError, match="no atlas"):
        load_atlas(tmp_path / "text.atlas")


def test_names_of_textures_lead_back_to_their_charts(atlas: Atlas) -> None:
    for index in range(len(atlas.charts)):
        assert texture_index(atlas, texture_name(atlas, index)) == index
    with pytest.raises(InputError, match="no texture 'roof'"):
        texture_index(atlas, "roof")


def test_openexr_holds_what_the_maps_hold(atlas: Atlas, tmp_path: Path) -> None:
    export_atlas(atlas, tmp_path / "out", exr=True)
    with av.open(str(tmp_path / "out" / "st" / "background" / "00003.exr")) as container:
        frame = next(container.decode(video=0))
    green, blue, red = (
        np.frombuffer(bytes(plane), np.float32).reshape(frame.height, -1) for plane in frame.planes
    )
    index = next(i for i, c in enumerate(atlas.charts) if texture_name(atlas, i) == "background")
    wanted = st_map(atlas, index, 3).numpy()
    for found, truth in zip((red, green, blue), wanted, strict=True):
        np.testing.assert_array_equal(found[:, : frame.width], truth)
    assert len(list((tmp_path / "out" / "mattes" / "object").glob("*.exr"))) == atlas.frames


def test_a_compositor_can_rebuild_the_layers_from_the_export(atlas: Atlas, tmp_path: Path) -> None:
    export_atlas(atlas, tmp_path / "out")
    name = texture_name(atlas, 0)
    chart = atlas.charts[0]
    t = chart.reference
    texture = np.asarray(cv2.imread(str(tmp_path / "out" / f"{name}.png")))
    path = tmp_path / "out" / "st" / name / f"{t:05d}.png"
    st = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))[..., ::-1] / 65535
    x = (st[..., 0] * texture.shape[1] - 0.5).astype(np.float32)
    y = ((1 - st[..., 1]) * texture.shape[0] - 0.5).astype(np.float32)
    shown = cv2.remap(texture, x, y, cv2.INTER_LINEAR)[..., ::-1].astype(float) / 255
    window = chart.part(t, t + 1).window()
    gain = window.paste(chart.gains(window, t, t + 1), atlas.height, atlas.width)[0].permute(1, 2, 0).numpy()
    ours = atlas.layer(0, t, t + 1)[0].permute(1, 2, 0).numpy()
    matte = np.asarray(
        cv2.imread(str(tmp_path / "out" / "mattes" / "object" / f"{t:05d}.png"), cv2.IMREAD_UNCHANGED)
    )
    inside = matte > 60000
    assert inside.any()
    blend = float(chart.blend[t - chart.start])
    assert np.abs(shown * gain * blend - ours)[inside].max() < 3 / 255
    with pytest.raises(InputError, match="exists"):
        export_atlas(atlas, tmp_path / "out")

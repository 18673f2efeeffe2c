"""The report: figures that can be checked, and sentences that follow from them."""

import json
from dataclasses import replace

import numpy as np
import torch

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte, reconstruction_decibels
from retouch.atlas.report import examine_atlas, propagation_quality
from retouch.video import Origin, Video


def test_a_good_atlas_is_reported_as_one(atlas: Atlas, clip: Video) -> None:
    report = examine_atlas(atlas, clip)
    assert abs((report.explained or 0) - np.mean(reconstruction_decibels(atlas, clip)["all"])) < 1
    assert [layer.name for layer in report.layers] == ["object", "background"]
    for layer in report.layers:
        assert layer.folds == 0
        assert 1 <= layer.stretch < 1.5
        assert layer.poor == ()
        assert (layer.propagated or 0) > 20
        assert 0.5 < layer.reached <= 1
    assert json.loads(json.dumps(report.plain()))["layers"][0]["name"] == "object"
    assert "propagated" in report.words()


def test_frames_that_are_explained_poorly_are_named(atlas: Atlas, clip: Video) -> None:
    frames = clip.frames.copy()
    frames[7] = 255 - frames[7]
    report = examine_atlas(atlas, Video(frames, clip.fps))
    assert report.layers[0].poor == (7,)
    assert report.layers[0].worst_frame == 7
    assert any("worst around frame 7" in sentence for sentence in report.sentences)


def test_a_mapping_that_slides_propagates_worse(atlas: Atlas, clip: Video) -> None:
    chart = atlas.charts[0]
    sliding = chart.mapping.controls + torch.linspace(0, 6, len(chart.mapping))[:, None, None, None]
    worse = replace(
        atlas,
        charts=(replace(chart, mapping=replace(chart.mapping, controls=sliding)), *atlas.charts[1:]),
    )
    assert (propagation_quality(worse, clip, 0, 4)[0] or 99) < (
        propagation_quality(atlas, clip, 0, 4)[0] or 0
    ) - 2


def test_the_frame_where_a_layer_is_stretched_most_is_named(atlas: Atlas, clip: Video) -> None:
    index = next(i for i, c in enumerate(atlas.charts) if c.layer == 0 and c.covers(6))
    chart = atlas.charts[index]
    matrices = chart.mapping.matrices.clone()
    matrices[6 - chart.start] @= torch.diag(torch.tensor([3.0, 1, 1])).to(matrices)
    pulled = replace(chart, mapping=replace(chart.mapping, matrices=matrices))
    report = examine_atlas(
        replace(atlas, charts=(*atlas.charts[:index], pulled, *atlas.charts[index + 1 :])), clip
    )
    assert report.layers[0].stretched_frame == 6
    assert 2 < report.layers[0].stretched < 6
    assert any("times around frame 6" in sentence for sentence in report.sentences)


def test_a_layer_that_one_frame_says_nothing_about_is_told_in_words_and_not_as_a_number(
    atlas: Atlas, clip: Video
) -> None:
    nothing = pack_matte(np.zeros((atlas.height, atlas.width), np.uint8))
    empty = PackedMattes.pack([nothing] * atlas.frames, atlas.height, atlas.width)
    report = examine_atlas(replace(atlas, mattes=(empty,)), clip)
    assert "nan" not in report.words()
    assert "reaches no other" in report.words()
    assert "explained   unknown, for no frame shows it" in report.words()
    assert "NaN" not in json.dumps(report.plain())


def test_frames_are_numbered_as_in_the_file(atlas: Atlas, clip: Video) -> None:
    frames = clip.frames.copy()
    frames[7] = 255 - frames[7]
    cut = Origin(frames=60, first=40, time_base=1 / clip.fps, timestamps=tuple(range(40, 50)), end=50)
    report = examine_atlas(atlas, Video(frames, clip.fps, origin=cut))
    assert report.layers[0].poor == (47,)
    assert any("in frame 47, worst around frame 47" in sentence for sentence in report.sentences)

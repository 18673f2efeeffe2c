"""SAM 2 behind our protocol, with a random network of its own kind that fits on a postage stamp."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from retouch.apps.commands.atlas import mask
from retouch.compute import Compute
from retouch.errors import EmptyMask, ModelMismatch, ParamsError
from retouch.media.io import Encoding, write
from retouch.media.masks import read_masks
from retouch.models.segment_sam2 import MEAN, STD, Sam2Segmenter
from retouch.tracking.segment import ObjectMark, ObjectSegmenter
from retouch.video import Video

SIDE = 64
FRAMES = 5


def small_model() -> Sam2VideoModel:
    torch.manual_seed(0)
    config = Sam2VideoConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [SIDE, SIDE],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 1, 1],
                "window_size_per_stage": [4, 4, 4, 4],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": SIDE, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 128,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        image_size=SIDE,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
        num_maskmem=2,
        max_object_pointers_in_encoder=2,
    )
    model = Sam2VideoModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # or the memories would start at nothing
    for head in model.mask_decoder.pred_obj_score_head.modules():
        if isinstance(head, torch.nn.Linear):
            head.bias.data += 1.0  # says that the object is there
    return model


@pytest.fixture(scope="module")
def model() -> Sam2VideoModel:
    return small_model()


def clip(height: int = SIDE, width: int = SIDE) -> Video:
    rng = np.random.default_rng(0)
    return Video(rng.integers(0, 255, (FRAMES, 3, height, width), np.uint8), Fraction(10))


def drawn(video: Video) -> np.ndarray:
    mask = np.zeros((video.height, video.width), np.uint8)
    mask[video.height // 4 : video.height // 2, video.width // 4 : 3 * video.width // 4] = 255
    return mask


def test_following_agrees_with_the_models_own_way(model: Sam2VideoModel) -> None:
    video = clip()
    found = Sam2Segmenter(model).segment(
        video,
        [
            ObjectMark("box", 2, ((10, 12), (50, 40)), "a"),
            ObjectMark("mask", 1, name="b", drawn=drawn(video)),
        ],
    )
    pixels = torch.from_numpy(video.frames).float() / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    session = Sam2VideoInferenceSession(pixels, SIDE, SIDE, dtype=torch.float32)
    session.obj_id_to_idx(0)
    corners = torch.tensor([[[[10.0, 12.0], [50.0, 40.0]]]])
    session.add_point_inputs(
        0, 2, {"point_coords": corners, "point_labels": torch.tensor([[[2, 3]]], dtype=torch.int32)}
    )
    session.obj_with_new_inputs = [0]
    with torch.no_grad():
        model(inference_session=session, frame_idx=2)
        outs = list(model.propagate_in_video_iterator(session, 2))
        outs += list(model.propagate_in_video_iterator(session, 2, reverse=True))
    assert found.names == ("a", "b")
    for out in outs:
        logits = torch.nn.functional.interpolate(out.pred_masks, size=(SIDE, SIDE), mode="bilinear")[0, 0]
        wanted = (logits.sigmoid() * 255).round().byte().numpy()
        assert np.abs(found.masks[0, out.frame_idx].astype(int) - wanted).max() <= 1
    assert len({out.frame_idx for out in outs}) == FRAMES


def test_a_drawn_mask_comes_back_on_its_frame_in_a_wide_clip(model: Sam2VideoModel) -> None:
    video = clip(64, 128)
    found = Sam2Segmenter(model).segment(video, [ObjectMark("mask", 1, drawn=drawn(video))])
    off = (found.full(0, 1, 2)[0, 0] > 127) != (drawn(video) > 127)
    assert off.mean() < 0.1
    assert found.masks.shape[1] == FRAMES


def test_a_stroke_and_what_it_is_not_lead_to_other_masks(model: Sam2VideoModel) -> None:
    video = clip()
    stroke = ObjectMark("stroke", 0, ((10, 10), (30, 40)))
    alone = Sam2Segmenter(model).segment(video, [stroke])
    less = Sam2Segmenter(model).segment(video, [stroke, ObjectMark("not", 0, ((50, 50),))])
    assert np.abs(alone.masks[0, 0].astype(int) - less.masks[0, 0]).max() > 0


def test_bad_marks_are_refused(model: Sam2VideoModel) -> None:
    segmenter = Sam2Segmenter(model)
    with pytest.raises(ParamsError, match="no object is marked"):
        segmenter.segment(clip(), [])
    with pytest.raises(ParamsError, match="only what it is not"):
        segmenter.segment(clip(), [ObjectMark("not", 0, ((5, 5),))])
    with pytest.raises(EmptyMask, match="frame 1"):
        segmenter.segment(clip(), [ObjectMark("mask", 1, drawn=np.zeros((SIDE, SIDE), np.uint8))])


def test_a_saved_model_loads_as_the_same(model: Sam2VideoModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "sam2")
    loaded = Sam2Segmenter.from_pretrained(str(tmp_path / "sam2"), Compute(device="cpu"))
    assert isinstance(loaded, ObjectSegmenter)
    marks = [ObjectMark("box", 2, ((10, 12), (50, 40)))]
    before, after = (s.segment(clip(), marks) for s in (Sam2Segmenter(model), loaded))
    assert np.array_equal(before.masks, after.masks)


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(ModelMismatch, match="not a SAM 2 for video"):
        Sam2Segmenter.from_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "sam2_video"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelMismatch, match="pickle"):
        Sam2Segmenter.from_pretrained(str(tmp_path))


def test_the_command_follows_by_a_saved_model(model: Sam2VideoModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "sam2")
    video = clip()
    write(video, tmp_path / "clip.mkv", encoding=Encoding(lossless=True))
    words = ["--box", f"0:4,4 {SIDE // 2},{SIDE // 2}", "--segmenter", f"sam2:{tmp_path / 'sam2'}"]
    out = tmp_path / "mask.mkv"
    done = CliRunner().invoke(
        mask, [str(tmp_path / "clip.mkv"), *words, "-o", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert read_masks(out, video).shape == (len(video), 1, video.height, video.width)

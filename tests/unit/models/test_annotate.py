import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    pipeline,
)

from retouch.errors import ModelMismatch, ModelNotFound, ParamsError
from retouch.models.annotate import DepthReader, canny, depth_class
from retouch.models.check import inspect_model
from retouch.models.refs import CatalogueEntry, catalogue, resolve
from retouch.testing import bouncing

PREPARED = {
    "image_processor_type": "DPTImageProcessor",
    "size": {"height": 56, "width": 56},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
BYTE = 1.01 / 255
"""What a picture in bytes is off by."""


def square(level: int = 255) -> np.ndarray:
    frames = np.zeros((2, 3, 32, 32), np.uint8)
    frames[1, :, 8:24, 8:24] = level
    return frames


def depth_model(folder: Path, kind: str = "dpt") -> Path:
    """A random network of a depth model's own kind, small, as published ones lie in folders."""
    torch.manual_seed(0)
    small = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    net: DPTForDepthEstimation | DepthAnythingForDepthEstimation
    if kind == "dpt":
        layers = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        shape = {"intermediate_size": 16, "image_size": 56, "patch_size": 14, "is_hybrid": False}
        net = DPTForDepthEstimation(DPTConfig(**layers, **shape, **small, backbone_out_indices=[0, 1, 2, 3]))
        last = net.head.head[-2]
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 1}
        backbone = Dinov2Config(**shape, image_size=56, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
        net = DepthAnythingForDepthEstimation(
            DepthAnythingConfig(
                backbone_config=backbone,
                **small,
                reassemble_hidden_size=16,
                head_hidden_size=8,
                depth_estimation_type=kind,
            )
        )
        last = net.head.conv3
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    last.bias.data += 2.0 if kind != "metric" else 0.0  # or all would be cut at nothing
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARED))
    return folder


def test_edges_lie_on_the_border_of_a_square_and_nowhere_else() -> None:
    edges = canny(square())
    assert edges.shape == (2, 3, 32, 32)
    assert float(edges[0].max()) == 0
    rows, columns = np.nonzero(edges[1, 0].numpy())
    nearest = np.minimum.reduce(
        [np.abs(rows - 8), np.abs(rows - 23), np.abs(columns - 8), np.abs(columns - 23)]
    )
    assert len(rows) >= 4 * 14
    assert nearest.max() <= 1
    assert set(np.unique(edges)) == {0.0, 1.0}


def test_the_three_planes_are_one_picture() -> None:
    edges = canny(square())
    assert bool((edges[:, :1] == edges).all())


def test_a_faint_edge_needs_a_low_threshold() -> None:
    assert float(canny(square(30)).sum()) == 0
    assert float(canny(square(30), low=10, high=20).sum()) > 0


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ParamsError, match="rise from 0"):
        canny(square(), low=200, high=100)


@pytest.mark.parametrize(
    "entry", [e for e in catalogue().values() if e.kind == "depth"], ids=lambda e: e.name
)
def test_what_the_catalogue_takes_of_a_depth_model_is_enough_to_read_depth(
    entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path))
    whole = depth_model(tmp_path / "whole", "dpt" if entry.name.startswith("dpt") else "relative")
    taken = tmp_path / "models" / entry.name
    taken.mkdir(parents=True)
    for pattern in entry.files:
        for path in whole.glob(pattern):
            path.rename(taken / path.name)
    assert DepthReader.from_pretrained(entry.name).nearness(square()).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("kind", ["dpt", "relative"])
def test_nearness_is_what_transformers_own_pipeline_draws(kind: str, tmp_path: Path) -> None:
    reader = DepthReader.from_pretrained(str(depth_model(tmp_path, kind)))
    frames = np.array(bouncing(4).video.frames[[0, 3], :, :48])
    near = reader.nearness(frames)
    assert near.shape == (2, 3, 48, 64)
    assert bool((near[:, :1] == near).all())
    estimate = pipeline("depth-estimation", model=reader.net, image_processor=reader.processor)
    for plane, frame in zip(near[:, 0].numpy(), frames, strict=True):
        drawn = np.asarray(estimate(Image.fromarray(frame.transpose(1, 2, 0)))["depth"], np.float32) / 255
        assert (plane.min(), plane.max()) == (0, 1)
        assert plane.std() > 0.05
        assert np.abs(plane - drawn).max() < BYTE


def test_where_a_model_answers_distances_the_nearest_is_white(tmp_path: Path) -> None:
    reader = DepthReader.from_pretrained(str(depth_model(tmp_path, "metric")))
    frames = np.array(bouncing(1).video.frames)
    near = reader.nearness(frames)[0, 0]
    shown = reader.processor(images=frames[0], input_data_format="channels_first", return_tensors="pt")
    with torch.no_grad():
        answer = reader.net(**shown)
    found = reader.processor.post_process_depth_estimation(answer, target_sizes=[(64, 64)])
    far = found[0]["predicted_depth"]
    assert float(far.std()) > 0
    assert int(near.argmax()) == int(far.argmin())
    assert int(near.argmin()) == int(far.argmax())


def test_where_all_is_equally_far_nothing_is_near(tmp_path: Path) -> None:
    reader = DepthReader.from_pretrained(str(depth_model(tmp_path)))
    reader.net.head.head[-2].weight.data.zero_()
    assert not reader.nearness(square()).any()


def test_weights_that_are_never_read_may_be_missing_and_others_may_not(tmp_path: Path) -> None:
    whole = DepthReader.from_pretrained(str(depth_model(tmp_path))).nearness(square())
    weights = load_file(tmp_path / "model.safetensors")
    unread = {name for name in weights if name.startswith("neck.fusion_stage.layers.0.residual_layer1.")}
    assert unread
    kept = {name: weights[name] for name in sorted(set(weights) - unread)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert inspect_model(tmp_path).faults == ()
    assert torch.equal(DepthReader.from_pretrained(str(tmp_path)).nearness(square()), whole)
    kept.pop("head.head.0.weight")
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelMismatch, match="lacks head"):
        DepthReader.from_pretrained(str(tmp_path))


def test_what_reads_no_depth_is_refused_by_its_config_alone(tmp_path: Path) -> None:
    with pytest.raises(ModelMismatch, match="is a ControlNetModel, no depth model"):
        depth_class("tiny:sd-canny")
    with pytest.raises(ModelNotFound):
        depth_class("./nowhere")
    (tmp_path / "config.json").write_text('{"architectures": ["DPTForSemanticSegmentation"]}')
    with pytest.raises(ModelMismatch, match="is a DPTForSemanticSegmentation"):
        depth_class(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["DPTForDepthEstimation"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelMismatch, match="pickle"):
        DepthReader.from_pretrained(str(tmp_path))
    assert resolve(str(tmp_path)) == tmp_path


def test_a_reader_in_hand_is_known_by_its_weights(tmp_path: Path) -> None:
    read = DepthReader.from_pretrained(str(depth_model(tmp_path)))
    held = DepthReader(read.net, read.processor)
    before = held.identity
    assert before == DepthReader(read.net, read.processor).identity
    read.net.head.head[-2].weight.data += 1
    assert DepthReader(read.net, read.processor).identity != before

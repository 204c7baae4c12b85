"""One letterbox for converter, robot and server, with the pixels of openpi's own function and of Pillow's filter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import openpi_messages
import pytest
from PIL import Image

from rlspec.contract.pictures import Picture, has_bars, resize_with_pad, without_bars
from rlspec.deploy.arm.interfaces import Frame, RobotState
from rlspec.deploy.policy.observe import observation
from rlspec.serving.lerobot_policy import LeRobotPolicy
from rlspec.serving.policy import Observation, PolicySpec
from rlspec.vla.droid.settings import ConvertSettings
from rlspec.vla.droid.writing import prepare

SIZES = {
    "raw_droid": ((720, 1280), (180, 320)),
    "for_openpi": ((180, 320), (224, 224)),
    "camera_4_to_3": ((480, 640), (180, 320)),
    "taller": ((320, 180), (180, 320)),
    "enlarged": ((90, 120), (180, 320)),
    "odd": ((123, 457), (97, 131)),
    "a_row_less_by_openpis_rule": ((181, 323), (224, 224)),
    "as_it_is": ((180, 320), (180, 320)),
}


def frame(height: int, width: int) -> Picture:
    """Light falls off, objects have edges, a sensor has noise."""
    rng = np.random.default_rng([height, width])
    rows, columns = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
    image = np.stack([200 * rows, 120 + 90 * np.cos(5 * columns), 160 * (1 - rows * columns)], axis=2)
    for _ in range(8):
        top, left = rng.integers(height), rng.integers(width)
        image[top : top + height // 4, left : left + width // 5] = rng.integers(0, 256, 3)
    disc = (rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.03
    image[disc] = (250, 20, 60)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def converted(image: Picture, height: int, width: int) -> Picture:
    settings = ConvertSettings.model_construct(image_size=(height, width))
    return prepare(image, settings)


def sent_by_the_robot(image: Picture, height: int, width: int) -> Picture:
    state: Any = SimpleNamespace(joints=np.zeros(7), closure=0.0)
    assert set(vars(state)) <= set(RobotState.__dataclass_fields__)
    seen = observation(state, {"wrist_left": Frame(0.0, image)}, {"key": "wrist_left"}, {"key": (height, width)}, "")
    result: Picture = seen["key"]
    return result


def shown_by_the_server(image: Picture, height: int, width: int) -> Picture:
    """Of a picture that comes as the camera delivers it; the policy's tensor is undone by hand."""
    import torch

    batches: list[Any] = []
    policy = SimpleNamespace(predict_action_chunk=lambda batch: batches.append(batch) or torch.zeros(1, 1, 8))
    spec = PolicySpec("test", "joint_velocity", 15.0, "droid_hybrid", 1, 1, {"wrist_left": (height, width)})
    asked = Observation({"wrist_left": image}, np.zeros(8), "wait", session=0)
    LeRobotPolicy(policy, lambda batch: batch, lambda actions: actions, spec).infer([asked])
    pixels = batches[0]["observation.images.wrist_left"][0].permute(1, 2, 0) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)
    result: Picture = pixels.round().byte().numpy()
    return result


@pytest.mark.parametrize("name", SIZES)
def test_data_robot_and_server_show_the_same_pixels(name: str) -> None:
    source, target = SIZES[name]
    image = frame(*source)
    trained = converted(image, *target)
    assert trained.shape == (*target, 3)
    assert trained.std() > 20
    np.testing.assert_array_equal(sent_by_the_robot(image, *target), trained)
    np.testing.assert_array_equal(shown_by_the_server(image, *target), trained)
    # What the robot has scaled the server leaves alone.
    np.testing.assert_array_equal(shown_by_the_server(trained, *target), trained)


@pytest.mark.parametrize("name", SIZES)
def test_pixels_are_those_of_pillows_bilinear_filter(name: str) -> None:
    source, (height, width) = SIZES[name]
    ratio = max(source[0] / height, source[1] / width)
    rows, columns = int(source[0] / ratio), int(source[1] / ratio)
    image = Image.fromarray(frame(*source))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(
        image.resize((columns, rows), Image.Resampling.BILINEAR), ((width - columns) // 2, (height - rows) // 2)
    )
    np.testing.assert_array_equal(resize_with_pad(np.asarray(image), height, width), np.asarray(canvas))


@pytest.mark.parametrize("name", openpi_messages.SIZES)
def test_pixels_are_those_of_openpi(name: str) -> None:
    source, target = openpi_messages.SIZES[name]
    recorded = np.load(openpi_messages.RECORDED / "resized.npz", allow_pickle=False)[name]
    resized = resize_with_pad(openpi_messages.picture(*source), *target)
    assert resized.shape == recorded.shape
    # Recorded with Pillow 13, which rounds a few pixels of enlarged pictures otherwise than Pillow 12.
    assert np.abs(resized.astype(int) - recorded).max() <= 1
    np.testing.assert_array_equal(resized.any(axis=2), recorded.any(axis=2))


def test_the_right_size_is_left_alone() -> None:
    image = openpi_messages.picture(18, 32)
    assert resize_with_pad(image, 18, 32) is image


def test_black_bars_keep_the_proportions() -> None:
    image = frame(180, 320)
    square = resize_with_pad(image, 224, 224)  # 224 * 180 / 320 = 126 rows, 49 black ones on either side
    assert not square[:49].any()
    assert not square[175:].any()
    assert square[49:175].mean() == pytest.approx(image.mean(), abs=1.0)


@pytest.mark.parametrize("needle", [(1, 4000), (4000, 1)])
def test_a_needle_becomes_a_line(needle: tuple[int, int]) -> None:
    assert resize_with_pad(np.full((*needle, 3), 255, np.uint8), 20, 20).max() == 255


@pytest.mark.parametrize("camera", [(180, 320), (720, 1280), (480, 640), (240, 320), (320, 180)])
@pytest.mark.parametrize("sent", [(224, 224), (256, 256), (180, 320), (96, 128)])
def test_bars_of_a_scene_of_the_wanted_ratio_are_cut_and_no_others(
    camera: tuple[int, int], sent: tuple[int, int]
) -> None:
    """As openpi's client sends them: scaled into a square, to a policy that wants the camera's own ratio."""
    image = np.maximum(frame(*camera), 1)  # no black of its own
    arrived = resize_with_pad(image, *sent)
    cut = without_bars(arrived, *camera)
    scene = np.argwhere(arrived.any(axis=2))
    low, high = scene.min(axis=0), scene.max(axis=0) + 1
    np.testing.assert_array_equal(cut, arrived[low[0] : high[0], low[1] : high[1]])
    assert resize_with_pad(cut, *camera).astype(bool).mean() > 0.98, "the policy sees the scene alone"
    assert not has_bars(cut, *camera)


def test_scaled_twice_the_scene_covered_a_third() -> None:
    arrived = resize_with_pad(np.maximum(frame(180, 320), 1), 224, 224)
    assert resize_with_pad(arrived, 180, 320).any(axis=2).mean() == pytest.approx(0.316, abs=0.005)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: image,
        lambda image: np.where(np.arange(224)[:, None, None] == 10, 1, image),  # a bar that is not black
        lambda image: np.roll(image, 3, axis=0),
    ],
)
def test_what_is_no_letterbox_stays_as_it_is(spoil: Any) -> None:
    image = frame(224, 224)
    if spoil(image) is not image:
        image = spoil(resize_with_pad(np.maximum(frame(180, 320), 1), 224, 224)).astype(np.uint8)
    assert without_bars(image, 180, 320) is image


def test_bars_of_another_ratio_are_seen_and_a_dark_picture_has_none() -> None:
    arrived = resize_with_pad(np.maximum(frame(480, 640), 1), 224, 224)
    assert without_bars(arrived, 180, 320) is arrived
    assert has_bars(arrived, 180, 320)
    assert not has_bars(arrived, 224, 224)
    assert not has_bars(np.zeros_like(arrived), 180, 320)
    assert not has_bars(frame(224, 224), 180, 320)

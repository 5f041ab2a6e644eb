"""Videos: the frames that are seen, what is refused, and that each patch holds the frames of its time."""

import io
import struct
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from data import videos
from data.sample import EmbeddedFile
from data.videos import (
    Sampling,
    check_video_tokens_at,
    frames_seen,
    process_videos,
    size_of_video,
    video_tokens_at,
)
from modeling.user_error import UserError
from tests.families.internvl import INTERNVL
from tests.families.llava import LLAVA
from tests.families.llava_next import LLAVA_NEXT
from tests.families.qwen2_vl import MERGE, PATCH, QWEN2_VL, TIME, VIDEO
from tests.films import film

PIXELS = 10**6


def processor(**settings):
    made = QWEN2_VL.processor()
    made.video_processor |= settings
    return made


def seen(data: bytes, **settings) -> list[Image.Image]:
    frames = [one.frame for one in videos._seen_frames(EmbeddedFile(data, "film"), processor(**settings), PIXELS)]
    assert size_of_video(EmbeddedFile(data, "film"), processor(**settings), PIXELS, True)[0] == len(frames)
    return frames


@pytest.mark.parametrize("container", ["mp4", "avi", "matroska", "mpegts"])
def test_frames_are_evenly_spaced(tmp_path, container):
    """Also where the file does not say how many there are, as of the last two kinds."""
    data = film([12 * number for number in range(20)], container=container, rate=25)
    frames = seen(data)
    assert [frame.size for frame in frames] == [(64, 48)] * 4
    assert np.allclose([np.asarray(frame)[24:].mean() for frame in frames], [0, 60, 120, 180], atol=4)
    assert len(seen(data, max_frames=2)) == 2
    assert len(seen(data, fps=10)) == 8
    (tmp_path / "film").write_bytes(data)
    for decode in (False, True):
        assert size_of_video(tmp_path / "film", processor(), PIXELS, decode) == (4, 48, 64)


@pytest.mark.parametrize(
    "total, rate, sampling, expected",
    [
        (20, 10.0, Sampling(2.0, 4, 768), [0, 5, 10, 15]),
        (100, 10.0, Sampling(2.0, 4, 6), [0, 16, 33, 50, 66, 83]),
        (3, 30.0, Sampling(2.0, 4, 768), [0, 1]),
        (1, 30.0, Sampling(2.0, 4, 768), [0]),
    ],
)
def test_the_numbers_of_frames(total, rate, sampling, expected):
    assert frames_seen(total, rate, sampling) == expected


@pytest.mark.parametrize("settings", [{"fps": "2"}, {"max_frames": -3}, {"min_frames": [4]}, {"fps": float("nan")}])
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(UserError, match="the processor's settings for videos: got .*, allowed: numbers above 0"):
        size_of_video(EmbeddedFile(film([0] * 4), "film"), processor(**settings), PIXELS, False)


def test_frames_on_their_side_are_turned():
    """As phones write them. What is above in the frames as they are stored is then on the right."""
    data = film([0] * 4)
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 2**30)
    data = data[:matrix] + turned + data[matrix + 36 :]
    for frame in seen(data):
        pixels = np.asarray(frame)
        assert pixels.shape == (64, 48, 3) and pixels[:, 40:].mean() > 250 and pixels[:, :32].mean() < 5


def test_bad_videos_are_refused(monkeypatch):
    data = film([0, 100, 200, 0, 100, 200])
    for content, message in (
        (b"", "video 'film' cannot be read"),
        (b"no film", "video 'film' cannot be read"),
        (data[: len(data) // 2], "video 'film' (cannot be read|is truncated|holds no pictures)"),
        (film([0, 9], size=(2, 600)), r"video 'film' is too long \(600 x 2 pixels\); at most 200 times"),
        (film([0, 9], size=(1200, 1000)), r"video 'film' is too large \(1000 x 1200 pixels\); at most 1000000 pixels"),
    ):
        for decode in (False, True):
            with pytest.raises(UserError, match=message) as fault:
                size_of_video(EmbeddedFile(content, "film"), processor(), PIXELS, decode)
            assert str(fault.value).count("video 'film'") == 1 and "\n" not in str(fault.value)
    monkeypatch.setattr(videos, "MAX_DECODED", 5)
    for container in ("mp4", "matroska"):
        with pytest.raises(UserError, match="video 'film' has 6 frames or more, allowed: 1 to 5"):
            seen(film([0] * 8, container=container)[:] if container == "matroska" else data)


def test_a_video_that_breaks_off_is_found_by_decoding_it_alone():
    rng = np.random.default_rng(0)
    data = film(rng.integers(0, 255, 40).tolist(), container="avi")
    cut = data[: data.index(b"movi") + (len(data) - data.index(b"movi")) // 2]
    assert size_of_video(EmbeddedFile(cut, "film"), processor(fps=10), PIXELS, False) == (40, 48, 64)
    with pytest.raises(UserError, match=r"video 'film' is truncated: \d+ of 40 frames were found"):
        size_of_video(EmbeddedFile(cut, "film"), processor(fps=10), PIXELS, True)


def test_frames_that_would_take_too_much_memory_are_refused_before_they_are_made(monkeypatch):
    data = film([0] * 40)
    monkeypatch.setattr(videos, "MAX_PIXELS", 8 * 64 * 48)
    for settings, allowed in (({}, True), ({"fps": 5}, False), ({"size": {"shortest_edge": 99999}}, False)):
        made = processor(**settings)
        if allowed:
            assert process_videos([EmbeddedFile(data, "film")], made)[1]
            continue
        monkeypatch.setattr(type(made.image_processor), "__call__", lambda *a, **k: pytest.fail("it was processed"))
        with pytest.raises(
            UserError, match=r"a video of \d+ frames of 64 x 48 pixels is refused: they would be scaled"
        ):
            process_videos([EmbeddedFile(data, "film")], made)
        monkeypatch.undo()
        monkeypatch.setattr(videos, "MAX_PIXELS", 8 * 64 * 48)


def test_a_playlist_cannot_show_other_files(tmp_path, monkeypatch):
    """FFmpeg would read the files that such a list names, from the folder that the program was started in."""
    (tmp_path / "secret.ts").write_bytes(film([0, 100, 200, 0], container="mpegts"))
    monkeypatch.chdir(tmp_path)
    playlist, av = b"ffconcat version 1.0\nfile secret.ts\n", pytest.importorskip("av")
    (tmp_path / "list.mp4").write_bytes(playlist)
    with av.open(io.BytesIO(playlist)) as opened:
        assert len(list(opened.decode(video=0))) == 4
    for video in (EmbeddedFile(playlist, "film"), tmp_path / "list.mp4"):
        with pytest.raises(UserError, match=r"video '.*(film|list.mp4)' cannot be read"):
            size_of_video(video, processor(), PIXELS, True)


def test_without_pyav_videos_are_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="a video is shown, and none is read without PyAV: pip install av"):
        size_of_video(tmp_path / "film.mp4", processor(), PIXELS, False)


def test_patches_hold_the_frames_of_their_time():
    """Against one patch after another, put together by hand from frames of the size that is kept."""
    rng, rows, columns = np.random.default_rng(0), 2, 3
    shape = (rows * MERGE * PATCH, columns * MERGE * PATCH, 3)
    frames = [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for _ in range(3)]
    found = [videos._patches(group, processor())[0] for group in (frames[:2], frames[2:])]
    images = processor().image_processor
    mean, std = np.array(images.image_mean), np.array(images.image_std)
    values = [(np.asarray(frame) / 255 - mean) / std for frame in [*frames, frames[-1]]]
    expected = []
    for time in range(0, 4, TIME):
        for row, column in np.ndindex(rows, columns):
            for down, across in np.ndindex(MERGE, MERGE):
                top, left = (row * MERGE + down) * PATCH, (column * MERGE + across) * PATCH
                patch = [values[time + step][top : top + PATCH, left : left + PATCH] for step in range(TIME)]
                expected.append(np.stack(patch).transpose(3, 0, 1, 2).ravel())  # channels, time, rows, columns
    torch.testing.assert_close(torch.cat(found), torch.tensor(np.stack(expected)).float(), atol=1e-5, rtol=0)


def test_as_the_stock_video_processor():
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed, which the stock video processor needs")
    from transformers import Qwen2VLVideoProcessor

    data = film([12 * number for number in range(20)], size=(50, 70))
    made = processor()
    inputs, tokens = process_videos([EmbeddedFile(data, "film")], made)
    stock = Qwen2VLVideoProcessor(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=TIME, size=made.image_processor.size
    )
    frames = [np.asarray(frame) for frame in seen(data)]
    expected = stock(videos=[frames], return_tensors="pt", do_sample_frames=False)
    assert torch.equal(inputs["video_grid_thw"], expected["video_grid_thw"])
    assert len(tokens[0]) == int(expected["video_grid_thw"].prod()) // MERGE**2
    # In 8 bits, rounding after scaling may differ by one step.
    torch.testing.assert_close(inputs["pixel_values_videos"], expected["pixel_values_videos"], atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"size": {"shortest_edge": 9000, "longest_edge": 9000}}, {"max_pixels": 3000}]
)
def test_tokens_follow_from_sizes(settings):
    made, sizes = processor(**settings), []
    for brightness, size in (([0], (48, 64)), ([0] * 3, (64, 48)), ([0] * 30, (120, 32)), ([0] * 9, (28, 28))):
        data = EmbeddedFile(film(brightness, size=size), "film")
        sizes.append(size_of_video(data, made, PIXELS, False))
        inputs, (tokens,) = process_videos([data], made)
        assert torch.equal(video_tokens_at(sizes[-1], made), tokens) and set(tokens.tolist()) == {VIDEO}
        assert len(tokens) == int(inputs["video_grid_thw"].prod()) // MERGE**2
    check_video_tokens_at(sizes, made)
    made.image_processor.get_number_of_image_patches = lambda *arguments: 400
    with pytest.raises(UserError, match="makes .* tokens of frames of .* pixels, but counts 100"):
        check_video_tokens_at(sizes, made)


@pytest.mark.parametrize("family", [*LLAVA, *LLAVA_NEXT, *INTERNVL], ids=lambda family: family.name)
def test_other_families_take_no_videos(family):
    with pytest.raises(UserError, match="a video is shown, .*Processor takes none; of the families, Qwen2-VL does"):
        process_videos([EmbeddedFile(b"", "film")], family.processor())

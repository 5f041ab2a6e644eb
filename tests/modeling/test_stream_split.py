"""Where rows stand, as the host finds it, against loops over rows."""

from itertools import groupby

import pytest
import torch

from modeling.sparse_multimodal import visual_runs
from modeling.stream_split import split_streams

CPU = torch.device("cpu")


def split(visual: list[list[int]], images, padding: list[list[int]] | None = None, supervised=None, past_length=0):
    mask = torch.tensor(visual, dtype=torch.bool)
    present = torch.ones_like(mask) if padding is None else ~torch.tensor(padding, dtype=torch.bool)
    cached = torch.ones(len(mask), past_length, dtype=torch.bool)
    return split_streams(mask.shape, torch.cat([cached, present], 1), mask, images, past_length, CPU, supervised)


def test_rows_stand_on_the_left_with_their_places():
    """Two samples, one of them with two pictures, one of these of two grids; the other is padded on the left."""
    images = (((1, 2), (2, 1)), ((1, 1),), ((1, 2),))
    text, visual = split(
        [[0, 1, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1, 0, 0]], images, [[0] * 8, [1, 1, 1, 0, 0, 0, 0, 0]], past_length=2
    )
    assert [row[ok].tolist() for row, ok in zip(text.index, text.valid, strict=True)] == [[0, 5, 7], [3, 6, 7]]
    assert text.full and text.before_visual == 2 and text.slots.tolist() == [[2, 7, 9], [5, 8, 9]]
    for name, expected in {
        "index": ([1, 2, 3, 4, 6], [4, 5]),
        "slots": ([3, 4, 5, 6, 8], [6, 7]),
        "image": ([0, 0, 0, 0, 1], [0, 0]),
        "grid": ([0, 0, 1, 1, 2], [0, 0]),
        "row": ([0, 0, 0, 1, 0], [0, 0]),
        "column": ([0, 1, 0, 0, 0], [0, 1]),
        "place": ([0, 1, 2, 3, 0], [0, 1]),
    }.items():
        found = getattr(visual, name)
        assert tuple(row[ok].tolist() for row, ok in zip(found, visual.valid, strict=True)) == expected, name
    assert not visual.full and visual.images == (images[:2], images[2:])
    assert {name: (index.tolist(), valid.tolist()) for name, (index, valid) in text.ranking.items()} == {
        "last": ([[2], [2]], [[True], [True]]),
        "instruction": ([[2, 0], [1, 2]], [[True, False], [True, True]]),
    }


def test_in_training_the_rows_before_answers_rank():
    supervised = torch.tensor([[0, 0, 0, 1, 0, 1]], dtype=torch.bool)
    text, _ = split([[0, 1, 0, 0, 0, 0]], (((1, 1),),), supervised=supervised)
    assert text.index.tolist() == [[0, 2, 3, 4, 5]]
    assert text.ranking["last"][0].tolist() == [[1, 3]] and text.ranking["instruction"][0].tolist() == [[1, 3]]


@pytest.mark.parametrize(
    "visual, images, message",
    [
        ([[1, 1, 0]], (((1, 3),),), "got 2 in the input, the images have 3"),
        ([[1, 1, 0]], (), "got 2 in the input, the images have 0"),
        (
            [[1, 1, 0], [1, 0, 0]],
            (((1, 1),), ((1, 2),)),
            "got 2 in sample 0, which are not those of whole images",
        ),
    ],
)
def test_tokens_that_are_not_the_images_are_refused(visual, images, message):
    with pytest.raises(ValueError, match=message):
        split(visual, images)


@pytest.mark.parametrize("seed", range(5))
def test_runs_are_those_of_a_loop(seed):
    kinds = torch.randint(0, 3, (4, 12), generator=torch.Generator().manual_seed(seed))
    expected = []
    for sample, row in enumerate(kinds.tolist()):
        for kind, run in groupby(range(12), key=row.__getitem__):
            columns = list(run)
            if kind:
                expected.append((sample, columns[0], columns[-1] + 1))
    assert list(zip(*(part.tolist() for part in visual_runs(kinds)), strict=True)) == expected

"""A journal keeps what was added, through kills, and for its own subject alone."""

import json

import pytest

from training.journal import Journal


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "deep" / "values.jsonl", "model A")
    journal.add("first", 0.1)
    journal.add("second", [[1.0, 2.5], 3])
    return tmp_path / "deep" / "values.jsonl"


def test_values_are_read_back_to_the_last_bit(path):
    again = Journal(path, "model A")
    assert again["first"] == 0.1 and again["second"] == [[1.0, 2.5], 3]
    assert "third" not in again
    assert len(path.read_text().splitlines()) == 3


def test_another_subject_begins_anew(path):
    assert "first" not in Journal(path, "model B")
    assert path.read_text() == '{"subject": "model B"}\n'


@pytest.mark.parametrize("lost", [1, 5, 20])
def test_a_torn_line_is_as_if_it_were_not_there(path, lost):
    path.write_bytes(path.read_bytes()[:-lost])
    torn = Journal(path, "model A")
    assert "first" in torn and ("second" in torn) == (lost == 1)  # of the whole line only its end was lost
    torn.add("third", 3)
    again = Journal(path, "model A")
    assert again["first"] == 0.1 and again["third"] == 3


def test_a_kill_before_the_first_line_was_whole_begins_anew(path):
    path.write_text('{"subj')
    Journal(path, "model A").add("first", 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"subject": "model A"},
        {"key": "first", "value": 1},
    ]

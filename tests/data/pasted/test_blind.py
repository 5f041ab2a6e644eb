"""Blind scores, against tables whose commonest answers are plain."""

import datasets

from data.pasted.blind import blind_scores


def row(*turns: tuple[str, str, str]) -> dict:
    messages = [
        {"from": speaker, "value": text}
        for question, answer, _ in turns
        for speaker, text in (("human", question), ("gpt", answer))
    ]
    messages[0]["value"] = "<image>\n" + messages[0]["value"]
    things = [{"name": name} for name in ("bear", "bear cub", "apple")]
    return {"conversations": messages, "families": [family for *_, family in turns], "things": things}


def test_the_commonest_answer_to_questions_of_a_form(tmp_path):
    trained = [
        row(("Is there a bear in the picture?", "no", "existence"), ("What is in the top left?", "bear", "name")),
        row(("Is there an apple in the picture?", "no", "existence"), ("What is in the top center?", "apple", "name")),
        row(("Is there a bear cub in the picture?", "yes", "existence"), ("What is in the top left?", "bear", "name")),
    ]
    asked = [
        row(("Is there an apple in the picture?", "yes", "existence")),
        row(("Is there a bear cub in the picture?", "no", "existence")),
        row(("What is in the bottom right?", "bear", "name")),  # the commonest of all places
        row(("Name all things.", "bear, apple", "list")),  # no such form was trained
        row(("Which looks larger, the bear or the apple?", "bear", "larger")),
    ]
    paths = tmp_path / "train.parquet", tmp_path / "asked.parquet"
    for path, rows in zip(paths, (trained, asked), strict=True):
        datasets.Dataset.from_list(rows).to_parquet(path)
    assert blind_scores(*paths) == {"existence": 0.5, "name": 1.0, "list": 0.0, "larger": 0.5}

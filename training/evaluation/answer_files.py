"""A model's answers as files that others read: LLaVA's own format, and what official scorers and servers take."""

import json
from collections.abc import Sequence
from pathlib import Path

from data.benchmarks.benchmark import Record
from data.benchmarks.registry import BENCHMARKS
from training.evaluation.questions import Asked
from training.evaluation.results import Evaluation
from training.files import write_text


def write_answer_files(evaluation: Evaluation, folder: Path, model: str) -> None:
    """Writes `BENCHMARK.jsonl` for each benchmark: one line for each answer, with the fields of LLaVA's answer files.

    Args:
        model: what the files call the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in evaluation.by_benchmark.items():
        lines = (json.dumps(_answer(record, model), ensure_ascii=False) for record in records)
        write_text(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))


def write_submissions(evaluation: Evaluation, asked: Sequence[Asked], folder: Path) -> list[Path]:
    """Writes what the official scorer or server of each benchmark takes, and returns the files' paths.

    Args:
        asked: benchmarks that have such files.
    """
    written = []
    for part in asked:
        name = part.benchmark.name
        assert part.place is not None and part.benchmark.has_submission
        for file, text in part.benchmark.submission(evaluation.by_benchmark[name], part.place).items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            written.append(path)
    return written


def _answer(record: Record, model: str) -> dict:
    """Returns an answer with LLaVA's fields."""
    numeric = BENCHMARKS[record.benchmark].numeric_ids
    return {
        "question_id": int(record.id) if numeric else record.id,
        "prompt": record.question.removeprefix("<image>\n"),
        "text": record.prediction,
        "answer_id": f"{record.benchmark}-{record.id}",
        "model_id": model,
        "metadata": {},
    }

"""Results as tables in the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from training.measure.evaluation import Accuracy, Evaluation
from training.report.numbers import percent


def families_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """Returns accuracies with their 95 % intervals: a line per family of questions, and a column per model.

    Args:
        evaluations: name of each model -> its evaluation. All models were asked the same questions.
    """
    table = Table("family", "questions", *evaluations)
    for family in next(iter(evaluations.values())).families:
        accuracies = [evaluation.families[family] for evaluation in evaluations.values()]
        table.add_row(family, str(accuracies[0].count), *map(_interval, accuracies))
    table.add_section()
    overall = [evaluation.overall for evaluation in evaluations.values()]
    table.add_row("all", str(overall[0].count), *map(_interval, overall), style="bold")
    return table


def models_table(rows: Sequence[Mapping]) -> Table:
    """Returns a line per model: its visual FLOPs, its accuracy, and its accuracy as a share of the dense model's.

    Args:
        rows: the rows of a run's table.json.
    """
    table = Table("model", "distilled", "visual FLOPs", "accuracy", "of the dense model's")
    for row in rows:
        shares = (row["visual_flops"], row["accuracy"], row["relative_accuracy"])
        table.add_row(row["name"], "yes" if row["distilled"] else "", *map(percent, shares))
    return table


def _interval(value: Accuracy) -> str:
    return f"{percent(value.accuracy)} ({100 * value.low:.1f} to {100 * value.high:.1f})"

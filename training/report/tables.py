"""Results as tables in the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from checkpoints.card import benchmark_rows
from data.benchmarks.registry import BENCHMARKS
from training.evaluation.intervals import Accuracy
from training.evaluation.results import Evaluation
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


def metrics_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """Returns all metrics of all benchmarks with their 95 % intervals: a column per model.

    Args:
        evaluations: as in `families_table`.
    """
    table = Table("benchmark", "metric", *evaluations)
    for benchmark, metrics in next(iter(evaluations.values())).metrics.items():
        for name in metrics:
            values = [evaluation.metrics[benchmark][name] for evaluation in evaluations.values()]
            table.add_row(
                BENCHMARKS[benchmark].title, name, *(f"{v.value:.1f} ({v.low:.1f} to {v.high:.1f})" for v in values)
            )
        table.add_section()
    return table


def comparison_table(benchmarks: Mapping[str, dict]) -> Table:
    """Returns a line per benchmark, dense beside sparse. `benchmarks` is what `comparison.as_dict` gives."""
    head, *rows = benchmark_rows(benchmarks)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
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

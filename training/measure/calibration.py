"""Calibration: what each unit, neuron and layer does for visual tokens in the dense model, measured once and cached.

Planners share these statistics. Head activity follows YOPO (arXiv 2410.06169, eq. 6): how much of a head's attention
goes to the picture. Here it is counted over the text rows that can see a picture, in samples that have one. YOPO's
released code counts fixed positions, in text-only samples too. The files in statistics/ measure one batch.

Shape legend: N samples with a picture, L layers, U units (key/value groups), M FFN neurons, R largest Chebyshev
distance in a picture's grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from modeling.whole_file import whole_file
from training.files import reading, writing
from training.journal import Journal
from training.measure.answer_kl import OwnAnswers, has_answer, refuse_no_answers
from training.measure.fingerprint import fingerprint
from training.measure.statistics.batch_statistics import BatchStatistics, own_statistics
from training.measure.statistics.unit_kl import UnitKL, own_unit_kl
from training.progress import Progress
from training.ranks import OnAllRanks, alone, in_order, own_share, world_size

FORMAT_VERSION = 2
"""Version of the statistics. A new one makes cached files of older versions unused."""
UNIT_KL = "unit_kl.jsonl"
"""Journal, among the calibration files, of the answer KL without each unit. It holds one line for each batch."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of the dense model on calibration samples, as fp32 tensors on the CPU.

    Args:
        activity: [N, L, U] share of attention, in [0, 1], that text rows after the first picture give to visual keys.
            It is the mean over those rows and over the unit's query heads.
        neuron_importance: [L, M] how much a neuron writes on visual rows. It is the mean over those rows of
            |act(gate) * up|, times the length of the neuron's column of `down_proj`.
        neighborhood: [L, R + 1] share, in [0, 1], of a visual row's attention to visual keys that stays within each
            Chebyshev distance from 0 on, in its own picture. It is the mean over rows and heads.
        unit_kl: [L, U] answer KL, in nats per supervised token, if this unit alone stops serving visual tokens.
            None if no planner reads it, as it takes far longer than the rest.
    """

    activity: Tensor
    neuron_importance: Tensor
    neighborhood: Tensor
    unit_kl: Tensor | None = None

    @property
    def read_share(self) -> Tensor:
        """[L] share of their attention that text rows give to visual keys, mean over samples and heads."""
        return self.activity.mean(dim=(0, 2))

    def save(self, path: Path) -> None:
        """Writes the statistics to a safetensors file, whole or not at all."""
        with whole_file(path) as file, writing(path):
            given = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
            save_file({name: tensor.contiguous() for name, tensor in given.items()}, file)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Returns the statistics that `save` wrote. Raises UserError if the file is damaged."""
        mend = "delete it, and also the result of `calibrate` in stages/, and it is measured again"
        with reading(path, mend), safe_open(path, framework="pt") as file:
            return cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (safe_open is no dict)


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[dict],
    cache: Path,
    on_all_ranks: OnAllRanks | None = None,
    with_unit_kl: bool = True,
) -> Calibration:
    """Returns the statistics of a model.

    They are read from `cache` if they were measured before for the same weights and data. If measuring `unit_kl` was
    stopped, it goes on.

    Args:
        model: a sparse model with the dense weights. Any plan may be in force, and it is restored. The model is put in
            eval mode.
        batches: dicts that `data.collator.Collator` returns. Text-only samples are left out.
        cache: folder of calibration files. It is made if it is missing.
        on_all_ranks: does `measuring_tasks` on every rank. None measures all batches in this process.
        with_unit_kl: whether `unit_kl` is measured too. It takes half as long as an evaluation of each unit's plan.

    Raises:
        UserError: no sample with an image has a supervised answer.
    """
    refuse_no_answers(sum(has_answer(batch, model.visual_tokens(model.config).values()) for batch in batches))
    on_all_ranks = on_all_ranks or alone(measuring_tasks(model, batches))
    subject, cache = fingerprint(model, batches), Path(cache)
    path = cache / f"calibration-{FORMAT_VERSION}-{subject}.safetensors"
    if not path.exists():
        Calibration(**_mean_statistics(model, in_order(on_all_ranks("statistics")))).save(path)
    statistics = Calibration.load(path)
    if not with_unit_kl:
        return statistics
    return replace(statistics, unit_kl=_unit_kl(len(batches), on_all_ranks, Journal(cache / UNIT_KL, subject)))


def measuring_tasks(model: PreTrainedModel, batches: Sequence[dict]) -> dict[str, Callable[..., Any]]:
    """Returns what `calibrate` and `AnswerKL` ask of every rank, given all batches."""
    own = own_share(batches)
    answers = OwnAnswers(model, own)
    return {
        **answers.tasks,
        "statistics": lambda: own_statistics(model, own),
        "unit_kl": lambda numbers: own_unit_kl(answers, numbers),
    }


def _unit_kl(num_batches: int, on_all_ranks: OnAllRanks, journal: Journal) -> Tensor:
    """Returns [L, U]: the answer KL without each unit.

    Every rank measures one batch at a time, and what was measured is kept in the journal.
    """
    missing = [number for number in range(num_batches) if str(number) not in journal]
    with Progress(
        desc="shutting each unit", unit="batch", total=num_batches, initial=num_batches - len(missing)
    ) as bar:
        while missing:
            asked, missing = missing[: world_size()], missing[world_size() :]
            found = dict(pair for share in on_all_ranks("unit_kl", asked) for pair in share)
            for number in asked:
                journal.add(str(number), found.get(number))  # None without answers
            bar.update(len(asked))
    with_answers = [UnitKL(*found) for number in range(num_batches) if (found := journal[str(number)]) is not None]
    sums = torch.stack([torch.tensor(batch.sums, dtype=torch.double) for batch in with_answers]).sum(0)
    return (sums / sum(batch.num_tokens for batch in with_answers)).float()


@torch.no_grad()
def _mean_statistics(model: PreTrainedModel, batches: Sequence[BatchStatistics]) -> dict[str, Tensor]:
    """Returns the statistics over all samples, by name, given those of each batch."""
    num_samples = sum(len(batch.activity) for batch in batches)
    layers = model.model.language_model.layers
    column_lengths = torch.stack([layer.mlp.down_proj.weight.float().norm(dim=0).cpu() for layer in layers])
    num_distances = max(batch.neighborhood_sums.shape[1] for batch in batches)
    # Beyond the largest distance in a batch's own grids, the share does not grow further.
    padded = [
        torch.cat([sums, sums[:, -1:].expand(-1, num_distances - sums.shape[1])], dim=1)
        for sums in (batch.neighborhood_sums for batch in batches)
    ]
    neuron_sums = sum(batch.neuron_sums for batch in batches)
    return {
        "activity": torch.cat([batch.activity for batch in batches]),
        "neuron_importance": neuron_sums / num_samples * column_lengths,
        "neighborhood": sum(padded) / num_samples,
    }

"""Samples as a dataset, through a JSON file and its index, as training reads them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import ProcessorMixin

from data.dataset import ConversationDataset
from data.index.build import build_indexes
from data.index.index import Index
from data.sample import MEDIA, Sample
from data.sources.source import Source


def written(samples: Sequence[Sample], path: Path, images: Path = Path("/")) -> Source:
    """Writes samples as a LLaVA JSON, and gives it as a source. Their pictures and videos must be files."""
    rows = [
        {
            "id": sample.id,
            "family": sample.family,
            "system": sample.system or "",
            **{medium: [str(file) for file in sample.files(medium)] for medium in MEDIA},
            "conversations": [
                {"from": speaker, "value": text}
                for turn in sample.turns
                for speaker, text in zip(("human", "gpt"), turn, strict=True)
            ],
        }
        for sample in samples
    ]
    path.write_text(json.dumps(rows))
    return Source(path=path, images=images)


def indexed(samples: Sequence[Sample], processor: ProcessorMixin, folder: Path) -> ConversationDataset:
    """Returns a dataset of these samples, in their order. They must be good."""
    source = written(samples, folder / "samples.json")
    (path,) = build_indexes([source], processor, folder / "data", decode=False)
    index = Index(path, source)
    assert index.is_good.all(), index.ids_and_reasons(np.flatnonzero(~index.is_good))
    rows = np.arange(len(samples))
    return ConversationDataset([index], np.zeros_like(rows), rows, processor)

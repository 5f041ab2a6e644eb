"""The teacher's answers to the training data, computed once and stored for all students that learn from them.

About half of a student's training time is spent in its teacher. If a run compares several students, the teacher meets
the same samples each time. What the losses need is stored: logits at supervised positions, and the image features. LoRA
does not change the image features.

V vocab, N visual tokens of a sample, D hidden size.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from data.collator import Collator, pictures_of, predicts_answer
from data.dataset import ConversationDataset
from modeling.class_attention import ScoredFeatures, class_attention_of
from modeling.user_error import UserError
from modeling.whole_file import whole_file
from training.files import reading, writing
from training.progress import Progress
from training.ranks import rank, wait_for_rank_0, world_size

FEATURES = "features_"
"""Begins the name of a tensor of visual features. It is followed by the kind of visual input ("image", "video")."""
CLASS_ATTENTION = "class_attention_"
"""Begins the name of a tensor of what the vision tower's class token attends to. It is followed by the kind
likewise."""
OFFSETS = "/offsets"
"""Ends the name of a tensor that says at which row of another tensor each sample begins."""
COUNTS, NUM_SAMPLES = "/counts", "/samples"
"""In the part of one process: how many rows of a tensor each sample has, and how many samples there are."""


@torch.no_grad()
def write_teacher_answers(
    teacher: PreTrainedModel,
    dataset: ConversationDataset,
    collator: Collator,
    path: Path,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
) -> None:
    """Writes what `AnsweredDataset` reads: the teacher's logits and features for every sample.

    Every process calls this, and the teacher answers its share of the batches. If a process is killed meanwhile, `path`
    is as it was before.

    Args:
        teacher: a sparse class under the dense plan. It is put in eval mode.
        dataset: the training data.
        collator: makes batches of its samples.
        path: a safetensors file.
        batch_size: samples in one forward pass.
        autocast: dtype of the forward pass; None for the dtype of the weights.
    """
    parts = [path.with_name(f"{path.stem}.{number}.part") for number in range(world_size())]
    tensors: dict[str, list[torch.Tensor]] = defaultdict(list)
    lengths: list[dict[str, int]] = []  # for each sample, its number of rows in each tensor
    teacher.eval()
    starts = range(0, len(dataset), batch_size)
    number, count = rank(), world_size()
    own = starts[len(starts) * number // count : len(starts) * (number + 1) // count]  # adjacent, so that parts join
    for start in Progress(own, desc="teacher", unit="batch"):
        samples = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        batch = {name: value.to(teacher.device) for name, value in collator(samples).items()}
        supervised = predicts_answer(batch["labels"])
        with torch.autocast(teacher.device.type, autocast, enabled=autocast is not None):
            encoded = teacher.encode_pictures(pictures_of(batch), for_every_plan=True)
            text = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits = teacher(**text, **encoded, logits_mask=supervised, use_cache=False).logits
        tensors["teacher_logits"].append(logits.cpu())
        for kind, output in encoded.pop("mm_encoder_outputs", {}).items():
            tensors[FEATURES + kind] += [features.cpu() for features in output.pooler_output]
            if (scores := class_attention_of(output)) is not None:
                tensors[CLASS_ATTENTION + kind].append(scores.cpu())
        for name, value in encoded.items():
            tensors[name].append(value.cpu())
        for sample, input_ids, answer in zip(samples, batch["input_ids"], supervised, strict=True):
            counts = {
                kind: int((input_ids == token).sum()) for kind, token in teacher.visual_tokens(teacher.config).items()
            }
            tokens = {prefix + kind: count for kind, count in counts.items() for prefix in (FEATURES, CLASS_ATTENTION)}
            pictures = {name: len(value) for name, value in pictures_of(sample).items()}
            lengths.append({"teacher_logits": int(answer.sum()), **tokens, **pictures})
    rows = {name: torch.cat(values) for name, values in tensors.items()}
    counts = {name + COUNTS: torch.tensor([sample.get(name, 0) for sample in lengths]) for name in rows}
    with whole_file(parts[number]) as file, writing(path):
        save_file(rows | counts | {NUM_SAMPLES: torch.tensor(len(lengths))}, file)
    wait_for_rank_0()  # until all parts are written
    if number == 0:
        _join_parts(parts, path)
    wait_for_rank_0()


def _join_parts(parts: Sequence[Path], path: Path) -> None:
    """Writes the answers of all processes to one file, and removes theirs."""
    loaded = [load_file(part) for part in parts]
    names = sorted({name.removesuffix(COUNTS) for part in loaded for name in part if name.endswith(COUNTS)})
    joined = {}
    for name in names:
        joined[name] = torch.cat([part[name] for part in loaded if name in part])
        none = [torch.zeros(int(part[NUM_SAMPLES]), dtype=torch.long) for part in loaded]
        counts = [part.get(name + COUNTS, without) for part, without in zip(loaded, none, strict=True)]
        joined[name + OFFSETS] = torch.cat([torch.zeros(1, dtype=torch.long), *counts]).cumsum(0)
    with whole_file(path) as file, writing(path):
        save_file(joined, file)
    for part in parts:
        part.unlink()


class AnsweredDataset(Dataset):
    """The samples of a dataset, with the teacher's answers that `write_teacher_answers` stored.

    An item has the tokens of the dataset's item, but no pixels, as no picture is opened. It also has:

        teacher_logits        [supervised tokens, V], in the dtype in which the teacher computed them
        features_KIND         [N, D], if the sample has visual input of this kind
        class_attention_KIND  [N, tower layers], if moreover the vision tower has a class token

    and what else the model's forward needs to know about the pictures, such as their sizes.

    Args:
        dataset: the same data that the answers were computed on.
        path: the file of answers.

    Raises:
        UserError: `path` is damaged, or holds the answers to another number of samples.
    """

    def __init__(self, dataset: ConversationDataset, path: Path):
        self.conversations = dataset
        with reading(path, "delete it and the result of `ask` in stages/, and the dense model is asked again"):
            self._file = safe_open(path, framework="pt")
            names = (name for name in self._file.keys() if name.endswith(OFFSETS))  # noqa: SIM118 - it is no dict
            self._offsets = {name.removesuffix(OFFSETS): self._file.get_tensor(name).tolist() for name in names}
            num_samples = len(self._offsets["teacher_logits"]) - 1
        if len(dataset) != num_samples:
            raise UserError(f"{path}: answers to {num_samples} samples, the data has {len(dataset)}")

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self.conversations.tokens(index)
        for name, offsets in self._offsets.items():
            if offsets[index] < offsets[index + 1]:
                item[name] = self._file.get_slice(name)[offsets[index] : offsets[index + 1]]
        return item


def encoded_pictures(pictures: dict[str, torch.Tensor]) -> dict:
    """Returns what the model's `encode_pictures` would return, from stored features instead of pixels.

    Args:
        pictures: what a batch of `AnsweredDataset` says about its pictures. It may be empty.
    """
    outputs = {}
    for name, value in pictures.items():
        if name.startswith(FEATURES):
            kind = name.removeprefix(FEATURES)
            scores = pictures.get(CLASS_ATTENTION + kind)
            outputs[kind] = (
                BaseModelOutputWithPooling(pooler_output=[value])
                if scores is None
                else ScoredFeatures.of([value], [scores])
            )
    sizes = {name: value for name, value in pictures.items() if not name.startswith((FEATURES, CLASS_ATTENTION))}
    return {"mm_encoder_outputs": outputs, **sizes} if outputs else sizes

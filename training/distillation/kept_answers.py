"""The teacher's answers to the training data, asked once and kept on disk for every student that learns from them.

Half of a student's training time goes into its teacher; students that are compared meet the same samples. What is kept is
what the losses read, logits where an answer token is next, and the image features, which LoRA leaves as they are.

V vocab, N visual tokens of a sample, D hidden size.
"""

from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from data.collator import Collator, pictures_of, predicts_answer
from data.dataset import ConversationDataset
from modeling.class_attention import ScoredFeatures, class_attention_of
from modeling.user_error import UserError

FEATURES = "features_"
"""Before the kind of visual input, as in `mm_encoder_outputs`: its features among a sample's tensors."""
CLASS_ATTENTION = "class_attention_"
"""Before the kind likewise: what the vision tower's class token attends to, where it has one."""
OFFSETS = "/offsets"
"""After a tensor's name: where each sample's rows of it begin."""


@torch.no_grad()
def keep_answers(
    model: PreTrainedModel,
    dataset: ConversationDataset,
    collator: Collator,
    path: Path,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
) -> None:
    """Writes to `path` what `model`, a sparse class under the dense plan, makes of each sample; whole or not at all.

    Args:
        autocast: the dtype that students are trained in, where it is not the weights' own.
    """
    kept: dict[str, list[torch.Tensor]] = defaultdict(list)
    lengths: list[dict[str, int]] = []  # of each sample
    model.eval()
    for start in tqdm(range(0, len(dataset), batch_size), desc="teacher", unit="batch"):
        samples = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        batch = {name: value.to(model.device) for name, value in collator(samples).items()}
        supervised = predicts_answer(batch["labels"])
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            encoded = model.encode_pictures(pictures_of(batch))
            text = {name: batch[name] for name in ("input_ids", "attention_mask")}
            kept["teacher_logits"].append(
                model(**text, **encoded, logits_mask=supervised, use_cache=False).logits.cpu()
            )
        for kind, output in encoded.pop("mm_encoder_outputs", {}).items():
            kept[FEATURES + kind] += [features.cpu() for features in output.pooler_output]
            if (scores := class_attention_of(output)) is not None:
                kept[CLASS_ATTENTION + kind].append(scores.cpu())
        for name, value in encoded.items():
            kept[name].append(value.cpu())
        for sample, row, answers in zip(samples, batch["input_ids"], supervised, strict=True):
            counts = {kind: int((row == token).sum()) for kind, token in model.visual_tokens(model.config).items()}
            tokens = {prefix + kind: count for kind, count in counts.items() for prefix in (FEATURES, CLASS_ATTENTION)}
            pictures = {name: len(value) for name, value in pictures_of(sample).items()}
            lengths.append({"teacher_logits": int(answers.sum()), **tokens, **pictures})
    rows = {name: torch.cat(values) for name, values in kept.items()}
    offsets = {
        name + OFFSETS: torch.tensor([0, *(sample.get(name, 0) for sample in lengths)]).cumsum(0) for name in rows
    }
    partial = path.with_name(f".{path.name}.partial")
    save_file(rows | offsets, partial)
    partial.replace(path)


class AnsweredDataset(Dataset):
    """The samples of a dataset with what `keep_answers` kept of them.

    Item: the dataset's own without its pictures (they are not decoded), `teacher_logits` [supervised tokens, V] and, where it
    has pictures, their features [N, D], what the class token attends to [N, tower layers] and what the model is told of them besides their pixels.

    Raises:
        UserError: `path` holds the answers to another number of samples.
    """

    def __init__(self, dataset: ConversationDataset, path: Path):
        self._dataset = dataset
        self._file = safe_open(path, framework="pt")
        names = (name for name in self._file.keys() if name.endswith(OFFSETS))
        self._offsets = {name.removesuffix(OFFSETS): self._file.get_tensor(name).tolist() for name in names}
        num_samples = len(self._offsets["teacher_logits"]) - 1
        if len(dataset) != num_samples:
            raise UserError(f"{path}: answers to {num_samples} samples, the data has {len(dataset)}")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self._dataset.tokens(index)
        for name, offsets in self._offsets.items():
            if offsets[index] < offsets[index + 1]:
                item[name] = self._file.get_slice(name)[offsets[index] : offsets[index + 1]]
        return item


def with_features(pictures: dict[str, torch.Tensor]) -> dict:
    """Of a batch of `AnsweredDataset`: what forward takes of its pictures; as it is where no features were kept."""
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
    rest = {name: value for name, value in pictures.items() if not name.startswith((FEATURES, CLASS_ATTENTION))}
    return {"mm_encoder_outputs": outputs, **rest} if outputs else rest

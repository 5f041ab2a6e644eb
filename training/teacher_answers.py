"""The teacher's answers to the training data, asked once and kept on disk for every student that learns from them.

Half of a student's training time goes into its teacher; students that are compared meet the same samples. What is kept is
what the losses read, logits where an answer token is next, and the image features, which LoRA leaves as they are.

T supervised tokens and I images of the data, V vocab, N tokens per image, D hidden size.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from data.collator import Collator
from data.dataset import ConversationDataset
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from training.distillation import predicts_answer


@torch.no_grad()
def keep_answers(
    model: SparseLlavaForConditionalGeneration,
    dataset: Dataset,
    collator: Collator,
    path: Path,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
) -> None:
    """Writes to `path` what `model`, under the dense plan, makes of each sample; whole or not at all.

    Args:
        autocast: the dtype that students are trained in, where it is not the weights' own.
    """
    logits, features, num_tokens, num_images = [], [], [0], [0]
    image_tokens = model.config.image_seq_length
    model.eval()
    for start in tqdm(range(0, len(dataset), batch_size), desc="teacher", unit="batch"):
        samples = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        batch = {name: value.to(model.device) for name, value in collator(samples).items()}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        supervised = predicts_answer(batch["labels"])
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            if "pixel_values" in batch:
                seen = model.get_image_features(batch["pixel_values"]).pooler_output
                inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=seen)}
                features += [image.cpu() for image in seen]
            logits.append(model(**inputs, logits_mask=supervised, use_cache=False).logits.cpu())
        num_tokens += supervised.sum(1).tolist()
        num_images += [int((row == model.config.image_token_id).sum()) // image_tokens for row in batch["input_ids"]]
    partial = path.with_name(f".{path.name}.partial")
    kept = {"logits": torch.cat(logits), "token_offsets": torch.tensor(num_tokens).cumsum(0)}
    kept["image_offsets"] = torch.tensor(num_images).cumsum(0)
    if features:
        kept["features"] = torch.stack(features)
    save_file(kept, partial)
    partial.replace(path)


class AnsweredDataset(Dataset):
    """The samples of a dataset with what `keep_answers` kept of them.

    Item: the dataset's own without its pictures (they are not decoded), `teacher_logits` [supervised tokens, V] and, where it has images,
    `image_features` [images, N, D].

    Raises:
        ValueError: `path` holds the answers to another number of samples.
    """

    def __init__(self, dataset: ConversationDataset, path: Path):
        self._dataset = dataset
        self._file = safe_open(path, framework="pt")
        self._tokens, self._images = (self._file.get_tensor(f"{name}_offsets").tolist() for name in ("token", "image"))
        if len(dataset) != len(self._tokens) - 1:
            raise ValueError(f"{path}: answers to {len(self._tokens) - 1} samples, the data has {len(dataset)}")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self._dataset.tokens(index)
        item["teacher_logits"] = self._file.get_slice("logits")[self._tokens[index] : self._tokens[index + 1]]
        if self._images[index] < self._images[index + 1]:
            item["image_features"] = self._file.get_slice("features")[self._images[index] : self._images[index + 1]]
        return item

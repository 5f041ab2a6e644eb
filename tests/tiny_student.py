"""A random sparse LLaVA and batches for it, small enough to be built in every test."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from modeling.configuration_sparse_llava import SparseLlavaConfig
from modeling.modeling_sparse_llava import SparseLlavaForConditionalGeneration
from modeling.visual_plan import VisualPlan

IMAGE_TOKEN, PAD_TOKEN, VOCAB_SIZE = 3, 0, 40
GRID_SIDE, IMAGE_SIZE = 3, 24
TOKENS_PER_IMAGE = GRID_SIDE**2


def tiny_student(
    num_layers: int = 3,
    num_kv_heads: int = 2,
    seed: int = 0,
    grid_side: int = GRID_SIDE,
    initializer_range: float = 0.3,
) -> SparseLlavaForConditionalGeneration:
    """Four query heads, 24 FFN neurons, `grid_side`^2 visual tokens per image, the dense plan; fp32, eval mode.

    Args:
        initializer_range: the default is large enough that a random model's answers depend on what it sees.
    """
    torch.manual_seed(seed)
    config = SparseLlavaConfig(
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=24,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=num_kv_heads,
            vocab_size=VOCAB_SIZE,
            initializer_range=initializer_range,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=IMAGE_SIZE // grid_side,
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=grid_side**2,
        visual_plan=VisualPlan.dense(num_layers).to_dict(),
    )
    return SparseLlavaForConditionalGeneration(config).eval()


def tiny_batch(images: tuple[int, ...], seed: int = 0, padding_side: str = "right", grid_side: int = GRID_SIDE) -> dict:
    """One batch of samples of different lengths, in the collator's form.

    Args:
        images: number of images of each sample. Each image stands between text; the last tokens are the answer.
    """
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist()

    rows, answers = [], []
    for index, num_images in enumerate(images):
        row = text(2)
        for _ in range(num_images):
            row += [IMAGE_TOKEN] * grid_side**2 + text(1 + index)
        answers.append(2 + index % 2)
        rows.append(row + text(answers[-1]))
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), PAD_TOKEN)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        begin = length - len(row) if padding_side == "left" else 0
        end = begin + len(row)
        ids[index, begin:end] = torch.tensor(row)
        mask[index, begin:end] = 1
        labels[index, end - answer : end] = ids[index, end - answer : end]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if sum(images):
        batch["pixel_values"] = torch.randn(sum(images), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return batch


def single_samples(batch: dict, grid_side: int = GRID_SIDE) -> list[dict]:
    """The batch's samples without padding, one batch each."""
    singles, first_image = [], 0
    for row in range(len(batch["input_ids"])):
        kept = batch["attention_mask"][row].bool()
        single = {name: batch[name][row][kept][None] for name in ("input_ids", "attention_mask", "labels")}
        num_images = int((single["input_ids"] == IMAGE_TOKEN).sum()) // grid_side**2
        if num_images:
            single["pixel_values"] = batch["pixel_values"][first_image : first_image + num_images]
        first_image += num_images
        singles.append(single)
    return singles

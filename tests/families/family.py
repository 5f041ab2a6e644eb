"""What the tests of all families need: a family's tiny model, samples for it, and what its decoder meets."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from checkpoints.build import build_student
from checkpoints.families import sparse_class
from data.collator import Collator
from modeling.visual_plan import VisualPlan
from tests.modeling.masked_reference import Layout
from tests.tiny_processor import TINY_TEMPLATE, WORDS

PAD, VOCAB_SIZE = 0, 60
DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # large enough that answers depend on pictures
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
}
"""Of every family's text_config."""
COLLATORS = {
    side: Collator(SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=PAD)), side) for side in ("left", "right")
}


@dataclass(frozen=True)
class TinyFamily:
    """Attributes:
    config: a small one, its decoder's sizes those of DECODER.
    samples: a seed -> samples of different lengths, numbers and sizes of pictures, as data/dataset.py gives them.
    layout: model and sample -> what its decoder meets.
    stock_inputs: a batch -> what the stock class must be told besides.
    processor: one whose words and special tokens are the config's.
    """

    name: str
    config: Callable[[], PreTrainedConfig]
    samples: Callable[[int], list[dict]]
    layout: Callable[[nn.Module, dict], Layout]
    stock_inputs: Callable[[dict], dict]
    processor: Callable[[], ProcessorMixin]

    def dense(self, seed: int = 0) -> PreTrainedModel:
        """The stock model, random weights, fp32, eval mode."""
        torch.manual_seed(seed)
        config = self.config()
        return sparse_class(config).stock_class(config).eval()

    def sparse(self, plan: VisualPlan | None = None, seed: int = 0) -> PreTrainedModel:
        """The same weights in the sparse class."""
        dense = self.dense(seed)
        return build_student(dense, plan or VisualPlan.dense(dense.config.text_config.num_hidden_layers))


def with_telling_class_token(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its tower's class token attending to patches differently, if it has one."""
    for name, value in model.vision_tower.named_parameters():
        if "q_proj.weight" in name or "query.weight" in name:  # transformers 5.17 has the latter in a DINOv2
            value.data *= 100  # weights as small as the tower's first ones attend to all alike
        if "cls_token" in name:
            nn.init.normal_(value)  # InternVL's starts at zero
    return model


def tiny_tokenizer(special: list[str] | dict[str, str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of words, at most VOCAB_SIZE tokens.

    Pad, start and end token are DECODER's. The family's special tokens come next.

    Args:
        special: those tokens, with their names where the tokenizer has them as attributes.
    """
    given = special.values() if isinstance(special, dict) else special
    vocabulary = {
        word: index for index, word in enumerate(("<pad>", "<s>", "</s>", *given, "<unk>", *WORDS)[:VOCAB_SIZE])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )


def template_with(image: str) -> str:
    """TINY_TEMPLATE with pictures written like this."""
    return TINY_TEMPLATE.replace("<image>", image)


def words(length: int, first: int, generator: torch.Generator) -> list[int]:
    """Random tokens from `first` on."""
    return torch.randint(first, VOCAB_SIZE, (length,), generator=generator).tolist()


def sample_of(ids: list[int]) -> dict:
    """A sample's text, its last two tokens the answer."""
    input_ids = torch.tensor(ids)
    return {"input_ids": input_ids, "labels": torch.where(torch.arange(len(ids)) < len(ids) - 2, -100, input_ids)}


def batch_of(samples: list[dict], padding_side: str = "right") -> dict:
    """Inputs of a forward, without labels."""
    batch = COLLATORS[padding_side](samples)
    del batch["labels"]
    return batch


def as_batch(sample: dict) -> dict:
    """One sample as a batch of one, unpadded."""
    return batch_of([sample])


def text_rows(model: PreTrainedModel, batch: dict) -> torch.Tensor:
    """[B, S] bool: rows that are neither padding nor visual."""
    visual = torch.tensor(list(model.visual_tokens(model.config).values()))
    return batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], visual)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())

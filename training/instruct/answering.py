"""A LLaVA that is given what its vision tower made of pictures, and learns answers by projector and LoRA.

B samples of one picture each, P patches, S tokens of the longest sample.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from data.collator import predicts_answer
from data.conversations import IGNORE_INDEX
from training.recipe.lora import LoraSettings

PROJECTOR = "multi_modal_projector"


class LlavaOfFeatures(LlavaForConditionalGeneration):
    """A LLaVA whose forward takes features in place of pictures, and gives the loss of answers alone.

    Logits are computed at supervised rows only.

    Attributes:
        token_weights: [vocab] fp32, how much a token counts where it begins an answer. None: all count 1.
    """

    token_weights: torch.Tensor | None = None

    @classmethod
    def of(cls, model: LlavaForConditionalGeneration) -> "LlavaOfFeatures":
        """Returns a LLaVA that shares the weights of a stock one.

        A subclass cannot be loaded from files: transformers knows the names of tensors in them by the stock class.
        """
        with no_init_weights(), init_empty_weights(include_buffers=False):
            taught = cls(model.config)
        taught.load_state_dict(model.state_dict(), assign=True)
        taught.tie_weights()
        return taught

    def forward(  # type: ignore[override]
        self,
        features: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Returns `loss`, an fp32 scalar: the weighted mean over supervised tokens.

        Args:
            features: [B, P, W], what the projector takes.
            input_ids, position_ids: [B, S] int64.
            attention_mask: [B, 1, S, S] bool.
            labels: [B, S] int64, not shifted.
        """
        text = self.model.language_model
        embeddings = self.get_input_embeddings()(input_ids)
        visual = self.model.multi_modal_projector(features.to(self.dtype)).to(embeddings.dtype)
        is_visual = (input_ids == self.config.image_token_id)[..., None].expand_as(embeddings)
        states = text(
            inputs_embeds=embeddings.masked_scatter(is_visual, visual),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        rows = predicts_answer(labels)
        targets = labels.roll(-1, dims=1)[rows]
        losses = F.cross_entropy(self.lm_head(states[rows]).float(), targets, reduction="none")
        weights = torch.ones_like(losses)
        if self.token_weights is not None:
            begins = (labels == IGNORE_INDEX)[rows]
            weights = torch.where(begins, self.token_weights.to(losses.device)[targets], weights)
        return {"loss": (losses * weights).sum() / weights.sum()}


def first_token_weights(weights: Mapping[int, float], vocab_size: int) -> torch.Tensor:
    """Returns how much each token counts where it begins an answer, [vocab] fp32.

    Args:
        weights: token -> how much it counts. Others count 1.
    """
    of_tokens = torch.ones(vocab_size)
    for token, weight in weights.items():
        of_tokens[token] = weight
    return of_tokens


def with_adapters(model: LlavaForConditionalGeneration, settings: LoraSettings) -> PeftModel:
    """Freezes `model`, and puts trainable adapters on all linear layers of its text decoder. The projector is trained.

    What is trained is fp32.
    """
    text = model.model.language_model
    prefix = next(name for name, module in model.named_modules() if module is text)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[f"{prefix}.{name}" for name, module in text.named_modules() if isinstance(module, nn.Linear)],
        modules_to_save=[PROJECTOR],
    )
    adapted = get_peft_model(model, config)
    for parameter in trained(adapted):
        parameter.data = parameter.data.float()
    return adapted


def load_adapters(model: PeftModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Gives adapters and projector these weights, as peft saves them.

    Raises:
        ValueError: they are those of other adapters.
    """
    expected = {name: value.shape for name, value in get_peft_model_state_dict(model).items()}
    got = {name: value.shape for name, value in weights.items()}
    if got != expected:
        different = sorted({name for name, _ in got.items() ^ expected.items()})
        raise ValueError(f"{len(different)} tensors are missing, unknown or of another shape, first {different[0]}")
    set_peft_model_state_dict(model, dict(weights))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def parameter_groups(model: PeftModel, lora_rate: float, projector_rate: float) -> list[dict[str, Any]]:
    """Returns the groups of an optimizer: adapters and projector, each with its learning rate."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[PROJECTOR in name].append(parameter)
    return [{"params": groups[False], "lr": lora_rate}, {"params": groups[True], "lr": projector_rate}]

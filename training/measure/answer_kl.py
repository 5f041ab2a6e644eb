"""How far a plan moves the model's answers: the KL from the dense plan's answer distribution, before any training.

What does not depend on the plan is done once: vision tower and projector run once per picture, the dense answers are
stored, and plans that execute the same work (`VisualPlan.live`) are one evaluation.

Shape legend: B batch, T tokens, A supervised answer tokens of a batch, V vocab.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from data.collator import TEXT_KEYS, pictures_of, predicts_answer
from modeling.user_error import UserError
from modeling.visual_gates import LayerGates
from modeling.visual_plan import VisualPlan


def rows_with_images(batch: dict, visual_token_ids: Iterable[int]) -> dict:
    """The batch without its text-only samples, which no plan touches; the images stay as they are."""
    keep = torch.isin(batch["input_ids"], torch.tensor(list(visual_token_ids))).any(dim=1)
    return {key: value[keep] if key in TEXT_KEYS else value for key, value in batch.items()}


@torch.no_grad()
def answer_inputs(model: PreTrainedModel, batches: Sequence[dict]) -> list[dict]:
    """A forward's inputs for each batch that has answers in samples with images, of these samples alone.

    Returns:
        Dicts on the model's device, with the pictures already through the vision tower and the projector; `logits_mask` [B, T]
        is true at the rows that predict an answer.

    Raises:
        UserError: no answer in `batches` belongs to a sample with an image.
    """
    found = []
    for batch in batches:
        placeholders = model.visual_tokens(model.config).values()
        rows = {key: value.to(model.device) for key, value in rows_with_images(batch, placeholders).items()}
        supervised = predicts_answer(rows["labels"])
        if supervised.any():
            # Labels tell which rows rank visual tokens, as in training; with `logits_mask` no loss is computed.
            inputs = {name: rows[name] for name in ("input_ids", "attention_mask", "labels")} | {
                "logits_mask": supervised
            }
            found.append(inputs | model.encode_pictures(pictures_of(rows)))
    if not found:
        raise UserError(
            "calibration data: no supervised answer in a sample with an image; nothing to measure a plan by"
        )
    return found


class AnswerKL:
    """Mean over supervised tokens of KL(dense plan || plan), in nats, computed in fp32.

    Args:
        model: weights in any dtype; put in eval mode.
        batches: dicts of `data.collator.Collator`; text-only samples are left out.

    Raises:
        UserError: no answer in `batches` belongs to a sample with an image.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[dict]):
        self.model = model.eval()
        config = model.config.text_config
        self._sizes = {"num_units": config.num_key_value_heads, "intermediate_size": config.intermediate_size}
        self._inputs = answer_inputs(model, batches)
        dense = VisualPlan.dense(config.num_hidden_layers)
        self._dense_logits = list(self._logits(dense))
        self._known = {dense.live(**self._sizes): 0.0}

    @property
    def num_evaluations(self) -> int:
        """How many plans have been run so far; those found in the cache are not counted."""
        return len(self._known) - 1

    def __call__(self, plan: VisualPlan) -> float:
        live = plan.live(**self._sizes)
        if live not in self._known:
            self._known[live] = self.distance(plan)["kl"]
        return self._known[live]

    @torch.no_grad()
    def _logits(self, plan: VisualPlan, gates: list[LayerGates] | None = None):
        """Yields each batch's answer logits [A, V] under the plan."""
        with self.model.use_plan(plan):
            for inputs in self._inputs:
                yield self.model(**inputs, gates=gates, use_cache=False).logits

    def distance(self, plan: VisualPlan, gates: list[LayerGates] | None = None) -> dict[str, float]:
        """How far answers under the plan, and under gates on it, are from the dense model's: mean `kl`, and the share of
        tokens that are still the likeliest (`agreement`)."""
        total, agreeing, num_tokens = 0.0, 0, 0
        for dense, sparse in zip(self._dense_logits, self._logits(plan, gates), strict=True):
            divergence = F.kl_div(
                sparse.float().log_softmax(-1), dense.float().log_softmax(-1), reduction="sum", log_target=True
            )
            total += divergence.item()
            agreeing += int((dense.argmax(-1) == sparse.argmax(-1)).sum())
            num_tokens += len(dense)
        return {"kl": total / num_tokens, "agreement": agreeing / num_tokens}

    def accuracy(self, plan: VisualPlan) -> float:
        """Share of answers that are right in every token, given the true tokens before it: those that greedy decoding gets
        right. A conversation has several."""
        right, num_answers = 0, 0
        for inputs, logits in zip(self._inputs, self._logits(plan), strict=True):
            rows = inputs["logits_mask"]  # [B, T]; an answer's rows stand together
            begins = rows & ~F.pad(rows, (1, 0))[:, :-1]
            answer = begins.flatten().cumsum(0)[rows.flatten()] - 1  # [A]: its number in the batch
            wrong = logits.argmax(-1) != inputs["labels"].roll(-1, dims=1)[rows]
            num_wrong = len(answer[wrong].unique())
            num_answers += int(begins.sum())
            right += int(begins.sum()) - num_wrong
        return right / num_answers

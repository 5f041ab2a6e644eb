"""Measures how much a plan changes the model's answers, before any training.

The measure is the KL from the dense plan's answer distribution. What does not depend on the plan is done once. The
vision tower and the projector run once for each picture, and the dense answers are stored. Plans that execute the
same work (`VisualPlan.live`) are evaluated once.

Shape legend: B batch, T tokens, A supervised answer tokens of a batch, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from data.collator import TEXT_KEYS, pictures_of, predicts_answer
from modeling.user_error import UserError
from modeling.visual_gates import LayerGates
from modeling.visual_plan import VisualPlan


def samples_with_images(batch: dict, visual_token_ids: Iterable[int]) -> dict:
    """Returns a batch without its text-only samples, which no plan changes. The pictures stay as they are.

    Args:
        batch: what `data.collator.Collator` returns.
        visual_token_ids: the ids of tokens that stand for visual tokens.
    """
    has_image = torch.isin(batch["input_ids"], torch.tensor(list(visual_token_ids))).any(dim=1)
    return {key: value[has_image] if key in TEXT_KEYS else value for key, value in batch.items()}


@torch.no_grad()
def answer_inputs(model: PreTrainedModel, batches: Sequence[dict]) -> list[dict]:
    """Returns the inputs of a forward pass for each batch that has answers in samples with images.

    They hold these samples alone, and lie on the model's device. The pictures have passed the vision tower and the
    projector. `logits_mask` [B, T] bool is true at the rows that predict a token of an answer.

    Args:
        model: a sparse model.
        batches: dicts that `data.collator.Collator` returns.

    Raises:
        UserError: no answer in `batches` belongs to a sample with an image.
    """
    inputs_of_batches = []
    for batch in batches:
        placeholders = model.visual_tokens(model.config).values()
        samples = {key: value.to(model.device) for key, value in samples_with_images(batch, placeholders).items()}
        supervised = predicts_answer(samples["labels"])
        if supervised.any():
            # As in training, labels tell which rows rank visual tokens. With `logits_mask` no loss is computed.
            inputs = {name: samples[name] for name in ("input_ids", "attention_mask", "labels")}
            inputs["logits_mask"] = supervised
            inputs_of_batches.append(inputs | model.encode_pictures(pictures_of(samples)))
    if not inputs_of_batches:
        raise UserError(
            "calibration data: no supervised answer in a sample with an image; nothing to measure a plan by"
        )
    return inputs_of_batches


class AnswerKL:
    """Measures KL(dense plan || plan), the mean over supervised tokens in nats. It is computed in fp32.

    Args:
        model: a sparse model with weights in any dtype. It is put in eval mode.
        batches: dicts that `data.collator.Collator` returns. Text-only samples are left out.

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
        self._kl_of_work = {dense.live(**self._sizes): 0.0}

    @property
    def num_evaluations(self) -> int:
        """How many plans have been run so far. Plans whose work was evaluated before are not counted."""
        return len(self._kl_of_work) - 1

    def __call__(self, plan: VisualPlan) -> float:
        """Returns the KL of a plan in nats."""
        live = plan.live(**self._sizes)
        if live not in self._kl_of_work:
            self._kl_of_work[live] = self.distance(plan)["kl"]
        return self._kl_of_work[live]

    @torch.no_grad()
    def _logits(self, plan: VisualPlan, gates: list[LayerGates] | None = None) -> Iterator[torch.Tensor]:
        """Yields each batch's answer logits [A, V] under the plan."""
        with self.model.use_plan(plan):
            for inputs in self._inputs:
                yield self.model(**inputs, gates=gates, use_cache=False).logits

    def distance(self, plan: VisualPlan, gates: list[LayerGates] | None = None) -> dict[str, float]:
        """Returns how far the answers are from the dense model's, always by a new evaluation.

        `kl` is the mean KL in nats. `agreement` is the share of supervised tokens at which both models find the same
        token most likely.

        Args:
            plan: the plan in force.
            gates: gates on top of the plan, one for each layer. None means no gates.
        """
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
        """Returns the share of answers in [0, 1] that are right in every token, given the true tokens before it.

        These are the answers that greedy decoding gets right. A conversation has several answers.
        """
        right, num_answers = 0, 0
        for inputs, logits in zip(self._inputs, self._logits(plan), strict=True):
            rows = inputs["logits_mask"]  # [B, T]; the rows of an answer are adjacent
            begins = rows & ~F.pad(rows, (1, 0))[:, :-1]
            answer = begins.flatten().cumsum(0)[rows.flatten()] - 1  # [A]: the number of each row's answer
            wrong = logits.argmax(-1) != inputs["labels"].roll(-1, dims=1)[rows]
            num_wrong = len(answer[wrong].unique())
            num_answers += int(begins.sum())
            right += int(begins.sum()) - num_wrong
        return right / num_answers

"""Measures how much a plan changes the model's answers, before any training.

The measure is the KL from the dense plan's answer distribution. What does not depend on the plan is done once. The
vision tower and the projector run once for each picture, and the dense answers are stored. Plans that execute the
same work (`VisualPlan.live`) are evaluated once. Every rank measures its own batches.

Shape legend: B batch, T tokens, A supervised answer tokens of a batch, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from data.collator import TEXT_KEYS, pictures_of, predicts_answer
from modeling.user_error import UserError
from modeling.visual_gates import LayerGates
from modeling.visual_plan import LiveLayer, VisualPlan
from training.journal import Journal
from training.ranks import OnAllRanks, alone, in_order


def samples_with_images(batch: dict, visual_token_ids: Iterable[int]) -> dict:
    """Returns a batch without its text-only samples, which no plan changes. The pictures stay as they are.

    Args:
        batch: what `data.collator.Collator` returns.
        visual_token_ids: the ids of tokens that stand for visual tokens.
    """
    has_image = torch.isin(batch["input_ids"], torch.tensor(list(visual_token_ids))).any(dim=1)
    return {key: value[has_image] if key in TEXT_KEYS else value for key, value in batch.items()}


@torch.no_grad()
def answer_inputs(model: PreTrainedModel, batch: dict) -> dict | None:
    """Returns the inputs of a forward pass for the samples of a batch that have pictures; None if these have no answer.

    They lie on the model's device. The pictures have passed the vision tower and the projector, and are for the plan in
    force. `logits_mask` [B, T] bool is true at the rows that predict a token of an answer.

    Args:
        model: a sparse model.
        batch: what `data.collator.Collator` returns.
    """
    placeholders = model.visual_tokens(model.config).values()
    samples = {key: value.to(model.device) for key, value in samples_with_images(batch, placeholders).items()}
    supervised = predicts_answer(samples["labels"])
    if not supervised.any():
        return None
    # As in training, labels tell which rows rank visual tokens. With `logits_mask` no loss is computed.
    inputs = {name: samples[name] for name in ("input_ids", "attention_mask", "labels")}
    return inputs | {"logits_mask": supervised} | model.encode_pictures(pictures_of(samples))


def kl_sum(dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
    """Returns the sum over rows of KL(dense || sparse) in nats, computed in fp32 from logits [A, V]."""
    return F.kl_div(sparse.float().log_softmax(-1), dense.float().log_softmax(-1), reduction="sum", log_target=True)


def has_answer(batch: dict, visual_token_ids: Iterable[int]) -> bool:
    """Returns whether a sample of the batch that has a picture has an answer. The arguments are as above."""
    return bool(predicts_answer(samples_with_images(batch, visual_token_ids)["labels"]).any())


def refuse_no_answers(num_answers: int) -> None:
    """Raises UserError if the calibration data has no answer to measure a plan by."""
    if num_answers == 0:
        raise UserError(
            "calibration data: no supervised answer in a sample with an image; nothing to measure a plan by"
        )


class Divergence(NamedTuple):
    """How far the answers of one batch are from the dense model's, summed over supervised tokens."""

    kl: float
    """KL(dense plan || plan) in nats, computed in fp32."""
    num_agreeing: int
    """Tokens at which both find the same token most likely."""
    num_tokens: int


class OwnAnswers:
    """The answers of the dense model on this rank's batches, and how far a plan moves them.

    Args:
        model: a sparse model with weights in any dtype. It is put in eval mode.
        batches: pairs of a batch's number and the dict that `data.collator.Collator` returns.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[tuple[int, dict]]):
        self.model = model.eval()
        self._batches = batches
        self._dense_plan = VisualPlan.dense(model.config.text_config.num_hidden_layers)
        self._known: list[tuple[int, dict]] | None = None
        self._tower_layers = 0  # what is known ranks by so many layers of the tower

    def _inputs(self, plan: VisualPlan) -> list[tuple[int, dict]]:
        """Returns number and inputs of the batches that have answers. Pictures are encoded again only for a plan that
        ranks by more layers of the tower than any before."""
        if self._known is None or plan.tower_layers > self._tower_layers:
            with self.model.use_plan(plan):
                inputs = [(number, answer_inputs(self.model, batch)) for number, batch in self._batches]
            self._known = [(number, given) for number, given in inputs if given is not None]
            self._tower_layers = plan.tower_layers
        return self._known

    @cached_property
    def _dense_logits(self) -> list[torch.Tensor]:
        return list(self._logits(self._dense_plan))

    def prepare(self) -> int:
        """Computes the dense model's answers, with the weights as they are now, and returns how many batches have any.

        It is done once, and by itself before anything is measured.
        """
        return len(self._dense_logits)

    def dense_answers(self) -> Iterator[tuple[int, dict, torch.Tensor]]:
        """Yields the number of each batch that has answers, its inputs, and the dense model's answer logits [A, V]."""
        for (number, inputs), dense in zip(self._inputs(self._dense_plan), self._dense_logits, strict=True):
            yield number, inputs, dense

    @torch.no_grad()
    def _logits(self, plan: VisualPlan, gates: list[LayerGates] | None = None) -> Iterator[torch.Tensor]:
        """Yields each batch's answer logits [A, V] under the plan."""
        inputs_of_batches = self._inputs(plan)
        with self.model.use_plan(plan):
            for _, inputs in inputs_of_batches:
                yield self.model(**inputs, gates=gates, use_cache=False).logits

    def divergences(self, plan: VisualPlan, gates: list[LayerGates] | None = None) -> list[tuple[int, Divergence]]:
        """Returns each batch's number and divergence. `gates` lie on top of the plan, one for each layer."""
        found = []
        logits = self._logits(plan, gates)
        for (number, _), dense, sparse in zip(self._inputs(plan), self._dense_logits, logits, strict=True):
            agreeing = int((dense.argmax(-1) == sparse.argmax(-1)).sum())
            found.append((number, Divergence(kl_sum(dense, sparse).item(), agreeing, len(dense))))
        return found

    def right_answers(self, plan: VisualPlan) -> list[tuple[int, tuple[int, int]]]:
        """Returns each batch's number, and how many of its answers are right in every token, of how many."""
        found = []
        for (number, inputs), logits in zip(self._inputs(plan), self._logits(plan), strict=True):
            rows = inputs["logits_mask"]  # [B, T]; the rows of an answer are adjacent
            begins = rows & ~F.pad(rows, (1, 0))[:, :-1]
            answer = begins.flatten().cumsum(0)[rows.flatten()] - 1  # [A]: the number of each row's answer
            wrong = logits.argmax(-1) != inputs["labels"].roll(-1, dims=1)[rows]
            num_answers = int(begins.sum())
            found.append((number, (num_answers - len(answer[wrong].unique()), num_answers)))
        return found

    @property
    def tasks(self) -> dict[str, Callable[..., Any]]:
        """What `AnswerKL` asks of every rank."""
        return {
            "prepare": self.prepare,
            "divergences": self.divergences,
            "right_answers": self.right_answers,
        }


class AnswerKL:
    """Measures KL(dense plan || plan), the mean over supervised tokens in nats. It is computed in fp32.

    Args:
        model: a sparse model with weights in any dtype. It is put in eval mode.
        batches: dicts that `data.collator.Collator` returns. Text-only samples are left out.
        on_all_ranks: does `OwnAnswers.tasks` on every rank, each with its share of the batches. None measures all
            batches in this process.
        journal: keeps the KL of every plan, so that it is never measured again. None keeps it in memory alone.

    Raises:
        UserError: no answer in the batches belongs to a sample with an image.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[dict],
        on_all_ranks: OnAllRanks | None = None,
        journal: Journal | None = None,
    ):
        text = model.config.text_config
        self._on_all_ranks = on_all_ranks or alone(OwnAnswers(model, list(enumerate(batches))).tasks)
        self._sizes = {"num_units": text.num_key_value_heads, "intermediate_size": text.intermediate_size}
        self._journal = journal
        self._kl_of_work = {VisualPlan.dense(text.num_hidden_layers).live(**self._sizes): 0.0}
        refuse_no_answers(sum(self._on_all_ranks("prepare")))

    @property
    def num_evaluations(self) -> int:
        """How many plans have been looked at so far. Plans of the same work count once, and the dense plan does not."""
        return len(self._kl_of_work) - 1

    def __call__(self, plan: VisualPlan) -> float:
        """Returns the KL of a plan in nats."""
        live = plan.live(**self._sizes)
        if live not in self._kl_of_work:
            self._kl_of_work[live] = self._journaled_kl(plan, live)
        return self._kl_of_work[live]

    def _journaled_kl(self, plan: VisualPlan, live: tuple[LiveLayer, ...]) -> float:
        """Returns the KL of a plan from the journal, where it is written if it is new."""
        if self._journal is None:
            return self.distance(plan)["kl"]
        work = hashlib.blake2b(repr(live).encode(), digest_size=16).hexdigest()
        if work not in self._journal:
            self._journal.add(work, self.distance(plan)["kl"])
        return self._journal[work]

    def distance(self, plan: VisualPlan, gates: list[LayerGates] | None = None) -> dict[str, float]:
        """Returns how far the answers are from the dense model's, always by a new evaluation.

        `kl` is the mean KL in nats. `agreement` is the share of supervised tokens at which both models find the same
        token most likely.

        Args:
            plan: the plan in force.
            gates: gates on top of the plan, one for each layer. None means no gates.
        """
        return mean_distance(in_order(self._on_all_ranks("divergences", plan, gates)))

    def accuracy(self, plan: VisualPlan) -> float:
        """Returns the share of answers in [0, 1] that are right in every token, given the true tokens before it.

        These are the answers that greedy decoding gets right. A conversation has several answers.
        """
        counts = in_order(self._on_all_ranks("right_answers", plan))
        return sum(right for right, _ in counts) / sum(count for _, count in counts)


def mean_distance(batches: Sequence[Divergence]) -> dict[str, float]:
    """Returns `kl` and `agreement` as `AnswerKL.distance`, given the divergences of batches in their order.

    They are added in that order, so that rounding does not depend on the number of ranks.
    """
    num_tokens = sum(batch.num_tokens for batch in batches)
    kl, agreeing = sum(batch.kl for batch in batches), sum(batch.num_agreeing for batch in batches)
    return {"kl": kl / num_tokens, "agreement": agreeing / num_tokens}

"""The `distillation` section of a recipe: which losses students are trained on, and with which weights."""

from pydantic import Field, model_validator

from training.schema import Strict


class DistillationSettings(Strict):
    """The losses of distillation. The teacher is the dense model.

    The loss is a weighted sum. Each single loss is the mean over the supervised tokens, which are the tokens of
    answers. A loss of weight 0 is not computed.
    """

    cross_entropy_weight: float = Field(ge=0)
    """Weight of the cross entropy on the answers in the data."""
    forward_kl_weight: float = Field(ge=0)
    """Weight of KL(teacher || student), the divergence of the student's next-token distribution from the teacher's."""
    reverse_kl_weight: float = Field(default=0.0, ge=0)
    """Weight of KL(student || teacher)."""
    jsd_weight: float = Field(default=0.0, ge=0)
    """Weight of the generalized Jensen-Shannon divergence (arXiv 2306.13649, equation 1)."""
    jsd_beta: float = Field(default=0.5, gt=0, lt=1)
    """Share of the teacher in the mixture of the Jensen-Shannon divergence. It only matters with `jsd_weight`."""
    hidden_cosine_weight: float = Field(default=0.0, ge=0)
    """Weight of 1 - cosine similarity of the teacher's and the student's last hidden states at supervised tokens."""
    distill_temperature: float = Field(default=1.0, gt=0)
    """Both models' logits are divided by it before they are compared. The cross entropy on the data's answers is
    not."""
    keep_answers: bool = False
    """Run the teacher on each training sample once, and keep its logits and image features in the run's folder. It
    saves time with several students. The disk must hold supervised tokens x vocabulary logits and all image
    features."""

    @model_validator(mode="after")
    def _has_a_loss(self):
        if not (self.cross_entropy_weight or self.needs_teacher):
            raise ValueError("every weight is 0: nothing to train on")
        if self.keep_answers and self.hidden_cosine_weight:
            raise ValueError("keep_answers keeps logits, not hidden states: it does not go with hidden_cosine_weight")
        if self.keep_answers and not self.needs_teacher:
            raise ValueError("keep_answers: no loss here reads a teacher's answers")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss compares the student with the teacher."""
        return self.needs_teacher_logits or bool(self.hidden_cosine_weight)

    @property
    def needs_teacher_logits(self) -> bool:
        """Whether any loss compares what the student and the teacher say."""
        return bool(self.forward_kl_weight or self.reverse_kl_weight or self.jsd_weight)

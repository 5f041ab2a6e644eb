"""The `distillation` section of a recipe: which losses, and how much of each."""

from pydantic import Field, model_validator

from training.schema import Strict


class DistillationSettings(Strict):
    """Loss = sum of weight x (token sum / number of supervised tokens)."""

    cross_entropy_weight: float = Field(ge=0)
    """On the data's own answers."""
    forward_kl_weight: float = Field(ge=0)
    """KL(teacher || student)."""
    reverse_kl_weight: float = Field(default=0.0, ge=0)
    """KL(student || teacher)."""
    jsd_weight: float = Field(default=0.0, ge=0)
    jsd_beta: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of the Jensen-Shannon divergence."""
    hidden_cosine_weight: float = Field(default=0.0, ge=0)
    """1 - cosine of teacher's and student's last hidden state on supervised text rows."""
    distill_temperature: float = Field(default=1.0, gt=0)
    keep_answers: bool = False
    """Ask the teacher once and keep its logits and the image features in the run's folder: for several students on data that
    is small (supervised tokens x vocabulary, and images x their tokens x hidden size)."""

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
        return bool(self.forward_kl_weight or self.reverse_kl_weight or self.jsd_weight or self.hidden_cosine_weight)

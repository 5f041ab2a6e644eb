"""The plan in the config of a sparse model."""

from transformers import PreTrainedConfig

from .visual_plan import VisualPlan


def check_plan_of_config(config: PreTrainedConfig) -> None:
    """Raises UserError if the plan in a sparse model's config is none, or does not fit its text model.

    A config says so as it is made. Later, where transformers builds the model without memory, it would be an error of
    torch that names no field.
    """
    if config.visual_plan is not None:
        text = config.text_config
        plan = VisualPlan.from_dict(config.visual_plan)
        plan.check(text.num_hidden_layers, text.num_key_value_heads, text.intermediate_size)

"""Planners: each file is one way to find a `VisualPlan` within a budget. A recipe's `plan` section names one."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from modeling.visual_plan import VisualPlan
from training.measure.calibration import Calibration
from training.measure.price import GateBudget
from training.planners.fastv import FastvSettings, plan_fastv
from training.planners.file import FileSettings, plan_from_file
from training.planners.g_search import GSearchSettings, plan_g_search
from training.planners.greedy import GreedySettings, plan_greedy
from training.planners.himap import HimapSettings, plan_himap
from training.planners.p_sigmoid import PSigmoidSettings, plan_p_sigmoid, sigmoid_plan
from training.planners.pre_pruning import PrePruningSettings, plan_pre_pruning
from training.planners.pyramid_drop import PyramidDropSettings, plan_pyramid_drop
from training.planners.random_plan import RandomSettings, plan_random
from training.planners.shortv import ShortvSettings, plan_shortv
from training.planners.stack import Part, StackSettings, stacked
from training.planners.tools.budget import Budget
from training.planners.uniform import UniformSettings, plan_uniform
from training.planners.vica import VicaSettings, plan_vica
from training.planners.vtw import VtwSettings, plan_vtw, withdrawal_within
from training.planners.yopo import YopoSettings, plan_yopo

SearchSettings = Part | StackSettings
"""Of the planners that find a plan without training."""
CURVE, TRIALS = "curve.json", "trials.journal"
"""What a search leaves in its folder: VTW its curve, Bayesian optimisation its trials."""


def find_plan(
    model: PreTrainedModel,
    batches: Sequence[dict],
    calibration: Calibration | None,
    settings: SearchSettings,
    folder: Path | None = None,
) -> VisualPlan:
    """The plan of the planner that `settings` names; a learned plan comes from training/gates/learning.py.

    Args:
        model: the dense weights; any plan may be in force, it is restored.
        batches: the calibration data, for planners that evaluate plans.
        calibration: None only where `needs_calibration` says that it is not read.
        folder: where a search leaves what it measured, and goes on from when it is started again; it is this search's own.

    Raises:
        UserError: the settings do not fit the model, or a plan file cannot be used.
    """
    known = plan_of_config(model.config, settings)
    if known is not None:
        return known
    match settings:
        case GreedySettings():
            return plan_greedy(model, batches, calibration, settings)
        case YopoSettings():
            return plan_yopo(model.config, calibration, settings)
        case ShortvSettings():
            return plan_shortv(model, batches, settings)
        case VicaSettings():
            return plan_vica(model.config, calibration, settings)
        case VtwSettings():
            return plan_vtw(model, batches, settings, folder and folder / CURVE)
        case PSigmoidSettings():
            return plan_p_sigmoid(model, batches, settings, folder and folder / TRIALS)
        case GSearchSettings():
            return plan_g_search(model, batches, settings, folder and folder / TRIALS)
        case UniformSettings():
            return plan_uniform(model.config, calibration, settings)
        case RandomSettings():
            return plan_random(model.config, calibration, settings)
        case StackSettings():
            parts = enumerate(settings.of)
            return stacked(
                [find_plan(model, batches, calibration, part, folder and folder / str(index)) for index, part in parts]
            )


def plan_of_config(config: PreTrainedConfig, settings: SearchSettings) -> VisualPlan | None:
    """The plan, where the model's config alone decides it; None where weights or data have a say.

    Raises:
        UserError: as `find_plan`.
    """
    match settings:
        case FastvSettings():
            return plan_fastv(config, settings)
        case PyramidDropSettings():
            return plan_pyramid_drop(config, settings)
        case HimapSettings():
            return plan_himap(config, settings)
        case PrePruningSettings():
            return plan_pre_pruning(config, settings)
        case PSigmoidSettings() if settings.k is not None:
            return sigmoid_plan(config, settings)
        case VtwSettings() if settings.budget is not None:
            return withdrawal_within(config, settings.budget)
        case FileSettings():
            return plan_from_file(config.text_config, settings)
        case StackSettings():
            parts = [plan_of_config(config, part) for part in settings.of]
            return None if None in parts else stacked(parts)
    return None


def budget_of(settings: SearchSettings) -> Budget | GateBudget | None:
    """The budget that the plan must meet; None where other settings decide what it costs."""
    return None if isinstance(settings, StackSettings | FileSettings | GSearchSettings) else settings.budget


def needs_calibration(settings: SearchSettings) -> bool:
    """Whether the planner reads calibrated statistics."""
    if isinstance(settings, StackSettings):
        return any(needs_calibration(part) for part in settings.of)
    return isinstance(settings, GreedySettings | YopoSettings | VicaSettings | UniformSettings | RandomSettings)

"""Planners: each file is one way to find a `VisualPlan` within a budget. A recipe's `plan` section names one."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from transformers import PreTrainedModel

from modeling.visual_plan import VisualPlan
from training.calibration import Calibration
from training.planners.fastv import FastvSettings, plan_fastv
from training.planners.file import FileSettings, plan_from_file
from training.planners.gates import GateSettings, SearchSettings
from training.planners.greedy import GreedySettings, plan_greedy
from training.planners.himap import HimapSettings, plan_himap
from training.planners.p_sigmoid import PSigmoidSettings, plan_p_sigmoid
from training.planners.pyramid_drop import PyramidDropSettings, plan_pyramid_drop
from training.planners.random_plan import RandomSettings, plan_random
from training.planners.shortv import ShortvSettings, plan_shortv
from training.planners.stack import StackSettings, stacked
from training.planners.uniform import UniformSettings, plan_uniform
from training.planners.vica import VicaSettings, plan_vica
from training.planners.vtw import VtwSettings, plan_vtw
from training.planners.yopo import YopoSettings, plan_yopo

PlannerSettings = Annotated[GateSettings | SearchSettings, Field(discriminator="planner")]


def find_plan(
    model: PreTrainedModel,
    batches: Sequence[dict],
    calibration: Calibration,
    settings: SearchSettings,
) -> VisualPlan:
    """The plan of the planner that `settings` names; a learned plan comes from training/gate_learning.py.

    Args:
        model: the dense weights; any plan may be in force, it is restored.
        batches: the calibration data, for planners that evaluate plans.

    Raises:
        ValueError: the settings do not fit the model, or a plan file cannot be used.
    """
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
            return plan_vtw(model, batches, settings)
        case FastvSettings():
            return plan_fastv(model.config, settings)
        case PyramidDropSettings():
            return plan_pyramid_drop(model.config, settings)
        case HimapSettings():
            return plan_himap(model.config, settings)
        case PSigmoidSettings():
            return plan_p_sigmoid(model.config, settings)
        case UniformSettings():
            return plan_uniform(model.config, calibration, settings)
        case RandomSettings():
            return plan_random(model.config, calibration, settings)
        case FileSettings():
            return plan_from_file(model.config.text_config, settings)
        case StackSettings():
            return stacked([find_plan(model, batches, calibration, part) for part in settings.of])

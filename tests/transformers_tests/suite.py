"""transformers' own tests of its models, its `ModelTesterMixin`, run on tiny models.

It lies in the tests of transformers' source, which its source distribution has and its wheel lacks. The mixins for
generation and for exporters lie in folders that the source distribution lacks too. tests/families/test_generation.py
tries what the first of these tries.
"""

import copy
import importlib
import sys
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from tests.families.family import TinyFamily, batch_of

PACKAGE = "tests_of_transformers"
"""What they are imported as, since `tests` are ours."""
COMMON = f"{PACKAGE}.test_modeling_common"
LACKING = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
"""What the file of the mixin imports, and the source distribution lacks."""
PASSED, SKIPPED = "passed", "skipped"
BATCH_SIZE, LAYERS = 7, 2
"""Tests of attention ask for seven rows, and others for two layers at most."""
OF_ATTENTION = "test_eager_matches_sdpa_inference"
"""Tests that hand on tokens and masks, and drop the pictures."""


def import_tests(folder: Path) -> types.ModuleType:
    """Returns the module of the mixin. What it lacks is empty.

    Args:
        folder: `tests` of transformers' source.
    """
    package = sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    for name, mixin in LACKING.items():
        sys.modules[f"{PACKAGE}.{name.partition('.')[0]}"] = types.ModuleType(name)
        empty = sys.modules[f"{PACKAGE}.{name}"] = types.ModuleType(name)
        setattr(empty, mixin, type(mixin, (), {}))
    return importlib.import_module(COMMON)


class ModelTester:
    """What the mixin knows of a model: its config, and inputs that are prompts of one length with a picture each."""

    is_training = True
    batch_size = BATCH_SIZE
    num_hidden_layers = LAYERS

    def __init__(self, family: TinyFamily, config: PreTrainedConfig):
        self.config = config
        shown = [next(one for one in family.samples(seed) if "pixel_values" in one) for seed in range(BATCH_SIZE)]
        self.inputs = family.stock_inputs(batch_of([without_videos(sample, config) for sample in shown]))
        self.seq_length = self.inputs["input_ids"].shape[1]
        self.hidden_size = config.text_config.hidden_size
        self.num_attention_heads = config.text_config.num_attention_heads

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        return copy.deepcopy(self.config), {name: value.clone() for name, value in self.inputs.items()}


def without_videos(sample: dict, config: PreTrainedConfig) -> dict:
    kept = {name: value for name, value in sample.items() if "video" not in name}
    if len(kept) < len(sample):
        is_kept = sample["input_ids"] != config.video_token_id
        kept |= {name: sample[name][is_kept] for name in ("input_ids", "labels")}
    return kept


class Outcomes(unittest.TestResult):
    """Keeps what came of each test, by name: that it passed, that it was skipped and why, or the error."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, str] = {}

    def startTest(self, test):
        super().startTest(test)
        self.of[test._testMethodName] = PASSED

    def addError(self, test, error):
        self.of[test._testMethodName] = f"{error[0].__name__}: {error[1]}"

    addFailure = addError

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.addError(test, error)

    def addSkip(self, test, reason):
        self.of[getattr(test, "test_case", test)._testMethodName] = f"{SKIPPED}: {reason}"


def run_suite(
    tests: types.ModuleType,
    family: TinyFamily,
    config: PreTrainedConfig,
    generating: type[PreTrainedModel],
    base: type[PreTrainedModel],
    without_attentions: tuple[str, ...] = (),
) -> dict[str, str]:
    """Returns what came of each test of the mixin.

    Args:
        tests: as `import_tests` returns it.
        generating, base: the model that generates, and the one in it.
        without_attentions: tests that are not to ask for attention maps.
    """

    class Suite(tests.ModelTesterMixin, tests.GenerationTesterMixin, unittest.TestCase):
        all_model_classes = (generating, base)
        _is_composite = True
        test_can_init_all_missing_weights_before_2023 = True  # our files bear no year
        test_all_params_have_gradient = False  # nor have all one in the stock model, or under a plan

        @property
        def has_attentions(self):
            return self._testMethodName not in without_attentions

        def setUp(self):
            self.model_tester = ModelTester(family, config)

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            prepared = super()._prepare_for_class(inputs_dict, model_class, return_labels)
            dropped = self.model_tester.inputs if self._testMethodName.startswith(OF_ATTENTION) else {}
            return {**dropped, **prepared}

    outcomes = Outcomes()
    with (
        # By these the mixin tells kinds of classes apart.
        patch.dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, {config.model_type: generating.__name__}),
        patch.dict(modeling_auto.MODEL_MAPPING_NAMES, {config.model_type: base.__name__}),
        patch.dict(modeling_auto.MODEL_MAPPING._extra_content, {type(config): base}),
        patch.object(tests, "ids_tensor", of_text(tests.ids_tensor, config)),
    ):
        unittest.TestLoader().loadTestsFromTestCase(Suite).run(outcomes)
    return outcomes.of


def of_text(ids_tensor: Callable[..., torch.Tensor], config: PreTrainedConfig) -> Callable[..., torch.Tensor]:
    """Returns the mixin's maker of random prompts, without the tokens of pictures, as it adds no pictures."""
    first = 1 + max(getattr(config, name, 0) for name in ("image_token_id", "video_token_id"))
    return lambda *args, **kwargs: ids_tensor(*args, **kwargs).clamp_(min=first)

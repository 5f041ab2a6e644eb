"""Is imported once, by the process from which starts are forked. It does what each of them would spend seconds on."""

import importlib
import pkgutil

from PIL import Image
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import modeling
from checkpoints.families import sparse_classes

IMPORTED_LATE = (
    *("training.tasks.sparsify", "training.tasks.dense", "train", "training.planners.tools.largest"),
    *("deepspeed", "optuna", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "rich.rule", "rich._emoji_codes"),
    *("peft.utils.transformers_weight_conversion", "torch.distributed.algorithms.ddp_comm_hooks"),
    *("torch.profiler._cupti_monitor", "torch.utils.serialization.config"),
    *(module.name for module in pkgutil.iter_modules(modeling.__path__, "modeling.")),
)

for name in IMPORTED_LATE:
    importlib.import_module(name)
for family in sparse_classes():
    get_checkpoint_conversion_mapping(family)
Image.init()

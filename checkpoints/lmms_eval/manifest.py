"""What the entry point of group `lmms_eval.models` gives to lmms-eval, which then knows `--model squint`."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="squint", chat_class_path="checkpoints.lmms_eval.model.Squint")

"""Run by export in a fresh process, `python -I reload.py FOLDER PROBE ANSWER DEVICE`: loads a checkpoint as a stranger would
and writes its logits on a probe batch.

-I leaves out PYTHONPATH, the current folder and this file's folder; a None in sys.modules makes an import fail. So neither a
checkout nor an installed copy of it can answer for the modelling files in the checkpoint.
"""

import json
import sys
from pathlib import Path

sys.modules.update(dict.fromkeys(("modeling", "training", "data", "checkpoints")))

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import is_torchvision_available

folder, probe, answer, device = sys.argv[1:]
# A processor's part for videos needs torchvision; where that is not installed, the tokenizer alone is loaded.
parts = json.loads((Path(folder) / "processor_config.json").read_text(encoding="utf-8"))
whole = is_torchvision_available() or "video_processor" not in parts
(AutoProcessor if whole else AutoTokenizer).from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).to(device).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    logits = model(**{name: value.to(device) for name, value in load_file(probe).items()}).logits
save_file({"logits": logits.cpu().contiguous()}, answer)

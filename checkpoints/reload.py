"""Loads a checkpoint as a stranger would, and writes its logits on a probe batch.

export.py runs it in a fresh process: `python -I reload.py FOLDER PROBE LOGITS DEVICE`. With -I, Python leaves out
PYTHONPATH, the current folder and this file's folder. A None in sys.modules makes an import fail. So neither a checkout
nor an installed copy of it can stand in for the modelling files in the checkpoint.
"""

import sys

sys.modules.update(dict.fromkeys(("modeling", "training", "data", "checkpoints")))

# E402: the modules above must be shut out before anything else is imported.
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

folder, probe_file, logits_file, device = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).to(device).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    logits = model(**{name: value.to(device) for name, value in load_file(probe_file).items()}).logits
save_file({"logits": logits.cpu().contiguous()}, logits_file)

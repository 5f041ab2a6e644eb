"""Serves a checkpoint, dense or sparse, over HTTP, with the interface of OpenAI's chat completions.

    python scripts/serve.py runs/tiny_sparse/checkpoint --port 8000

This is `transformers serve`, and all options are its own (--help). It looks for models among those that transformers
knows, so it is told of the sparse classes first. Requests may name pictures by a URL or a path, which the server opens:
let only those ask it whom you would let read your files.
"""

import typer
from transformers import AutoConfig, AutoModelForMultimodalLM
from transformers.cli.serve import Serve
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.utils.import_utils import is_serve_available

from checkpoints.families import sparse_classes
from checkpoints.load import expect_new_shapes
from modeling.user_error import UserError
from training.cli import run


def register_sparse_classes() -> None:
    """Makes the sparse classes known to transformers' auto classes, so that a checkpoint needs no code of its own."""
    for cls in sparse_classes().values():
        model_type = cls.config_class.model_type
        AutoConfig.register(model_type, cls.config_class)
        AutoModelForMultimodalLM.register(cls.config_class, cls)
        # By this list, which `register` leaves as it is, the server tells that a model takes pictures.
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[model_type] = cls.__name__


def main() -> None:
    if not is_serve_available():
        raise UserError("serving needs FastAPI, uvicorn and openai: pip install 'squint[serve]'")
    expect_new_shapes()
    register_sparse_classes()
    typer.run(Serve)


if __name__ == "__main__":
    run(main)

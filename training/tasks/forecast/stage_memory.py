"""Estimates what each stage of a run holds: in the memory of a device, and of the machine.

Outside training every process holds one whole model in the recipe's dtype, and works on its share of the samples. In
training, ZeRO divides what it divides (training_memory.py). Estimates leave out what the device's runtime and its
communication hold, what fragments, and the working memory of the vision tower. So a stage should fit with some room
(`HEADROOM`).

Formulas are held to what is really allocated in tests/training/tasks/forecast/.
"""

from collections.abc import Callable
from dataclasses import dataclass

from training.measure.statistics.batch_statistics import calibration_bytes
from training.recipe.student import StudentRecipe
from training.tasks.forecast.sizes import Sizes
from training.tasks.forecast.training_memory import Zero, activation_bytes, logits_bytes, state_bytes

HEADROOM = 0.9
"""The share of a device's memory that an estimate may fill."""
PROCESSES_PER_MACHINE = 8
"""Processes on one machine, if there are as many."""
HIDDEN_HELD = 10
"""Values of hidden size that a forward pass holds of each token: embeddings, encoded pictures, both streams before and
after a norm, and views that were gathered from them. They were counted on a small model."""
NEW_TOKENS = 16
"""Tokens of a generated answer, where the recipe does not bound them."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a stage needs at its highest point."""

    device: float
    """On the device of each process that works in the stage."""
    host: float
    """On a machine, for all its processes. Samples and libraries are not counted."""


def memory_by_stage(recipe: StudentRecipe, sizes: Sizes, processes: int) -> dict[str, Memory]:
    """Returns the memory of every stage that loads a model, by the stage's name."""
    return {name: estimate(recipe, sizes, processes) for name, estimate in ESTIMATES.items()}


# ---- parts ----


def forward_bytes(sizes: Sizes, batch_size: int) -> float:
    """Returns the working memory of a forward pass without gradients, over the longest samples.

    At the highest point a layer's FFN holds gate, up and their product. Beside these lie some values of hidden size.
    """
    decoder = sizes.decoder
    values = HIDDEN_HELD * decoder.hidden_size + 3 * decoder.intermediate_size
    return batch_size * sizes.longest * values * sizes.value_bytes


def cache_bytes(sizes: Sizes, batch_size: int, tokens: int) -> float:
    """Returns the bytes of the dense model's keys and values for prompts of `tokens` tokens."""
    decoder = sizes.decoder
    return batch_size * tokens * 2 * decoder.num_layers * decoder.kv_size * sizes.value_bytes


def kept_answer_bytes(recipe: StudentRecipe, sizes: Sizes, processes: int) -> float:
    """Returns the bytes that measuring an answer KL keeps of a process's samples (training/measure/answer_kl.py).

    These are the dense model's logits at supervised tokens, and the encoded pictures.
    """
    settings = recipe.calibration
    batches = -(-settings.num_samples // settings.batch_size)
    samples = min(settings.num_samples, -(-batches // processes) * settings.batch_size)
    values = sizes.text_tokens * sizes.vocabulary + sizes.visual_tokens * sizes.decoder.hidden_size
    return samples * values * sizes.value_bytes


def comparison_bytes(recipe: StudentRecipe, sizes: Sizes) -> float:
    """Returns the bytes in which a batch's answers are compared: a plan's logits, and fp32 values for their KL.

    Those are the log-probabilities of both models, and two intermediate results.
    """
    tokens = recipe.calibration.batch_size * sizes.text_tokens
    return tokens * sizes.vocabulary * (sizes.value_bytes + 4 * 4)


def host_weights(sizes: Sizes, processes: int) -> float:
    """Returns the most bytes of a machine's memory while a stage loads one model: a copy for each process.

    Weights that are stored in the recipe's dtype are mapped from their file. They lie in memory once, until a process
    changes its own: a plan that lists units or neurons permutes them, and merged adapters are added to them.
    """
    return min(processes, PROCESSES_PER_MACHINE) * sizes.weights


# ---- stages ----


def _measure(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`calibrate`: the dense model, statistics of its attention, and its answers."""
    batch_size = recipe.calibration.batch_size
    answers = forward_bytes(sizes, batch_size) + comparison_bytes(recipe, sizes)
    answers += kept_answer_bytes(recipe, sizes, processes)
    most = max(calibration_bytes(sizes.decoder, batch_size, sizes.longest, sizes.value_bytes), answers)
    return Memory(sizes.weights + most, host_weights(sizes, processes))


def _compare(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`plan` and `harden`: the dense model, or the one that gates were learned on, and the dense model's answers."""
    device = sizes.weights + forward_bytes(sizes, recipe.calibration.batch_size)
    device += comparison_bytes(recipe, sizes) + kept_answer_bytes(recipe, sizes, processes)
    return Memory(device, host_weights(sizes, processes))


def _ask(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`ask`: the dense model and the logits of a batch. What it answers goes to the machine's memory, then to disk."""
    batch_size = recipe.training.micro_batch_size
    logits = batch_size * sizes.text_tokens * sizes.vocabulary * sizes.value_bytes
    return Memory(sizes.weights + forward_bytes(sizes, batch_size) + logits, host_weights(sizes, processes))


def _learn(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`learn`: a training of adapters and gates. The teacher is the same model with its adapters off."""
    return _training(recipe, sizes, sizes.gate_adapters, lora=True, second_model=False, processes=processes)


def _distil(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`race` and `distil`: a training of adapters, or of decoder and projector. The teacher may be a second model."""
    lora = recipe.lora is not None
    second_model = (not lora or recipe.model.teacher is not None) and recipe.distillation.needs_teacher
    return _training(recipe, sizes, sizes.trained, lora=lora, second_model=second_model, processes=processes)


def _training(
    recipe: StudentRecipe, sizes: Sizes, trained: int, *, lora: bool, second_model: bool, processes: int
) -> Memory:
    zero = Zero.of(recipe.training)
    device = state_bytes(sizes, zero, trained, lora=lora, second_model=second_model, processes=processes)
    device += activation_bytes(recipe.training, sizes) + logits_bytes(recipe.training, sizes)
    return Memory(device, host_weights(sizes, processes) * (2 if second_model else 1))


def _evaluate(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`evaluate`: one model at a time, and the keys and values of a batch of the longest prompts."""
    settings = recipe.evaluation
    tokens = sizes.longest + (settings.max_new_tokens or NEW_TOKENS)
    cache = cache_bytes(sizes, settings.batch_size, tokens)
    device = sizes.weights + cache + forward_bytes(sizes, settings.batch_size)
    return Memory(device, host_weights(sizes, processes))


def _export(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`export`: one model on the device of one process, and all its logits for a calibration batch, also in fp32.

    While a fresh process loads the checkpoint, the model lies in the machine's memory.
    """
    batch_size = recipe.calibration.batch_size
    logits = batch_size * sizes.longest * sizes.vocabulary * (sizes.value_bytes + 4)
    return Memory(sizes.weights + forward_bytes(sizes, batch_size) + logits, 2 * sizes.weights)


def _benchmark(recipe: StudentRecipe, sizes: Sizes, processes: int) -> Memory:
    """`benchmark` and `time`: on one process. Dense and sparse model share their weights, each has a cache."""
    batch_size = 4 if recipe.task == "sparsify" else 8
    caches = 2 * cache_bytes(sizes, batch_size, sizes.longest)
    return Memory(sizes.weights + caches + forward_bytes(sizes, batch_size), sizes.weights)


ESTIMATES: dict[str, Callable[[StudentRecipe, Sizes, int], Memory]] = {
    "calibrate": _measure,
    "plan": _compare,
    "ask": _ask,
    "learn": _learn,
    "harden": _compare,
    "race": _distil,
    "distil": _distil,
    "evaluate": _evaluate,
    "export": _export,
    "benchmark": _benchmark,
    "time": _benchmark,
}

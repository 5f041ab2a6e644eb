"""The stages of `task: instruct`, which teaches a dense LLaVA of pretrained parts to answer questions about pictures.

The vision tower stays as it is. Each stage writes its result in the run's folder, and the next stage reads it there:

    data/                    the encoded rows
    features/                what the vision tower makes of the pictures that are trained on
    naming/model/            the projector after it learned to name patches (training/instruct/naming.py)
    tuning/model/            projector and adapters after the questions, as peft writes them
    evaluation/teacher.json  answers of the finished model to the evaluation's questions
    evaluation/grey.json     its answers to the same questions if it is shown grey pictures
    adapter/                 projector and adapters in bfloat16
    checkpoint/              the finished model in bfloat16, an ordinary Hugging Face folder. It is copied to the
                             recipe's `model.output`
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlavaForConditionalGeneration, ProcessorMixin, set_seed

from checkpoints.build import load_dense
from checkpoints.processor import load_processor
from checkpoints.whole_folder import check_writable, whole_folder
from data.collator import Collator
from data.dataset import ConversationDataset
from data.index.build import build_indexes
from data.index.index import Index
from data.sources.reading import load_samples
from modeling.user_error import UserError
from training.distillation.callbacks import MetricsFile
from training.distillation.datasets import INDEX_AGAIN
from training.distillation.sample_order import OrderedTrainer
from training.distillation.trainer_checkpoints import TrainerCheckpoints
from training.evaluation.held_out import refuse_shared_samples
from training.evaluation.questions import Asked, asked_of
from training.files import reading, writing
from training.instruct.answering import (
    LlavaOfFeatures,
    first_token_weights,
    load_adapters,
    parameter_groups,
    with_adapters,
)
from training.instruct.base import check_config, check_tower, kept_features, side_of
from training.instruct.features import FEATURES, KeptFeatures, write_features
from training.instruct.naming import NamedPatches, PatchNamer
from training.instruct.rows import answer_weights, check_pictures, names_of_patches
from training.recipe.data import SourceSettings
from training.recipe.instruct import InstructRecipe
from training.run import Run, Stage, console, device
from training.tasks.dense import TRAIN_AGAIN, ask_seeing_and_blind, train_and_save, training_arguments
from training.tiny_llava.independent_turns import MASKED_ATTENTION, independent_turns

PICTURES_AT_ONCE = 32
"""As many go through the vision tower together."""
PICTURES_MEASURED = 500
"""As many say the mean and the deviation of the tower's features."""
PROJECTOR, ADAPTERS = "projector.safetensors", "adapter_model.safetensors"


def stages(recipe: InstructRecipe) -> list[Stage]:
    """Returns the stages of a run, in order."""
    return [
        Stage("data", "read and check model and data", read_data),
        Stage("features", "show the pictures to the vision tower", see_pictures, distributed=True),
        Stage("naming", "teach the projector to name things", train_projector, distributed=True),
        Stage("tuning", "teach the model to answer questions", train_adapters, distributed=True),
        Stage("evaluate", "ask the evaluation's questions", evaluate_model, distributed=True),
        Stage("export", "export the model", export),
    ]


def read_data(run: Run) -> dict:
    """Checks all that later stages read, and encodes the rows that are trained on.

    Raises:
        UserError: the model is no LLaVA or cannot be loaded, no row can be trained on, as `check_pictures`,
            `check_tower`, `names_of_patches`, `answer_weights` and `questions`, or a question is trained on.
        OSError: the recipe's `model.output` cannot be written.
    """
    recipe, folder = run.recipe, run.directory / "data"
    check_config(recipe.model.path)
    check_writable(recipe.model.output)
    model, processor = load_dense(recipe.model.path, "auto")
    questions(run)
    with writing(folder), reading(folder, INDEX_AGAIN):
        (path,) = build_indexes([recipe.data.train.source({})], processor, folder, decode=False)
        (asked,) = build_indexes([recipe.data.evaluation.source({})], processor, folder, decode=True)
    dataset, index, rows = trained_on(run, path.name)
    if not len(dataset):
        raise UserError(f"{index.name}: no row can be trained on; {left_out(run, index)}")
    side = side_of(model)
    check_pictures(index, rows, processor, side)
    check_tower(recipe.model.path, model)
    names_of_patches(index, rows, recipe.data.things, side)
    answer_weights(recipe.tuning.answer_weights, index, rows)
    _refuse_shared_rows(run, asked.name, dataset, processor)
    if len(dataset) < len(index):
        console.print(f"train: {len(dataset):,} samples; {left_out(run, index)}", soft_wrap=True)
    return {"index": path.name, "rows": len(dataset)}


def see_pictures(run: Run) -> dict:
    """Writes what the vision tower makes of each picture that is trained on. Ranks share the pictures."""
    dataset, *_ = trained_on(run, run.result("data")["index"])
    model, _ = load_dense(run.recipe.model.path, "float32")
    write_features(model.eval().to(device()), dataset, run.directory / FEATURES, PICTURES_AT_ONCE)
    return {"pictures": len(dataset)}


def train_projector(run: Run) -> dict:
    """Trains the projector to name what patches show. All other weights stay as they are."""
    settings, folder = run.recipe.naming, run.directory / "naming"
    _, index, rows = trained_on(run, run.result("data")["index"])
    set_seed(run.recipe.seed)
    model, processor = load_dense(run.recipe.model.path, "float32")
    features, side = kept_features(run.directory, model, len(rows)), side_of(model)
    names, named = names_of_patches(index, rows, run.recipe.data.things, side)
    measured = torch.cat([features[number] for number in range(min(PICTURES_MEASURED, len(features)))]).float()
    namer = PatchNamer(
        model.model.multi_modal_projector,
        measured.mean(dim=0),
        measured.std(dim=0).clamp(min=1e-6),
        model.get_input_embeddings().weight.detach(),
        processor.tokenizer,
        names,
        side,
        settings.place_weight,
    )
    trainer = OrderedTrainer(
        model=namer,
        args=training_arguments(settings, folder / "trainer", run.recipe.seed),
        train_dataset=NamedPatches(features, named),
        callbacks=[MetricsFile(folder / "metrics.jsonl"), TrainerCheckpoints()],
    )

    def save(folder: Path) -> None:
        namer.fold()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in namer.projector.state_dict().items()}, folder / PROJECTOR
        )

    return train_and_save(trainer, save, folder) | {"names": len(names)}


def train_adapters(run: Run) -> dict:
    """Trains projector and adapters on questions, each of them as if it were the only one about its picture."""
    settings, folder = run.recipe.tuning, run.directory / "tuning"
    dataset, index, rows = trained_on(run, run.result("data")["index"])
    set_seed(run.recipe.seed)
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    dense, processor = load_dense(run.recipe.model.path, dtype)
    model = LlavaOfFeatures.of(dense)
    put_projector(run, model)
    if not torch.cuda.is_available():
        model.model.language_model.set_attn_implementation(MASKED_ATTENTION)
    weights = answer_weights(settings.answer_weights, index, rows)
    model.token_weights = first_token_weights(weights, model.config.text_config.vocab_size)
    adapted = with_adapters(model, run.recipe.lora)
    arguments = training_arguments(settings, folder / "trainer", run.recipe.seed)
    optimizer = torch.optim.AdamW(
        parameter_groups(adapted, settings.learning_rate, settings.projector_learning_rate),
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        weight_decay=settings.weight_decay,
    )
    collator = Collator(processor)
    trainer = OrderedTrainer(
        model=adapted,
        args=arguments,
        train_dataset=KeptFeatures(dataset, kept_features(run.directory, model, len(dataset))),
        data_collator=lambda samples: independent_turns(collator(samples), processor.image_token_id),
        optimizers=(optimizer, None),
        callbacks=[MetricsFile(folder / "metrics.jsonl"), TrainerCheckpoints()],
    )
    return train_and_save(trainer, adapted.save_pretrained, folder)


def evaluate_model(run: Run) -> dict:
    """Asks the model the questions, with their pictures and with grey ones. Returns both accuracies.

    Ranks share the questions. The weights are rounded to bfloat16, as in the checkpoint.
    """
    processor = load_processor(run.recipe.model.path)
    model = load_taught_model(run).float().eval().to(device())
    return ask_seeing_and_blind(run, model, processor, questions(run), run.recipe.evaluation_batch_size)


def export(run: Run) -> dict:
    """Writes the model as a Hugging Face folder, copied to the recipe's `model.output`, and the adapter in bfloat16."""
    base, output = Path(run.recipe.model.path), run.recipe.model.output
    checkpoint = run.directory / "checkpoint"
    with writing(checkpoint), whole_folder(checkpoint) as folder:
        load_taught_model(run).save_pretrained(folder)
        load_processor(run.recipe.model.path).save_pretrained(folder)
        if (base / "README.md").is_file():
            shutil.copyfile(base / "README.md", folder / "README.md")  # it says the licences
    with whole_folder(run.directory / "adapter") as folder:
        load_adapted_model(run).save_pretrained(folder)
        weights = load_file(folder / ADAPTERS)
        save_file({name: value.bfloat16() for name, value in weights.items()}, folder / ADAPTERS)
    with whole_folder(output) as folder:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    return {"output": str(output)}


# ---- what the stages use ----


def trained_on(run: Run, index_name: str) -> tuple[ConversationDataset, Index, np.ndarray]:
    """Returns the rows that are trained on as a dataset, the source's index, and their numbers there."""
    index = _index(run, index_name, run.recipe.data.train)
    rows = np.flatnonzero(index.is_good & (index.lengths <= run.recipe.data.max_length))
    processor = load_processor(run.recipe.model.path)
    return ConversationDataset([index], np.zeros_like(rows), rows, processor), index, rows


def left_out(run: Run, index: Index) -> str:
    """Returns why rows are left out."""
    bad = np.flatnonzero(index.is_bad)
    long = int((index.lengths > run.recipe.data.max_length).sum())
    first = f", the first: {index.ids_and_reasons(bad[:1])[0][1]}" if len(bad) else ""
    return f"{len(bad)} of {len(index)} are bad{first}; {long} have more than {run.recipe.data.max_length} tokens"


def _index(run: Run, name: str, source: SourceSettings) -> Index:
    """Returns the index of a source. Raises UserError if it is damaged."""
    folder = run.directory / "data"
    with reading(folder, INDEX_AGAIN):
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        return Index(folder / name, source.source({}))


def questions(run: Run) -> Asked:
    """Returns the questions of the evaluation. Raises UserError where a row is bad or has no family."""
    samples, _ = load_samples(run.recipe.data.evaluation.source({}))
    return asked_of(samples)


def _refuse_shared_rows(run: Run, index_name: str, dataset: ConversationDataset, processor: ProcessorMixin) -> None:
    """Raises UserError where a row that is asked cannot be shown to the model, or is trained on."""
    index = _index(run, index_name, run.recipe.data.evaluation)
    bad = np.flatnonzero(index.is_bad)
    if len(bad):
        raise UserError(f"data.evaluation: {index.name}: {index.ids_and_reasons(bad[:1])[0][1]}")
    rows = np.flatnonzero(index.is_good)
    refuse_shared_samples(ConversationDataset([index], np.zeros_like(rows), rows, processor), dataset, "train")


def put_projector(run: Run, model: nn.Module) -> None:
    """Gives a model the projector that learned to name patches."""
    path = run.directory / "naming" / "model" / PROJECTOR
    with reading(path, TRAIN_AGAIN):
        model.model.multi_modal_projector.load_state_dict(load_file(path))


def load_adapted_model(run: Run) -> PeftModel:
    """Returns the model with its trained projector and adapters, fp32."""
    model, _ = load_dense(run.recipe.model.path, "float32")
    adapted = with_adapters(model, run.recipe.lora)
    path = run.directory / "tuning" / "model" / ADAPTERS
    with reading(path, TRAIN_AGAIN):
        load_adapters(adapted, load_file(path))
    return adapted


def load_taught_model(run: Run) -> LlavaForConditionalGeneration:
    """Returns the model with its trained projector, and its adapters merged, in bfloat16."""
    return load_adapted_model(run).merge_and_unload().to(torch.bfloat16)

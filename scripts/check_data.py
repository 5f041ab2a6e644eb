"""Shows what a recipe, or one source, makes of its data: before anything is trained, and all problems at once.

    python scripts/check_data.py --recipe llava_sparse.yaml data.train.0.path=… data.train.0.images=…
    python scripts/check_data.py --model llava-hf/llava-1.5-7b-hf --source '{hub: HuggingFaceM4/FineVision:ai2d_merged}'
    python scripts/check_data.py --model MODEL --source '{path: chats/*.parquet, columns: {messages: dialogue}}'

For each source it prints the schema, how many rows are good, what is wrong with the others by kind of reason, how long
the samples are, and some samples as the model sees them: ⟦ and ⟧ enclose the tokens that are learned. Pictures are
decoded. Of the model its processor alone is loaded. It ends with exit code 2 where a run would refuse the data.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from transformers import ProcessorMixin

from checkpoints.load import load_processor
from data.dataset import ConversationDataset
from data.index.build import build_indexes
from data.index.index import Index
from data.left_out import kinds_of_bad
from data.mixture import build_mixture
from data.sources.reading import open_source
from data.sources.source import Source
from data.token_view import readable
from modeling.user_error import UserError
from training.cli import run
from training.distillation.datasets import ROLES, mixture_settings, sources_of
from training.distillation.students import dense_processor
from training.recipe import load_recipe
from training.recipe.errors import describe
from training.recipe.student import StudentRecipe
from training.recipe.yaml_text import read_yaml

DECODE = True
"""Whether pictures are decoded: a check finds all that is wrong with them, even where a run would look at headers."""
PERCENTILES = (0, 50, 95, 100)

print_line = Console(soft_wrap=True, markup=False, highlight=False).print


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", help="a YAML file, or the name of one in recipes/")
    what.add_argument("--source", help="one source, as a recipe's data section names it; it needs --model")
    parser.add_argument("--model", help="folder or Hub id of the dense model, with --source")
    parser.add_argument("--samples", type=int, default=3, help="samples of each source that are shown (default 3)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides a field of the recipe")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.samples < 0:
        raise UserError(f"--samples: got {arguments.samples}, allowed: 0 or more")
    if (arguments.source is None) != (arguments.model is None):
        raise UserError("--model: it goes with --source; a recipe names its own model")
    if arguments.overrides and arguments.recipe is None:
        raise UserError(f"{arguments.overrides[0]}: it overrides a field of a recipe, and --recipe is not given")
    recipe = load_recipe(arguments.recipe, arguments.overrides) if arguments.recipe else None
    if recipe is not None and not isinstance(recipe, StudentRecipe):
        raise UserError(f"{arguments.recipe}: the recipe has no sources; its data are made")
    by_role = {role: sources_of(recipe, role) for role in ROLES} if recipe else {"": [source_of(arguments.source)]}
    processor = dense_processor(recipe.model) if recipe else load_processor(arguments.model)
    with TemporaryDirectory() as folder:
        different = {rows_of(source): source for source in chain.from_iterable(by_role.values())}
        indexes = {
            name: show_source(source, processor, Path(folder), arguments.samples) for name, source in different.items()
        }
        if None in indexes.values():
            refused = True
        elif recipe is not None:
            refused = show_roles(recipe, by_role, processor, indexes)
        else:
            refused = any(index.is_bad.any() for index in indexes.values())
    if refused:
        raise UserError("a run would refuse these data, see above")


def source_of(text: str) -> Source:
    """Returns the source that --source describes. Raises UserError if it is none."""
    try:
        given = read_yaml(text)
    except UserError as error:
        raise UserError(f"--source: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"--source: got {text!r:.100}, allowed: a source such as {{path: FILE, images: FOLDER}}")
    try:
        return Source(**given)
    except ValidationError as error:
        raise UserError(f"--source: {describe(error, Source)}") from None


def rows_of(source: Source) -> str:
    """Returns what sources of the same rows have in common, however much of them is used."""
    return source.model_dump_json(exclude={"weight", "num_samples"})


def show_source(source: Source, processor: ProcessorMixin, folder: Path, num_samples: int) -> Index | None:
    """Prints what a source holds. Returns its index, or None where it cannot be read, which is then printed."""
    print_line(f"\n{source.path or source.hub}")
    try:
        rows = open_source(source)
        print_line(f"  schema: {rows.schema.name}, {len(rows):,} rows")
        (path,) = build_indexes([source], processor, folder, decode=DECODE)
        index = Index(path, source)
    except UserError as error:
        print_line(f"  cannot be read: {error}")
        return None
    good = np.flatnonzero(index.is_good)
    pictures, videos = (int(has_some[good].sum()) for has_some in (index.has_picture, index.has_video))
    print_line(f"  good: {len(good):,}, of which {pictures:,} have pictures and {videos:,} have videos")
    if index.is_filtered.any():
        print_line(f"  left out by the source's filters: {int(index.is_filtered.sum()):,}")
    for kind, count, first in kinds_of_bad(index):
        print_line(f"  bad: {count:,} rows: {kind}\n    the first: {first}")
    if len(good):
        lengths = np.percentile(index.lengths[good], PERCENTILES).astype(int)
        print_line(
            f"  tokens of a sample: least {lengths[0]:,}, median {lengths[1]:,}, 95 % have at most {lengths[2]:,}, "
            f"most {lengths[3]:,}; learned: {index.supervised[good].mean():,.1f} in the mean"
        )
        show_samples(ConversationDataset([index], np.zeros_like(good), good, processor), processor, num_samples)
    return index


def show_samples(dataset: ConversationDataset, processor: ProcessorMixin, num_samples: int) -> None:
    """Prints the first samples as the model sees them."""
    for index in range(min(num_samples, len(dataset))):
        tokens = dataset.tokens(index)
        text = json.dumps(readable(**tokens, tokenizer=processor.tokenizer), ensure_ascii=False)
        print_line(f"  sample {dataset.samples[index].id!r}, {len(tokens['input_ids'])} tokens: {text}")


def show_roles(
    recipe: StudentRecipe,
    by_role: dict[str, Sequence[Source]],
    processor: ProcessorMixin,
    indexes: dict[str, Index],
) -> bool:
    """Prints what the recipe draws for each part of `data`. Returns whether a run would refuse any of them.

    Args:
        indexes: the index of each source, by `rows_of`.
    """
    refused = False
    print_line("")
    for role, sources in by_role.items():
        try:
            dataset, left_out = build_mixture(
                [Index(indexes[rows_of(source)].path, source) for source in sources],
                processor,
                **mixture_settings(recipe, role),
            )
        except UserError as error:
            refused = True
            print_line(f"data.{role}: a run would stop: {error}")
        else:
            unused = "; ".join(f"{count:,}: {kind}" for kind, count in left_out.counts().items())
            print_line(f"data.{role}: {len(dataset):,} samples; left out: {unused or 'none'}")
    return refused


if __name__ == "__main__":
    run(main)

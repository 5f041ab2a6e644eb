"""A recipe: one YAML file that describes one complete run.

It is checked before anything is loaded. Its `task` decides which sections it has. An unknown key is an error in every
section, and the message names the nearest valid key. Paths are relative to the working directory, and those of the
project's own files are found from anywhere (training/schema.py).

This package imports neither torch nor transformers. So a mistake in a recipe is found without waiting for them.
"""

from typing import Annotated

from pydantic import Field

from training.recipe.dense import DenseRecipe
from training.recipe.frontier import FrontierRecipe, PlannersRecipe
from training.recipe.instruct import InstructRecipe
from training.recipe.student import SparsifyRecipe

Recipe = Annotated[
    DenseRecipe | SparsifyRecipe | FrontierRecipe | PlannersRecipe | InstructRecipe, Field(discriminator="task")
]
"""Any recipe. The key `task` decides which class it is."""

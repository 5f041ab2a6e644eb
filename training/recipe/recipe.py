"""A recipe: one YAML file that describes one complete run, checked before anything is loaded.

Its `task` decides what may stand in it. Every section is closed: an unknown key, at any depth, is an error that names the
path and the nearest valid key. Paths are relative to the working directory.

This room needs pydantic alone, so that a mistake in a recipe is found without waiting for torch.
"""

from typing import Annotated

from pydantic import Field

from training.recipe.dense import DenseRecipe
from training.recipe.frontier import FrontierRecipe, PlannersRecipe
from training.recipe.student import SparsifyRecipe

Recipe = Annotated[DenseRecipe | SparsifyRecipe | FrontierRecipe | PlannersRecipe, Field(discriminator="task")]

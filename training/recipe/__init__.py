"""The keys of a recipe and how it is read. This package imports neither torch nor transformers."""

from training.recipe.dense import DenseRecipe
from training.recipe.file import load_recipe
from training.recipe.frontier import FrontierRecipe, PlannersRecipe
from training.recipe.instruct import InstructRecipe
from training.recipe.recipe import Recipe
from training.recipe.student import STUDENT, CompareSettings, SparsifyRecipe, StudentRecipe

__all__ = [
    "STUDENT",
    "CompareSettings",
    "DenseRecipe",
    "FrontierRecipe",
    "InstructRecipe",
    "PlannersRecipe",
    "Recipe",
    "SparsifyRecipe",
    "StudentRecipe",
    "load_recipe",
]

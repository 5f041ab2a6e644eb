"""The `publish` section of a recipe."""

from typing import Annotated

from pydantic import Field, model_validator

from training.schema import MayChange, Strict


class PublishSettings(Strict):
    """Where the checkpoint is published on the Hugging Face Hub, as `scripts/publish.py` does. The token is that of
    `hf auth login`, or HF_TOKEN."""

    repo_id: Annotated[str, MayChange.ALWAYS]
    """`OWNER/NAME` of the model on the Hub. It is made if it is missing."""
    private: Annotated[bool, MayChange.ALWAYS] = False
    """Whether a new repository is private."""
    revision: Annotated[str, MayChange.ALWAYS] = "main"
    """Branch that is written to, or `refs/pr/N` to go on with a pull request."""
    pull_request: Annotated[bool, MayChange.ALWAYS] = False
    """Open a pull request rather than write to the branch."""
    tag: Annotated[str | None, MayChange.ALWAYS] = None
    """Name that the commit gets, such as `v1.0`. null: none."""
    license: Annotated[str | None, MayChange.ALWAYS] = None
    """Licence as the Hub names it. null: that of the dense model's card."""
    license_name: Annotated[str | None, MayChange.ALWAYS] = None
    """Name of the licence, where `license` is `other`."""
    license_link: Annotated[str | None, MayChange.ALWAYS] = None
    """URL of the licence's text, where `license` is `other`."""
    base_model: Annotated[str | None, MayChange.ALWAYS] = None
    """Hub id of the dense model, if `model.path` is a folder. null: as `model.path`."""
    datasets: Annotated[tuple[str, ...], MayChange.ALWAYS] = Field(default=())
    """Hub ids of the training data, if they are files. Empty: those of `data.train`."""

    @model_validator(mode="after")
    def _a_name_goes_with_a_licence(self):
        if self.license is None and (self.license_name or self.license_link):
            raise ValueError("license_name, license_link: go with license other")
        return self

"""The Hub: who asks, what may be written there, and the upload. Every error of the Hub is one clear line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from modeling.user_error import UserError

MAIN = "main"
STALE = ("model*.safetensors", "model*.safetensors.index.json")
"""Weights of an earlier upload, which are deleted where the new one has none of their name."""
TAG = re.compile(r"(?!.*(?:\.\.|\.$|\.lock$))\w[\w.+-]*")


@dataclass(frozen=True)
class Destination:
    """Where a checkpoint is published."""

    repo_id: str
    """`owner/name` of a model on the Hub."""
    private: bool = False
    """Whether a new repository is private. One that exists stays as it is."""
    revision: str = MAIN
    """Branch that is written to, or `refs/pr/N` to go on with a pull request."""
    pull_request: bool = False
    """Whether to open a pull request rather than write to the branch."""
    tag: str | None = None
    """Name that the commit gets."""

    @property
    def owner(self) -> str:
        """User or organization that the repository belongs to."""
        return self.repo_id.split("/")[0]

    def check(self) -> None:
        """Raises UserError where the fields do not go together. Nobody is asked."""
        check_name(self.repo_id)
        if self.repo_id.count("/") != 1:
            raise UserError(f"{self.repo_id}: got no owner, expected OWNER/NAME")
        if self.pull_request and self.revision != MAIN:
            raise UserError(
                f"{self.repo_id}: got a pull request and revision {self.revision}, allowed: one of them; revision "
                "refs/pr/N goes on with a pull request"
            )
        if self.tag is not None and (self.pull_request or self.revision.startswith("refs/")):
            raise UserError(f"{self.repo_id}: got a tag and a pull request, allowed: a tag of what is merged")
        if self.tag is not None and not TAG.fullmatch(self.tag):
            raise UserError(
                f"{self.repo_id}: got tag {self.tag!r}, allowed: letters, digits and . _ + -, as git takes them"
            )
        if not self.revision:
            raise UserError(f"{self.repo_id}: got an empty revision, expected a branch or refs/pr/N")


def check_name(name: str) -> None:
    """Raises UserError if no repository on the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name}: not a name on the Hub ({error})") from None


@dataclass(frozen=True)
class Found:
    """What the Hub says of a destination before anything is sent."""

    exists: bool
    """Whether there is such a model."""
    tagged: str | None = None
    """Commit that has the tag already."""


def look(destination: Destination) -> Found:
    """Asks the Hub whether this user may write there. Nothing is changed.

    Raises:
        UserError: there is no valid token, no right, no such revision, the name is a data set's or a Space's, the model
            is public and was to be private, the tag is taken, or the Hub does not answer.
    """
    destination.check()
    if get_token() is None:
        raise UserError("no token of the Hub: run `hf auth login`, or set HF_TOKEN")
    api, repo_id = HfApi(), destination.repo_id
    with hub_errors(repo_id):
        user = api.whoami()
        try:
            api.auth_check(repo_id, write=not destination.pull_request)
        except RepositoryNotFoundError:
            _check_new(api, destination, {user["name"], *(one["name"] for one in user.get("orgs", []))})
            return Found(exists=False)
        info = api.repo_info(repo_id, revision=destination.revision)
        head = info.sha
        if destination.private and info.private is False:
            raise UserError(f"{repo_id}: is public, and was to be private; make it so on the Hub first")
        if destination.tag is None:
            return Found(exists=True)
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    tagged = tags.get(destination.tag)
    if tagged not in (None, head):
        raise UserError(f"{repo_id}: tag {destination.tag} is taken by commit {tagged[:8]}; choose another")
    return Found(exists=True, tagged=tagged)


def _check_new(api: HfApi, destination: Destination, allowed: set[str]) -> None:
    """Raises UserError if no repository of this name can be made."""
    repo_id = destination.repo_id
    for kind, word in (("dataset", "a data set"), ("space", "a Space")):
        if api.repo_exists(repo_id, repo_type=kind):
            raise UserError(f"{repo_id}: is {word}, and a checkpoint is a model; choose another name")
    if destination.owner not in allowed:
        raise UserError(
            f"{repo_id}: got owner {destination.owner}, allowed for this token: {', '.join(sorted(allowed))}; or there "
            "is such a model that it may not see"
        )
    if destination.pull_request:
        raise UserError(f"{repo_id}: no such model, so there is nothing to open a pull request at")
    if destination.revision != MAIN:
        raise UserError(f"{repo_id}: no such model, so it has no revision {destination.revision}; a new one has main")


def check_card(card: str, repo_id: str) -> None:
    """Asks the Hub whether it takes the metadata of a model card. Raises UserError if it does not."""
    with hub_errors(repo_id):
        try:
            ModelCard(card).validate()
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{repo_id}: the Hub refuses the card's metadata ({error})") from None


def send(folder: Path, destination: Destination, found: Found) -> CommitInfo:
    """Makes the repository if it is missing, uploads what has changed, and sets the tag.

    A second call with the same files sends nothing. One that was interrupted goes on.

    Args:
        folder: the files, as they are to lie in the repository.
        found: what `look` has found there.

    Raises:
        UserError: the Hub refuses something, or does not answer.
    """
    api, repo_id = HfApi(), destination.repo_id
    with hub_errors(repo_id):
        if not found.exists:
            api.create_repo(repo_id, private=destination.private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Sparse checkpoint, made by Squint",
            revision=None if destination.pull_request else destination.revision,
            create_pr=destination.pull_request,
            delete_patterns=list(STALE),
        )
        if destination.tag is not None and found.tagged is None:
            api.create_tag(repo_id, tag=destination.tag, revision=commit.oid)
    if found.tagged not in (None, commit.oid):
        raise UserError(
            f"{repo_id}: sent as {commit.oid[:8]}, but tag {destination.tag} stays at {found.tagged[:8]}, whose files "
            "are others; choose another tag"
        )
    return commit


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns what the Hub refuses into UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except RevisionNotFoundError:
        raise UserError(f"{repo_id}: no such revision; make the branch first, or name one that is there") from None
    except RepositoryNotFoundError:
        raise UserError(f"{repo_id}: no such model on the Hub, or no right to see it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or str(error).splitlines()[0]
        if status == 401:
            raise UserError(
                f"the Hub does not know this token ({said}): run `hf auth login`, or set HF_TOKEN"
            ) from None
        if status == 403:
            raise UserError(f"{repo_id}: this token has no right to write there ({said})") from None
        raise UserError(f"{repo_id}: the Hub answered {status} ({said}); the same command goes on") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set: unset it to publish") from None
    except ValueError as error:
        raise UserError(f"{repo_id}: the Hub refuses it ({error})") from None
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{repo_id}: the Hub at {HfApi().endpoint} does not answer ({error}); the same command goes on"
        ) from None

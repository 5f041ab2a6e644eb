"""Publishes a sparse checkpoint on the Hub.

Nothing is sent before all has been looked at: the files and their kinds, the licence, the card, paths and names of this
machine, the rights on the Hub, and whether the checkpoint loads in a fresh process and computes what it should.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.card.card import MADE, PLACE, first_lines, hub_link
from checkpoints.card.metadata import Licence, base_license, licence_of, load_card, set_origin
from checkpoints.export import is_sparse_checkpoint, verify
from checkpoints.load import load_checkpoint
from checkpoints.probe import probe_batch
from checkpoints.publish.files import files_to_send
from checkpoints.publish.hub import Destination, check_card, check_name, look, send
from checkpoints.publish.private import refuse_private
from modeling.user_error import UserError

CARD = "README.md"
UNNAMED = ("other", "unknown")
"""Licences of the Hub that say nothing without a name."""


@dataclass(frozen=True)
class Origin:
    """What only the user may know of a checkpoint. None or empty: as its card says."""

    licence: Licence | None = None
    """Licence of the checkpoint."""
    base_model: str | None = None
    """Hub id of the dense model, where its weights lay in a local folder."""
    datasets: tuple[str, ...] = ()
    """Hub ids of the training data, where they lay in local files."""

    def check(self) -> None:
        """Raises UserError where a name cannot be on the Hub, or a licence has a name of its own and is not `other`."""
        for name in (*filter(None, [self.base_model]), *self.datasets):
            check_name(name)
        licence = self.licence
        if licence is not None and (licence.name or licence.link) and licence.id not in UNNAMED:
            raise UserError(f"got licence {licence.id!r} with a name or a link of its own, which go with 'other'")


def publish(
    folder: Path,
    destination: Destination,
    origin: Origin,
    device: torch.device,
    *,
    dry_run: bool = False,
    print_line: Callable[[str], None] = print,
) -> str | None:
    """Publishes the checkpoint in a folder, which is left as it is.

    Args:
        device: computes the logits that are compared.
        dry_run: whether to look at everything, and send nothing.
        print_line: is called with the files, their sizes, and what was found.

    Returns:
        URL of the commit or of the pull request; None if nothing was to be sent.

    Raises:
        UserError: the folder holds no sparse checkpoint that others can load, something of it must not be sent, its
            licence is unknown, or the Hub refuses it.
    """
    destination.check()
    origin.check()
    if not folder.is_dir() or not is_sparse_checkpoint(folder):
        raise UserError(f"{folder}: not a sparse checkpoint, which is a folder with a config of a sparse model")
    card = published_card(folder / CARD, destination, origin)
    with _staged(files_to_send(folder), card) as staged:
        sent = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
        refuse_private(sent, own_names=[destination.owner])
        sizes = {name: path.stat().st_size for name, path in sent.items()}
        for name, size in sizes.items():
            print_line(f"{size:>16,}  {name}")
        print_line(f"{sum(sizes.values()):>16,}  bytes in {len(sizes)} files")
        found = look(destination)
        check_card(card, destination.repo_id)
        _check_reload(folder, staged, device)
        if dry_run:
            print_line(f"all is well; nothing was sent to {destination.repo_id}")
            return None
        commit = send(staged, destination, found)
    print_line(f"published: {commit.pr_url or commit.commit_url}")
    print_line(
        f"load it with from_pretrained({destination.repo_id!r}, revision={commit.oid!r}, trust_remote_code=True)"
    )
    return commit.pr_url or commit.commit_url


def published_card(path: Path, destination: Destination, origin: Origin) -> str:
    """Returns the text of the card as it is published: with licence, base model, data sets and the repository's name.

    Raises:
        UserError: there is no card with metadata, or the licence is unknown.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such model card")
    card = load_card(path)
    licence = origin.licence or licence_of(card.data)
    base_model = origin.base_model or card.data.base_model
    if not isinstance(base_model, str):
        base_model = None
    licence = known_licence(licence, base_model, str(path))
    set_origin(card.data, base_model, licence)
    if origin.datasets:
        card.data.datasets = list(origin.datasets)
    text = card.text.replace(PLACE, destination.repo_id)
    lines = [
        first_lines(line.partition(MADE)[0] if base_model is None else hub_link(base_model), licence)
        if MADE in line
        else line
        for line in text.splitlines()
    ]
    body = "\n".join(lines).strip("\n")
    return f"---\n{card.data.to_yaml()}\n---\n\n{body}\n"


def known_licence(stated: Licence | None, base_model: str | os.PathLike | None, where: str) -> Licence:
    """Returns the licence that is stated, or that of the base model.

    Raises:
        UserError: neither is known, or the licence says nothing.
    """
    licence = stated or (None if base_model is None else base_license(base_model))
    if licence is None:
        raise UserError(
            f"{where}: the licence is unknown; name it (--license, publish.license), as the base model's card"
        )
    if licence.id in UNNAMED and not licence.name:
        raise UserError(f"{where}: got licence {licence.id!r} without its name, expected --license-name as well")
    return licence


@contextmanager
def _staged(files: dict[str, Path], card: str) -> Iterator[Path]:
    """Yields a folder of links to the files, and the card as it is published."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, path in files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            if place == CARD:
                (folder / place).write_text(card, encoding="utf-8")
            else:
                (folder / place).symlink_to(path.resolve())
        yield folder


def _check_reload(folder: Path, staged: Path, device: torch.device) -> None:
    """Loads the files that are sent in a fresh process. Raises UserError if they are another model than `folder`'s."""
    model, processor = load_checkpoint(folder, "auto")
    try:
        verify(model.to(device).eval(), staged, probe_batch(processor))
    except RuntimeError as error:
        raise UserError(f"{folder}: does not pass the reload test: {str(error).splitlines()[-1]}") from None

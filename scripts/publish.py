"""Publishes a sparse checkpoint on the Hugging Face Hub.

    python scripts/publish.py runs/tiny_sparse/checkpoint me/tiny-sparse --private --license apache-2.0
    python scripts/publish.py DIR OWNER/NAME --tag v1.0
    python scripts/publish.py DIR OWNER/NAME --dry-run

Before anything is sent, the files are listed and looked through for paths and names of this machine, the licence must
be known, and the checkpoint is loaded in a fresh process and compared. The token is that of `hf auth login`, or
HF_TOKEN. The same command goes on with an upload that broke off. docs/publishing.md says more.
"""

import argparse
from pathlib import Path

from checkpoints.card import Licence
from checkpoints.publish.hub import MAIN, Destination
from checkpoints.publish.publish import Origin, publish
from modeling.user_error import UserError
from training.cli import run
from training.run import device


def main() -> None:
    arguments = parse_arguments()
    licence = None
    if arguments.license is not None:
        licence = Licence(arguments.license, arguments.license_name, arguments.license_link)
    elif arguments.license_name or arguments.license_link:
        raise UserError("--license-name, --license-link: go with --license other")
    publish(
        arguments.checkpoint,
        Destination(
            arguments.repo_id,
            private=arguments.private,
            revision=arguments.revision,
            pull_request=arguments.pr,
            tag=arguments.tag,
        ),
        Origin(licence, arguments.base_model, tuple(arguments.dataset)),
        device(),
        dry_run=arguments.dry_run,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="DIR", help="folder of a sparse checkpoint; it stays as it is")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="model on the Hub; it is made if it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--revision", default=MAIN, help=f"branch, or refs/pr/N to go on with a pull request (default {MAIN})"
    )
    parser.add_argument("--pr", action="store_true", help="open a pull request rather than write to the branch")
    parser.add_argument("--tag", help="name of the commit, such as v1.0")
    parser.add_argument("--license", help="as the Hub names it (default: as the base model's card)")
    parser.add_argument("--license-name", help="name of the licence, with --license other")
    parser.add_argument("--license-link", help="where its text is, with --license other")
    parser.add_argument("--base-model", metavar="ID", help="Hub id of the dense model, if its weights lay in a folder")
    parser.add_argument(
        "--dataset", metavar="ID", action="append", default=[], help="Hub id of training data that lay in files"
    )
    parser.add_argument("--dry-run", action="store_true", help="look at everything, send nothing")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)

"""Answers that are kept while a model is asked, so that an evaluation that is killed goes on where it was."""

import shutil
from contextlib import suppress
from pathlib import Path

from training.journal import Journal
from training.ranks import from_rank_0, rank, wait_for_rank_0


class KeptAnswers:
    """The answers to batches of questions, in one journal per rank.

    A batch is kept whole. So the batches of a second start are those of the first, whatever was answered and however
    many processes there are.

    Args:
        folder: where the journals lie. It is made when the first answers are kept.
        subject: what is asked: a fingerprint of the model, the questions and the settings. Answers of another subject
            are not used.
    """

    def __init__(self, folder: Path, subject: str):
        self._folder, self._subject = folder, subject
        self._journal: Journal | None = None

    def known(self) -> dict[int, list[str]]:
        """Returns the answers of each batch that an earlier start has kept, by its number. Every rank calls this."""
        found: dict[int, list[str]] = {}
        if rank() == 0:
            for path in sorted(self._folder.glob("rank-*.jsonl")):
                found |= {int(number): answers for number, answers in Journal(path, self._subject).items()}
        return from_rank_0(found)

    def keep(self, number: int, answers: list[str]) -> None:
        """Writes the answers of a batch."""
        if self._journal is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(self._folder / f"rank-{rank()}.jsonl", self._subject)
        self._journal.add(str(number), answers)

    def remove(self) -> None:
        """Removes what was kept, where all answers are written elsewhere. Every rank calls this."""
        wait_for_rank_0()
        if rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # other models' answers may lie there
                self._folder.parent.rmdir()

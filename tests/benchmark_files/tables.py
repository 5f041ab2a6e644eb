"""Tables as the Hub keeps them."""

from pathlib import Path

import datasets


def write_split(rows: list[dict], typed: dict, folder: Path, split: str) -> None:
    """Writes rows into the parquet file of a split.

    Args:
        typed: the types of the columns that `datasets` does not guess, such as pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    guessed = datasets.Dataset.from_list([{k: v for k, v in row.items() if k not in typed} for row in rows]).features
    features = datasets.Features({name: typed.get(name) or guessed[name] for name in rows[0]})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")

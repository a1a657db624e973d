"""What both harnesses share: the process that atheris takes over, and its folder."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

MOST_BYTES = 2_000
"""How long an input may be: the limits under test are lowered, so that such a one reaches them."""


def folder_for(name: str) -> Path:
    """The folder for files of a harness, which is the first argument of the command."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: python -m retail_assets_tests.fuzz.{name} FOLDER [-runs=N] [-seed=N]")
    folder = Path(sys.argv[1]).resolve()
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    return folder


def fuzz(
    check: Callable[[bytes], None], folder: Path, seeds: Iterable[bytes], words: Iterable[bytes]
) -> None:
    """Try inputs until the process ends; the first that breaks a promise is kept in the folder.

    Args:
        check: raises if an input breaks a promise.
        folder: gets `corpus`, which is gone on with the next time, and `crash-*` and the like.
        seeds: what inputs are made from.
        words: what inputs are made with, besides bytes.
    """
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    dictionary = folder / "words"
    dictionary.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)
    )
    options = [
        f"-dict={dictionary}",
        f"-max_len={MOST_BYTES}",
        "-len_control=0",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=2048",
        "-timeout=20",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, *sys.argv[2:], str(corpus)], check)
    atheris.Fuzz()

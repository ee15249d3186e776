# SPDX-License-Identifier: Apache-2.0
"""Compare two decodings on the same problems: the difference of their mean accuracies, its interval, and a p-value.

    trl-soft compare outputs/quickstart/evaluation hard soft
    trl-soft compare outputs/base hard outputs/trained soft

The arguments are a run folder and a decoding for each of the two sides. The second folder may be left out if both sides are
in the same run.
"""

from collections.abc import Sequence
from pathlib import Path

from ..command_line import CommandParser, one_sentence
from ..files import printable
from .intervals import paired
from .run_files import read_manifest
from .run_metrics import Samples, read_samples
from .scores import mean_at_n
from .store import Store


Side = tuple[Path, str]  # run folder, decoding


def compare(first: Side, second: Side, seed: int = 0) -> dict[str, dict[str, float]]:
    """
    Compare two decodings on every benchmark that both were evaluated on.

    Args:
        first, second (`tuple[Path, str]`): a run folder and the name of a decoding.
        seed (`int`): seed of the bootstrap and of the random signs; see [`~trl_soft.evaluate.intervals.paired`].

    Returns:
        By benchmark: `problems`, the mean accuracies `first` and `second`, and `difference`, `low`, `high` and `p_value`
        of second minus first.

    Raises:
        ValueError: if a run lacks the decoding, or if the two runs have other problems on a benchmark.
    """
    sides = [(_samples(*side), _digests(side[0])) for side in (first, second)]
    benchmarks = [name for name in sides[0][0] if name in sides[1][0]]
    if not benchmarks:
        raise ValueError(
            f"{first[0]} was evaluated on {list(sides[0][0])} and {second[0]} on {list(sides[1][0])}, so there is no "
            "benchmark to compare them on. Evaluate both on the same benchmark."
        )
    results = {}
    for name in benchmarks:
        problems = [samples[name].by_problem() for samples, _ in sides]
        if sides[0][1].get(name) != sides[1][1].get(name) or problems[0].keys() != problems[1].keys():
            raise ValueError(
                f"{first[0]} and {second[0]} have different problems on {printable(name)}, and only scores on the same problems can "
                "be compared. Evaluate both with the same rows and the same `limit`, to the end."
            )
        a, b = (mean_at_n([[line["correct"] for line in lines] for lines in by.values()]) for by in problems)
        means = {"problems": len(a), "first": float(a.mean()), "second": float(b.mean())}
        results[name] = means | paired(a, b, seed=seed)
    return results


def _samples(folder: Path, decoding: str) -> dict[str, Samples]:
    groups = read_samples(Store(folder))
    if decoding not in {name for _, name in groups}:
        raise ValueError(
            f"{folder} has no samples of the decoding {decoding!r}. It has {sorted({name for _, name in groups})}."
        )
    return {benchmark: samples for (benchmark, name), samples in groups.items() if name == decoding}


def _digests(folder: Path) -> dict[str, dict]:
    """The number and the digest of each benchmark's problems."""
    return read_manifest(folder).get("problems") or {}


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        example="trl-soft compare outputs/quickstart/evaluation hard gumbel",
        prog="trl-soft compare",
        description="Compare two decodings on the same problems.",
    )
    parser.add_argument("sides", nargs="+", metavar="RUN DECODING", help="RUN DECODING [RUN] DECODING")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and of the random signs")
    options = parser.parse_args(argv)
    if len(options.sides) not in (3, 4):
        parser.error("give RUN DECODING DECODING for one run, or RUN DECODING RUN DECODING for two")
    folder, decoding, *other = options.sides
    first, second = (Path(folder), decoding), (Path(other[0] if other[1:] else folder), other[-1])
    try:
        results = compare(first, second, options.seed)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{printable(str(error))}\n")
    for name, row in results.items():
        print(
            f"{printable(name)}: {row['problems']} problems, {100 * row['first']:.1f} % and {100 * row['second']:.1f} %, "
            f"difference {100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}], "
            f"p {row['p_value']:.2g}"
        )


if __name__ == "__main__":
    with one_sentence():
        main()

"""Measures the built-in detectors: `python -m loomos.prism.measure_detectors` writes their cards.

Labelled examples are in `data/detectors/labelled.jsonl`, each with the detector it is for, an
answer, perhaps a context, and whether it is a true case. A test holds the cards to the counts.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from loomos.arguments import take_arguments
from loomos.prism.detectors import Card, find_detector

FOLDER = Path(__file__).parent / "data" / "detectors"


def measure() -> dict[str, Card]:
    """Count each detector's errors on its examples."""
    counts: dict[str, Counter[str]] = {}
    for line in (FOLDER / "labelled.jsonl").read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        name = example["detector"]
        found = find_detector(name).finds(example["answer"], example.get("context", {}))
        count = counts.setdefault(name, Counter())
        if example["case"]:
            count["cases"] += 1
            count["found"] += found
        else:
            count["others"] += 1
            count["spared"] += not found
    return {
        name: Card(count["found"], count["cases"], count["spared"], count["others"])
        for name, count in sorted(counts.items())
    }


def main() -> None:
    """Write the cards."""
    cards = {name: card._asdict() for name, card in measure().items()}
    (FOLDER / "cards.json").write_text(json.dumps(cards, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    take_arguments("loomos.prism.measure_detectors", __doc__)
    main()

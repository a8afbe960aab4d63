"""The process of a classifier detector: `python -m loomos.prism.classify FOLDER`.

Reads a JSON list of texts from stdin and prints a JSON list of truths: whether a transformers
sequence classifier in the folder gives label 1 the greatest score. Safetensors only, no network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from loomos.arguments import take_arguments

BATCH = 32
HIT = 1


def classify(folder: str, texts: Sequence[str]) -> list[bool]:
    """Whether each text gets label 1."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    ).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    found: list[bool] = []
    for start in range(0, len(texts), BATCH):
        # An empty text has no token; a space stands for it.
        batch = [text or " " for text in texts[start : start + BATCH]]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            labels = model(**inputs).logits.argmax(-1)
        found += [int(label) == HIT for label in labels]
    return found


if __name__ == "__main__":
    (given,) = take_arguments(
        "loomos.prism.classify", __doc__, needs={"folder": "folder of the classifier"}
    )
    print(json.dumps(classify(given, json.load(sys.stdin))))

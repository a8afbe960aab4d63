"""What replies are worth: a function as TRL's `reward_funcs` are; see `learn.yaml` beside it."""


def share(completions: list[str], letter: list[str], **columns: object) -> list[float]:
    """The share of a reply that is the record's letter."""
    pairs = zip(completions, letter, strict=True)
    return [reply.count(wanted) / max(8, len(reply)) for reply, wanted in pairs]

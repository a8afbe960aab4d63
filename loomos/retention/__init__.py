"""How long things are kept: what is garbage, and the sweeping of it.

The rules are in the settings (`retention`). Never freed, whatever its age: what a run that lives
(a paused one lives) may still read, published versions, aliases and what is signed, what the
lineage of a published version names, the ledger, and the manifests of checkpoints, which the
ledger's facts are digests of.
"""

"""A witness: a small service of another party that vouches that a log only grows.

It speaks C2SP tlog-witness: a log POSTs its new checkpoint with a consistency proof, and gets it
cosigned if it extends the one cosigned before. Run it with `loomos ledger witness serve`.
"""

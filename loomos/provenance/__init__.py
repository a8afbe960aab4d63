"""Where a model comes from: facts in the ledger, signed statements, and how to check both.

`attestation` signs an in-toto/SLSA statement, an OpenSSF model signature and a CycloneDX ML-BOM;
`lineage` turns a job's facts into a tree and verifies it; `directory` is the form in which all of
it leaves LoomOS, verifiable offline.
"""

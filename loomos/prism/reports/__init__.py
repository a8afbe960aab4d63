"""Reports: evidence as inspect's log, PDF/A and HTML, and mapped to what regulations ask for.

Every report is a function of the evidence alone, so that it can be made again, byte for byte.
"""

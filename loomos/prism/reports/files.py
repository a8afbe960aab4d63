"""Names of the reports of a verification, below its prefix in the store."""

PDF_REPORT, HTML_REPORT, EVIDENCE = "report.pdf", "report.html", "evidence.json"
EVAL_FOLDER = "logs/"

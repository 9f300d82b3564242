"""`report.html`: one self-contained page of a run or a comparison. It reads files, and runs no code that they name."""

from experiments.html_report.command import ReportConfig, report_runs
from experiments.html_report.page import PAGE, page_note, write_page

__all__ = ["PAGE", "ReportConfig", "page_note", "report_runs", "write_page"]

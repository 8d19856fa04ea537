"""Metrics and history to a verdict, plots and one self-contained HTML page.

In: `ReportInputs`. Out: report.html and plots/*.png in the run folder, and a `Verdict`.
"""

from trainer.report.inputs import ReportInputs
from trainer.report.page import write_report
from trainer.report.verdict import Verdict

__all__ = ["ReportInputs", "Verdict", "write_report"]

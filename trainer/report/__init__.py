"""Metrics and history to a verdict, plots and one self-contained HTML page.

In: `ReportInputs`. Out: report.html and plots/*.png in the run folder, and a `Verdict`. Its parts are
imported one by one: names and pages need no plots.
"""

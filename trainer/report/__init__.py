"""HTML report of a run: verdict, plots and tables.

A report is made from `ReportInputs` and written to report.html and plots/*.png in the run folder. The package
imports none of its modules, so that `names` can be used without Matplotlib.
"""

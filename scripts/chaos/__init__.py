"""Fault-injection tests of whole runs, run by scripts/chaos.py."""

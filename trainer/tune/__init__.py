"""Hyperparameter search: search space, records of trials, and sampling and pruning by Optuna.

A study is a folder or bucket prefix with `study.json` and one record and one run per trial. There is no
database: the sampler's history is rebuilt from the records before each trial.
"""

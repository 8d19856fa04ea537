"""Hyperparameter search: parameters, trials and their records, and the sampler and pruner of Optuna.

A study is a folder or a prefix of a bucket, `study.json` in it, with a record and a run for each trial. There
is no database: the sampler's history is rebuilt from the records before each trial.
"""

"""Servers, datasets and other helpers of the tests."""

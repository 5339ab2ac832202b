"""Runs on a login node and ends: examine, freeze, submit, report."""

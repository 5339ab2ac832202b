"""Durable storage: files that survive a crash, and compiled operators. Standard library only."""

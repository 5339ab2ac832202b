"""Where bytes go so that they are still there after a crash. Standard library only."""

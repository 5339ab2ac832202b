"""What ended an attempt, and what to do about it. Standard library only."""

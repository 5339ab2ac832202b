"""What ended an attempt, and what to do about it: shared by supervisor, watchdog and status."""

"""What ended an attempt, and what to do about it: in the allocation (policy) and outside it (watch, loop)."""

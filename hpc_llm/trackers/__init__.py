"""Where metrics go. A tracker takes rows of numbers; metrics.jsonl is always one."""

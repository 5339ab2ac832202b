"""What runs of a sweep found, read from their directories: results, statistics, scaling laws, tables."""

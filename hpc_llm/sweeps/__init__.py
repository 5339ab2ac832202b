"""Results of a sweep's runs, read from their directories: losses, statistics, scaling laws."""

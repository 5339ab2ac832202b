"""What a run is: typed configuration, Hydra composition, and the rules on configuration alone."""

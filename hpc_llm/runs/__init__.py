"""The run directory: its layout, its ledger, and how a run is frozen into it."""

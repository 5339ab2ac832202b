"""Everything that knows the insides of DeepSpeed or torch."""

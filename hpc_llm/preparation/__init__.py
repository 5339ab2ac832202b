"""Documents → shards, by processes and jobs that may be killed."""

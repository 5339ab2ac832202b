"""From a frozen run to running ranks: the batch script, the supervisor, the step."""

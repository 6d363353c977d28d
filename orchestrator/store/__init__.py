"""What is known of sessions beyond the life of a process: who owns each, and what another one needs to go on with it."""

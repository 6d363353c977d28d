"""Films without a room: renders as jobs, cut into parts that any worker can make."""

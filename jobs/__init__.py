"""What gateway and workers agree on: requests, job states, profiles, errors, the Redis queue, result files."""

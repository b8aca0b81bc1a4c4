"""The worker: a supervisor that leases, renews and settles jobs, and a device child that makes the pictures."""

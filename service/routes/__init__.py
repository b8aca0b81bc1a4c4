"""The gateway's routes, one group a file. They translate between HTTP and `jobs`; all policy lives in `service.admission`."""

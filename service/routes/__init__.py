"""The routes, one group a file. They translate between HTTP and `jobs`, and know no policy: that is `admission`'s."""

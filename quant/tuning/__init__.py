"""Which format each layer gets under a budget of error: what formats cost, what they do to pictures, and the search."""

"""Built-in models: the worlds they are trained on, the recipes that train them, and where their weights lie."""

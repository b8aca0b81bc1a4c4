"""The lock under which models are made. Knows no model.

Libraries make a model without weights, or with those of files, by patching `torch.nn.Module` for the whole process
(accelerate's `init_empty_weights`, which diffusers' `from_pretrained` uses). A module that another thread makes, traces
or fills meanwhile would silently get parameters without values; two patches that end in the other order would stay.
"""

from __future__ import annotations

import threading

MAKING = threading.RLock()
"""Held by whoever makes, fills or traces a module. Nothing else is waited for under it."""

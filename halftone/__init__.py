"""Halftone's face: the command line and the Python clients. Knows other rooms by their public names only."""

from halftone.aclient import AsyncClient
from halftone.client import Client
from halftone.images import Images, Picture, Video
from halftone.version import __version__
from halftone.views import JobView, ModelView, ProfileView
from halftone.wire import Event, RetryPolicy

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "Images",
    "JobView",
    "ModelView",
    "Picture",
    "ProfileView",
    "RetryPolicy",
    "Video",
    "__version__",
]

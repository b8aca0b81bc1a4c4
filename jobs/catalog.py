"""Which models and profiles there are, by what lies in folders. Reads cards and manifests; never loads a weight."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import UnknownModel, UnknownProfile
from jobs.manifest import FILE_NAME, Manifest
from jobs.model_folder import BrokenModel, null_model, read_model
from jobs.profile import AUTO, FLOAT, ModelCard, ProfileCard
from jobs.settings import Settings

log = logging.getLogger(__name__)


class Catalog:
    """The models that can be asked for.

    Attributes:
        models: cards by id.
        faults: what was found but cannot be served, each with its reason.
    """

    def __init__(self, models: dict[str, ModelCard], faults: list[str]) -> None:
        self.models = models
        self.faults = faults

    @classmethod
    def scan(cls, settings: Settings) -> Catalog:
        """Look through the built-in models, the data folder's, and those that the settings name, in this order.

        The first model of an id and the first profile of a name count. What is broken or comes second is logged and
        listed in `faults`; names that begin with a dot or an underscore are not looked at.
        """
        catalog = cls({}, [])
        for folder in _model_folders(settings):
            catalog._add_model(folder)
        for root in (*_built_in("artifacts"), settings.artifacts_dir):
            for folder in (artifact for model in _subfolders(root) for artifact in _subfolders(model)):
                catalog._add_profile(folder)
        if settings.allow_null_model:
            catalog.models["null"] = null_model()
        return catalog

    def card(self, model: str) -> ModelCard:
        """The model's card. Raises `UnknownModel`, which lists the known ones."""
        if model not in self.models:
            known = ", ".join(sorted(self.models)) or "none; see the log for what is broken"
            raise UnknownModel(f"no model {model!r}; known models: {known}", param="model")
        return self.models[model]

    def profile(self, model: str, name: str) -> ProfileCard:
        """The profile's card. Raises `UnknownModel` or `UnknownProfile`, which lists the model's profiles."""
        card = self.card(model)
        found = card.profile(name)
        if found is None:
            known = ", ".join(profile.name for profile in card.profiles)
            raise UnknownProfile(f"model {model!r} has no profile {name!r}; it has: {known}", param="profile")
        return found

    def _add_model(self, folder: Path) -> None:
        try:
            card = read_model(folder)
            if card.id in self.models:
                raise BrokenModel(f"has the id {card.id!r} of the model in {self.models[card.id].folder}")
        except (BrokenModel, OSError, ValueError, KeyError, TypeError) as error:
            self._report(f"model folder {folder}: {error}")
        else:
            self.models[card.id] = card

    def _add_profile(self, folder: Path) -> None:
        try:
            manifest = Manifest.read(folder / FILE_NAME)
            model = self.models.get(manifest.model)
            if (manifest.model, manifest.profile) != (folder.parent.name, folder.name):
                raise BrokenModel(f"is the profile {manifest.profile!r} of {manifest.model!r} by its manifest")
            if model is None:
                raise BrokenModel(f"there is no model {manifest.model!r}")
            if manifest.profile == FLOAT or model.profile(manifest.profile):
                raise BrokenModel(f"the model has a profile {manifest.profile!r} already")
            if manifest.profile == AUTO:
                raise BrokenModel(f"no profile may be named {AUTO!r}, which asks for one to be chosen")
            card = manifest.card(folder)
        except (BrokenModel, OSError, ValueError) as error:
            self._report(f"artifact {folder}: {error}")
        else:
            self.models[model.id] = model.model_copy(update={"profiles": (*model.profiles, card)})

    def _report(self, fault: str) -> None:
        log.warning("%s", fault)
        self.faults.append(fault)


def _built_in(name: str) -> Iterator[Path]:
    """The zoo's folder of that name, found without importing the zoo; none when the zoo is not installed."""
    found = importlib.util.find_spec("zoo")
    for root in (found.submodule_search_locations or ()) if found else ():
        yield Path(root) / name


def _model_folders(settings: Settings) -> Iterator[Path]:
    for root in (*_built_in("models"), settings.models_dir):
        yield from _subfolders(root)
    yield from settings.models


def _subfolders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")

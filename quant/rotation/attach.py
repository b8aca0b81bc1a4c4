"""Puts input transforms before layers of a float module, and finds them there again. Knows no model, no recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from quant.errors import ArtifactError, QuantError
from quant.layers import as_float_layer, quantizable_layers, replace_layers
from quant.rotation.report import TransformForm
from quant.rotation.transform import INNER, InputTransform, Transformed


def attach_(module: nn.Module, transforms: Mapping[str, InputTransform]) -> None:
    """Puts transforms before layers, in place, and changes their weights so that the module computes the same.

    A transform that several layers name leads at the first of them. Weights get parameters of their own.

    Raises:
        QuantError: there is no such linear or convolution.
    """
    layers, seen = quantizable_layers(module), set[int]()
    strange = sorted(transforms.keys() - layers.keys())
    if strange:
        raise QuantError(f"no linear or convolution to transform the input of: {', '.join(strange[:5])}")
    replacements = {}
    for name in (name for name in layers if name in transforms):
        layer, transform = layers[name], transforms[name]
        absorb_(layer, transform)
        replacements[name] = Transformed(layer, transform, leads=id(transform) not in seen).eval()
        seen.add(id(transform))
    replace_layers(module, replacements)


def detach_(module: nn.Module, names: Collection[str]) -> None:
    """Takes float layers out from behind their transforms, in place, with weights as they were but for rounding.

    Of layers that share a transform the first that stays behind it leads.

    Raises:
        QuantError: a layer stands behind no transform, or is no float layer any more.
    """
    layers = transformed_layers(module)
    replacements: dict[str, nn.Module] = {}
    for name in names:
        inner = as_float_layer(layers[name].inner) if name in layers else None
        if inner is None:
            raise QuantError(f"{name} is no float layer behind an input transform")
        inner.weight = nn.Parameter(layers[name].transform.off_weight(inner.weight), requires_grad=False)
        replacements[name] = inner
    replace_layers(module, replacements)
    leading = {id(layer.transform) for layer in transformed_layers(module).values() if layer.leads}
    for layer in transformed_layers(module).values():
        if id(layer.transform) not in leading:
            layer.lead()
            leading.add(id(layer.transform))


def absorb_(layer: nn.Linear | nn.Conv2d, transform: InputTransform) -> None:
    """Changes a layer's weight, in place, to be fed transformed inputs."""
    layer.weight = nn.Parameter(transform.on_weight(layer.weight), requires_grad=False)


def transformed_layers(module: nn.Module) -> dict[str, Transformed]:
    """Dotted name to layer of all that stand behind a transform, in order."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Transformed)}


def own_names(module: nn.Module) -> dict[str, str]:
    """Dotted name of each layer inside of a `Transformed` to the name that it had before: what rules are about."""
    return {f"{name}.{INNER}": name for name in transformed_layers(module)}


def transform_forms(module: nn.Module) -> dict[str, TransformForm]:
    """What makes the transforms of a module again, empty, by the layers' own names."""
    layers = transformed_layers(module)
    leaders = {id(layer.transform): name for name, layer in layers.items() if layer.leads}
    return {
        name: layer.transform.form if layer.leads else TransformForm(like=leaders[id(layer.transform)])
        for name, layer in layers.items()
    }


def install_transforms(module: nn.Module, forms: Mapping[str, TransformForm]) -> None:
    """Puts empty transforms before the layers of a float module, as `transform_forms` told them.

    Raises:
        ArtifactError: the module has no such layer, its width differs, or a transform is to be shared that is not
            there.
    """
    modules = dict(module.named_modules())
    transforms = {name: InputTransform.empty(form) for name, form in forms.items() if not form.like}
    replacements = {}
    for name, form in forms.items():
        layer = as_float_layer(modules[name]) if name in modules else None
        transform = transforms.get(form.like or name)
        if layer is None:
            raise ArtifactError(f"the artifact transforms the input of {name}, which the model does not have")
        if transform is None:
            raise ArtifactError(f"the artifact gives {name} the transform of {form.like}, which has none")
        width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        if width != transform.width:
            raise ArtifactError(f"the artifact transforms {transform.width} channels of {name}, which has {width}")
        replacements[name] = Transformed(layer, transform, leads=not form.like)
    replace_layers(module, replacements)

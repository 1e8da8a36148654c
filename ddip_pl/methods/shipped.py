"""The shipped methods by name, built from the settings in `configs/method`."""

from argparse import ArgumentError
from dataclasses import is_dataclass
from typing import Any

from jsonargparse import ArgumentParser

import ddip_pl.baselines  # noqa: F401 (lets configs name them by class alone)
from ddip_pl.errors import InputError, bad_input, parser_reason
from ddip_pl.methods.configs import SHIPPED, read_config, with_bases
from ddip_pl.reconstruction.method import Method
from ddip_pl.reconstruction.module import Reconstruction


def available_methods() -> list[str]:
    """Names of the shipped methods."""
    return sorted(path.stem for path in (SHIPPED / "method").glob("*.yaml"))


def load_method(name: str, **changes: Any) -> Method:
    """A shipped method, built from `configs/method/NAME.yaml` as on the command line.

    Args:
        name: one of `available_methods()`.
        **changes: arguments of the method's constructor, such as `prior="my.safetensors"` or
            `sampler=Sampler.published()`; nested ones by path, such as
            `**{"sampler.steps": 20, "adaptation.training.learning_rate": 3e-4}`.

    Raises:
        InputError: there is no such method or argument, or a value cannot be used.
    """
    if name not in available_methods():
        raise InputError(f"method {name!r}: no such method; choose from {', '.join(available_methods())}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model", default=class_path(Reconstruction))
    layers = map(read_config, with_bases(SHIPPED / "method" / f"{name}.yaml"))
    try:
        settings = parser.get_defaults()
        for layer in layers:
            settings = parser.parse_object({"model": layer["model"]}, settings)
        for key, value in changes.items():
            given = vars(value) if is_dataclass(value) else value
            settings = parser.parse_object({f"model.{key}": given}, settings)
        return parser.instantiate(settings).model
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(bad_input(error) or f"method {name}: {parser_reason(str(error))}") from error


def class_path(usual: type) -> dict[str, str]:
    """A class in the form that configs use."""
    return {"class_path": f"{usual.__module__}.{usual.__qualname__}"}

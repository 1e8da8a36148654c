"""The parser of the command line: Lightning's, with usual choices, and with errors of one line."""

import inspect
import re
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import OmegaConfBaseException

from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.reconstruction.module import Reconstruction

USUAL: dict[str, type] = {"model": Reconstruction, "data": VolumeDataModule}
HINT = "; see ddip-pl COMMAND --help"


class Parser(LightningArgumentParser):
    """Says what is wrong with the settings in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).split()).replace(HINT, "").replace('": Parser key "', ".")
        if missing := re.fullmatch(r'Parser key "(\w+)": the following arguments are required: (.*)', line):
            line = f"the following arguments are required: {missing[1]}.{missing[2].replace(', ', f', {missing[1]}.')}"
        raise InputError(line + HINT)

    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        """The choice of method and data, with one of each whose settings need no class to be named."""
        if not subclass_mode:
            return super().add_lightning_class_args(lightning_class, nested_key, subclass_mode, required)
        usual = USUAL[nested_key]
        settings = ", ".join(f"--{nested_key}.{name}" for name in inspect.signature(usual).parameters)
        return self.add_subclass_arguments(  # type: ignore[return-value]
            lightning_class, nested_key, default={"class_path": f"{usual.__module__}.{usual.__name__}"},
            help=f"Class, by default {usual.__name__}, and its settings; those of a class NAME are explained by "
            f"--{nested_key}.help NAME, those of {usual.__name__} are {settings}.",
        )  # fmt: skip

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except (TypeError, ValueError, OmegaConfBaseException) as error:
            raise InputError(f"config {cfg_path}: {error}") from error

"""The command line: `ddip-pl fit | validate | test | predict | demo`."""

import sys

from lightning.pytorch.cli import LightningCLI

from ddip_pl.data.ellipses import EllipsesDataModule
from ddip_pl.prior.module import DiffusionPrior


class PriorCLI(LightningCLI):
    """`fit` and `validate`: learning a prior from phantoms."""

    def add_arguments_to_parser(self, parser):
        parser.link_arguments("model.network.image_size", "data.image_size")
        parser.link_arguments("model.network.in_channels", "data.channels")


def main() -> None:
    PriorCLI(DiffusionPrior, EllipsesDataModule, parser_kwargs={"parser_mode": "omegaconf"})


if __name__ == "__main__":
    sys.exit(main())

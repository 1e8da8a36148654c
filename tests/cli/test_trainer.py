"""`--ckpt_path`: what is no checkpoint is refused in one line, and nothing in it runs."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ddip_pl.cli.trainer import check_checkpoint
from ddip_pl.errors import InputError


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.path),)


def test_what_is_no_checkpoint(tmp_path: Path, tiny_prior: Path) -> None:
    torch.save({"loops": {}, "state_dict": Bomb(tmp_path / "made")}, tmp_path / "bomb.ckpt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.ckpt")
    with zipfile.ZipFile(tmp_path / "empty.ckpt", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "large.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large/data.pkl", bytes(2**24))
    for path, message in {
        tmp_path / "none.ckpt": "no such file",
        tmp_path / "bomb.ckpt": "not a file of plain weights",
        tmp_path / "empty.ckpt": "not a complete checkpoint",
        tmp_path / "large.ckpt": "claim to be larger than the file",
        tmp_path / "weights.ckpt": r"give its last\.ckpt",
        tiny_prior: r"give its last\.ckpt",
    }.items():
        with pytest.raises(InputError, match=rf"ckpt_path {path}: .*{message}"):
            check_checkpoint(str(path))
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "bomb.ckpt", weights_only=False)
    assert (tmp_path / "made").exists()


def test_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"loops": {}, "state_dict": {}}, tmp_path / "last.ckpt")
    check_checkpoint(str(tmp_path / "last.ckpt"))
    check_checkpoint(None)
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[:-100])
    with pytest.raises(InputError, match="not a complete checkpoint"):
        check_checkpoint(str(tmp_path / "last.ckpt"))

"""What the header of a file claims, compared with what the file can hold, before any memory is allocated."""

from ddip_pl.errors import InputError

RATIO = 1032  # of the best compression by deflate (gzip, HDF5, DICOM)
SMALL = 2**24  # bytes that are always allowed: images of one value can be compressed further


def check_claim(claimed: float, held: int, what: str, small: int = SMALL) -> None:
    """Refuse a file that cannot hold what its header claims.

    Args:
        claimed: bytes that reading takes.
        held: bytes in the file.
        what: claims that much, for the error message.
        small: bytes that are always allowed.

    Raises:
        InputError: it cannot.
    """
    if claimed > max(small, RATIO * held):
        raise InputError(f"damaged: {what} claims {claimed:.4g} bytes, the file has {held}")

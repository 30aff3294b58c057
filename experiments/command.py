"""Command lines of ``MODEL=``, ``DATA=``, ``TRAIN=`` and ``key=value`` as frozen configurations."""

from collections.abc import Sequence
from typing import TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Config = TypeVar("Config")


def parse(arguments: Sequence[str], schema: type[Config]) -> Config:
    """What is given over the schema's defaults, strictly: a misspelt key is an error."""
    spelt = [
        key.lower() + equals + value if key in ("MODEL", "DATA", "TRAIN") else argument
        for argument in arguments
        for key, equals, value in [argument.partition("=")]
    ]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(spelt))
        return cast(Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ValueError(f"{' '.join(arguments)}: {error}") from error

"""What each engine can do: the one table that docs and command line print.

Every cell is either tested or says that it is not.
"""

from dataclasses import dataclass

from gradmimic.engines import ENGINES


@dataclass(frozen=True)
class Abilities:
    """One engine's cells.

    Args:
        exact: whether the scores are the definition's, up to rounding.
        layers: which layers scores may pass.
        losses: which losses.
        compile: under ``torch.compile``.
        amp: under autocast and with a gradient scaler.
        ddp: under ``DistributedDataParallel``.
        fsdp2: under ``fully_shard``.
    """

    exact: str
    layers: str
    losses: str
    compile: str
    amp: str
    ddp: str
    fsdp2: str


UNTESTED = "not tested"

ABILITIES: dict[str, Abilities] = {
    "forward": Abilities(
        exact="yes",
        layers="with a forward-mode formula in torch",
        losses="any",
        compile="no, an error; the head: yes",
        amp="yes",
        ddp="yes",
        fsdp2="a linear head; else an error",
    ),
    "ghost": Abilities(
        exact="yes",
        layers="any that treat samples apart",
        losses="one sample each; else an error",
        compile="yes",
        amp="yes",
        ddp="yes",
        fsdp2="no, an error",
    ),
    "secant": Abilities(
        exact="no",
        layers="any",
        losses="any",
        compile="yes",
        amp="yes, coarse",
        ddp="yes",
        fsdp2="yes",
    ),
    "oracle": Abilities(
        exact="yes",
        layers="any",
        losses="any",
        compile="yes, but for inductor's donated buffers",
        amp="yes",
        ddp="yes",
        fsdp2=UNTESTED,
    ),
}
"""Every engine's cells, by the engine's name."""

COLUMNS = {
    "exact": "exact",
    "layers": "layers",
    "losses": "losses",
    "compile": "compile",
    "amp": "AMP",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
}
"""The fields, and how they are headed."""


def abilities_of(engine: str) -> Abilities:
    """Return an engine's cells; all are "not tested" for one that nobody described.

    Example:
        >>> abilities_of("secant").compile
        'yes'
    """
    unknown = Abilities(*[UNTESTED] * len(COLUMNS))
    return ABILITIES.get(engine, unknown)


def table() -> list[dict[str, str]]:
    """Return a row for every engine there is, by column headings.

    Example:
        >>> table()[0]["engine"], table()[0]["exact"]
        ('forward', 'yes')
    """
    return [
        {"engine": name}
        | {shown: getattr(abilities_of(name), field) for field, shown in COLUMNS.items()}
        for name in ENGINES
    ]

"""What a job may hold at once, so that it fits a small machine: nothing that a result depends on beyond rounding."""

from dataclasses import dataclass

GIB = 2**30
# How many go through the networks together where a study sets no limit. Bits depend on it, so it never varies.
PHOTOS_TOGETHER = 16  # through the encoder
PAIRS_TOGETHER = 8  # through a method, when it predicts
EPISODES_TOGETHER = 32  # predicted in one go: their photos are encoded first


@dataclass(frozen=True)
class Limits:
    """As a study's ``limits`` say, 0: as the settings of the run ask."""

    pairs_at_once: int = 0  # of a batch of training or finetuning, whose gradients are added up, and of predictions
    photos_at_once: int = 0  # through the encoder
    pool_gib: float = 6.0  # encoded test photos that an evaluation keeps for its next episodes, others it encodes again

    @property
    def pool_bytes(self) -> int:
        return int(self.pool_gib * GIB)

    def pairs(self, wanted: int) -> int:
        """How many of ``wanted`` pairs go through the network together."""
        return min(wanted, self.pairs_at_once or wanted)

    def photos(self, wanted: int) -> int:
        """How many of ``wanted`` photos go through the encoder together."""
        return min(wanted, self.photos_at_once or wanted)


NONE = Limits()

"""One thread that classifies, and a bounded number of requests that wait for it.

One image after the other: the latency that is told is that of a network alone on the machine, and
runtimes that two threads may not enter need no lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from kd_jax.data import image_files
from kd_jax.inference.classifier import Choice, Classifier, is_same
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, in_short
from kd_jax.serve import uploads
from kd_jax.serve.uploads import Limits, Refused

T = TypeVar("T")


class Answer(NamedTuple):
    """What a network says of an image, and how many milliseconds it took."""

    top: list[Choice]
    milliseconds: float


class Answers(NamedTuple):
    """What all networks say of an image.

    Attributes:
      of: who -> its answer.
      same_class: whether all choose the same class first; None for one alone.
      width, height: of the image.
      has_more: whether the file holds further images, which nobody looked at.
      decode_milliseconds: until the image was pixels.
    """

    of: Mapping[str, Answer]
    same_class: bool | None
    width: int
    height: int
    has_more: bool
    decode_milliseconds: float


class Worker:
    """Classifies images, one after the other."""

    def __init__(self, networks: Mapping[str, Classifier], limits: Limits):
        """Begin; nothing is classified before `warm_up`.

        Args:
          networks: who -> network.
          limits: of a request.
        """
        self._networks, self._limits = networks, limits
        self._thread = ThreadPoolExecutor(1, "classify")
        self._count = 0

    @property
    def requests(self) -> int:
        """How many requests have a place now."""
        return self._count

    def warm_up(self) -> None:
        """Let each network answer once, for what its runtime does the first time only."""
        image_files.suffixes()  # which has Pillow register its formats
        for network in self._networks.values():
            network.probabilities(np.zeros((1, *network.image_shape), np.uint8))

    def take_place(self) -> None:
        """Begin a request, before its first byte; `give_place` ends it. Of the event loop's thread.

        Raises:
          Refused: as many have a place already as may.
        """
        if self._count >= self._limits.requests:
            raise Refused(503, f"{self._count} images wait already: try again in a moment")
        self._count += 1

    def give_place(self) -> None:
        """End a request."""
        self._count -= 1

    async def answers(self, content: bytes, count: int) -> Answers:
        """Return what the networks say of an image file.

        Args:
          content: of the file.
          count: of the most probable classes.

        Raises:
          Refused: it cannot be read, or its turn did not come in time.
        """
        return await self._in_turn(lambda: self._classify(content, count))

    async def _in_turn(self, job: Callable[[], T]) -> T:
        future = asyncio.wrap_future(self._thread.submit(job))
        try:
            # What has not begun by then is taken out of the queue.
            return await asyncio.wait_for(future, self._limits.seconds)
        except TimeoutError:
            raise Refused(
                504, f"no answer within {self._limits.seconds:g} s: the machine is busy"
            ) from None

    def _classify(self, content: bytes, count: int) -> Answers:
        began = time.perf_counter()
        image, has_more = uploads.decode(content, self._limits)
        decoded = time.perf_counter()
        of = {}
        for who, network in self._networks.items():
            pixels = image_files.fit(image, network.size)[None]
            start = time.perf_counter()
            try:
                (probabilities,) = network.probabilities(pixels)
            except UserError as error:
                logger.error("the %s fails: %s", who, error)
                raise Refused(500, f"the {who} fails: {error}") from error
            except Exception as error:  # each runtime raises its own kinds
                reason = f"{type(error).__name__}: {in_short(error)}"
                logger.error("the runtime of the %s fails: %s", who, reason)
                raise Refused(
                    500,
                    f"the runtime of the {who} fails ({reason}): if it does for other images too, "
                    "export the file again",
                ) from error
            took = 1000 * (time.perf_counter() - start)
            of[who] = Answer(network.top(probabilities, count), took)
        firsts = [answer.top[0] for answer in of.values()]
        same_class = is_same(list(self._networks.values()), firsts) if len(of) > 1 else None
        return Answers(
            of, same_class, image.width, image.height, has_more, 1000 * (decoded - began)
        )

    def close(self) -> None:
        """Let what runs end, and take no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)

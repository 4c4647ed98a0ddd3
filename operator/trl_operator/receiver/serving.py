"""The serving certificate, from the files that the controller's Secret is mounted as."""

import asyncio
import logging
import ssl
from pathlib import Path

from trl_operator.certs import Pem, load

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Serving:
    """A TLS context that answers new connections with what the files hold now."""

    def __init__(self, folder: Path) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._folder = folder
        self._loaded: Pem = {}

    def look(self) -> bool:
        """Load the files if they have changed; return whether a certificate is loaded.

        While they are missing, or of two certificates because somebody is writing them, the last good one serves.
        """
        try:
            pem = {name: (self._folder / name).read_bytes() for name in ("tls.crt", "tls.key")}
            if pem != self._loaded:
                load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), pem)
                load(self.context, pem)
                self._loaded = pem
                logger.info("serving with the certificate in %s", self._folder)
        except OSError as error:  # an SSLError is one
            logger.warning("certificate: %s", error)
        return bool(self._loaded)

    async def first(self) -> None:
        """Return once a certificate is loaded."""
        while not self.look():
            await asyncio.sleep(LOOK_SECONDS)

    async def keep(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(10 * LOOK_SECONDS)
            self.look()

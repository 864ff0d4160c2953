"""Connections whose bodies come faster than they are read take turns.

asyncio reads every connection that is ready before it goes on: of 32 uploads a quarter of a megabyte each, and whoever
asks for what takes no time itself waits for all of them, again and again.
"""

from __future__ import annotations

import asyncio
from collections import deque

from uvicorn.protocols.http.flow_control import FlowControl


class Turns:
    """Of the connections in line one goes on in each round of the event loop."""

    def __init__(self) -> None:
        self._line: deque[PacedFlow] = deque()

    def join(self, flow: PacedFlow) -> None:
        self._line.append(flow)
        if len(self._line) == 1:
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        flow = self._line.popleft()
        if self._line:
            asyncio.get_running_loop().call_soon(self._round)
        flow.go_on()  # last: if it fails, it fails alone


class PacedFlow(FlowControl):
    """uvicorn pauses a connection when more than 64 KiB of a body wait for the application, and resumes it when that
    asks for more; here it is resumed in its turn.
    """

    def __init__(self, transport: asyncio.Transport, turns: Turns) -> None:
        super().__init__(transport)
        self._turns = turns
        self._in_line = self._wanted = False

    def pause_reading(self) -> None:
        self._wanted = False
        super().pause_reading()

    def resume_reading(self) -> None:
        self._wanted = True
        if self.read_paused and not self._in_line:
            self._in_line = True
            self._turns.join(self)

    def go_on(self) -> None:
        """It is its turn."""
        self._in_line = False
        if self._wanted:
            super().resume_reading()

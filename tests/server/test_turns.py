"""Connections that wait to be read go on one by one, and none that was paused meanwhile."""

from __future__ import annotations

import asyncio

from mdinfer.server.turns import PacedFlow, Turns


class Transport(asyncio.Transport):
    def __init__(self, name: str, told: list[str]) -> None:
        super().__init__()
        self.name, self.told = name, told

    def pause_reading(self) -> None:
        self.told.append(f"{self.name} off")

    def resume_reading(self) -> None:
        self.told.append(f"{self.name} on")


def flows(names: str) -> tuple[list[str], list[PacedFlow]]:
    told: list[str] = []
    turns = Turns()
    found = [PacedFlow(Transport(name, told), turns) for name in names]
    for flow in found:
        flow.pause_reading()
    told.clear()
    return told, found


def test_one_a_round_in_their_order() -> None:
    async def main() -> None:
        told, (a, b, c) = flows("abc")
        for flow in (c, a, b, a):
            flow.resume_reading()
        assert told == []
        seen = []
        for _ in range(4):
            await asyncio.sleep(0)
            seen.append(list(told))
        assert seen == [["c on"], ["c on", "a on"], ["c on", "a on", "b on"], ["c on", "a on", "b on"]]
        assert not (a.read_paused or b.read_paused or c.read_paused)

    asyncio.run(main())


def test_one_that_is_paused_in_line_stays_paused() -> None:
    async def main() -> None:
        told, (a, b) = flows("ab")
        a.resume_reading()
        b.resume_reading()
        a.pause_reading()
        for _ in range(3):
            await asyncio.sleep(0)
        assert told == ["b on"] and a.read_paused
        a.resume_reading()
        await asyncio.sleep(0)
        assert told == ["b on", "a on"]

    asyncio.run(main())


def test_one_that_fails_keeps_no_other_from_its_turn() -> None:
    class Broken(Transport):
        def resume_reading(self) -> None:
            raise OSError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        told: list[str] = []
        turns = Turns()
        for transport in (Broken("a", told), Transport("b", told)):
            flow = PacedFlow(transport, turns)
            flow.pause_reading()
            flow.resume_reading()
        for _ in range(3):
            await asyncio.sleep(0)
        assert told == ["a off", "b off", "b on"]

    asyncio.run(main())


def test_one_that_goes_on_is_not_resumed_again() -> None:
    async def main() -> None:
        told, (a,) = flows("a")
        a.resume_reading()
        await asyncio.sleep(0)
        a.resume_reading()
        await asyncio.sleep(0)
        assert told == ["a on"]

    asyncio.run(main())

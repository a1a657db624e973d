"""One task reads for all pages, in a thread, and only while somebody looks."""

import asyncio

from retail_assets.dashboard.poller import Poller
from retail_assets.dashboard.watch import View


class Lake:
    """Counts its reads, and how many of them run at the same time."""

    def __init__(self):
        self.version = 1
        self.reads = 0
        self.running = 0
        self.most = 0

    def read(self):
        self.reads += 1
        return View(version=self.version)

    async def in_thread(self, function):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return function()


def run(scenario, seconds=0.001):
    async def play():
        lake, pushed = Lake(), []
        poller = Poller(lake.read, pushed.append, lake.in_thread, seconds=seconds)
        task = asyncio.create_task(poller.run())
        try:
            await scenario(lake, poller, pushed)
        finally:
            task.cancel()

    asyncio.run(play())


async def until(condition):
    while not condition():  # noqa: ASYNC110  # what it waits for is no event
        await asyncio.sleep(0.001)


def test_without_a_page_nothing_is_read_after_the_first_time():
    async def scenario(lake, poller, pushed):
        await asyncio.sleep(0.02)
        assert lake.reads == 1  # for the first page
        poller.opened()
        await until(lambda: lake.reads > 2)
        poller.closed()
        await asyncio.sleep(0.01)
        reads = lake.reads
        await asyncio.sleep(0.02)
        assert (lake.reads, len(pushed)) == (reads, 1)

    run(scenario)


def test_fifty_pages_cost_one_reader_and_each_view_is_pushed_once():
    async def scenario(lake, poller, pushed):
        for _ in range(50):
            poller.opened()
        await until(lambda: lake.reads > 5)
        lake.version = 2
        await until(lambda: len(pushed) >= 2)
        assert [view.version for view in pushed] == [1, 2]
        assert lake.most == 1

    run(scenario)


def test_a_page_that_opens_is_not_kept_waiting_for_the_next_turn():
    async def scenario(lake, poller, pushed):
        poller.opened()
        await until(lambda: lake.reads == 2)
        poller.opened()
        await until(lambda: lake.reads == 3)

    run(scenario, seconds=3600)


def test_a_slow_read_is_followed_by_as_long_a_rest():
    times = iter([0.0, 5.0, 0.0, 0.25])
    lake = Lake()
    poller = Poller(lake.read, lambda _: None, lake.in_thread, seconds=1, clock=lambda: next(times))
    assert asyncio.run(poller.once()) == 5.0
    assert asyncio.run(poller.once()) == 0.75

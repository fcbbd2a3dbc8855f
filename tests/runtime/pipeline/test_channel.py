"""Test channels between threads."""

import threading
import time

import pytest
from tfiseg.runtime.pipeline.channel import Channel, ChannelEnded


def test_a_full_channel_makes_the_writer_wait():
    channel = Channel(2)
    channel.put(1)
    channel.put(2)
    writer = threading.Thread(target=channel.put, args=(3,))
    writer.start()
    time.sleep(0.02)
    assert writer.is_alive()
    assert [channel.get(), channel.get(), channel.get()] == [1, 2, 3]
    writer.join()
    assert channel.dropped == 0


def test_newest_item_replaces_older_ones_which_are_counted():
    channel = Channel(1, newest_wins=True)
    for k in range(5):
        channel.put(k)
    assert channel.get() == 4
    assert channel.dropped == 4
    assert len(channel) == 0


def test_queued_items_can_be_taken_after_the_end():
    channel = Channel(3)
    channel.put("last")
    channel.end()
    assert channel.get() == "last"
    with pytest.raises(ChannelEnded):
        channel.get()
    with pytest.raises(ChannelEnded):
        channel.get_now()
    with pytest.raises(ChannelEnded):
        channel.put("more")


def test_closing_wakes_reader_and_writer():
    empty, full = Channel(), Channel()
    full.put(1)
    woken = []

    def expect(call):
        with pytest.raises(ChannelEnded):
            call()
        woken.append(call)

    threads = [threading.Thread(target=expect, args=(call,)) for call in (empty.get, lambda: full.put(2))]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    assert empty.close() == 0
    assert full.close() == 1
    for thread in threads:
        thread.join(2)
    assert len(woken) == 2


def test_get_now_never_waits():
    channel = Channel()
    assert channel.get_now() is None
    channel.put(7)
    assert channel.get_now() == 7


@pytest.mark.parametrize("already", [False, True])
def test_a_listener_is_called_once(already):
    channel, calls = Channel(5), []
    if already:
        channel.put(0)
    channel.on_change(lambda: calls.append(1))
    channel.put(1)
    channel.put(2)
    assert calls == [1]

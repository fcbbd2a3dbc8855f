"""A subscriber with Eclipse Cyclone DDS, another vendor's middleware, without ROS; prints the messages."""

import json
import signal
import sys
import time
import zlib
from dataclasses import dataclass

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import int32, sequence, uint8, uint32
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


def main() -> None:
    participant = DomainParticipant(int(sys.argv[1]))
    quality = Qos(Policy.Reliability.Reliable(0), Policy.History.KeepLast(1000))
    topic = Topic(participant, "rt" + sys.argv[2], Image, qos=quality)
    reader = DataReader(participant, topic, qos=quality)
    ended, messages, matched, newest = [], [], False, time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    while not ended or time.monotonic() - newest < 2:  # read messages that have arrived
        if not matched and reader.get_matched_publications():
            matched = True
            print("matched", flush=True)
        for image in reader.take(100):
            if not messages:
                print("received", flush=True)
            stamp, newest = image.header.stamp, time.monotonic()
            messages.append(
                {
                    "stamp_ns": stamp.sec * 1_000_000_000 + stamp.nanosec,
                    "frame_id": image.header.frame_id,
                    "encoding": image.encoding,
                    "shape": [image.height, image.width, image.step],
                    "crc": zlib.crc32(bytes(image.data)),
                }
            )
        time.sleep(0.02)
    print(json.dumps(messages), flush=True)


if __name__ == "__main__":
    main()

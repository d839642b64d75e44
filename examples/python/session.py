"""Puts and gets through a client generated from the .proto. See README.md beside this file."""

import sys

import grpc

from decree.v1 import decree_pb2 as messages
from decree.v1 import decree_pb2_grpc as services

# A value of the largest size and its headers: gRPC's own limit is half of that.
MESSAGE_BYTES_MAX = 16 << 20


def main(endpoint: str) -> None:
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ]
    with grpc.insecure_channel(endpoint, options=options) as channel:
        kv = services.KvStub(channel)

        put = kv.Put(messages.PutRequest(key=b"color", value=b"blue"), timeout=10)
        print(f"put: group {put.header.group}, version {put.header.version}")

        get = kv.Get(messages.GetRequest(key=b"color"), timeout=10)
        print(f"get: {get.value!r}")

        hashed = kv.PutHash(messages.PutHashRequest(key=b"chain", value=b"a"), timeout=10)
        print(f"put_hash: the previous value was {hashed.previous!r}")

        absent = kv.Get(messages.GetRequest(key=b"nothing here"), timeout=10)
        print(f"get of an absent key has a value: {absent.HasField('value')}")

        try:
            kv.Put(messages.PutRequest(key=b"k" * 5_000, value=b""), timeout=10)
        except grpc.RpcError as error:
            print(f"refused: {error.code().name}: {error.details()}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7101")

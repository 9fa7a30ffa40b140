import trio

from snaptun_trio import open_batch_pump


async def main() -> None:
    async with open_batch_pump(("127.0.0.1", 0)) as pump:
        print("echoing on {} port {}".format(*pump.local_address), flush=True)
        async for batch in pump.incoming:  # up to hundreds of datagrams at a time
            await pump.outgoing.send(batch)  # each goes back to where it came from


trio.run(main)

import asyncio, pytest
from tests.postgres.test_mirror import *
async def test_hang(mirror, pg):
    pad = {f"k{n}": "x" * 400 for n in range(10)}
    stop = False
    async def killer():
        n=0
        while not stop and n < 12:
            n += 1
            await asyncio.sleep(0.011)
            await pg.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'COPY%'")
    k = asyncio.create_task(killer())
    mirror._sleep = lambda s: asyncio.sleep(0)
    async def one(n):
        await mirror.put(customers(mirror, *(f"cus_{n}_{i}" for i in range(1500)), metadata=pad), during(0,1))
    try:
        async with asyncio.timeout(25):
            try:
                for n in range(6): await one(n)
            finally:
                print("trouble", mirror.trouble, n)
    finally:
        stop=True; await k

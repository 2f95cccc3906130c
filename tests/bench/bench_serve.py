"""Load the server of `ranker.serve`: latency, 200 requests at once, garbage, clients who leave, a kill.

    python tests/bench/bench_serve.py [--rounds 5] [--clients 200]

A server of the built-in policy (`first`: one forward pass a request, 8 documents) runs in a process of its own with one
thread. Every round sends as many requests at once as there are clients; between rounds clients send garbage, or ask and
leave without waiting. Then the server is killed while clients wait, and started again. Prints a table; ends with status
1 where a request had no answer, waiting requests are left, or memory grew by more than 100 MB.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BODY = json.dumps({"query": "warm and waterproof", "documents": [f"hat {i}" for i in range(8)]}).encode()
GARBAGE = (b"\0" * 500, b"GET / HTTP/9\r\n\r\n", b"POST /v1/rerank HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
           b"POST /v1/rerank HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=200)
    args = parser.parse_args()
    server, port = start()
    alone = [timed(port)[1] for _ in range(11)][1:]  # the first one warms up
    rows, wrong, memory = [["one at a time", 10, 10, *latency(alone), resident(server)]], 0, []
    for number in range(1, args.rounds + 1):
        for garbage in GARBAGE * 5:
            send(port, garbage)
        for _ in range(20):  # who asks, and leaves
            send(port, b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        with ThreadPoolExecutor(args.clients) as pool:
            found = list(pool.map(lambda _: timed(port), range(args.clients)))
        good = [seconds for status, seconds in found if status == 200]
        wrong += args.clients - len(good)
        memory.append(resident(server))
        rows.append([f"round {number}: {args.clients} at once", args.clients, len(good), *latency(good), memory[-1]])
    waiting = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health"))["waiting"]
    with ThreadPoolExecutor(50) as pool:  # killed while they wait
        found = [pool.submit(timed, port) for _ in range(50)]
        time.sleep(0.2)
        server.send_signal(signal.SIGKILL)
        ended = [f.result() for f in found]
    server.wait()
    rows.append(["killed while 50 wait", 50, sum(status == 200 for status, _ in ended), *latency(
        [seconds for _, seconds in ended]), 0])
    server, again = start(port)
    rows.append(["started again", 1, int(timed(again)[0] == 200), "", "", resident(server)])
    server.send_signal(signal.SIGTERM)
    server.wait(30)
    print(f"\n{'':<28}{'requests':>9}{'answered':>9}{'median s':>9}{'slowest s':>10}{'MB':>6}")
    for name, sent, answered, median, slowest, size in rows:
        print(f"{name:<28}{sent:>9}{answered:>9}{median:>9}{slowest:>10}{size or '':>6}")
    print(f"\nwithout an answer: {wrong}, still waiting: {waiting}, memory grew by {memory[-1] - memory[0]} MB from the"
          " first round to the last")
    return int(bool(wrong or waiting or memory[-1] - memory[0] > 100))


def start(port: int = 0) -> tuple[subprocess.Popen, int]:
    """Start a server and wait until it answers."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "ranker.serve", "--model", "tiny", "--ranker", "first", "--port",
                               str(port)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
    servers.append(server)
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return server, port
        except OSError:
            if server.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.5)
    sys.exit("the server did not answer within two minutes")


def timed(port: int) -> tuple[int, float]:
    """Return the status of a request (0: none came) and its seconds."""
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/rerank", BODY, timeout=120) as answer:
            status = answer.status if len(json.load(answer)["results"]) == 8 else 0
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError:
        status = 0
    return status, time.perf_counter() - started


def send(port: int, data: bytes) -> None:
    """Send bytes, and leave."""
    with socket.create_connection(("127.0.0.1", port)) as gone:
        gone.sendall(data)


def resident(server: subprocess.Popen) -> int:
    """Return the memory of a process in MB."""
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 10**6


def latency(seconds: list[float]) -> tuple[str, str]:
    return (f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}") if seconds else ("", "")


if __name__ == "__main__":
    servers: list[subprocess.Popen] = []
    try:
        sys.exit(main())
    finally:
        for one in servers:
            one.kill()

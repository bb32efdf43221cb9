"""Real servers in front of ours, configured as people do: nginx and HAProxy, where they are installed.

async with nginx(tmp_path, url) as front: ...          # everything, with Upgrade passed on
async with nginx(tmp_path, url, only="/webhooks/") as front: ...
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

HAS_NGINX = shutil.which("nginx") is not None
HAS_HAPROXY = shutil.which("haproxy") is not None

_NGINX = """
worker_processes 1;
pid {here}/nginx.pid;
error_log {here}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/f;
  uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
  upstream pinstripe {{ server {upstream}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location {only} {{
      proxy_pass http://pinstripe;
      proxy_http_version 1.1;
      proxy_request_buffering {buffering};
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "{connection}";
    }}
  }}
}}
"""
_HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend in
  bind 127.0.0.1:{port}
  acl exposed path_beg {only}
  http-request deny unless exposed
  default_backend out
backend out
  http-reuse always
  server pinstripe {upstream}
"""


@asynccontextmanager
async def nginx(
    here: Path,
    url: str,
    *,
    only: str = "/",
    buffering: bool = True,
    connection: str = "upgrade",
) -> AsyncIterator[str]:
    """nginx in front of `url`, with the lines for websockets that most guides give."""
    port = _free_port()
    config = here / "nginx.conf"
    config.write_text(
        _NGINX.format(
            here=here,
            port=port,
            upstream=url.removeprefix("http://"),
            only=only,
            buffering="on" if buffering else "off",
            connection=connection,
        )
    )
    argv = ("nginx", "-p", str(here), "-c", str(config), "-g", "daemon off; master_process off;")
    async with _running(port, *argv) as front:
        yield front


@asynccontextmanager
async def haproxy(here: Path, url: str, *, only: str = "/") -> AsyncIterator[str]:
    """HAProxy in front of `url`."""
    port = _free_port()
    config = here / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=port, upstream=url.removeprefix("http://"), only=only))
    async with _running(port, "haproxy", "-db", "-q", "-f", str(config)) as front:
        yield front


@asynccontextmanager
async def _running(port: int, *argv: str) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(*argv)
    try:
        async with asyncio.timeout(20):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)  # It is another program: there is nothing to wait on.
                    continue
                writer.close()
                break
        assert process.returncode is None, f"{argv[0]} ended by itself"
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port

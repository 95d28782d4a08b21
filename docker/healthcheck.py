"""Asks the worker's /livez: exit code 0 if it answers 200. For HEALTHCHECK, where there is no curl."""

import http.client
import os
import sys

listen = os.environ.get("COMFY_WORKER_ADMIN_LISTEN") or "127.0.0.1:9188"
if listen == "off":
    sys.exit("admin.listen is off: nobody to ask; run the container with --no-healthcheck")
host, _, port = listen.rpartition(":")
# The worker listens everywhere, or on an address of this container: ask from inside.
host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
path = sys.argv[1] if len(sys.argv) > 1 else "/livez"
try:
    # No proxy that the environment names: http.client knows none.
    connection = http.client.HTTPConnection(host, int(port), timeout=4)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read(2000).decode(errors="replace").strip()
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit(f"http://{listen}{path}: {error}")
print(f"{answer.status} {body}")
sys.exit(0 if answer.status == 200 else 1)

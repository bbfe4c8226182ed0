"""PHP-FPM, 16 processes, behind lighttpd. Arguments as ../go/main.go has them."""

import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

PORT, OUTBOUND, VARIANT, FORWARD = sys.argv[1:]
HERE = Path(__file__).resolve().parent
PROCESSES = 16
BACKGROUND_MS = 200

FPM = """
[global]
error_log = /dev/stderr
daemonize = no
[app]
listen = {directory}/fpm.sock
{user}
listen.mode = 0666
pm = static
pm.max_children = {processes}
catch_workers_output = yes
env[OUTBOUND] = {outbound}
env[VARIANT] = {variant}
env[FORWARD] = {forward}
env[WORK_MS] = {work_ms}
"""

LIGHTTPD = """
server.modules = ("mod_rewrite", "mod_fastcgi")
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{directory}"
server.max-keep-alive-requests = 100000
server.max-keep-alive-idle = 75
url.rewrite-once = ("" => "/index.php")
fastcgi.server = (".php" => (("socket" => "{directory}/fpm.sock", "broken-scriptfilename" => "enable")))
"""


def fpm() -> str:
    """Debian's name ends with the version."""
    found = shutil.which("php-fpm") or next(iter(sorted(glob.glob("/usr/sbin/php-fpm*"))), None)
    if found is None:
        sys.exit("php-fpm is missing")
    return found


def background() -> None:
    """What a timer of the system does, a program of its own beside PHP-FPM."""
    while True:
        time.sleep(random.expovariate(1) * BACKGROUND_MS / 1000)
        request = urllib.request.Request(
            f"http://127.0.0.1:{OUTBOUND}/items",
            data=b"background".ljust(58),
            headers={"Host": "h1"},
        )
        try:
            urllib.request.urlopen(request).read()
        except OSError as error:
            print(error, file=sys.stderr)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="b3relay-php-") as directory:
        os.chmod(directory, 0o755)
        shutil.copy(HERE / "index.php", directory)
        values = {
            "directory": directory,
            "port": PORT,
            "outbound": OUTBOUND,
            "variant": VARIANT,
            "forward": FORWARD,
            "work_ms": os.environ.get("WORK_MS", "0.3"),
            "processes": PROCESSES,
            # Of root's own accord it does not run as root.
            "user": "user = www-data" if os.geteuid() == 0 else "",
        }
        for name, text in (("fpm.conf", FPM), ("lighttpd.conf", LIGHTTPD)):
            Path(directory, name).write_text(text.format(**values))
        commands = (
            [fpm(), "--nodaemonize", "--fpm-config", f"{directory}/fpm.conf"],
            ["lighttpd", "-D", "-f", f"{directory}/lighttpd.conf"],
        )
        running = [subprocess.Popen(command) for command in commands]
        if VARIANT == "parallel-background":
            threading.Thread(target=background, daemon=True).start()
        try:
            return max(one.wait() for one in running)
        finally:
            # PHP-FPM makes a session of its own, which a signal to this group does not reach.
            for one in running:
                one.terminate()
            for one in running:
                one.wait()


if __name__ == "__main__":
    sys.exit(main())

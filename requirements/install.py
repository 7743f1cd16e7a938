"""Install into the environment of this Python: ``python requirements/install.py ARGUMENTS``, those of ``pip install``.

uv installs, from the sources and within the constraints that pip is configured with, so that versions are those of pip.
Where uv cannot be installed, or fails, pip installs.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

UV = Path(__file__).with_name("uv.txt")
PIP = [sys.executable, "-m", "pip"]
INSTALL = [*PIP, "install", "--quiet", "--disable-pip-version-check"]
# by option of pip: the variable of uv, and what separates its values; those of pip are separated by spaces
HANDED_ON = {
    "cert": ("SSL_CERT_FILE", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}


def settings(listing: str) -> dict[str, str]:
    """Return the variables of uv for what ``pip config list`` prints."""
    found = {}
    for section in ("global", "install", ":env:"):  # later ones win
        for line in listing.splitlines():
            key, _, value = line.partition("=")
            name = key.removeprefix(f"{section}.")
            if name != key and name in HANDED_ON:
                variable, separator = HANDED_ON[name]
                found[variable] = separator.join(ast.literal_eval(value).split())
    # pip takes the best version of all indexes, uv without this those of the first that has the package
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", **found} if "UV_INDEX" in found else found


def with_uv(arguments: list[str]) -> int:
    """Return the exit code of uv, which is installed first."""
    if code := subprocess.run([*INSTALL, "--no-deps", "--require-hashes", "-r", str(UV)], check=False).returncode:
        return code
    listing = subprocess.run([*PIP, "config", "list"], check=False, stdout=subprocess.PIPE, text=True).stdout
    environment = {**settings(listing), **os.environ}
    if "--require-hashes" in arguments:
        environment.pop("UV_CONSTRAINT", None)  # there uv refuses ranges; all versions are exact
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable, *arguments]
    return subprocess.run(command, check=False, env=environment).returncode


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    if with_uv(arguments) == 0:
        return 0
    print("uv did not install this: pip does, which takes longer", file=sys.stderr)
    return subprocess.run([*INSTALL, *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

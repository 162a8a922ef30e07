"""Has gcloud parse each of its commands in cloudbuild.yaml and in the README.

Without an account: a command that gcloud understands ends with the question who is there.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ruamel.yaml import YAML

VALUES = {"PROJECT_ID": "a-project", "BUILD_ID": "a-build"}

# Notes its arguments, one a line, instead of what it is called.
STUB = """#!/bin/sh
[ "${0##*/}" = gcloud ] || exit 0
printf '%s\\n' "$@" '' >>"$RECORD"
echo a-value
"""


def substituted(value, values):
    """The value with $NAME and ${NAME} replaced, also in what replaces them."""
    if isinstance(value, dict):
        return {key: substituted(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [substituted(item, values) for item in value]
    while isinstance(value, str) and "$" in value:
        value = re.sub(r"\$\{?(\w+)\}?", lambda name: values[name[1]], value)
    return value


def cloud_build():
    build = YAML(typ="safe").load(Path("cloudbuild.yaml"))
    build = substituted(build, VALUES | build["substitutions"])
    return [step["args"] for step in build["steps"] if step.get("entrypoint") == "gcloud"]


def readme(directory):
    """By the shell itself, in which nothing is called that does anything."""
    record = directory / "record"
    for name in ["gcloud", "curl"]:
        (directory / name).write_text(STUB)
        (directory / name).chmod(0o755)
    commands = re.findall(r"^```sh\n(.*?)^```", Path("README.md").read_text(), re.M | re.S)
    environment = {"PATH": f"{directory}:/usr/bin:/bin", "RECORD": str(record)}
    script = "{\n" + "".join(commands) + "} </dev/null >/dev/null"
    subprocess.run(["bash", "-u"], input=script, text=True, env=environment, check=True)
    return [call.splitlines() for call in record.read_text().rstrip("\n").split("\n\n")]


def understood(command, home):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "CLOUDSDK_CORE_PROJECT": "a-project",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
    }
    run = subprocess.run(
        ["gcloud", *command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return run.returncode == 0 or "do not currently have an active account" in run.stderr, run.stderr


def main():
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2) as pool:
        directory = Path(directory)
        # Logging in is for persons.
        commands = [call for call in cloud_build() + readme(directory) if call[0] != "auth"]
        results = list(pool.map(lambda command: understood(command, directory), commands))
    for command, (is_understood, said) in zip(commands, results):
        print("ok:" if is_understood else "FAILED:", shlex.join(["gcloud", *command]))
        if not is_understood:
            print(said)
    failed = sum(not is_understood for is_understood, _ in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


main()

"""Validates the gcloud commands in cloudbuild.yaml, in the README and in docs/deploy.md.

gcloud runs without an account, so a valid command fails because no account is active.
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

# Each of them is a script of its own: its ```sh blocks that call gcloud, in order.
DOCUMENTS = ["README.md", "docs/deploy.md"]

# What a reader of the README has set before.
READER = {"REGION": "europe-west1", "REDIS_URL": "redis://redis.invalid"}

# Replaces gcloud and curl: records the arguments of gcloud, one per line, and does nothing else.
STUB = """#!/bin/sh
[ "${0##*/}" = gcloud ] || exit 0
printf '%s\\n' "$@" '' >>"$RECORD"
echo a-value
"""


def substituted(value, values):
    """Replaces $NAME and ${NAME} in the value, recursively."""
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


def documented(document, directory):
    """Lets the shell run the document's commands with the stub in place of gcloud and curl."""
    record = directory / "record"
    record.write_text("")
    for name in ["gcloud", "curl"]:
        (directory / name).write_text(STUB)
        (directory / name).chmod(0o755)
    # Other blocks would start servers and change files.
    blocks = re.findall(r"^```sh\n(.*?)^```", Path(document).read_text(), re.M | re.S)
    blocks = [block for block in blocks if "gcloud" in block]
    environment = READER | {"PATH": f"{directory}:/usr/bin:/bin", "RECORD": str(record)}
    script = "{\n" + "".join(blocks) + "} </dev/null >/dev/null"
    subprocess.run(["bash", "-u"], input=script, text=True, env=environment, check=True)
    calls = [call.splitlines() for call in record.read_text().split("\n\n") if call]
    if not calls:
        sys.exit(f"{document} has no gcloud commands")
    return calls


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
        commands = cloud_build()
        for document in DOCUMENTS:
            commands += documented(document, directory)
        # Logging in needs a person.
        commands = [command for command in commands if command[0] != "auth"]
        results = list(pool.map(lambda command: understood(command, directory), commands))
    for command, (is_understood, said) in zip(commands, results):
        print("ok:" if is_understood else "FAILED:", shlex.join(["gcloud", *command]))
        if not is_understood:
            print(said)
    failed = sum(not is_understood for is_understood, _ in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


main()

"""Runs `doorward check-config` on every configuration that deploy/ ships: `manifests.py PROGRAM DEPLOY_FOLDER`.

The secrets that a manifest mounts are not there when it is checked; ones made up for the check stand in their place.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import yaml

MOUNTED = "/run/secrets/doorward/"

SECRETS = {
    "secret": "made up for this check only, 0123456789abcdef\n",
    "gateways": "made-up-for-this-check-only-0123456789abcdef\n",
}


def configurations(deploy):
    for path in sorted(deploy.glob("kubernetes/*.yaml")):
        found = 0
        for document in yaml.safe_load_all(path.read_text()):
            if document and document.get("kind") == "ConfigMap":
                for key, text in document["data"].items():
                    found += 1
                    yield f"{path.name}: {document['metadata']['name']}/{key}", text
        if not found:
            sys.exit(f"{path}: no ConfigMap with a configuration in it")
    path = deploy / "container" / "config.toml"
    yield path.name, path.read_text()


def main():
    program, deploy = sys.argv[1], pathlib.Path(sys.argv[2])
    environment = {name: value for name, value in os.environ.items() if name not in ("JWT_SECRET", "DOORWARD_CONFIG")}
    failed = checked = 0
    for name, text in configurations(deploy):
        with tempfile.TemporaryDirectory() as folder:
            for secret, text_of_it in SECRETS.items():
                path = pathlib.Path(folder, secret)
                path.touch(mode=0o600)
                path.write_text(text_of_it)
            file = pathlib.Path(folder, "config.toml")
            text = text.replace(MOUNTED, f"{folder}/").replace('data_dir = "/data"', f'data_dir = "{folder}/data"')
            file.write_text(text)
            run = subprocess.run(
                [program, "check-config", "--config", str(file)],
                env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            )
        checked += 1
        print(f"{name}: {'good' if run.returncode == 0 else f'exit {run.returncode}'}")
        if run.returncode != 0:
            failed += 1
            print(run.stdout + run.stderr)
    print(f"{checked - failed} configurations good, {failed} bad")
    sys.exit(1 if failed or checked < 3 else 0)


main()

"""The configurations that deploy/ ships.

`manifests.py PROGRAM DEPLOY_FOLDER` runs `doorward check-config` on each. The secrets that a manifest mounts are not there
when it is checked; ones made up for the check stand in their place.

`manifests.py --compose DEPLOY_FOLDER` prints what the compose file and the image say of the service.

`manifests.py --list DEPLOY_FOLDER` prints one JSON array: of each pod its configuration, whom it runs as, what is mounted
where, and its limits. The tests start the program by it.
"""

import json
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


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def configurations(deploy):
    for path in sorted(deploy.glob("kubernetes/*.yaml")):
        found = 0
        for document in documents(path):
            if document.get("kind") == "ConfigMap":
                for key, text in document["data"].items():
                    found += 1
                    yield f"{path.name}: {document['metadata']['name']}/{key}", text
        if not found:
            sys.exit(f"{path}: no ConfigMap with a configuration in it")
    path = deploy / "container" / "config.toml"
    yield path.name, path.read_text()


def pods(deploy):
    for path in sorted(deploy.glob("kubernetes/*.yaml")):
        maps = {one["metadata"]["name"]: one["data"] for one in documents(path) if one["kind"] == "ConfigMap"}
        for workload in documents(path):
            if workload["kind"] not in ("Deployment", "StatefulSet"):
                continue
            pod = workload["spec"]["template"]["spec"]
            (container,) = (one for one in pod["containers"] if one["name"] == "doorward")
            volumes = {one["name"]: one for one in pod.get("volumes", [])}
            for claim in workload["spec"].get("volumeClaimTemplates", []):
                volumes[claim["metadata"]["name"]] = {"persistentVolumeClaim": {}}
            mounts = {}
            for mount in container["volumeMounts"]:
                volume = volumes[mount["name"]]
                kind = next(key for key in volume if key != "name")
                mounts[kind] = {"path": mount["mountPath"], "mode": volume[kind].get("defaultMode")}
                if kind == "configMap":
                    mounts[kind]["files"] = maps[volume[kind]["name"]]
            yield {
                "name": path.name,
                "security": pod["securityContext"],
                "mounts": mounts,
                "args": container["args"],
                "memory": container["resources"]["limits"]["memory"],
                "grace": pod["terminationGracePeriodSeconds"],
            }


def compose(deploy):
    """The service of the compose file, with what the image adds to it."""
    service = yaml.safe_load((deploy / "container/compose.yaml").read_text())["services"]["doorward"]
    image = dict(
        line.split(" ", 1)
        for line in (deploy / "container/Containerfile").read_text().rsplit("\nFROM ", 1)[1].splitlines()[1:]
        if line and not line.startswith("#")
    )
    user, group = image["USER"].split(":")
    name, value = image["ENV"].split("=")
    return {
        "user": int(user),
        "group": int(group),
        "environment": {name: value},
        "command": json.loads(image["ENTRYPOINT"]) + json.loads(image["CMD"]),
        "volumes": service["volumes"],
        "health": service.get("healthcheck", {}).get("test"),
        "read_only": service["read_only"],
        "memory": service["mem_limit"],
        "grace": service["stop_grace_period"],
        "said": [
            line.split(" exec doorward ", 1)[1].split()
            for line in (deploy / "container/compose.yaml").read_text().splitlines()
            if line.startswith("#") and " exec doorward " in line
        ],
        "config": (deploy / "container/config.toml").read_text(),
    }


def check(program, deploy):
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


def main():
    if sys.argv[1] == "--list":
        print(json.dumps(list(pods(pathlib.Path(sys.argv[2])))))
    elif sys.argv[1] == "--compose":
        print(json.dumps(compose(pathlib.Path(sys.argv[2]))))
    else:
        check(sys.argv[1], pathlib.Path(sys.argv[2]))


main()

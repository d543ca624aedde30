//! What `deploy/` ships, as it is found where it is deployed: folders, owners and modes as kubelet, container engines and
//! systemd make them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::gateway::{Builder, Finished, free_port, quoted, ready, write_private};
use crate::support::peer::python;
use crate::support::upstream::Upstream;
use crate::support::user::{CONTAINER, User, as_root, program_in, root_does};
use crate::support::wait;
use crate::support::wire::{Connection, Request};

/// Good as an HS256 secret and as the token of a verify-only gateway.
const SECRET: &str = "a-secret-that-only-these-tests-use-0123456789";

/// A folder that every user can enter, with the program in it.
struct Place {
    program: PathBuf,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("doorward-deployed-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { program: program_in(folder.path()), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A data folder of the container's user.
    fn data(&self) -> PathBuf {
        let data = self.path("data");
        root_does("mkdir -m 700 \"$1\"; chown 65532:65532 \"$1\"", &[&data]);
        data
    }

    /// A file that everybody can read.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Other users' folders are in it.
        root_does("rm -rf -- \"$1\"/*", &[self.folder.path()]);
    }
}

/// Everything in a folder that is open to more than its owner, but not the folder itself.
fn open_to_others(folder: &Path) -> String {
    let tests = ["-mindepth", "1", "-perm", "/077", "-not", "-name", "lost+found", "-ls"];
    String::from_utf8(as_root("find").arg(folder).args(tests).output().unwrap().stdout).unwrap()
}

fn smallest(data: &Path, more: &str) -> String {
    format!(
        "data_dir = {}\n[login]\nbcrypt_cost = 4\n{more}\n[upstream.app]\nurls = [\"http://127.0.0.1:9000\"]\n\
         [[route]]\nupstream = \"app\"\n",
        quoted(data)
    )
}

/// A process of another user.
struct Running(Option<Child>);

impl Running {
    fn stop(&mut self) {
        let mut child = self.0.take().unwrap();
        root_does(&format!("kill -TERM {}", child.id()), &[]);
        let status = wait::until_some("the program to end", || child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself, which the test has told.
            let _ = as_root("kill").args(["-KILL", &child.id().to_string()]).output();
            let _ = child.wait();
        }
    }
}

/// What one of the manifests describes, and what kubelet makes of it.
struct Pod {
    place: Place,
    user: User,
    group: u32,
    /// Where it asks for a volume.
    has_data: bool,
    public: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

/// What `manifests.py` reads out of `deploy/`.
fn shipped(what: &str) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = python();
    command.arg(root.join("tests/peers/manifests.py")).arg(what).arg(root.join("deploy"));
    Finished::of(command.output().unwrap()).expect(0).json()
}

impl Pod {
    fn new(manifest: &Value) -> Self {
        let number = |key: &str| u32::try_from(manifest["security"][key].as_u64().unwrap()).unwrap();
        let user = User { id: number("runAsUser"), group: number("runAsGroup"), groups: &[65532] };
        let group = number("fsGroup");
        assert_eq!(group, 65532, "the groups of the process stand above");
        let place = Place::new();
        let [public, admin] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mounts = &manifest["mounts"];
        let mut text = mounts["configMap"]["files"]["config.toml"].as_str().unwrap().to_owned();
        let mut change = |from: &str, to: &str| {
            assert!(text.contains(from), "{from} is not in {text}");
            text = text.replace(from, to);
        };
        change("0.0.0.0:8080", &public.to_string());
        change("0.0.0.0:9180", &admin.to_string());
        let secrets = format!("{}/", mounts["secret"]["path"].as_str().unwrap());
        change(&secrets, &format!("{}/", place.path("secrets").display()));
        let has_data = !mounts["persistentVolumeClaim"].is_null();
        if has_data {
            let data = format!("{:?}", mounts["persistentVolumeClaim"]["path"].as_str().unwrap());
            change(&data, &quoted(&place.path("data")));
        }
        place.write("config.toml", &text);
        let pod = Self { place, user, group, has_data, public, admin, child: None };
        pod.mount_secrets(mounts["secret"]["mode"].as_u64().unwrap());
        if has_data {
            // A new ext4 volume.
            root_does("mkdir -m 755 \"$1\" && mkdir -m 700 \"$1/lost+found\"", &[&pod.place.path("data")]);
            pod.give_volume_to_group();
        }
        pod
    }

    /// A secret's folder is a tmpfs; its files are links through `..data`, of root and the pod's group.
    fn mount_secrets(&self, mode: u64) {
        let folder = self.place.path("secrets");
        let text = self.place.write("text", &format!("{SECRET}\n"));
        let line = "mkdir -m 1777 \"$1\"; cd \"$1\"; mkdir -m 755 ..2026_11; cp \"$2\" ..2026_11/secret; \
                    cp \"$2\" ..2026_11/gateways; ln -s ..2026_11 ..data; ln -s ..data/secret secret; \
                    ln -s ..data/gateways gateways";
        root_does(line, &[&folder, &text]);
        let group = self.group;
        root_does(
            &format!(
                "chmod 0{mode:o} \"$1\"/..2026_11/*; chgrp -hR {group} \"$1\"; chmod g+s \"$1\" \"$1/..2026_11\"; \
                 chmod ug+r \"$1\"/..2026_11/*"
            ),
            &[&folder],
        );
    }

    /// What kubelet does with a volume of a pod that has an `fsGroup`, at every start.
    fn give_volume_to_group(&self) {
        let line = format!(
            "chgrp -hR {} \"$1\"; find \"$1\" -type d -exec chmod ug+rwx,g+s {{}} +; \
             find \"$1\" -not -type d -not -type l -exec chmod ug+rw {{}} +",
            self.group
        );
        root_does(&line, &[&self.place.path("data")]);
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let config = self.place.path("config.toml");
        let arguments = [arguments, &["--config", config.to_str().unwrap()]].concat();
        self.user.run(&self.place.program, &[], &arguments)
    }

    fn get(&self, path: &str) -> Option<u16> {
        let mut connection = Connection::try_to(self.admin).ok()?;
        connection.try_send(&Request::get(path).field("Connection", "close")).ok().map(|answer| answer.status)
    }

    /// Starts the program and waits for what its startup probe asks for, and for `/ready` where a store is its own.
    fn start(&mut self) {
        let config = self.place.path("config.toml");
        let log = fs::File::options().create(true).append(true).open(self.place.path("log")).unwrap();
        let mut command = self.user.command(&self.place.program, &[]);
        command.args(["serve", "--config", config.to_str().unwrap()]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let path = if self.has_data { "/ready" } else { "/ping" };
        wait::until("the pod to start", || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("it ended with {status}:\n{}", self.log());
            }
            self.get(path) == Some(200)
        });
    }

    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        root_does(&format!("kill -TERM {}", child.id()), &[]);
        let status = wait::until_some("the pod to end", || child.try_wait().unwrap());
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.path("log")).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself, which the test has told.
            let _ = as_root("kill").args(["-KILL", &child.id().to_string()]).output();
            let _ = child.wait();
        }
    }
}

/// The row's own case: an `fsGroup` volume, files that kubelet has opened to the group at the second start, and no shell.
#[test]
fn every_manifest_starts_again_and_again_on_volumes_of_kubelet() {
    let manifests = shipped("--list");
    let manifests = manifests.as_array().unwrap();
    assert!(manifests.len() >= 3, "{manifests:?}");
    for manifest in manifests {
        let mut pod = Pod::new(manifest);
        if pod.has_data {
            // What `kubectl exec` would run; its key becomes one of those that kubelet opens.
            pod.run(&["key", "generate", "--algorithm", "EdDSA"]).expect(0);
        }
        pod.start();
        assert!(Connection::try_to(pod.public).is_ok(), "{}", manifest["name"]);
        if !pod.has_data {
            pod.stop();
            continue;
        }
        let data = pod.place.path("data");
        pod.run(&["user", "add", "kim", "--generate"]).expect(0);
        pod.stop();
        pod.give_volume_to_group();
        let opened = open_to_others(&data);
        assert!(opened.contains("/keys/") && opened.contains("dump.jsonl"), "kubelet's part is not played: {opened}");
        pod.start();
        assert!(pod.run(&["user", "list"]).expect(0).stdout.contains("kim"));
        let keys = open_to_others(&data.join("keys"));
        assert!(keys.is_empty(), "{}: still open to the group:\n{keys}", manifest["name"]);
        pod.stop();
        let open = open_to_others(&data.join("store"));
        assert!(open.is_empty(), "{}: still open to the group:\n{open}", manifest["name"]);
    }
}

/// `data_dir` by owner, group and mode, and whether the container's user, who is also in group 2000, can work in it.
#[test]
fn a_data_folder_is_used_as_it_comes() {
    let place = Place::new();
    let user = User { groups: &[2000], ..CONTAINER };
    for (index, (owner, mode, works)) in [
        ("0:65532", "2775", true),
        ("0:65532", "0770", true),
        ("0:2000", "2770", true),
        ("0:0", "0777", true),
        ("0:65532", "2777", true),
        ("0:0", "1777", true),
        ("65532:65532", "0755", true),
        ("65532:65532", "2777", true),
        ("0:0", "0755", false),
        ("1000:1000", "0700", false),
        ("1000:1000", "2775", false),
    ]
    .into_iter()
    .enumerate()
    {
        let data = place.path(&format!("data-{index}"));
        root_does(&format!("mkdir \"$1\"; chown {owner} \"$1\"; chmod {mode} \"$1\""), &[&data]);
        let config = place.write("config.toml", &smallest(&data, ""));
        let run = |arguments: &[&str]| {
            let arguments = [arguments, &["--config", config.to_str().unwrap()]].concat();
            user.run(&place.program, &[], &arguments)
        };
        if works {
            run(&["key", "generate"]).expect(0);
            run(&["user", "add", "kim", "--generate"]).expect(0);
            assert!(run(&["user", "list"]).expect(0).stdout.contains("kim"), "{owner} {mode}");
            let open = open_to_others(&data);
            assert!(open.is_empty(), "{owner} {mode}: open to others:\n{open}");
            continue;
        }
        let (owner, group) = owner.split_once(':').unwrap();
        for refused in [run(&["key", "generate"]), run(&["user", "add", "kim", "--generate"])] {
            let said = refused.expect(1).stderr;
            for part in ["this process is uid 65532, gid 65532", &format!("belongs to uid {owner}, gid {group}"), mode]
            {
                assert!(said.contains(part), "{owner}:{group} {mode}: {part:?} is not in {said}");
            }
            let helps = said.contains("fsGroup") && said.contains("chown");
            assert!(helps || said.contains("run the command as the server's user"), "{said}");
        }
    }
}

/// In a folder where everybody may put files, a key of somebody else's would make tokens for everybody.
#[test]
fn keys_that_another_user_has_made_are_refused() {
    let place = Place::new();
    let data = place.path("data");
    root_does("mkdir -m 777 \"$1\"", &[&data]);
    let config = place.write("config.toml", &smallest(&data, ""));
    let run = |arguments: &[&str]| {
        CONTAINER.run(&place.program, &[], &[arguments, &["--config", config.to_str().unwrap()]].concat())
    };
    run(&["key", "generate"]).expect(0);
    run(&["key", "list"]).expect(0);
    // The file alone, then the whole folder, with a key in it that is good as such.
    for line in [
        "chown 1000:1000 \"$1\"/keys/*.json; chmod 644 \"$1\"/keys/*.json",
        "chown 1000:65532 \"$1\"/keys/*.json; chmod 640 \"$1\"/keys/*.json",
        "chown 65532:65532 \"$1\"/keys/*.json; chmod 600 \"$1\"/keys/*.json; chown 1000:1000 \"$1\"/keys; chmod 755 \"$1\"/keys",
    ] {
        root_does(line, &[&data]);
        for arguments in [&["key", "list"][..], &["key", "generate"]] {
            let said = run(arguments).expect(1).stderr;
            assert!(said.contains("made by another user") && said.contains("uid 1000"), "{line}: {said}");
        }
    }
}

/// In such a folder somebody else could also wait for the passwords that commands tell to the server.
#[test]
fn a_command_tells_nothing_to_a_server_of_another_user() {
    let place = Place::new();
    let data = place.path("data");
    root_does("mkdir -m 777 \"$1\"", &[&data]);
    let config = place.write("config.toml", &smallest(&data, ""));
    let stranger = User { id: 1000, group: 1000, groups: &[] };
    let script = "import os, socket, sys\n\
        server = socket.socket(socket.AF_UNIX)\n\
        server.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666); server.listen()\n\
        print('ready', flush=True)\n\
        print(server.accept()[0].recv(4096), flush=True)\n";
    let mut command = stranger.command(Path::new("python3"), &[]);
    let mut child = command.args(["-c", script]).arg(data.join("admin.sock")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let arguments = ["user", "add", "kim", "--generate", "--config", config.to_str().unwrap()];
    let said = CONTAINER.run(&place.program, &[], &arguments).expect(1).stderr;
    assert!(said.contains("uid 1000"), "{said}");
    assert_eq!(lines.next().unwrap().unwrap(), "b''");
    assert!(child.wait().unwrap().success());
}

/// `sudo doorward …` before the service's first start must not lock the service out.
#[test]
fn what_root_makes_becomes_the_folder_owners() {
    let place = Place::new();
    let (data, elsewhere) = (place.path("data"), place.path("elsewhere"));
    place.write("elsewhere", "root's own");
    root_does(
        "mkdir -m 700 \"$1\"; chown 0:0 \"$2\"; ln \"$2\" \"$1/second-name\"; ln -s \"$2\" \"$1/link\"; chown 65532:65532 \"$1\"",
        &[&data, &elsewhere],
    );
    let audit = quoted(&data.join("audit.jsonl"));
    let config = place.write("config.toml", &smallest(&data, &format!("[log]\naudit_file = {audit}")));
    let arguments = |arguments: &[&'static str]| {
        arguments
            .iter()
            .copied()
            .map(String::from)
            .chain([format!("--config={}", config.display())])
            .collect::<Vec<_>>()
    };
    let root = |line: &[&'static str]| Finished::of(as_root(&place.program).args(arguments(line)).output().unwrap());
    root(&["user", "add", "kim", "--generate"]).expect(0);
    root(&["key", "generate"]).expect(0);
    let found = as_root("find").arg(&data).args(["-not", "-uid", "65532", "-ls"]).output().unwrap().stdout;
    let found = String::from_utf8(found).unwrap();
    let left: Vec<&str> =
        found.lines().filter(|line| !line.contains("second-name") && !line.contains("/link")).collect();
    assert!(left.is_empty(), "{}", left.join("\n"));
    assert_eq!(fs::metadata(&elsewhere).unwrap().uid(), 0, "a file that lies elsewhere was given away");
    let service = |line: &[&'static str]| {
        let arguments = arguments(line);
        CONTAINER.run(&place.program, &[], &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    service(&["user", "add", "lee", "--generate"]).expect(0);
    let listed = service(&["user", "list"]).expect(0).stdout;
    assert!(listed.contains("kim") && listed.contains("lee"), "{listed}");
    service(&["key", "list"]).expect(0);
}

/// A secret by its owner, group and mode, in a process of uid and gid 65532 that is also in group 2000.
#[test]
fn a_secret_is_taken_from_whoever_gave_it_to_this_process_alone() {
    let place = Place::new();
    let user = User { groups: &[2000], ..CONTAINER };
    let secret = place.path("secret");
    let config =
        place.write("config.toml", &smallest(&place.data(), &format!("[token]\nsecret_file = {}", quoted(&secret))));
    for (owner, mode, taken) in [
        ("65532:65532", "0600", true),
        ("65532:65532", "0400", true),
        ("0:65532", "0440", true),
        ("0:65532", "0660", true),
        ("0:2000", "0440", true),
        ("65532:65532", "0640", true),
        ("65532:2000", "0640", false),
        ("65532:0", "0640", false),
        ("65532:65532", "0644", false),
        ("0:65532", "0444", false),
        ("0:0", "0640", false),
        ("0:0", "0600", false),
        ("1000:65532", "0640", false),
    ] {
        fs::write(place.path("text"), SECRET).unwrap();
        root_does(
            &format!("cp \"$2\" \"$1\"; chown {owner} \"$1\"; chmod {mode} \"$1\""),
            &[&secret, &place.path("text")],
        );
        let checked = user.run(&place.program, &[], &["check-config", "--config", config.to_str().unwrap()]);
        if taken {
            assert_eq!(checked.status, Some(0), "{owner} {mode}: {}", checked.stderr);
            continue;
        }
        assert_eq!(checked.status, Some(2), "{owner} {mode}: {}", checked.stdout);
        let said = format!("{}{}", checked.stdout, checked.stderr);
        let (owner, group) = owner.split_once(':').unwrap();
        for part in [
            "this process is uid 65532, gid 65532, also in 2000",
            &format!("belongs to uid {owner}, gid {group} and has mode {mode}"),
            "LoadCredential",
            "fsGroup",
        ] {
            assert!(said.contains(part), "{owner}:{group} {mode}: {part:?} is not in {said}");
        }
        assert!(!said.contains("only-these-tests-use"), "{said}");
    }
}

/// systemd gives a credential to the service's user by an access list, which shows as a group that reads.
#[test]
fn a_credential_of_systemd_is_taken() {
    let place = Place::new();
    let folder = place.path("credentials");
    let secret = folder.join("jwt-secret");
    fs::write(place.path("text"), SECRET).unwrap();
    root_does(
        "mkdir -m 755 \"$1\"; cp \"$2\" \"$1/jwt-secret\"; chmod 400 \"$1/jwt-secret\"",
        &[&folder, &place.path("text")],
    );
    // acl(5) in its form on disk: the owner, one user, nobody of the group, the mask, nobody else.
    let access = "import os, struct, sys\n\
        entries = [(1, 4, -1), (2, 4, 65532), (4, 0, -1), (16, 4, -1), (32, 0, -1)]\n\
        packed = b''.join(struct.pack('<HHi', *entry) for entry in entries)\n\
        os.setxattr(sys.argv[1], 'system.posix_acl_access', struct.pack('<I', 2) + packed)\n";
    let output = as_root("python3").args(["-c", access]).arg(&secret).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o440);
    let text = format!("[token]\nsecret_file = {}", quoted(&secret));
    let config = place.write("config.toml", &smallest(&place.data(), &text));
    let check = |environment: &[(&str, &str)]| {
        CONTAINER.run(&place.program, environment, &["check-config", "--config", config.to_str().unwrap()])
    };
    let there = folder.to_str().unwrap();
    check(&[("CREDENTIALS_DIRECTORY", there)]).expect(0);
    // The same file without that, or in another folder, is one that a group reads.
    check(&[]).expect(2);
    check(&[("CREDENTIALS_DIRECTORY", place.folder.path().to_str().unwrap())]).expect(2);
    // Where the file system has no access lists, the file is the user's own.
    root_does("rm \"$1\"; cp \"$2\" \"$1\"; chown 65532 \"$1\"; chmod 400 \"$1\"", &[&secret, &place.path("text")]);
    check(&[("CREDENTIALS_DIRECTORY", there)]).expect(0);
}

/// What is well-formed and can't work, by the program itself: refused with its key, or said.
#[test]
fn check_config_tells_what_can_not_work() {
    let place = Place::new();
    let secret = place.path("secret");
    write_private(&secret, format!("JWT_SECRET={SECRET}\n").as_bytes());
    let named = format!("[token]\nsecret_file = {}", quoted(&secret));
    for (lines, status, parts) in [
        ("[log]\nlevel = \"warning\"", 2, &["log.level", "\"warn\""][..]),
        ("[log]\naudit_file = \"~/audit.jsonl\"", 2, &["log.audit_file", "expanded"]),
        (&named, 2, &["token.secret_file", "NAME="]),
        ("[server]\ntrusted_proxies = [\"010.0.0.0/8\"]", 2, &["server.trusted_proxies"]),
        (
            "[cookie]\ndomain = \"example.com\"\n[[route]]\nhost = \"a.org\"\nupstream = \"app\"",
            0,
            &["a.org", "example.com"],
        ),
        ("[cookie]\nsecure = true", 0, &["cookie.secure"]),
    ] {
        let config = place.write("config.toml", &smallest(&place.path("data"), lines));
        let checked =
            crate::support::gateway::run(&["check-config", "--config", config.to_str().unwrap()]).expect(status);
        let said = format!("{}{}", checked.stdout, checked.stderr);
        assert!(parts.iter().all(|part| said.contains(part)), "{lines}: {said}");
        assert!(!said.contains("only-these-tests-use"), "{said}");
    }
}

/// `compose.yaml` word by word: the volume as the image makes it, no key, the first start, the command of its comment.
#[test]
fn the_compose_file_works_as_it_stands() {
    let service = shipped("--compose");
    let number = |key: &str| u32::try_from(service[key].as_u64().unwrap()).unwrap();
    let user = User { id: number("user"), group: number("group"), groups: &[] };
    let place = Place::new();
    let (data, config) = (place.path("data"), place.path("config.toml"));
    let volumes = service["volumes"].as_array().unwrap();
    assert_eq!(volumes, &["data:/data", "./config.toml:/etc/doorward/config.toml:ro"]);
    assert_eq!(service["environment"]["DOORWARD_CONFIG"], "/etc/doorward/config.toml");
    // An engine makes a new volume as the image has the folder.
    root_does(&format!("mkdir -m 755 \"$1\"; chown {}:{} \"$1\"", user.id, user.group), &[&data]);
    let [public, admin] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut text = service["config"].as_str().unwrap().to_owned();
    for (from, to) in
        [("\"/data\"", quoted(&data)), ("0.0.0.0:8080", public.to_string()), ("127.0.0.1:9180", admin.to_string())]
    {
        assert!(text.contains(from), "{from} is not in {text}");
        text = text.replace(from, &to);
    }
    place.write("config.toml", &text);
    let environment = [("DOORWARD_CONFIG", config.to_str().unwrap())];
    let words = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let inside = |words: &[String]| {
        assert_eq!(words[0], "/doorward");
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        user.run(&place.program, &environment, &arguments)
    };
    let mut command = user.command(&place.program, &environment);
    let log = fs::File::create(place.path("log")).unwrap();
    command.args(&words(&service["command"])[1..]).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = Running(Some(command.spawn().unwrap()));
    wait::until("the service to be ready", || {
        let log = || fs::read_to_string(place.path("log")).unwrap();
        assert!(child.0.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", log());
        ready(admin) == Some(200)
    });
    let health = service["health"].as_array().map(|_| words(&service["health"])[1..].to_vec());
    if let Some(health) = &health {
        inside(health).expect(0);
    }
    let said = service["said"].as_array().unwrap();
    assert!(!said.is_empty());
    for line in said {
        inside(&words(line)).expect(0);
    }
    let added = inside(&["/doorward", "user", "list", "--json"].map(String::from)).expect(0).json();
    assert_eq!(added.as_array().unwrap().len(), said.len());
    // Nothing is written but in the volume, which is the user's alone.
    assert_eq!(open_to_others(&data), "");
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    child.stop();
    if let Some(health) = &health {
        assert_ne!(inside(health).status, Some(0), "a service that does not run is called healthy");
    }
}

/// A secret that is swapped is in force without anybody's doing: by a link in its folder as kubelet does it, by a link further
/// up, which no event in the folder tells of, and by a file over the file.
#[test]
fn a_swapped_secret_is_noticed() {
    let upstream = Upstream::plain();
    let builder = Builder::guarding(&upstream);
    let folder = builder.folder().join("mounted");
    let of = |number: u32| format!("{SECRET}-{number}\n");
    let version = |number: u32| {
        let inner = folder.join(format!("..version-{number}"));
        fs::create_dir_all(&inner).unwrap();
        write_private(&inner.join("secret"), of(number).as_bytes());
    };
    let link = |name: &str, to: &str| {
        symlink(to, folder.join("new")).unwrap();
        fs::rename(folder.join("new"), folder.join(name)).unwrap();
    };
    version(1);
    link("..data", "..version-1");
    link("secret", "..data/secret");
    link("current", "..data");
    for named in ["secret", "current/secret"] {
        let builder = Builder::guarding(&upstream).set("token.secret_file", &quoted(&folder.join(named)));
        version(1);
        link("..data", "..version-1");
        let gateway = builder.start();
        let before = gateway.login("kim");
        gateway.get_with("/", &before).expect(200);
        version(2);
        link("..data", "..version-2");
        wait::until("the new secret to be in force", || gateway.get_with("/", &before).status != 200);
        let after = gateway.login("kim");
        gateway.get_with("/", &after).expect(200);
        assert_eq!(gateway.audit("reload").len(), 1, "{named}: {:?}", gateway.audit("reload"));
        // One that is not whole is refused and told, the old one stays, and the whole one is taken later.
        write_private(&folder.join("..version-2/secret"), b"half");
        wait::until("the half one to be refused", || {
            gateway.audit("reload").iter().any(|one| one["outcome"] == "refused")
        });
        gateway.get_with("/", &after).expect(200);
        write_private(&folder.join("..version-2/secret"), of(3).as_bytes());
        wait::until("the third secret to be in force", || gateway.get_with("/", &after).status != 200);
    }
}

/// The process's own number, also below sudo.
fn process_of(child: &Child) -> u32 {
    let id = child.id();
    let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap();
    if name.trim() != "sudo" {
        return id;
    }
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

/// Bytes; `256Mi` or `256m`.
fn memory(text: &str) -> u64 {
    let number = text.trim_end_matches("Mi").trim_end_matches('m');
    number.parse::<u64>().unwrap() << 20
}

/// Seconds of a key such as `drain`, where the configuration names it.
fn seconds(config: &str, key: &str) -> Option<u64> {
    let line = config.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")))?;
    Some(line.split_once("s\"").unwrap().0.parse().unwrap())
}

/// Limits that stand in different files and are one: how long a stop may take, and how much memory strangers can take.
#[test]
fn numbers_that_belong_together_fit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let manifests = shipped("--list");
    for manifest in manifests.as_array().unwrap() {
        let config = manifest["mounts"]["configMap"]["files"]["config.toml"].as_str().unwrap();
        let stop = seconds(config, "drain").unwrap() + seconds(config, "drain_delay").unwrap_or(0);
        assert!(manifest["grace"].as_u64().unwrap() > stop, "{}", manifest["name"]);
        assert!(config.contains("max_connections = "), "{}", manifest["name"]);
    }
    let compose = shipped("--compose");
    let config = compose["config"].as_str().unwrap();
    let grace: u64 = compose["grace"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
    assert!(grace > seconds(config, "drain").unwrap_or(30) + seconds(config, "drain_delay").unwrap_or(0));
    assert!(config.contains("max_connections = "));
    let unit = fs::read_to_string(root.join("systemd/doorward.service")).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    assert!(seconds(&format!("stop = \"{}\"", value("TimeoutStopSec=")), "stop").unwrap() > 30);
    // A connection takes one descriptor, and its way to the backend another one.
    assert!(value("LimitNOFILE=").parse::<u64>().unwrap() > 2 * 10_000 + 1000);
    // The path that the unit's secret has, as the README says it.
    let credential = value("LoadCredential=");
    let (name, _) = credential.split_once(':').unwrap();
    let readme = fs::read_to_string(root.join("../README.md")).unwrap();
    assert!(readme.contains(&format!("/run/credentials/doorward.service/{name}")), "{name}");
    assert!(unit.contains(&format!("/run/credentials/doorward.service/{name}")), "{name}");
}

/// Each manifest's configuration stays below the manifest's memory limit while one stranger does what is expensive: as many
/// half heads of full length as there may be connections, and wrong passwords.
#[test]
fn no_stranger_drives_a_pod_out_of_its_memory() {
    let (most, hard) = {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        (limit.maximum.unwrap_or(65_536), limit.maximum)
    };
    let raised = rustix::process::Rlimit { current: Some(most), maximum: hard };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let manifests = shipped("--list");
    for manifest in manifests.as_array().unwrap() {
        let config = manifest["mounts"]["configMap"]["files"]["config.toml"].as_str().unwrap();
        let number = |key: &str| {
            let line = config.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
            line.trim_matches('"').trim_end_matches("KiB").parse::<usize>().unwrap()
        };
        let mut pod = Pod::new(manifest);
        pod.start();
        let head = format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nX-Long: {}",
            "x".repeat(number("max_header_bytes") * 1024 - 200)
        );
        let mut streams = Vec::new();
        for _ in 0..8 {
            let Ok(mut stream) = TcpStream::connect(pod.public) else { continue };
            let body = "username=kim&password=entirely+wrong+9+words";
            let text = format!(
                "POST /login HTTP/1.1\r\nHost: a.test\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(text.as_bytes());
            streams.push(stream);
        }
        for _ in 0..number("max_connections") + 50 {
            let Ok(mut stream) = TcpStream::connect(pod.public) else { continue };
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            // Refused ones are closed, which is as good.
            let _ = stream.write_all(head.as_bytes());
            streams.push(stream);
        }
        wait::until("the admin listener to answer meanwhile", || pod.get("/ping") == Some(200));
        let id = process_of(pod.child.as_ref().unwrap());
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        let limit = memory(manifest["memory"].as_str().unwrap());
        println!("{}: {} MiB at most of {} MiB", manifest["name"], peak >> 20, limit >> 20);
        assert!(peak < limit * 9 / 10, "{}: {} MiB of {} MiB", manifest["name"], peak >> 20, limit >> 20);
        drop(streams);
        pod.stop();
    }
}

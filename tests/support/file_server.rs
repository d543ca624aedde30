//! Real web servers over one folder of files, each of which reads paths in its own way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::gateway::free_port;
use super::peer::{Peer, node, python};

/// The servers, by name.
pub(crate) const SERVERS: &[&str] = &[
    "nginx",
    "nginx-unmerged",
    "nginx-before-python",
    "apache",
    "apache-slashes",
    "python",
    "php",
    "node-whatwg",
    "node-legacy",
    "node-twice",
    "node-lax",
];

/// A folder that servers which give up root's rights can read.
pub(crate) fn open_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("doorward-files-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Starts one of [`SERVERS`] over the folder `files`. `own` is for its configuration and logs.
pub(crate) fn serve(name: &str, files: &Path, own: &Path) -> Vec<Peer> {
    let port = free_port();
    let log = own.join(format!("{name}.log"));
    let started = |command: Command| vec![Peer::start(command, port, &log)];
    match name {
        "nginx" => started(nginx(own, name, port, &format!("root \"{}\";", files.display()))),
        "nginx-unmerged" => {
            started(nginx(own, name, port, &format!("merge_slashes off; root \"{}\";", files.display())))
        }
        "nginx-before-python" => {
            // With a path of its own in `proxy_pass`, nginx passes on what it has decoded and tidied up.
            let behind = serve("python", files, own).pop().unwrap();
            let location = format!("location / {{ proxy_pass http://127.0.0.1:{}/; }}", behind.port);
            let mut both = started(nginx(own, name, port, &location));
            both.push(behind);
            both
        }
        "apache" => started(apache(own, name, port, files, "Off")),
        "apache-slashes" => started(apache(own, name, port, files, "On")),
        "python" => {
            let mut command = python();
            command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(files).arg(port.to_string());
            started(command)
        }
        "php" => {
            let mut command = Command::new("php");
            command.args(["-n", "-S", &format!("127.0.0.1:{port}"), "-t"]).arg(files);
            started(command)
        }
        other => {
            let way = other.strip_prefix("node-").unwrap_or_else(|| panic!("no server is called {other}"));
            let mut command = node("peers/file_server.js");
            command.arg(files).arg(port.to_string()).arg(way);
            started(command)
        }
    }
}

/// nginx with one server of these lines.
pub(crate) fn nginx(own: &Path, name: &str, port: u16, lines: &str) -> Command {
    let folder = own.join(name);
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("nginx.conf");
    let text = format!(
        "daemon off; worker_processes 1; pid \"{folder}/pid\"; error_log \"{folder}/error.log\";\n\
         user {user};\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
           access_log off; server_tokens off; keepalive_requests 1000000; default_type text/plain;\n\
           client_body_temp_path \"{folder}/body\"; proxy_temp_path \"{folder}/proxy\"; fastcgi_temp_path \"{folder}/fastcgi\";\n\
           uwsgi_temp_path \"{folder}/uwsgi\"; scgi_temp_path \"{folder}/scgi\";\n\
           server {{ listen 127.0.0.1:{port}; {lines} }}\n\
         }}\n",
        folder = folder.display(),
        user = if rustix::process::geteuid().is_root() { "root" } else { "nobody" },
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program("nginx"));
    command.arg("-p").arg(&folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(&file);
    command
}

/// Apache httpd with these lines in its configuration.
pub(crate) fn apache_with(own: &Path, name: &str, port: u16, lines: &str) -> Command {
    let folder = own.join(name);
    fs::create_dir_all(&folder).unwrap();
    let modules = Path::new("/usr/lib/apache2/modules");
    assert!(modules.exists(), "there is no Apache httpd: run tests/run, which installs it");
    let mut text = format!(
        "ServerName localhost\nListen 127.0.0.1:{port}\nPidFile \"{folder}/pid\"\nErrorLog \"{folder}/error.log\"\n\
         DefaultRuntimeDir \"{folder}\"\nMaxKeepAliveRequests 0\nUser www-data\nGroup www-data\n",
        folder = folder.display(),
    );
    for name in ["mpm_event", "authz_core", "dir", "mime", "proxy", "proxy_http"] {
        text.push_str(&format!("LoadModule {name}_module {}/mod_{name}.so\n", modules.display()));
    }
    text.push_str("TypesConfig /dev/null\n");
    text.push_str(lines);
    let file = folder.join("httpd.conf");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program("apache2"));
    command.arg("-DFOREGROUND").arg("-d").arg(&folder).arg("-f").arg(&file);
    command
}

fn apache(own: &Path, name: &str, port: u16, files: &Path, encoded_slashes: &str) -> Command {
    let lines = format!(
        "DocumentRoot \"{files}\"\nDirectoryIndex index.html\nAllowEncodedSlashes {encoded_slashes}\n\
         <Directory \"{files}\">\nRequire all granted\nOptions -Indexes\n</Directory>\n",
        files = files.display(),
    );
    apache_with(own, name, port, &lines)
}

/// Where a system program is: not every user has `sbin` in the path.
pub(crate) fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("there is no {name}: run tests/run, which installs it"))
}

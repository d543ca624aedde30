//! Requests that name more than one target, or take a tree along, against mod_dav and wsgidav.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::support::file_server::apache_with;
use crate::support::gateway::free_port;
use crate::support::peer::{Peer, python};
use crate::support::{Builder, Gateway, Request};

/// A folder for everybody, one of a group within it, and one of lee.
fn lay_out(own: &Path) -> std::path::PathBuf {
    let files = own.join("dav");
    for (folder, file) in [("mine", "m.txt"), ("team/private", "secret.txt"), ("team/open", "o.txt")] {
        fs::create_dir_all(files.join(folder)).unwrap();
        fs::write(files.join(folder).join(file), file).unwrap();
    }
    let _ = Command::new("chmod").args(["-R", "a+rwX"]).arg(&files).status();
    fs::set_permissions(own, fs::Permissions::from_mode(0o755)).unwrap();
    files
}

fn mod_dav(own: &Path, files: &Path) -> Peer {
    let port = free_port();
    let modules = "/usr/lib/apache2/modules";
    let lines = format!(
        "LoadModule dav_module {modules}/mod_dav.so\nLoadModule dav_fs_module {modules}/mod_dav_fs.so\n\
         DocumentRoot \"{files}\"\nDavLockDB \"{own}/dav-locks\"\n\
         <Directory \"{files}\">\nRequire all granted\nDav On\nDavDepthInfinity On\n</Directory>\n",
        files = files.display(),
        own = own.join("locks").display(),
    );
    fs::create_dir_all(own.join("locks")).unwrap();
    let _ = Command::new("chmod").arg("a+rwx").arg(own.join("locks")).status();
    Peer::start(apache_with(own, "dav-server", port, &lines), port, &own.join("dav.log"))
}

fn wsgidav(own: &Path, files: &Path) -> Peer {
    let port = free_port();
    let mut command = python();
    command.args(["-m", "wsgidav.server.server_cli", "--host", "127.0.0.1", "--port"]).arg(port.to_string());
    command.arg("--root").arg(files).args(["--auth", "anonymous", "--no-config"]);
    Peer::start(command, port, &own.join("wsgidav.log"))
}

fn gateway(builder: Builder, dav: &Peer) -> Gateway {
    builder
        .upstream("app", &[&dav.url()])
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .route("path = \"/\"\nupstream = \"app\"")
        .route("path = \"/team/private\"\ngroups = [\"staff\"]\nupstream = \"app\"")
        .user("lee", &[])
        .user("kim", &["staff"])
        .start()
}

/// A request of one person with further fields.
fn ask(gateway: &Gateway, token: &str, line: &str, fields: &[(&str, &str)]) -> u16 {
    let (method, target) = line.split_once(' ').unwrap();
    let mut request = Request::new(method, target).cookie(token);
    for (name, value) in fields {
        request = request.field(name, value);
    }
    gateway.connect().with_any_field().send(&request).status
}

fn nothing_of_a_group_is_reached(gateway: &Gateway, files: &Path) {
    let (lee, kim) = (gateway.login("lee"), gateway.login("kim"));
    let base = format!("http://{}", gateway.address);
    let url = |path: &str| format!("{base}{path}");
    let secret = files.join("team/private/secret.txt");
    for (line, destination) in [
        ("COPY /mine/m.txt", "/team/private/planted.txt"),
        ("MOVE /mine/m.txt", "/team/private/planted.txt"),
        ("COPY /mine/m.txt", "/team/%70rivate/planted.txt"),
        ("COPY /mine/m.txt", "/mine/../team/private/planted.txt"),
        ("COPY /mine/m.txt", "//team/private/planted.txt"),
        ("COPY /team", "/mine/taken"),
        ("MOVE /team", "/mine/taken"),
        ("COPY /mine", "/team"),
    ] {
        let status = ask(gateway, &lee, line, &[("Destination", &url(destination)), ("Overwrite", "T")]);
        assert!(matches!(status, 400 | 403), "{line} to {destination}: {status}");
    }
    let twice = [("Destination", &*url("/mine/n.txt")), ("Destination", &*url("/team/private/n.txt"))];
    assert_eq!(ask(gateway, &lee, "COPY /mine/m.txt", &twice), 400);
    for line in ["DELETE /team", "DELETE /", "PROPFIND /team", "LOCK /team"] {
        assert_eq!(ask(gateway, &lee, line, &[]), 403, "{line}");
    }
    assert!(secret.exists() && !files.join("team/private/planted.txt").exists() && !files.join("mine/taken").exists());
    // What is lee's works, and so does everything for the group.
    let copy = [("Destination", &*url("/mine/copy.txt"))];
    assert!(matches!(ask(gateway, &lee, "COPY /mine/m.txt", &copy), 201 | 204));
    assert_eq!(ask(gateway, &lee, "PROPFIND /team/", &[("Depth", "1")]), 207);
    assert!(matches!(
        ask(gateway, &kim, "COPY /mine/m.txt", &[("Destination", &url("/team/private/of-kim.txt"))]),
        201 | 204
    ));
    assert!(files.join("mine/copy.txt").exists() && files.join("team/private/of-kim.txt").exists());
}

/// A proxy that ends TLS says so, and the client names the site as it knows it.
fn a_move_behind_tls_works(gateway: &Gateway, files: &Path) {
    let lee = gateway.login("lee");
    let destination = format!("https://{}/mine/moved%20on.txt", gateway.address);
    let fields = [("X-Forwarded-Proto", "https"), ("Destination", &*destination)];
    let status = ask(gateway, &lee, "MOVE /mine/copy.txt", &fields);
    assert!(matches!(status, 201 | 204), "{status}");
    assert!(files.join("mine/moved on.txt").exists());
}

#[test]
fn mod_dav_gets_no_target_that_is_closed_to_the_person() {
    let builder = Builder::new();
    let own = builder.folder().to_owned();
    let files = lay_out(&own);
    let dav = mod_dav(&own, &files);
    let gateway = gateway(builder, &dav);
    nothing_of_a_group_is_reached(&gateway, &files);
    a_move_behind_tls_works(&gateway, &files);
    let refused = gateway.access_line("/team");
    assert_eq!(refused["reason"], "target_denied");
}

#[test]
fn wsgidav_gets_no_target_that_is_closed_to_the_person() {
    let builder = Builder::new();
    let own = builder.folder().to_owned();
    let files = lay_out(&own);
    let dav = wsgidav(&own, &files);
    let gateway = gateway(builder, &dav);
    nothing_of_a_group_is_reached(&gateway, &files);
    a_move_behind_tls_works(&gateway, &files);
}

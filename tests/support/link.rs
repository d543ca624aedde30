//! What stands between two programs: a link that can be made to swallow every byte, and TLS in front of a plain port.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A TCP link. Cut, it stays half open: both ends believe in it, and nothing arrives.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl Link {
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = Self { address: listener.local_addr().unwrap(), cut: Arc::default(), connections: Arc::default() };
        let (cut, connections) = (Arc::clone(&link.cut), Arc::clone(&link.connections));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(target) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cut = Arc::clone(&cut);
                    std::thread::spawn(move || carry(from, to, &cut));
                }
            }
        });
        link
    }

    /// Swallows everything from now on, also on connections that are made later; or lets it through again. What was
    /// swallowed is gone, as are the connections that it was on.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut piece = [0; 16 * 1024];
    let mut swallowed = false;
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        swallowed |= cut.load(Ordering::SeqCst);
        if !swallowed && to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    // The end of a stream that lost bytes is not passed on either: the other side has to find out by itself.
    if !swallowed {
        let _ = to.shutdown(Shutdown::Write);
    }
}

/// TLS for `localhost` in front of a plain port, with a certificate that is its own authority.
pub(crate) struct Tls {
    pub(crate) port: u16,
    pub(crate) ca_file: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

impl Tls {
    pub(crate) fn in_front_of(target: SocketAddr, folder: &Path) -> Self {
        use rustls_pki_types::pem::PemObject as _;
        use rustls_pki_types::{CertificateDer, PrivateKeyDer};
        let file = |name: &str| folder.join(name);
        let settings = "[req]\ndistinguished_name = dn\nx509_extensions = ext\nprompt = no\n[dn]\nCN = centre\n\
                        [ext]\nsubjectAltName = DNS:localhost\nbasicConstraints = critical, CA:FALSE\n";
        std::fs::write(file("settings"), settings).unwrap();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .arg("-config")
            .arg(file("settings"))
            .arg("-keyout")
            .arg(file("tls.key"))
            .arg("-out")
            .arg(file("tls.crt"))
            .output()
            .expect("the openssl command is needed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(file("tls.crt")).unwrap()],
                PrivateKeyDer::from_pem_file(file("tls.key")).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("localhost:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut inside) = acceptor.accept(socket).await else { return };
                    let Ok(mut outside) = tokio::net::TcpStream::connect(target).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                });
            }
        });
        Self { port, ca_file: file("tls.crt"), _runtime: runtime }
    }
}

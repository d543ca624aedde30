//! Backends that record exactly what reached them and answer what the test says.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::wait;
use super::wire::{Head, Reader, Wire};

/// One request as it reached the backend.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    /// Counts the backend's connections from 0.
    pub(crate) connection: usize,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
    /// Every byte of it.
    pub(crate) raw: Vec<u8>,
}

impl Recorded {
    /// Every value of a field as a backend reads it that folds names as CGI does: every sign but letters and digits is
    /// `_`, trailers included.
    pub(crate) fn folded(&self, name: &str) -> Vec<String> {
        let fold = |name: &str| -> String {
            name.chars()
                .map(|sign| if sign.is_ascii_alphanumeric() { sign.to_ascii_uppercase() } else { '_' })
                .collect()
        };
        let wanted = fold(name);
        self.head
            .fields
            .iter()
            .chain(&self.trailers)
            .filter(|(field, _)| fold(field) == wanted)
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    /// The only value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let mut values = self.head.all(name);
        assert!(values.len() < 2, "{name} reached the backend {} times: {values:?}", values.len());
        values.pop()
    }
}

/// What to do with the connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    KeepOpen,
    Close,
}

type Handler = dyn Fn(&Recorded, &mut dyn Wire) -> Then + Send + Sync;

/// A backend; it ends with the test.
pub(crate) struct Upstream {
    pub(crate) url: String,
    pub(crate) address: Option<SocketAddr>,
    recorded: Arc<Mutex<Vec<Recorded>>>,
    streams: Arc<Mutex<Vec<Vec<u8>>>>,
    connections: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Upstream {
    /// Answers every request with what the handler writes; bodies are read whole first.
    pub(crate) fn start(handler: impl Fn(&Recorded, &mut dyn Wire) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Self::new(format!("http://{address}"), Some(address));
        let handler: Arc<Handler> = Arc::new(handler);
        let (recorded, connections, ended) = upstream.parts();
        let streams = Arc::clone(&upstream.streams);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let _ = stream.set_nodelay(true);
                let connection = connections.fetch_add(1, Ordering::SeqCst);
                streams.lock().unwrap().push(Vec::new());
                let stream = Overheard { stream, connection, heard: Arc::clone(&streams) };
                let (handler, recorded) = (Arc::clone(&handler), Arc::clone(&recorded));
                std::thread::spawn(move || converse(stream, connection, &*handler, &recorded));
            }
        });
        upstream
    }

    /// The same on a unix socket.
    pub(crate) fn on_unix_socket(
        path: &Path,
        handler: impl Fn(&Recorded, &mut dyn Wire) -> Then + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let upstream = Self::new(format!("unix:{}", path.display()), None);
        let handler: Arc<Handler> = Arc::new(handler);
        let (recorded, connections, ended) = upstream.parts();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let connection = connections.fetch_add(1, Ordering::SeqCst);
                let (handler, recorded) = (Arc::clone(&handler), Arc::clone(&recorded));
                std::thread::spawn(move || converse(stream, connection, &*handler, &recorded));
            }
        });
        upstream
    }

    /// Gives every connection to the handler before a byte of it is read.
    pub(crate) fn raw(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Self::new(format!("http://{address}"), Some(address));
        let (_, connections, ended) = upstream.parts();
        let handler = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                connections.fetch_add(1, Ordering::SeqCst);
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || handler(stream));
            }
        });
        upstream
    }

    /// Answers 200 with a small body and keeps the connection open.
    pub(crate) fn plain() -> Self {
        Self::start(|_, wire| reply(wire, 200, &[], b"hello from the backend"))
    }

    fn new(url: String, address: Option<SocketAddr>) -> Self {
        Self {
            url,
            address,
            recorded: Arc::default(),
            streams: Arc::default(),
            connections: Arc::default(),
            ended: Arc::default(),
        }
    }

    fn parts(&self) -> (Arc<Mutex<Vec<Recorded>>>, Arc<AtomicUsize>, Arc<AtomicBool>) {
        (Arc::clone(&self.recorded), Arc::clone(&self.connections), Arc::clone(&self.ended))
    }

    /// What has come so far.
    pub(crate) fn recorded(&self) -> Vec<Recorded> {
        self.recorded.lock().unwrap().clone()
    }

    /// Every byte of every connection so far, complete requests or not.
    pub(crate) fn streams(&self) -> Vec<Vec<u8>> {
        self.streams.lock().unwrap().clone()
    }

    /// The newest request; fails where there is none.
    #[track_caller]
    pub(crate) fn last(&self) -> Recorded {
        self.recorded.lock().unwrap().last().cloned().expect("nothing reached the backend")
    }

    /// How many requests have come.
    pub(crate) fn count(&self) -> usize {
        self.recorded.lock().unwrap().len()
    }

    /// How many connections have come.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub(crate) fn wait_for(&self, count: usize) {
        wait::until("requests at the backend", || self.count() >= count);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(address) = self.address {
            // Wakes the thread that accepts, so that it ends.
            let _ = TcpStream::connect(address);
        }
    }
}

/// A socket whose bytes are written down as they come, before anybody makes sense of them.
struct Overheard {
    stream: TcpStream,
    connection: usize,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Read for Overheard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.heard.lock().unwrap()[self.connection].extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

impl Write for Overheard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn converse(stream: impl Wire, connection: usize, handler: &Handler, recorded: &Mutex<Vec<Recorded>>) {
    let mut reader = Reader::new(stream);
    while let Ok(Some(head)) = reader.head() {
        let mut words = head.first_line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !head.all("expect").is_empty() {
            let _ = reader.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let body = if head.all("transfer-encoding").is_empty() {
            let length = head.all("content-length").first().map_or(0, |length| length.parse().unwrap_or(0));
            reader.exactly(length).map(|body| (body, Vec::new()))
        } else {
            reader.chunked()
        };
        let Ok((body, trailers)) = body else { return };
        let raw = {
            let unread = reader.buffered.len();
            let end = reader.taken.len() - unread;
            reader.taken.drain(..end).collect()
        };
        let request = Recorded { connection, method, target, head, body, trailers, raw };
        recorded.lock().unwrap().push(request.clone());
        if handler(&request, &mut reader.stream) == Then::Close {
            return;
        }
    }
}

/// Writes an answer with a `Content-Length`; a HEAD request needs [`reply_head`].
pub(crate) fn reply(wire: &mut dyn Wire, status: u16, fields: &[(&str, &str)], body: &[u8]) -> Then {
    let mut text = format!("HTTP/1.1 {status} Reason\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    let _ = wire.write_all(&bytes);
    let _ = wire.flush();
    Then::KeepOpen
}

/// Writes bytes as they are.
pub(crate) fn reply_bytes(wire: &mut dyn Wire, bytes: &[u8]) -> Then {
    let _ = wire.write_all(bytes);
    let _ = wire.flush();
    Then::KeepOpen
}

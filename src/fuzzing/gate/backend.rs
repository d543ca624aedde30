//! A backend that reads strictly and writes down every request.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::rc::Rc;

use http::Method;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What a backend saw of one request.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) upstream: &'static str,
    pub(super) method: Method,
    pub(super) target: String,
    /// Names in lower case, in order.
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} saw: {} {}", self.upstream, self.method, self.target)?;
        for (name, value) in &self.headers {
            writeln!(formatter, "{name}: {}", String::from_utf8_lossy(value))?;
        }
        Ok(())
    }
}

/// What the tasks of a play run as. A failure in one would otherwise stay there.
pub(super) type Tasks = Rc<RefCell<Vec<JoinHandle<()>>>>;

pub(super) struct Backend {
    name: &'static str,
    tasks: Tasks,
    seen: Rc<RefCell<Vec<Seen>>>,
}

impl Backend {
    /// Listens at the path as long as the play runs.
    pub(super) fn start(path: &Path, name: &'static str, seen: Rc<RefCell<Vec<Seen>>>, tasks: Tasks) {
        let listener = UnixListener::bind(path).unwrap();
        let backend = Rc::new(Self { name, tasks, seen });
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let task = tokio::task::spawn_local(Rc::clone(&backend).serve(socket));
                backend.tasks.borrow_mut().push(task);
            }
        });
    }

    async fn serve(self: Rc<Self>, socket: UnixStream) {
        let mut socket = BufReader::new(socket);
        while let Some(head) = read_head(&mut socket).await {
            let seen = self.parsed(&head);
            let value =
                |name: &str| seen.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
            let (length, coding) = (value("content-length"), value("transfer-encoding"));
            let upgrades = value("upgrade").is_some();
            let without_body = seen.method == Method::HEAD;
            self.seen.borrow_mut().push(seen);
            if upgrades {
                let accepted = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                let _ = socket.write_all(accepted).await;
                // What follows is no HTTP.
                let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
                return;
            }
            let read = match (coding, length) {
                (Some(coding), _) => {
                    assert_eq!(coding, b"chunked", "{head:?}");
                    read_chunks(&mut socket).await
                }
                (None, Some(length)) => read_exactly(&mut socket, &length).await,
                (None, None) => Some(()),
            };
            if read.is_none() {
                return;
            }
            let body = if without_body { "" } else { "ok" };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nSet-Cookie: access_token=evil; Path=/\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\n{body}"
            );
            if socket.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// One way to read a head, and every other one is a failure.
    fn parsed(&self, head: &[u8]) -> Seen {
        let shown = String::from_utf8_lossy(head);
        let text = head.strip_suffix(b"\n\r\n").unwrap_or(head);
        let mut lines = text.split(|byte| *byte == b'\n').map(|line| {
            line.strip_suffix(b"\r").unwrap_or_else(|| panic!("a line without its carriage return: {shown:?}"))
        });
        // A target may hold any byte that prints or is no ASCII; for what is checked both forms are the same.
        let first = crate::message::head::encoded(lines.next().unwrap());
        let words: Vec<&str> = first.split(' ').collect();
        let [method, target, "HTTP/1.1"] = words.as_slice() else { panic!("no request line: {shown:?}") };
        let mut headers = Vec::new();
        for line in lines {
            assert!(!line.contains(&b'\r') && !line.contains(&0), "{shown:?}");
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or_else(|| panic!("no header: {shown:?}"));
            let name = String::from_utf8(line[..colon].to_vec()).unwrap();
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert!(!name.is_empty() && name.bytes().all(is_token), "no header's name: {shown:?}");
            headers.push((name.to_ascii_lowercase(), line[colon + 1..].trim_ascii().to_vec()));
        }
        Seen { upstream: self.name, method: method.parse().unwrap(), target: (*target).to_owned(), headers }
    }
}

type Socket = BufReader<UnixStream>;

/// Up to the empty line. `None`: the connection is over.
async fn read_head(socket: &mut Socket) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if socket.read_until(b'\n', &mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

async fn read_exactly(socket: &mut Socket, length: &[u8]) -> Option<()> {
    let length: usize = std::str::from_utf8(length).ok()?.parse().expect("a length is a number");
    let mut body = vec![0; length.min(1 << 20)];
    socket.read_exact(&mut body).await.ok().map(|_| ())
}

async fn read_chunks(socket: &mut Socket) -> Option<()> {
    loop {
        let mut line = Vec::new();
        if socket.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        let size = std::str::from_utf8(line.strip_suffix(b"\r\n")?).ok()?;
        let size = usize::from_str_radix(size, 16).expect("a size is a number");
        if size == 0 {
            break;
        }
        let mut chunk = vec![0; size + 2];
        socket.read_exact(&mut chunk).await.ok()?;
        assert!(chunk.ends_with(b"\r\n"), "a chunk of another size");
    }
    // Trailers, up to an empty line.
    loop {
        let mut line = Vec::new();
        if socket.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        if line == b"\r\n" {
            return Some(());
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        let name = http::HeaderName::from_bytes(name).expect("a trailer has a name");
        assert!(!crate::fuzzing::headers::names_a_person(&name), "{name} in a trailer");
    }
}

//! Standard output, where all logs go: written by a thread of its own, so that nobody ever waits for whoever reads it.
//!
//! A reader that has stopped (a pipe that nobody empties, a disk that stands still) costs lines, never a request, a login or
//! the end of the process. Lines that are lost are counted, and told when it goes on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

/// Bytes that may wait; what comes beyond is lost.
const MOST_WAITING_BYTES: usize = 8 * 1024 * 1024;

/// Where lines wait to be written. Cheap to clone.
#[derive(Clone)]
pub(super) struct Output(Arc<Inner>);

struct Inner {
    sender: Sender<Message>,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    bytes: AtomicUsize,
    /// Not told yet.
    lost: AtomicU64,
}

enum Message {
    Lines(Vec<u8>),
    /// Answer when everything before this has been written.
    Barrier(SyncSender<()>),
}

/// Lines that were lost since the process began.
pub(super) fn lost_lines() -> &'static Counter {
    static LOST: OnceLock<Counter> = OnceLock::new();
    LOST.get_or_init(Counter::default)
}

impl Output {
    /// Standard output. Its thread begins with the first line.
    pub(super) fn standard() -> &'static Self {
        static STANDARD: OnceLock<Output> = OnceLock::new();
        STANDARD.get_or_init(|| {
            // Not through the standard library's own buffer: whoever waits for its lock waits for the reader.
            let descriptor = io::stdout().as_fd().try_clone_to_owned();
            Self::to(descriptor.map(File::from))
        })
    }

    fn to(sink: io::Result<impl Write + Send + 'static>) -> Self {
        let (sender, messages) = channel();
        let waiting = Arc::new(Waiting::default());
        if let Ok(sink) = sink {
            let of_thread = Arc::clone(&waiting);
            let thread = std::thread::Builder::new().name(String::from("log"));
            // Without the thread there is no receiver, and everything is lost: what could say so is what is missing.
            let _ = thread.spawn(move || write_all(sink, &messages, &of_thread));
        }
        Self(Arc::new(Inner { sender, waiting }))
    }

    /// Hands over whole lines. Never waits.
    pub(super) fn send(&self, lines: Vec<u8>) {
        let waiting = &self.0.waiting;
        let length = lines.len();
        if waiting.bytes.fetch_add(length, Ordering::Relaxed) > MOST_WAITING_BYTES {
            waiting.bytes.fetch_sub(length, Ordering::Relaxed);
            let count = memchr::memchr_iter(b'\n', &lines).count() as u64;
            waiting.lost.fetch_add(count, Ordering::Relaxed);
            lost_lines().inc_by(count);
            return;
        }
        // It fails only where the thread could not be started.
        let _ = self.0.sender.send(Message::Lines(lines));
    }

    /// Waits until everything that was handed over has been written, but no longer than `limit`. For the end of the process.
    pub(super) fn settle(&self, limit: Duration) {
        let (done, wait) = sync_channel(1);
        if self.0.sender.send(Message::Barrier(done)).is_ok() {
            let _ = wait.recv_timeout(limit);
        }
    }
}

fn write_all(mut sink: impl Write, messages: &Receiver<Message>, waiting: &Waiting) {
    for message in messages {
        match message {
            Message::Lines(lines) => {
                // A closed pipe must not end the gateway; there is nowhere left to report it either.
                let written = sink.write_all(&lines);
                waiting.bytes.fetch_sub(lines.len(), Ordering::Relaxed);
                if written.is_err() {
                    continue;
                }
                let lost = waiting.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::warn!(lines = lost, "the log was not read or could not be written; lines were lost");
                }
            }
            // Nobody waits any more: fine.
            Message::Barrier(done) => drop(done.send(())),
        }
    }
}

/// What is written to it at once goes to standard output as one piece.
pub(super) struct Piece;

impl Write for Piece {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Output::standard().send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::to(Ok(writer));
        let line = [&[b'a'; 1023][..], b"\n"].concat();
        let lost_before = lost_lines().get();
        let count = 2 * MOST_WAITING_BYTES / line.len();
        for _ in 0..count {
            output.send(line.clone());
        }
        let lost = lost_lines().get() - lost_before;
        assert!(lost > 0 && lost < count as u64, "{lost} of {count}");
        output.settle(Duration::from_millis(1));
        // Somebody reads again: what waited comes.
        let mut kept = vec![0; (count - usize::try_from(lost).unwrap()) * line.len()];
        reader.read_exact(&mut kept).unwrap();
        assert!(kept.chunks(line.len()).all(|chunk| chunk == line));
        output.settle(Duration::from_mins(1));
        assert_eq!(output.0.waiting.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(output.0.waiting.lost.load(Ordering::Relaxed), 0, "it was told");
    }
}

//! Bare bcrypt: how many passwords a second so many threads can check, with nothing around it.
//!
//! `bcrypt_loop THREADS COST SECONDS` prints one number. `benches/side-by-side` holds the gateway's logins against it.
#![expect(clippy::print_stdout, reason = "the figure is what it is for")]
#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the real clock")]
#![expect(clippy::expect_used, reason = "a benchmark with wrong arguments ends there")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn main() {
    // `cargo bench` adds an argument of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mut next = |default: u64| {
        arguments.next().map_or(default, |text| text.parse().expect("bcrypt_loop THREADS COST SECONDS, three numbers"))
    };
    let (threads, cost, seconds) = (next(1), next(10), next(3));
    let hash = bcrypt::hash("a fine password", u32::try_from(cost).expect("a cost")).expect("a cost of 4 to 31");
    let checked = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while began.elapsed() < Duration::from_secs(seconds) {
                    assert!(bcrypt::verify("a fine password", &hash).expect("a hash of its own"));
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let rate = checked.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.2}");
}

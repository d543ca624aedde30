//! The steps of the line. `cargo bench --features measure --bench line` times them (criterion);
//! `benches/instructions` counts their instructions, which a noisy machine does not change.
#![expect(clippy::expect_used, reason = "a bench that can't be set up ends there")]

use std::hint::black_box;

use criterion::Criterion;
use doorward::measure::{Head, Line};

type Step = (&'static str, fn(&Line) -> bool);

const STEPS: [Step; 5] = [
    ("admit", Line::admit),
    ("resolve", Line::resolve),
    ("identify, remembered", Line::identify_remembered),
    ("identify, new", Line::identify_new),
    ("decide (with resolve)", Line::decide),
];

/// What the steps work on: a head, live revocations, more routes.
const SETTINGS: [(&str, Head, u64, usize); 4] = [
    ("small head", Head::Small, 10_000, 0),
    ("browser's head", Head::Browser, 10_000, 0),
    ("200,000 revocations", Head::Small, 200_000, 0),
    ("2,000 routes", Head::Small, 0, 2_000),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        // Under callgrind: one step of one setting, so many times.
        [_, count, setting, step, times] if count == "--count" => {
            let number = |text: &String| text.parse::<usize>().expect("--count SETTING STEP TIMES, three numbers");
            let (_, head, revocations, routes) = SETTINGS.get(number(setting)).copied().expect("a setting's number");
            let (_, step) = STEPS.get(number(step)).copied().expect("a step's number");
            let line = Line::new(head, revocations, routes).expect("a line");
            for _ in 0..number(times) {
                assert!(black_box(step(black_box(&line))));
            }
        }
        [_, list] if list == "--names" => {
            for (setting, (name, ..)) in SETTINGS.iter().enumerate() {
                for (step, (what, _)) in STEPS.iter().enumerate() {
                    print_line(&format!("{setting}\t{step}\t{name}\t{what}"));
                }
            }
        }
        _ => {
            let mut criterion = Criterion::default().configure_from_args();
            for (name, head, revocations, routes) in SETTINGS {
                let line = Line::new(head, revocations, routes).expect("a line");
                let mut group = criterion.benchmark_group(name);
                for (what, step) in STEPS {
                    group.bench_function(what, |bencher| bencher.iter(|| step(black_box(&line))));
                }
                group.finish();
            }
            criterion.final_summary();
        }
    }
}

#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
fn print_line(line: &str) {
    println!("{line}");
}
